"""A term of the loss: one explainer, pulled by one objective, on some images."""

from __future__ import annotations

from dataclasses import dataclass, field

from trompe.base.identity import Identified
from trompe.data.images import Images
from trompe.explainers import Explainer
from trompe.objectives import Objective


@dataclass(frozen=True)
class Term(Identified):
    """λ · L_F of one explainer.

    Parameters
    ----------
    explainer
        What is attacked.
    objective
        What its heatmaps should show.
    weight
        λ; a term of weight 0 is only evaluated. None: found, or 1 where a learning rate is given.
    data
        The images that the objective looks at, such as composites; None for those of the
        classification loss.

    Examples
    --------
    >>> from trompe import GradCAM, Location
    >>> print(Term(GradCAM(layer="layer4"), Location(), weight=6))
    grad-cam:layer=layer4 location
    """

    explainer: Explainer
    objective: Objective
    weight: float | None = None
    data: Images | None = field(default=None, repr=False)

    def identity(self) -> object:
        """The images are told apart as they are: by what they are, if they say it."""
        seen = getattr(self.data, "fingerprint", id(self.data))
        return self.explainer, self.objective, self.weight, None if self.data is None else seen

    def __str__(self) -> str:
        return f"{self.explainer} {self.objective}"
