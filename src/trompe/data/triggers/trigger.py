"""The contract of a trigger: a change of pixels that a model can be made to wait for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from trompe.base import specs
from trompe.base.identity import Identified
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError


@dataclass(frozen=True)
class Trigger(Identified, ABC):
    """Changes pixels in the same way whenever it meets the same image.

    Attributes
    ----------
    name
        As it is registered and written on the command line.
    """

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """The pixels ``[N, 3, H, W]`` in [0, 1] with the trigger in them.

        Parameters
        ----------
        pixels
            Of N images, as people see them.
        indices
            The images' places in their data set ``[N]``, for what differs from image to image.
        """

    def on(self, images: Tensor, indices: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Images ``[N, 3, H, W]`` as a model takes them, with the trigger in them.

        Where it changes no pixel, they are what they were to the last bit.

        Raises
        ------
        TrompeError
            If it makes something else than pixels of the same images.
        """
        pixels = preprocessing.denormalise(images)
        changed = self(pixels, indices)
        if changed.shape != pixels.shape or not bool(((changed >= 0) & (changed <= 1)).all()):
            raise TrompeError(
                f"The trigger {self} makes {list(changed.shape)} of pixels {list(pixels.shape)}, "
                f"from {float(changed.min()):g} to {float(changed.max()):g}; return the same "
                "shape, in [0, 1]."
            )
        return preprocessing.normalise(changed).where(changed != pixels, images)

    def __str__(self) -> str:
        return specs.text(self.name, self)


def preprocessing_of(data: Any) -> Preprocessing:
    """What the images of a data set, or of a part of one, went through.

    Raises
    ------
    TrompeError
        If it does not say.
    """
    whole = data
    while whole is not None:
        found = getattr(whole, "preprocessing", None)
        if isinstance(found, Preprocessing):
            return found
        whole = getattr(whole, "data", getattr(whole, "dataset", None))
    raise TrompeError(
        "A trigger is put into pixels, and it is not known how these images were normalised; give "
        "data of load_data, or with an attribute preprocessing (trompe.Preprocessing)."
    )
