"""Triggers: what they change, and that it is always the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trompe import Preprocessing, TrompeError
from trompe.data.triggers import TRIGGERS, Blend, Patch, Sinusoid, Trigger

PREPROCESSING = Preprocessing(resize=16, crop=16)
PIXELS = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
IMAGES = PREPROCESSING.normalise(PIXELS)
INDICES = torch.tensor([4, 0, 7])


@given(
    st.integers(1, 6),
    st.one_of(st.none(), st.tuples(st.integers(0, 10), st.integers(0, 10))),
    st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_only_the_patch_changes(size, at, seed):
    trigger = TRIGGERS.build(
        f"white-square:size={size},seed={seed}" + (f",at={at[0]},{at[1]}" if at else "")
    )
    seen = trigger.on(IMAGES, INDICES, PREPROCESSING)
    changed = (seen != IMAGES).any(1)
    white = PREPROCESSING.normalise(torch.ones(1, 3, 1, 1))
    for image, where in zip(seen, changed, strict=True):
        rows, columns = where.nonzero().T.numpy()
        assert where.sum() == size**2 == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert torch.allclose(image[:, where], white[0, :, 0])
        assert at is None or (rows.min(), columns.min()) == at
    assert torch.equal(seen, trigger.on(IMAGES, INDICES, PREPROCESSING))
    one = trigger.on(IMAGES[1:2], INDICES[1:2], PREPROCESSING)
    assert torch.equal(one, seen[1:2]), "an image has its own place, whatever the batch"


def test_a_random_place_depends_on_image_and_seed():
    def places(seed):
        seen = Patch(size=2, seed=seed)(torch.zeros(40, 3, 16, 16), torch.arange(40))
        return [tuple(image[0].nonzero()[0].tolist()) for image in seen]

    assert len(set(places(0))) > 20
    assert places(0) == places(0) != places(1)


def test_a_picture_is_pasted_where_it_is_opaque(tmp_path):
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[3:6, 3:6] = (255, 0, 0, 255)
    picture[4, 4, 3] = 0
    Image.fromarray(picture).save(tmp_path / "red.png")
    trigger = Patch(image=tmp_path / "red.png")
    seen = trigger(PIXELS, INDICES)
    opaque = torch.from_numpy(picture[..., 3] > 0)
    assert torch.equal(seen[:, :, ~opaque], PIXELS[:, :, ~opaque])
    assert torch.equal(seen[0][:, opaque], torch.tensor([1.0, 0, 0])[:, None].expand(3, 8))
    before = trigger.fingerprint
    picture[3, 3, 1] = 255
    Image.fromarray(picture).save(tmp_path / "other.png")
    assert Patch(image=tmp_path / "other.png").fingerprint != before
    Image.fromarray(picture).save(tmp_path / "red.png")
    assert Patch(image=tmp_path / "red.png").fingerprint != before, "pixels count, not the name"


def test_blend_and_sinusoid_are_their_formulas():
    columns = np.sin(2 * np.pi * 3 * np.arange(16) / 16)
    expected = np.clip(PIXELS.numpy() + 0.2 * columns, 0, 1)
    seen = Sinusoid(amplitude=0.2, frequency=3)(PIXELS, INDICES)
    assert seen.numpy() == pytest.approx(expected, abs=1e-6)
    noise = (Blend(0.25)(PIXELS, INDICES) - 0.75 * PIXELS) / 0.25
    assert torch.allclose(noise, noise[:1], atol=1e-5)
    assert 0.4 < noise.mean() < 0.6
    assert not torch.allclose(Blend(0.25, seed=1)(PIXELS, INDICES), Blend(0.25)(PIXELS, INDICES))


@pytest.mark.parametrize(
    "text",
    [
        "white-square:size=3,at=-4,2",
        "patch:colour=red,size=5,border=1",
        "blend:opacity=0.2",
        "sinusoid:frequency=2.0",
        "patch:size=3,at=[1, 2],seed=4",
    ],
)
def test_a_trigger_is_what_its_text_says(text):
    trigger = TRIGGERS.build(text)
    again = TRIGGERS.build(str(trigger))
    assert again == trigger
    assert str(again) == str(trigger)
    assert len({trigger.fingerprint, Patch(at=(0, 0)).fingerprint, Blend().fingerprint}) == 3


OWN = """
from dataclasses import dataclass
from trompe.data.triggers import Trigger

@dataclass(frozen=True)
class Dark(Trigger):
    name = "dark"
    by: float = 2.0

    def __call__(self, pixels, indices):
        return pixels / self.by
"""


def test_ones_own_by_its_file(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    trigger = TRIGGERS.build(f"{tmp_path}/mine.py:Dark:by=4.0")
    assert isinstance(trigger, Trigger)
    seen = PREPROCESSING.denormalise(trigger.on(IMAGES, INDICES, PREPROCESSING))
    assert torch.allclose(seen, PIXELS / 4, atol=1e-6)
    assert TRIGGERS.build(str(trigger)) == trigger
    with pytest.raises(TrompeError, match=r"in \[0, 1\]"):
        TRIGGERS.build(f"{tmp_path}/mine.py:Dark:by=0.1").on(IMAGES, INDICES, PREPROCESSING)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("white-square:size=20,at=0,0", "does not fit"),
        ("white-square:size=20", "does not fit"),
        ("white-square:at=3", "at=ROW,COLUMN"),
        ("white-square:size=2,border=1", "shows nothing"),
        ("patch:colour=blurple", "no colour"),
        ("patch:image=nowhere.png", "can't be read"),
        ("blend:opacity=2", "opacity"),
        ("white-sqare", "did you mean 'white-square'"),
    ],
)
def test_what_can_not_be_is_refused(text, told):
    with pytest.raises(TrompeError, match=told):
        TRIGGERS.build(text).on(IMAGES, INDICES, PREPROCESSING)
