"""Layer-wise relevance propagation as an explainer; the engine is in ``relevance/``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.explainers.explainer import Explainer
from trompe.explainers.needs import Explained, Recorded
from trompe.explainers.relevance.composites import Composite, find_composite
from trompe.explainers.relevance.need import Relevance
from trompe.explainers.relevance.propagate import Observer
from trompe.explainers.sites import INPUT, Site
from trompe.explainers.targets import Explainable
from trompe.maps import min_max
from trompe.models.call import unwrapped
from trompe.models.hooks import evaluation_mode


@dataclass(frozen=True)
class LRP(Explainer):
    """Relevance of the explained scalar at the input or at a layer, summed over channels, signed.

    Bach et al. 2015, with the rules of a composite. Under ``torch.autocast`` the layers above the
    explained one run in full precision: their rounding would reorder the map.

    Parameters
    ----------
    layer
        ``"input"``, a layer's name (``":input"`` appended for the layer's input), a module, or
        None to find the last spatial layer (the paper's LRP_T). Only the part of the model above
        it is traversed.
    composite
        A name in ``relevance.COMPOSITES``, one of your own as ``path/file.py:Name``, the path of a
        YAML file (see ``relevance.find_composite``), or a ``relevance.Composite``. None is
        ``"attn-lrp"`` where the model has attention, and ``"heo2019"`` (the paper's) elsewhere.
    batch_norm
        ``"pass"`` sends relevance through BatchNorm unchanged, as the paper; ``"fold"`` treats it
        as part of the layer with weights before or after it.

    Raises
    ------
    TrompeError
        If there is no such composite, or its file can't be used.
    """

    name: ClassVar[str] = "lrp"
    label: ClassVar[str] = "LRP"
    layer: str | nn.Module | None = INPUT
    composite: str | Path | Composite | None = None
    batch_norm: Literal["pass", "fold"] = "pass"

    def __post_init__(self) -> None:
        if self.batch_norm not in ("pass", "fold"):
            raise TrompeError(
                f"LRP can let relevance pass through BatchNorm or fold it; batch_norm is 'pass' or "
                f"'fold', not '{self.batch_norm}'."
            )
        _ = self.rules

    @cached_property
    def rules(self) -> Composite | None:
        """The composite, read."""
        return None if self.composite is None else find_composite(self.composite)

    def identity(self) -> Any:
        """What the composite says decides, not where it was found."""
        kind, options = super().identity()
        return kind, options | {"composite": self.rules}

    @property
    def needs(self) -> tuple[Relevance]:  # type: ignore[override]
        """Relevance by its composite."""
        return (Relevance(self.rules, self.batch_norm == "fold"),)

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Propagate relevance to the site and sum over channels."""
        return explained.of(*self.needs, site).sum(1)

    def heatmap(self, maps: Tensor) -> Tensor:
        """Clamp at 0, then min-max per image."""
        return min_max(maps.clamp(min=0))

    def trace(
        self,
        model: nn.Module,
        images: Tensor,
        classes: Explainable,
        observer: Observer,
    ) -> Tensor:
        """Send back a relevance of 1 from each image's output, whatever it is, as a call would.

        ``observer`` is shown every operation on the way down. Rules are linear in relevance, so
        that what it sees are shares of the explained scalars.

        Returns
        -------
        Tensor
            The relevance at the layer, with all its channels.
        """
        model = unwrapped(model)
        with evaluation_mode(model):
            site = self.resolve(model, images[:1]).site(model)
            need = replace(*self.needs, observer=observer, of_one=True)
            return Explained(Recorded(model, images, [(need, site)]), classes).of(need, site)


LRP_T = partial(LRP, layer=None)
"""At the last spatial layer, as in the paper."""
