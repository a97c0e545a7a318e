"""The terminal: text is shown as it is, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from trompe.errors import printable


class Terminal(Console):
    """A console to which no text is markup, and none steers the terminal.

    Style is given beside the text: ``Text.assemble(("Error:", "bold red"), " ...")``.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(markup=False, emoji=False, **given)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What is shown, without characters that steer the terminal but the console's own."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text)
            yield segment._replace(text=text)
