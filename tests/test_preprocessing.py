import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.v2 import InterpolationMode

from trompe.data.preprocessing import Preprocessing
from trompe.data.reader import read_mask, to_grey, to_rgb
from trompe.errors import TrompeError


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def reopened(image: Image.Image, form: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return Image.open(buffer)


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, 64), (50, 33)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_equals_the_preset_that_torchvision_ships_with_its_weights(resize, crop, interpolation):
    ours = Preprocessing(resize=resize, crop=crop, interpolation=interpolation)
    theirs = ImageClassification(
        crop_size=crop,
        resize_size=resize,
        interpolation=InterpolationMode(interpolation),
        antialias=True,
    )
    for image in (photo(131, 97), photo(40, 300)):
        torch.testing.assert_close(ours(image), theirs(image))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), mean=st.floats(0.1, 0.9), std=st.floats(0.05, 2))
def test_denormalise_undoes_normalise(seed, mean, std):
    preprocessing = Preprocessing(resize=12, crop=12, mean=(mean, 0.5, 0.4), std=(std, 0.2, 0.3))
    image = photo(12, 12, seed)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    torch.testing.assert_close(preprocessing.denormalise(preprocessing(image)), pixels)
    batch = torch.stack([preprocessing(image)] * 2)
    torch.testing.assert_close(preprocessing.denormalise(batch)[1], pixels)


def test_denormalise_stays_in_range():
    images = torch.tensor([-100.0, 100.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert Preprocessing().denormalise(images).unique().tolist() == [0, 1]


def test_view_is_what_the_tensor_shows():
    preprocessing = Preprocessing(resize=40, crop=32)
    view = preprocessing.view(photo(70, 50))
    assert view.size == (32, 32)
    shown = preprocessing.denormalise(preprocessing(photo(70, 50)))
    assert torch.equal(
        (shown * 255).round().byte(), torch.from_numpy(np.array(view)).permute(2, 0, 1)
    )


def test_grey_palette_cmyk_and_one_bit_images_become_rgb():
    grey = photo(8, 8).convert("L")
    assert np.array_equal(np.asarray(to_rgb(grey)), np.stack([np.asarray(grey)] * 3, -1))
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for image in (red.convert("P"), red.convert("CMYK"), red.convert("HSV")):
        assert to_rgb(image).getpixel((1, 1)) == (255, 0, 0)
    assert to_rgb(Image.new("1", (4, 4), 1)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_what_is_transparent_becomes_white(mode):
    image = Image.new(mode, (4, 4), 0)
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparent_black_becomes_grey_and_a_transparent_palette_entry_white():
    assert to_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)
    palette = reopened(Image.new("P", (2, 2), 0), "PNG", transparency=0)
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_upper_eight():
    values = np.array([[0, 255, 256], [32768, 65535, 40000]], np.uint16)
    image = reopened(Image.fromarray(values), "PNG")
    expected = np.stack([values >> 8] * 3, -1)
    assert np.array_equal(np.asarray(to_rgb(image)), expected)
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(values.astype(np.int32)))), expected)


def test_floating_point_pixels_are_refused():
    with pytest.raises(TrompeError, match=r"floating-point pixels.*save it with 8 bits"):
        to_rgb(Image.new("F", (4, 4)))


@pytest.mark.parametrize("values", [[[0, 255]], [[-1, 5]], [[0, 70000]]])
def test_thirty_two_bits_are_refused(values, tmp_path):
    Image.fromarray(np.array(values, np.int32)).save(tmp_path / "deep.tiff")
    with Image.open(tmp_path / "deep.tiff") as image:
        for read in (to_rgb, to_grey):
            with pytest.raises(TrompeError, match="32 bits has no known range; save it with 8 or"):
                read(image)


