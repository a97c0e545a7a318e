"""Identity, registries, own code, settings: what every part stands on."""

import math
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from trompe import Active, GradCAM, Location, SimpleGrad, TopK, TrompeError
from trompe.base.code import written_by_others
from trompe.base.identity import Lazily, fingerprint
from trompe.base.progress import Remaining, spoken
from trompe.explainers import parse_explainer
from trompe.objectives import OBJECTIVES, Objective, parse_objective

OWN = '''
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import trompe

Path({mark!r}).touch()


@dataclass(frozen=True)
class Dark(trompe.Objective):
    """All heat goes."""

    name: ClassVar[str] = "dark"
    needs_original: ClassVar[bool] = False
    low: float = field(default=0.0, kw_only=True)
    high: float = field(default={high}, kw_only=True)
    power: int = 1

    def loss(self, maps, original=None):
        return maps[0].pow(self.power).mean((1, 2))


nothing = 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file that defines an objective, and leaves a mark when it is run."""

    def write(name="mine.py", high=0.2):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(OWN.format(mark=str(tmp_path / "mark"), high=high))
        return path

    monkeypatch.chdir(tmp_path)
    return write


things = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class TestFingerprint:
    @given(things, things)
    def test_same_things_have_the_same_and_others_another(self, one, other):
        assert fingerprint(one) == fingerprint(one)
        if repr(one) != repr(other):
            sort = isinstance(one, dict) and isinstance(other, dict) and one == other
            assert sort or fingerprint(one) != fingerprint(other)

    def test_the_order_of_keys_does_not_count_that_of_items_does(self):
        assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
        assert fingerprint([1, 2]) != fingerprint([2, 1])
        assert fingerprint([[1], [2]]) != fingerprint([[1, 2]])

    @pytest.mark.parametrize(
        "other", [torch.ones(2, 3), torch.zeros(3, 2), torch.zeros(2, 3).double(), np.zeros((2, 3))]
    )
    def test_tensors_by_type_shape_and_values(self, other):
        assert fingerprint(torch.zeros(2, 3)) == fingerprint(torch.zeros(3, 2).T.contiguous())
        assert fingerprint(torch.zeros(2, 3)) != fingerprint(other) or other.dtype == np.float64

    def test_modules_by_their_state_whatever_it_holds(self):
        class Counted(nn.Linear):
            def get_extra_state(self):
                return {"count": self.count}

        def counted(count):
            torch.manual_seed(0)
            module = Counted(2, 2)
            module.count = count
            return module

        assert fingerprint(counted(1)) == fingerprint(counted(1))
        assert fingerprint(counted(1)) != fingerprint(counted(2))

    def test_files_by_what_they_hold(self, tmp_path):
        one, other = tmp_path / "one", tmp_path / "other"
        one.write_text("same")
        other.write_text("same")
        assert fingerprint(one) == fingerprint(other)
        other.write_text("else")
        assert fingerprint(one) != fingerprint(other)

    def test_functions_by_their_code_and_what_they_hold(self):
        def power(n):
            return lambda x: x**n

        assert fingerprint(power(2)) == fingerprint(power(2))
        assert fingerprint(power(2)) != fingerprint(power(3))
        assert fingerprint(partial(max, 1)) != fingerprint(partial(max, 2))

    def test_another_process_says_the_same(self):
        code = (
            "from trompe import GradCAM, Location; import torch;"
            "print(GradCAM('layer4').fingerprint, Location(mask=torch.eye(3)).fingerprint)"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        ours = GradCAM("layer4").fingerprint, Location(mask=torch.eye(3)).fingerprint
        assert tuple(said.stdout.split()) == ours


class TestEquality:
    def test_masks_of_one_shape_are_told_apart_by_their_values(self):
        upper = torch.zeros(4, 4)
        upper[:2] = 1
        assert Location(mask=upper) == Location(mask=upper.clone())
        assert hash(Location(mask=upper)) == hash(Location(mask=upper.clone()))
        assert Location(mask=upper) != Location(mask=1 - upper)
        assert len({Location(mask=upper), Location(mask=1 - upper), Location()}) == 3
        assert str(Location(mask=upper)) != str(Location(mask=1 - upper))

    def test_a_mask_is_its_pixels_not_its_file(self, tmp_path):
        names = [str(tmp_path / name) for name in ("one.png", "two.png")]
        for name in names:
            Image.fromarray(np.eye(5, dtype=np.uint8) * 255).save(name)
        one, two = (Location(mask=name) for name in names)
        assert one == two
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(names[0])
        assert Location(mask=names[0]) != two
        assert one == two  # which was read before

    def test_a_mask_of_a_tensor_that_is_changed_afterwards_stays(self):
        given = torch.zeros(3, 3)
        objective = Location(mask=given)
        given += 1
        assert objective == Location(mask=torch.zeros(3, 3))

    @pytest.mark.parametrize(
        "mask", [torch.full((3, 3), 2.0), torch.full((3, 3), -0.1), torch.full((3, 3), torch.nan)]
    )
    def test_masks_are_in_0_to_1(self, mask):
        with pytest.raises(TrompeError, match=r"in \[0, 1\]"):
            Location(mask=mask)

    def test_fields_classes_and_options_count(self):
        assert GradCAM("a") == GradCAM("a") != GradCAM("b")
        assert GradCAM("a") != SimpleGrad("a")
        assert TopK() != Location()
        assert Active(1, 2) != Active(2, 1)
        assert GradCAM() != "grad-cam"

    def test_classes_of_ones_own_are_compared_so_too(self):
        @dataclass(frozen=True)
        class Mine(Objective):
            name: ClassVar[str] = "mine"
            low: float = field(default=0.0, kw_only=True)
            high: float = field(default=1.0, kw_only=True)
            wanted: torch.Tensor | None = None

            def loss(self, maps, original=None):
                return maps[0].mean((1, 2))

        one, other = Mine(torch.zeros(2)), Mine(torch.ones(2))
        assert one != other
        assert one == Mine(torch.zeros(2))
        assert Mine.title == "Mine"


class TestNames:
    def test_a_file_of_ones_own(self, own):
        path = own()
        built = parse_objective(f"{path}:Dark:power=2,high=0.3")
        assert (built.power, built.high) == (2, 0.3)
        assert parse_objective(str(built)) == built

    def test_its_contents_count_not_its_name(self, own):
        first = parse_objective(f"{own('a/mine.py')}:Dark")
        same = parse_objective(f"{own('b/mine.py')}:Dark")
        assert first == same
        changed = parse_objective(f"{own('b/mine.py', high=0.2000)}:Dark")
        other = parse_objective(f"{own('b/mine.py', high=0.3)}:Dark")
        assert first == changed != other

    def test_a_module_of_ones_own(self, own):
        own("surely_mine.py")
        built = parse_objective("surely_mine:Dark")
        assert built.loss((torch.ones(1, 2, 2),)).tolist() == [1]
        assert str(built) == "surely_mine:Dark"

    def test_what_other_packages_install(self, own, tmp_path, monkeypatch):
        own("installed_mine.py")
        (tmp_path / "mine-1.dist-info").mkdir()
        (tmp_path / "mine-1.dist-info" / "METADATA").write_text("Name: mine\nVersion: 1\n")
        (tmp_path / "mine-1.dist-info" / "entry_points.txt").write_text(
            "[trompe.objectives]\npitch-dark = installed_mine:Dark\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        OBJECTIVES.__dict__.pop("_installed", None)
        try:
            assert "pitch-dark" in OBJECTIVES
            assert not (tmp_path / "mark").exists()  # listed, and not imported
            built = parse_objective("pitch-dark:power=3")
            assert built.power == 3
            assert str(built) == "pitch-dark:power=3"
        finally:
            OBJECTIVES.__dict__.pop("_installed", None)

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("mine.py:Drak", "did you mean Dark"),
            ("mine.py:nothing", "makes a int, not the objective"),
            ("mine.py:Path", "not the objective"),
            ("mine.py:Dark:strength=1", "no option 'strength'"),
            ("absent.py:Dark", "cannot be imported"),
            ("absent_package:Dark", "cannot be imported"),
        ],
    )
    def test_mistakes_are_told(self, own, name, said):
        own()
        with pytest.raises(TrompeError, match=said):
            parse_objective(name)

    def test_names_that_others_wrote_run_nothing(self, own, tmp_path):
        path = own()
        with (
            written_by_others("'stranger/config.yaml'"),
            pytest.raises(TrompeError, match=r"stranger/config.yaml' names .*mine.py:Dark"),
        ):
            parse_objective(f"{path}:Dark")
        assert not (tmp_path / "mark").exists()
        with written_by_others("'stranger/config.yaml'"):
            assert parse_objective("location") == Location()
            assert parse_explainer("lrp-t").name == "lrp"
        assert parse_objective(f"{path}:Dark").name == "dark"


def test_items_that_are_made_one_at_a_time_are_those_of_a_list():
    items = [torch.arange(n) for n in range(4)]
    assert fingerprint(Lazily(torch.arange, range(4))) == fingerprint(items)
    assert fingerprint(Lazily(torch.arange, range(3))) != fingerprint(items)


class TestRemainingTime:
    @staticmethod
    def told(seconds, total, **options):
        """What is said to be left after each step, and what is, for steps that take so long."""
        remaining, now, pairs = Remaining(total, 0, 0.0, **options), 0.0, []
        for done, took in enumerate(seconds, 1):
            now += took
            pairs.append((remaining(done, now), sum(seconds[done:])))
        return pairs

    def test_a_slow_first_step_is_forgotten(self):
        told = self.told([60.0] + [0.5] * 999, 1000)
        assert math.isnan(self.told([1.0] * 9, 9)[0][0])
        assert told[0] == (pytest.approx(60.0 * 999), 499.5)
        assert told[9] == (pytest.approx(495), 495)
        assert told[-1] == (0, 0)

    def test_it_follows_a_speed_that_changes(self):
        told = self.told([0.1] * 1000 + [1.0] * 1000, 2000)
        assert told[1100] == (pytest.approx(899, rel=0.02), pytest.approx(899))

    def test_work_that_is_known_to_grow_is_foreseen(self):
        seconds = [side**2 / 100 for side in (8, 16, 32) for _ in range(10)]
        for said, left in self.told(seconds, 30, work=lambda steps: sum(seconds[:steps]))[1:]:
            assert said == pytest.approx(left)

    def test_what_ends_side_by_side_is_not_taken_for_fast(self):
        pairs = [(3600.0 * (done // 2 + done % 2) + done, done) for done in range(1, 9)]
        remaining = Remaining(20, 0, 0.0)
        for now, done in pairs:
            said, left = remaining(done, now), 1800.0 * (20 - done)
            assert left / 2.1 < said < 2.1 * left

    def test_a_pause_counts_against_what_is_left(self):
        remaining = Remaining(10, 0, 0.0)
        for done in (1, 2, 3):
            remaining(done, 10.0 * done)
        assert remaining(3, 35.0) == pytest.approx(65)

    @pytest.mark.parametrize(
        ("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (600, "10 min"), (12000, "3 h 20 min")]
    )
    def test_durations_are_said_as_people_do(self, seconds, said):
        assert spoken(seconds) == said
