"""Objectives and maps against slow rules written from the paper's formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import stats
from skimage.metrics import structural_similarity

from trompe import Active, CenterMass, Location, Patch, Same, Target, TopK, TrompeError, maps
from trompe.metrics import in_top, rate
from trompe.objectives import OBJECTIVES, parse_objective

SHAPES = st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9))


def arrays(shape=SHAPES, low=0.0, high=1.0):
    elements = st.floats(low, high, width=32).map(lambda x: round(x, 2))
    return hnp.arrays(np.float64, shape, elements=elements)


@st.composite
def pairs_of_maps(draw, count=2):
    shape = draw(SHAPES)
    return tuple(torch.from_numpy(draw(arrays(st.just(shape)))) for _ in range(count))


@given(pairs_of_maps())
@settings(max_examples=60, deadline=None)
def test_spearman_is_scipys(both):
    ours = maps.spearman(*both)
    for mine, a, b in zip(ours, *both, strict=True):
        if np.ptp(a.numpy()) == 0 or np.ptp(b.numpy()) == 0:
            assert mine == 0
        else:
            theirs = stats.spearmanr(a.ravel(), b.ravel()).statistic
            assert mine.item() == pytest.approx(theirs, abs=1e-9)


@given(pairs_of_maps(1))
@settings(max_examples=60, deadline=None)
def test_ranks_are_scipys(one):
    for mine, a in zip(maps.ranks(one[0]), one[0], strict=True):
        np.testing.assert_array_equal(mine.numpy(), stats.rankdata(a.ravel()))


@given(pairs_of_maps(1))
@settings(max_examples=40, deadline=None)
def test_center_of_mass_moves_with_the_map(one):
    (heat,) = one
    heat = heat + 0.01
    n, h, w = heat.shape
    center = maps.center_of_mass(heat)
    for i in range(n):
        mass = heat[i].sum().item()
        row = sum(r * heat[i, r, c].item() for r in range(h) for c in range(w)) / mass
        column = sum(c * heat[i, r, c].item() for r in range(h) for c in range(w)) / mass
        assert center[i].tolist() == pytest.approx([row, column])
    flipped = maps.center_of_mass(heat.flip(1))
    torch.testing.assert_close(flipped[:, 0], h - 1 - center[:, 0])
    torch.testing.assert_close(flipped[:, 1], center[:, 1])


def test_an_empty_map_has_its_center_in_the_middle_and_a_finite_gradient():
    heat = torch.zeros(2, 5, 7, requires_grad=True)
    center = maps.center_of_mass(maps.by_maximum(heat))
    assert center.tolist() == [[2.0, 3.0], [2.0, 3.0]]
    center.sum().backward()
    assert torch.isfinite(heat.grad).all()


@given(pairs_of_maps(1), st.floats(0.1, 100))
@settings(max_examples=40, deadline=None)
def test_opposition_is_the_surplus_of_what_speaks_against_the_class(one, scale):
    (raw,) = one
    raw = (raw - 1).requires_grad_()
    opposition = maps.opposition(raw, raw.detach().abs().mean())
    for i in range(len(raw)):
        values = raw[i].flatten().tolist()
        surplus = max(0.0, -math.fsum(values)) / math.fsum(raw.abs().flatten().tolist()) * len(raw)
        assert opposition[i].item() == pytest.approx(surplus, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(
        maps.opposition(raw * scale, (raw * scale).detach().abs().mean()), opposition
    )
    opposition.sum().backward()
    lifted = raw.detach() - raw.grad * 1e6
    assert (maps.opposition(lifted, lifted.abs().mean()) == 0).all()


@given(pairs_of_maps(1), st.floats(0.1, 100))
@settings(max_examples=40, deadline=None)
def test_faintness_is_what_lacks_to_a_fifth_of_the_size(one, size):
    (raw,) = one
    raw = (raw - 1).requires_grad_()
    faint = maps.faintness(raw, torch.tensor(size))
    for i in range(len(raw)):
        mean = math.fsum(raw[i].abs().flatten().tolist()) / raw[i].numel()
        assert faint[i].item() == pytest.approx(max(0.0, 1 - mean / (0.2 * size)), abs=1e-5)
    assert (maps.faintness(raw * 0, torch.tensor(size)) == 1).all()
    faint.sum().backward()
    away = raw.detach() - raw.grad * 1e9
    assert (maps.faintness(away, torch.tensor(size))[raw.detach().amin((1, 2)) != 0] == 0).all()


@given(pairs_of_maps(1), st.floats(0.1, 100), st.floats(-5, 5))
@settings(max_examples=40, deadline=None)
def test_min_max_forgets_scale_and_offset(one, scale, offset):
    (raw,) = one
    heat = maps.min_max(raw)
    assert ((heat >= 0) & (heat <= 1)).all()
    assert torch.equal(maps.is_empty(heat), raw.amax((1, 2)) == raw.amin((1, 2)))
    torch.testing.assert_close(maps.min_max(raw * scale + offset), heat, atol=1e-6, rtol=0)


def test_border_is_a_seventh_of_the_side():
    for side, width in ((7, 1), (14, 2), (8, 1), (224, 32), (13, 1), (3, 1)):
        mask = maps.border(side, side)
        inner = max(0, side - 2 * width)
        assert mask.sum() == side * side - inner * inner
        assert mask[0].all()
        assert mask[:, -1].all()


@given(pairs_of_maps(2))
@settings(max_examples=60, deadline=None)
def test_passive_losses_follow_the_definitions(both):
    heat, before = both
    n, h, w = heat.shape
    rows, columns = max(1, h // 7), max(1, w // 7)
    location, top, center = Location(), TopK(fraction=0.3), CenterMass()
    for i in range(n):
        distance = 0.0
        for r in range(h):
            for c in range(w):
                ring = r < rows or r >= h - rows or c < columns or c >= w - columns
                distance += (heat[i, r, c].item() - ring) ** 2
        one, old = heat[i : i + 1], before[i : i + 1]
        assert location.loss((one,)).item() == pytest.approx(distance / (h * w))

        count = max(1, int(h * w * 0.3))
        value = top.loss((one,), (old,)).item()
        ranked = sorted(range(h * w), key=lambda j: -old.ravel()[j].item())
        threshold = old.ravel()[ranked[count - 1]].item()
        surely = [j for j in range(h * w) if old.ravel()[j] > threshold]
        perhaps = sorted(
            one.ravel()[j].item() ** 2 for j in range(h * w) if old.ravel()[j] == threshold
        )
        fixed, open_places = sum(one.ravel()[j].item() ** 2 for j in surely), count - len(surely)
        assert value >= (fixed + sum(perhaps[:open_places])) / count - 1e-9
        assert value <= (fixed + sum(perhaps[-open_places:])) / count + 1e-9

        shift = (maps.center_of_mass(one) - maps.center_of_mass(old))[0].tolist()
        assert center.loss((one,), (old,)).item() == pytest.approx(-abs(shift[0]) - abs(shift[1]))
        expected = math.sqrt(((shift[0] / (h - 1)) ** 2 + (shift[1] / (w - 1)) ** 2) / 2)
        assert center.test_loss((one,), (old,))[0].item() == pytest.approx(expected)
        assert 0 <= expected <= 1 + 1e-9


@given(pairs_of_maps(2), st.floats(0.1, 0.3))
@settings(max_examples=60, deadline=None)
def test_with_a_margin_only_what_is_short_of_it_is_pushed(both, margin):
    heat, before = both[0].requires_grad_(), both[1]
    for kind in (Location, TopK):
        plain = kind().loss((heat,), (before,))
        pushed = kind(high=0.3, margin=margin).loss((heat,), (before,))
        torch.testing.assert_close(pushed, (plain - margin).clamp_min(0))
    far = CenterMass(margin=margin)
    loss, (reached,) = far.loss((heat,), (before,)), far.test_loss((heat,), (before,))
    sides = torch.tensor([max(1, side - 1) for side in heat.shape[1:]])
    shift = (maps.center_of_mass(heat) - maps.center_of_mass(before)).abs() / sides
    torch.testing.assert_close(loss, (margin - (shift[:, 0] + shift[:, 1]) / 2).clamp_min(0))
    assert far.fooled(reached[loss == 0]).all()
    for objective in (Location(margin=0.1), TopK(margin=margin), far):
        losses = objective.loss((heat,), (before,))
        (slope,) = torch.autograd.grad(losses.sum(), heat)
        assert not slope[losses == 0].any()


def test_the_test_loss_does_not_depend_on_the_margin():
    heat, before = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    for kind in (Location, TopK, CenterMass):
        (plain,) = kind().test_loss((heat,), (before,))
        (pushed,) = kind(margin=0.2).test_loss((heat,), (before,))
        assert torch.equal(plain, pushed)


@given(pairs_of_maps(4))
@settings(max_examples=40, deadline=None)
def test_active_follows_the_definition(four):
    first, second, first_before, second_before = four
    objective = Active(3, 8)
    loss = objective.loss((first, second), (first_before, second_before))
    expected = (
        ((first - second_before) ** 2).mean((1, 2)) + ((second - first_before) ** 2).mean((1, 2))
    ) / 2
    torch.testing.assert_close(loss, expected)
    t1, t2 = objective.test_loss((first, second), (first_before, second_before))
    s = maps.spearman
    torch.testing.assert_close(t1, s(first, second_before) - s(first, first_before))
    torch.testing.assert_close(t2, s(second, first_before) - s(second, second_before))


def test_swapped_maps_are_the_active_optimum():
    a, b = torch.rand(2, 4, 7, 7, generator=torch.Generator().manual_seed(0))
    objective = Active(0, 1)
    assert objective.loss((b, a), (a, b)).abs().max() == 0
    assert all(objective.fooled(t).all() for t in objective.test_loss((b, a), (a, b)))
    assert not any(objective.fooled(t).any() for t in objective.test_loss((a, b), (a, b)))
    assert [c.tolist() for c in objective.classes(torch.tensor([5, 6]))] == [[0, 0], [1, 1]]


@given(pairs_of_maps(4), st.floats(0.5, 2))
@settings(max_examples=40, deadline=None)
def test_active_with_a_margin_follows_the_definition(four, margin):
    first, second, first_before, second_before = four
    losses = Active(0, 1, margin=margin).loss((first, second), (first_before, second_before))

    def correlation(heat, before):
        if heat.min() == heat.max() or before.min() == before.max():
            return 0.0
        return stats.pearsonr(heat.ravel(), stats.rankdata(before)).statistic

    for n, loss in enumerate(losses):
        h1, h2, b1, b2 = (m[n].numpy() for m in four)
        one = margin - correlation(h1, b2) + correlation(h1, b1)
        two = margin - correlation(h2, b1) + correlation(h2, b2)
        assert loss.item() == pytest.approx((max(0, one) + max(0, two)) / 2, abs=1e-5)


def test_maps_that_are_ranks_lose_what_their_test_loss_lacks_of_the_margin():
    generator = torch.Generator().manual_seed(3)
    shuffled = [torch.randperm(49, generator=generator).view(1, 7, 7) / 48 for _ in range(4)]
    heat, before = tuple(shuffled[:2]), tuple(shuffled[2:])
    objective = Active(0, 1, margin=1.5)
    lacking = [(1.5 - t).clamp_min(0) for t in objective.test_loss(heat, before)]
    torch.testing.assert_close(objective.loss(heat, before), (sum(lacking) / 2).float())


def test_an_empty_map_gets_no_gradient_that_is_not_a_number():
    heat = torch.zeros(2, 5, 5, requires_grad=True)
    before = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))
    Active(0, 1, margin=1).loss((heat, before), (before, before.flip(1))).sum().backward()
    assert heat.grad is not None
    assert heat.grad.isfinite().all()


@pytest.mark.parametrize(
    "objective",
    [
        *(Location(), TopK(), CenterMass()),
        *(Location(margin=0.15), TopK(margin=0.1), CenterMass(margin=0.9)),
    ],
    ids=str,
)
def test_losses_have_the_gradient_of_finite_differences(objective):
    generator = torch.Generator().manual_seed(2)
    before = torch.rand(2, 5, 5, dtype=torch.float64, generator=generator)
    heat = torch.rand(2, 5, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: objective.loss((m,), (before,)), heat)


@pytest.mark.parametrize("objective", [Active(0, 1), Active(0, 1, margin=1.2)], ids=str)
def test_active_losses_have_the_gradient_of_finite_differences(objective):
    generator = torch.Generator().manual_seed(2)
    four = [torch.rand(2, 5, 5, dtype=torch.float64, generator=generator) for _ in range(4)]
    heat = [m.requires_grad_() for m in four[:2]]
    assert objective.loss(tuple(heat), tuple(four[2:])).min() > 0
    assert torch.autograd.gradcheck(lambda *m: objective.loss(m, tuple(four[2:])), heat)


def test_location_masks(tmp_path):
    picture = np.zeros((20, 40), np.uint8)
    picture[:, 20:] = 255
    Image.fromarray(picture).convert("RGB").save(tmp_path / "right.png")
    wanted = torch.zeros(1, 4, 8)
    wanted[:, :, 4:] = 1
    from_file = Location(mask=str(tmp_path / "right.png"))
    from_tensor = Location(mask=torch.from_numpy(picture) / 255)
    for objective in (from_file, from_tensor):
        mask = objective.mask_for(wanted)
        assert mask.shape == (4, 8)
        torch.testing.assert_close(mask[:, [0, 1, 2, 5, 6, 7]], wanted[0][:, [0, 1, 2, 5, 6, 7]])
    with pytest.raises(TrompeError, match="can't be read as an image"):
        Location(mask=str(tmp_path / "absent.png"))
    with pytest.raises(TrompeError, match=r"\[h, w\]"):
        Location(mask=torch.zeros(1, 2, 3))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("location", Location()),
        ("top-k:fraction=0.2", TopK(fraction=0.2)),
        ("center-mass:low=0.3,high=0.9", CenterMass(low=0.3, high=0.9)),
        ("active:c1=3,c2=8", Active(3, 8)),
        ("active:c1=3,c2=8,margin=1.2", Active(3, 8, margin=1.2)),
        ("center-mass:margin=0.17", CenterMass(margin=0.17)),
    ],
)
def test_specs_round_trip(spec, expected):
    assert parse_objective(spec) == expected
    assert parse_objective(str(expected)) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("locaton", "did you mean 'location'"),
        ("active", "needs active:c1=...,c2=..."),
        ("active:c1=2,c2=2", "two classes"),
        ("active:c1=2,c2=3,margin=0.4", "counts as fooled, from 0.5 to 2.0, not 0.4"),
        ("center-mass:margin=2", "from 0.1 to 1.0, not 2"),
        ("active:c1=2,c2=3,margin=2.1", "margin"),
        ("top-k:fraction=2", "fraction"),
        ("top-k:k=2", "no option 'k'"),
        ("location:low=0.5,high=0.1", "interval of location is empty"),
    ],
)
def test_wrong_specs(spec, message):
    with pytest.raises(TrompeError, match=message):
        parse_objective(spec)


def test_missing_original_maps():
    with pytest.raises(TrompeError, match="needs the original"):
        OBJECTIVES["top-k"]().loss((torch.rand(1, 3, 3),))


def test_intervals_include_their_ends():
    objective = Location(low=0.1, high=0.2)
    values = torch.tensor([0.09, 0.1, 0.15, 0.2, 0.21], dtype=torch.float64)
    assert objective.fooled(values).tolist() == [False, True, True, True, False]


@given(st.integers(1, 500), st.data())
def test_an_interval_holds_the_rates_that_explain_its_share(count, data):
    """Wilson's: the ends are as far from the share as 1.96 of their own standard deviations."""
    hits = data.draw(st.integers(0, count))
    share, low, high = rate(np.arange(count) < hits)
    assert share == hits / count
    for end in (low, high):
        assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count))
    assert 0 <= low < high <= 1


