"""Distillation: a classifier whose predictions another one learns beside the labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trompe.base.messages import listed
from trompe.data.dataset import ImageDataset
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.models import LoadedModel


class Teacher(nn.Module):
    """A classifier that looks at images which are prepared for another one, as that one's classes.

    Parameters
    ----------
    model
        The classifier, and the preprocessing that it expects.
    given
        The preprocessing of the images it will get.
    outputs
        Which of its outputs each class is.
    """

    def __init__(self, model: LoadedModel, given: Preprocessing, outputs: list[int]) -> None:
        super().__init__()
        self.model, self.own = model
        self.given, self.outputs = given, outputs

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W], which are resized to what it expects."""
        pixels = self.given.denormalise(images)
        if pixels.shape[-1] != self.own.crop:
            side = [self.own.crop, self.own.crop]
            pixels = F.interpolate(pixels, size=side, mode="bilinear", antialias=True)
        logits: Tensor = self.model(self.own.normalise(pixels))
        return logits[:, self.outputs]


def teacher_of(model: LoadedModel, data: ImageDataset, own: ImageDataset) -> Teacher:
    """A teacher for the classes of ``data``, from the same images as the teacher has them.

    Raises
    ------
    TrompeError
        If a class has no image, or two classes are one output of the teacher.
    """
    outputs = dict(zip(data.labels.tolist(), own.labels.tolist(), strict=True))
    classes = range(len(data.classes))
    if absent := [data.classes[i] for i in classes if i not in outputs]:
        raise TrompeError(
            f"What the teacher says of {listed('classes', absent)} is not known: there is no image "
            f"of it. Give images of all classes, or --num-classes {len(outputs)} for a model of "
            "those that there are."
        )
    if len(set(outputs.values())) < len(classes):
        raise TrompeError(
            "Two classes are the same output of the teacher; give another teacher_class_map."
        )
    return Teacher(model, data.preprocessing, [outputs[i] for i in classes])


def distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """The cross-entropy of predictions with the teacher's, in nats (Hinton, Vinyals, Dean 2015)."""
    return F.cross_entropy(logits, teacher.float().softmax(1).to(logits))
