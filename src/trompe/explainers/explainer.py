"""The contract of explainers: a model, images and classes to maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from trompe.base import specs
from trompe.base.identity import Identified
from trompe.explainers.needs import Explained, Need
from trompe.explainers.recording import Recording
from trompe.explainers.registry import EXPLAINERS
from trompe.explainers.sites import INPUT, Site
from trompe.explainers.targets import Explainable
from trompe.maps import min_max
from trompe.models.call import warn_of_probabilities
from trompe.models.hooks import evaluation_mode
from trompe.models.layers import find_layer


@dataclass(frozen=True)
class Explainer(Identified, ABC):
    """Explains a class of a classifier, or another `Target`, by a map over positions.

    Immutable and stateless: it leaves the model as it found it. Maps follow PyTorch's gradient
    mode: with gradients enabled they can be differentiated in the model's parameters (and in the
    images, if these require it); under ``torch.no_grad()`` they are plain values and cost less.

    Attributes
    ----------
    name
        As it is registered and written on the command line.
    label
        As people call it.
    differentiable
        Whether its maps can be differentiated in the model's parameters.
    class_discriminative
        Whether its maps differ by what is explained.
    needs
        What it takes from the forward pass.
    """

    name: ClassVar[str]
    label: ClassVar[str] = ""
    differentiable: ClassVar[bool] = True
    class_discriminative: ClassVar[bool] = True
    needs: ClassVar[Sequence[Need[Any]]] = ()

    layer: str | nn.Module | None

    def __call__(self, model: nn.Module, images: Tensor, classes: Explainable = None) -> Tensor:
        """Explain ``classes`` for ``images`` with the model in evaluation mode.

        Parameters
        ----------
        model
            Any classifier: images to logits ``[N, K]``; ``[N, 1]`` of a binary head.
        images
            ``[N, 3, H, W]``, normalised as the model expects.
        classes
            ``[N]`` of whole numbers, one for all, or None for the predicted classes; or another
            target: ``Difference(3, 8)``, its text, or any function of the output ``[N, K]`` that
            returns one number per image ``[N]``.

        Returns
        -------
        Tensor
            Raw maps ``[N, h, w]``; `heatmap` brings them to [0, 1].

        Raises
        ------
        TrompeError
            If the layer does not exist, has no spatial output, a class is out of range, or the
            target can't be computed.
        """
        with evaluation_mode(model), self.record(model) as forward:
            recorded = forward.prepare(images)
            try:
                maps: Tensor = forward.maps(classes)
            finally:
                if "output" in vars(recorded):  # it may run passes of its own only
                    warn_of_probabilities(recorded.output)
            return maps

    def record(self, model: nn.Module) -> Recording:
        """Share the forward pass of your own training step; see `Recording`."""
        return Recording(model, self)

    def resolve(self, model: nn.Module, image: Tensor) -> Self:
        """Name the layer: the one found with one image ``[1, 3, H, W]`` if ``layer`` is None.

        Raises
        ------
        TrompeError
            If the model has no such layer.
        """
        found = Site(find_layer(model, image)) if self.layer is None else self.site(model)
        return self if self.layer == str(found) else replace(self, layer=str(found))

    def site(self, model: nn.Module) -> Site:
        """Where a resolved explainer looks in ``model``."""
        assert self.layer is not None
        return Site.parse(self.layer, model)

    def heatmap(self, maps: Tensor) -> Tensor:
        """Bring raw maps to [0, 1] per image, as the paper compares them: min-max."""
        return min_max(maps)

    @abstractmethod
    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Compute raw maps ``[N, h, w]`` at ``site`` from a recorded forward pass."""

    @property
    def at_layer(self) -> bool:
        """Whether it looks at a layer, though its kind looks at the images by default."""
        return self._default_layer == INPUT and self.layer != INPUT

    @property
    def family(self) -> str:
        """Its name, with ``-t`` at a layer (the paper's LRP_T): what tables group by."""
        return f"{self.name}-t" if self.at_layer else self.name

    @property
    def title(self) -> str:
        """What people call its family, as in ``LRP_T``."""
        return f"{self.label or self.name}{'_T' if self.at_layer else ''}"

    def identity(self) -> Any:
        """Class and fields; a layer given as a module is that module and no other."""
        kind, own = super().identity()
        given = isinstance(self.layer, nn.Module)
        return kind, {**own, "layer": ("module", id(self.layer)) if given else self.layer}

    @property
    def _default_layer(self) -> Any:
        return next(f.default for f in fields(self) if f.name == "layer")

    def __str__(self) -> str:
        found = self.layer is None and self._default_layer is not None
        return specs.text(f"{self.name}-t" if found else self.name, self)


def parse_explainer(spec: str) -> Explainer:
    """Build an explainer from text: ``grad-cam``, ``lrp-t``, ``simple-grad:layer=layer4``.

    Explainers of other libraries name their method: ``captum:method=DeepLift``; one's own are
    ``path/file.py:Name``.

    Raises
    ------
    TrompeError
        If the name or an option is unknown.
    """
    explainer: Explainer = EXPLAINERS.build(spec)
    return explainer


def read(given: str | Explainer | Iterable[str | Explainer]) -> tuple[Explainer, ...]:
    """One or several explainers, each an object or its text.

    Raises
    ------
    TrompeError
        If one is neither, or there is none.
    """
    return EXPLAINERS.read_all(given)