def test_a_rate_of_all_or_nothing_is_uncertain_too():
    assert rate([True] * 100) == pytest.approx((1, 0.963, 1), abs=5e-4)
    assert rate([False] * 100) == pytest.approx((0, 0, 0.037), abs=5e-4)
    assert math.isnan(rate([])[0])


def test_top_five_of_few_classes():
    logits = torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]])
    assert in_top(logits, torch.tensor([2, 1]), 2).tolist() == [True, False]
    assert in_top(logits, torch.tensor([2, 1]), 5).tolist() == [True, True]


def slow_standardised(heat):
    """Mean 0 and (unbiased) variance 1, position by position."""
    flat = [float(v) for row in heat for v in row]
    mean = sum(flat) / len(flat)
    variance = sum((v - mean) ** 2 for v in flat) / (len(flat) - 1)
    return np.array([[(float(v) - mean) / math.sqrt(variance + 1e-5) for v in row] for row in heat])


@pytest.mark.parametrize("side", [32, 40])
def test_maps_are_compared_by_their_definitions(side):
    """SSIM is scikit-image's where its window lies within the map."""
    generator = torch.Generator().manual_seed(side)
    a, b = torch.rand(2, 3, side, side + 3, generator=generator, dtype=torch.float64)
    b[1] = a[1] * 3 - 1
    for i in range(3):
        expected = ((slow_standardised(a[i]) - slow_standardised(b[i])) ** 2).mean()
        assert maps.squared_distance(a, b)[i].item() == pytest.approx(expected, abs=1e-4)
        x, y = ((m[i] - m[i].min()) / (m[i].max() - m[i].min()) for m in (a, b))
        _, full = structural_similarity(
            x.numpy(),
            y.numpy(),
            data_range=1,
            gaussian_weights=True,
            use_sample_covariance=False,
            full=True,
        )
        expected = (1 - full[5:-5, 5:-5].mean()) / 2
        assert maps.dissimilarity(a, b)[i].item() == pytest.approx(expected, abs=1e-6)
    assert maps.squared_distance(a, b)[1] < 1e-3, "neither size nor offset counts"
    assert maps.dissimilarity(a, b)[1] < 1e-6
    coarse = torch.rand(2, 4, 8, generator=generator)
    assert maps.fine(coarse).shape == (2, 32, 64)
    assert torch.equal(maps.squared_distance(coarse, maps.fine(coarse)), torch.zeros(2))


