"""Where the outputs of layers lie over the images."""

import pytest
import torch
from torch import nn

from trompe.models.grids import grid_of

SQUARE, WIDE = torch.Size((2, 3, 64, 64)), torch.Size((2, 3, 64, 96))


def positions(shape, dims):
    """A tensor whose every entry is the number of its position, row by row, and -1 elsewhere."""
    rows, columns = (shape[d] for d in dims)
    numbers = torch.arange(rows * columns).reshape(rows, columns)
    view = [1] * len(shape)
    view[dims[0]], view[dims[1]] = rows, columns
    return numbers.reshape(view).expand(shape)


@pytest.mark.parametrize(
    ("shape", "dims", "images"),
    [
        ((2, 5, 8, 8), (2, 3), SQUARE),
        ((2, 8, 8, 5), (1, 2), SQUARE),
        ((2, 8, 8, 9), (1, 2), SQUARE),
        ((2, 8, 8, 200), (1, 2), SQUARE),
        ((2, 8, 12, 12), (1, 2), WIDE),
        ((2, 8, 12, 8), (1, 2), WIDE),
        ((2, 12, 8, 12), (2, 3), WIDE),
        ((2, 96, 1, 1), (2, 3), SQUARE),
        ((2, 7, 3, 8), (2, 3), SQUARE),  # whatever it is, not channels last
    ],
    ids=str,
)
def test_channels_first_or_last_by_the_proportions(shape, dims, images):
    tensor = positions(shape, dims).contiguous()
    found = grid_of(tensor, images)(tensor)
    rows, columns = (shape[d] for d in dims)
    assert found.shape[2:] == (rows, columns)
    assert torch.equal(found[1, 0].flatten(), torch.arange(rows * columns))


@pytest.mark.parametrize(
    ("module", "is_last"),
    [
        (nn.Conv2d(8, 8, 3), False),
        (nn.LayerNorm(8), True),
        (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), True),
        (nn.Sequential(nn.Conv2d(8, 8, 7), nn.Linear(8, 8)), False),
        (nn.ReLU(), False),
    ],
    ids=str,
)
def test_a_cube_is_read_by_what_computed_it(module, is_last):
    tensor = torch.randn(2, 8, 8, 8)
    grid = grid_of(tensor, SQUARE, module)
    assert torch.equal(grid(tensor), tensor.permute(0, 3, 1, 2) if is_last else tensor)
    laid_out = tensor.contiguous(memory_format=torch.channels_last)
    assert torch.equal(grid_of(laid_out, SQUARE, module)(laid_out), laid_out)


@pytest.mark.parametrize(
    ("count", "images", "before", "sides"),
    [
        (65, SQUARE, 1, (8, 8)),
        (64, SQUARE, 0, (8, 8)),
        (66, SQUARE, 2, (8, 8)),
        (69, SQUARE, 5, (8, 8)),
        (68, SQUARE, 4, (8, 8)),
        (25, WIDE, 1, (4, 6)),
        (24, WIDE, 0, (4, 6)),
    ],
)
def test_tokens_after_class_and_register_tokens(count, images, before, sides):
    tensor = torch.full((2, count, 5), -1)
    tensor[:, before:] = torch.arange(count - before)[:, None]
    found = grid_of(tensor, images)(tensor)
    assert found.shape == (2, 5, *sides)
    assert torch.equal(found[0, 3].flatten(), torch.arange(count - before))


@pytest.mark.parametrize(
    ("shape", "layout", "dims"),
    [
        ((2, 8, 8, 8), "last", (1, 2)),
        ((2, 8, 8, 8), "first", (2, 3)),
        ((2, 7, 3, 8), "last", (1, 2)),
        ((2, 67, 5), "3", (8, 8)),
        ((2, 65, 5), "1", (8, 8)),
        ((2, 65, 5), "2", None),
        ((2, 65, 5), "last", None),
        ((2, 8, 8, 8), "1", None),
    ],
    ids=str,
)
def test_a_layout_that_is_given(shape, layout, dims):
    tensor = torch.randn(shape)
    grid = grid_of(tensor, SQUARE, nn.Conv2d(8, 8, 3), layout)
    if dims is None:
        assert grid is None
    elif layout.isdigit():
        expected = tensor[:, int(layout) :].mT.unflatten(2, dims)
        assert torch.equal(grid(tensor), expected)
    else:
        assert grid(tensor).shape[2:] == tuple(shape[d] for d in dims)


WINDOWS = [(2, 16, 4, 5), (32, 4, 5), (32, 2, 2, 5)]  # 16 of 2 by 2 tokens, of each image or all


@pytest.mark.parametrize(
    "shape", [(2, 64), (2, 7, 5), (2, 1, 5), (2, 2, 5), (8, 8, 8, 5), (0,), *WINDOWS]
)
def test_what_does_not_lie_over_the_images(shape):
    assert grid_of(torch.zeros(shape), SQUARE) is None