def tiff(values: np.ndarray, bits: int, photometric: int) -> Image.Image:
    """A file with tags that Pillow reads but does not write."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    content = bytearray(buffer.getvalue())
    for entry in range(int.from_bytes(content[8:10], "little")):
        place = 10 + 12 * entry
        tag = int.from_bytes(content[place : place + 2], "little")
        if tag in (258, 262):
            value = bits if tag == 258 else photometric
            content[place + 8 : place + 10] = value.to_bytes(2, "little")
    if bits == 12:
        even, odd = values[:, ::2].astype(int), values[:, 1::2].astype(int)
        packed = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], -1)
        start = content.find(values.tobytes())
        content[start : start + packed.size] = packed.astype(np.uint8).tobytes()
    return Image.open(io.BytesIO(bytes(content)))


def test_sixteen_bits_with_white_at_zero_and_twelve_bits_are_as_bright_as_they_look():
    values = np.array([[0, 1000], [2000, 4095]], np.uint16)
    inverted = tiff(values * 16, bits=16, photometric=0)
    assert np.abs(to_grey(inverted) - (1 - values / 4095)).max() < 0.001
    twelve = tiff(values, bits=12, photometric=1)
    assert np.abs(to_grey(twelve) - values / 4095).max() < 0.001


def test_a_transparent_grey_of_sixteen_bits_is_white_in_a_photograph_and_nothing_in_a_mask():
    values = np.array([[0, 30000, 65535]], np.uint16)
    image = reopened(Image.fromarray(values), "PNG", transparency=30000)
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 255, 255]
    assert to_grey(image)[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_a_mask_is_as_bright_as_its_picture(mode, tmp_path):
    values = np.zeros((4, 9), np.uint16)
    values[:, :6] = 65535
    sixteen = mode == "I;16"
    picture = Image.fromarray(values if sixteen else (values >> 8).astype(np.uint8))
    (picture if sixteen else picture.convert(mode)).save(
        tmp_path / "mask", "TIFF" if mode == "CMYK" else "PNG"
    )
    expected = torch.from_numpy(values / 65535).float()
    torch.testing.assert_close(read_mask(tmp_path / "mask"), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(("alpha", "brightness"), [(0, 0.0), (51, 0.2), (255, 1.0)])
def test_what_is_transparent_is_no_part_of_a_mask(alpha, brightness, tmp_path):
    Image.new("RGBA", (3, 2), (255, 255, 255, alpha)).save(tmp_path / "clear.png")
    mask = read_mask(tmp_path / "clear.png")
    torch.testing.assert_close(mask, torch.full((2, 3), brightness), atol=0.003, rtol=0)


def test_sixteen_bits_are_kept_in_a_mask_and_it_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[8000, 0]], np.uint16)).save(tmp_path / "m.png", exif=exif)
    assert read_mask(tmp_path / "m.png").tolist() == [[pytest.approx(8000 / 65535)], [0]]


def test_a_mask_that_cannot_be_read_is_explained(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.new("F", (2, 2), 0.5).save(tmp_path / "float.tiff")
    for name, message in (("text.png", "mask .*text.png' can't be read"), ("float.tiff", "float")):
        with pytest.raises(TrompeError, match=message):
            read_mask(tmp_path / name)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    image = reopened(photo(8, 4), "PNG", exif=exif)
    expected = np.rot90(np.asarray(photo(8, 4)), -1)
    assert np.array_equal(np.asarray(to_rgb(image)), expected)
    assert np.array_equal(np.asarray(to_rgb(to_rgb(image))), expected)


@settings(deadline=None, max_examples=50)
@given(width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 2**64 - 1))
def test_augment_depends_on_its_seed_alone(width, height, seed):
    preprocessing = Preprocessing(resize=20, crop=16)
    image = photo(width, height)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = preprocessing.augment(image, seed)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    torch.manual_seed(2)
    assert torch.equal(first, preprocessing.augment(image, seed))
    assert first.shape == (3, 16, 16)
    shown = preprocessing.denormalise(first)
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_augment_crops_within_the_limits_and_mirrors_half():
    ramp = np.zeros((100, 100, 3), np.uint8)
    ramp[..., 0] = np.arange(100)  # red tells the column, green the row
    ramp[..., 1] = np.arange(100)[:, None]
    preprocessing = Preprocessing(resize=64, crop=64, min_area=0.25)
    mirrored, areas = 0, []
    for seed in range(300):
        shown = preprocessing.denormalise(preprocessing.augment(Image.fromarray(ramp), seed)) * 255
        across = float(shown[0, 32, -1] - shown[0, 32, 0]) * 64 / 63
        down = float(shown[1, -1, 32] - shown[1, 0, 32]) * 64 / 63
        mirrored += across < 0
        assert 3 / 4 * 0.93 < abs(across) / down < 4 / 3 * 1.07
        areas.append(abs(across) * down / 100**2)
    assert 110 < mirrored < 190
    assert 0.22 < min(areas) < 0.35
    assert 0.85 < max(areas) < 1.03


def test_mask_is_cut_like_the_image():
    pixels = np.zeros((90, 130, 3), np.uint8)
    pixels[20:55, 40:100] = 255
    image = Image.fromarray(pixels)
    preprocessing = Preprocessing(resize=70, crop=60)
    mask = preprocessing.mask(image)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, preprocessing.denormalise(preprocessing(image))[0] >= 0.5)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"resize": 100, "crop": 101}, "crop of 101 pixels.*resized to 100.*1 <= crop <= resize"),
        ({"crop": 0}, "crop of 0 pixels"),
        ({"std": (1.0, 0.0, 1.0)}, "std .*three numbers each"),
        ({"mean": (0.5,)}, "mean .*three numbers each"),
        ({"interpolation": "cubic"}, "no interpolation 'cubic'; choose one of nearest, bilinear"),
        ({"min_area": 0.0}, r"min_area is 0.0; choose a share in \(0, 1\]"),
    ],
)
def test_values_out_of_range(given_, message):
    with pytest.raises(TrompeError, match=message):
        Preprocessing(**given_)