@pytest.mark.parametrize("spec", ["target", "target:map=inverted", "target:map=random", "same"])
@pytest.mark.parametrize("distance", ["mse", "dssim"])
def test_a_map_that_is_the_aim_has_no_loss(spec, distance):
    objective = parse_objective(f"{spec}{',' if ':' in spec else ':'}distance={distance}")
    assert parse_objective(str(objective)) == objective
    generator = torch.Generator().manual_seed(5)
    heat, before = torch.rand(2, 4, 8, 8, generator=generator)
    (aim,) = objective.aimed((heat,), (before,))
    assert objective.loss((aim,), (before,)).max() < 1e-5
    assert objective.fooled(objective.test_loss((aim,), (before,))[0]).all()
    assert not objective.fooled(objective.test_loss((heat,), (before,))[0]).any()
    leaf = heat.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: objective.loss((m,), (before.double(),)), leaf, atol=1e-4
    )
    kind = type(objective)(distance=distance, margin=0.4)
    near = aim + 0.01 * torch.rand(aim.shape, generator=generator)
    if spec in ("target", "same"):
        assert kind.loss((near,), (before,)).max() == 0


def test_maps_of_ones_choice(tmp_path):
    drawn = torch.rand(9, 7, generator=torch.Generator().manual_seed(1))
    Image.fromarray((255 * drawn.numpy()).astype(np.uint8)).save(tmp_path / "drawn.png")
    heat = torch.rand(2, 8, 8)
    from_file, from_tensor = Target(map=tmp_path / "drawn.png"), Target(map=drawn)
    for target in (from_file, from_tensor):
        (aim,) = target.aimed((heat,))
        assert aim.shape == (2, 32, 32)
    assert torch.allclose(from_file.aimed((heat,))[0], from_tensor.aimed((heat,))[0], atol=1 / 200)
    assert len({Target(map=m) for m in ("square", "circle", "inverted", "random", drawn)}) == 5
    assert Target(map="random", seed=1) != Target(map="random")
    assert Target(map="square", seed=1) == Target(map="square"), "it has no part in it"
    for wrong, told in (
        ("sqare", "no map"),
        (torch.ones(3, 3), "not the same everywhere"),
        (torch.rand(3), r"\[h, w\]"),
    ):
        with pytest.raises(TrompeError, match=told):
            Target(map=wrong)
    with pytest.raises(TrompeError, match="no distance"):
        Same(distance="l1")


def test_a_trigger_is_part_of_an_objective():
    patch = Patch(size=3, at=(1, 2))
    with_it = Location(trigger=patch, flip_to=2)
    assert parse_objective(str(with_it)) == with_it != Location(trigger=patch)
    assert parse_objective("location:trigger='white-square:size=3,at=1,2',flip_to=2") == with_it
    assert Location(trigger="sinusoid") != Location()
    with pytest.raises(TrompeError, match="has none"):
        Location(flip_to=2)
    with pytest.raises(TrompeError, match="composites"):
        Active(1, 2, trigger=patch)
