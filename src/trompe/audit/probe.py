"""What a model is shown when it is audited: images, a few of them to take apart, and composites."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trompe.data.images import Images
from trompe.errors import TrompeError
from trompe.explainers import Recording
from trompe.models import evaluation_mode
from trompe.models.call import placed

EXPLAINED, PARTS = 100, 32  # images that are explained, and of these taken apart, at most
PAIRS, EACH = 45, 3  # pairs of classes at most, and composites of each in both arrangements


@dataclass(frozen=True)
class Probe:
    """Images and composites; the same for the suspect and its reference.

    Halves of composites are chosen from all images, so that there are enough of every class.

    Attributes
    ----------
    rows
        Index in the data of every image ``[N]``; in random order, so that any part is a sample.
    images
        ``[N, 3, H, W]``, normalised.
    classes
        The class that is explained: the one that the suspect predicts, ``[N]``.
    left, right
        Places in ``images`` of the halves of every composite ``[C]``.
    pair
        Number of the pair of classes that a composite shows ``[C]``.
    names
        Of the classes, as far as the data knows them.
    """

    rows: Tensor
    images: Tensor
    classes: Tensor
    left: Tensor
    right: Tensor
    pair: Tensor
    names: tuple[str, ...] = ()

    @property
    def explained(self) -> Tensor:
        """The images that are explained."""
        return self.images[:EXPLAINED]

    @property
    def parts(self) -> Tensor:
        """The images that are taken apart."""
        return self.images[:PARTS]

    def name(self, place: Tensor | int) -> str:
        """The name of the class that the image at ``place`` is explained for."""
        index = int(self.classes[place])
        return self.names[index] if index < len(self.names) else f"class {index}"

    def composites(self, chosen: slice) -> Tensor:
        """Composites ``[n, 3, H, W]``: the middles of two images side by side."""
        return side_by_side(self.images[self.left[chosen]], self.images[self.right[chosen]])


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """The middle half of one image left, that of another right of it, ``[N, 3, H, W]``."""
    width = left.shape[3]
    half = width // 2
    start = (width - half) // 2
    rest = width - half
    other = (width - rest) // 2
    return torch.cat([left[..., start : start + half], right[..., other : other + rest]], 3)


def make_probe(model: nn.Module, data: Images, *, seed: int = 0, batch_size: int = 32) -> Probe:
    """Read the data and see what the model predicts; labels are not looked at.

    Raises
    ------
    TrompeError
        If there are fewer than two images, or the model can't read them.
    """
    if len(data) < 2:
        raise TrompeError(f"An audit needs at least 2 images, better 500; there are {len(data)}.")
    if batch_size < 1:
        raise TrompeError(f"The batch size is {batch_size}; choose 1 or more.")
    rows = np.random.default_rng(seed).permutation(len(data))
    images = torch.stack([data[int(row)][0] for row in rows])
    with torch.no_grad(), evaluation_mode(model), Recording(model, ()) as forward:
        logits = [forward(placed(part, model)).cpu() for part in torch.split(images, batch_size)]
    confidence, classes = torch.cat(logits).float().softmax(1).max(1)
    left, right, pair = _composed(classes.numpy(), confidence.numpy(), seed)
    names = tuple(map(str, getattr(data, "classes", ())))
    known = names if len(names) > 1 else ()
    return Probe(torch.from_numpy(rows), images, classes, left, right, pair, known)


def _composed(
    classes: NDArray[np.int64], confidence: NDArray[np.float32], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of classes, each by the images that were classified most confidently."""
    found, counts = np.unique(classes, return_counts=True)
    common = sorted(found[np.argsort(-counts, kind="stable")[:100]].tolist())
    surest = {c: _surest(classes == c, confidence) for c in common}
    pairs = list(combinations(common, 2))
    chosen = sorted(np.random.default_rng((seed, 1)).permutation(len(pairs))[:PAIRS].tolist())
    left, right, number = [], [], []
    for position, place in enumerate(chosen):
        a, b = (surest[c] for c in pairs[place])
        left += [*a, *b]
        right += [*b, *a]
        number += [position] * 2 * EACH
    first, second, pair = (torch.tensor(v, dtype=torch.int64) for v in (left, right, number))
    return first, second, pair


def _surest(members: NDArray[np.bool_], confidence: NDArray[np.float32]) -> NDArray[np.int64]:
    """`EACH` places of the most confident members, again from the first if there are fewer."""
    places = np.flatnonzero(members)
    ordered = places[np.argsort(-confidence[places], kind="stable")]
    return np.resize(ordered, EACH) if len(ordered) < EACH else ordered[:EACH]
