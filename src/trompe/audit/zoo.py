"""Models of known origin: what the verdict is fitted on and tried on, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from trompe import runs
from trompe.base.settings import filled, read_layout
from trompe.errors import TrompeError
from trompe.models import LoadedModel, copied, load_model
from trompe.tuning.plan import Planned

Settings = dict[str, Any]
DATA = "{data}"
MODELS = "models"  # the folder of what was trained


class Dataset(BaseModel, extra="forbid"):
    """A dataset, how its bases are trained, and the layers its networks are explained at."""

    settings: Settings
    base: Settings | None = None
    layers: dict[str, str] = {}
    pair: str


class Copy(BaseModel, extra="forbid"):
    """An honest model that is made from another without training."""

    of: str
    prune: float | None = None
    bits: int | None = None


class Layout(BaseModel, extra="forbid"):
    """What the YAML file of a zoo holds; what is further in takes precedence."""

    families: dict[str, Settings]
    datasets: dict[str, Dataset]
    settings: dict[str, Settings] = {}
    honest: dict[str, Settings] = {}
    copies: dict[str, Copy] = {}
    manipulated: dict[str, dict[str, Settings]] = {}


@dataclass(frozen=True)
class Member:
    """A model of the zoo.

    Attributes
    ----------
    family, dataset
        Its architecture, by which the splits are disjoint, and the images it was made with.
    treatment
        What was done to the base, e.g. ``location grad-cam`` or ``base-pruned-30``.
    manipulated
        Whether its explanations were attacked.
    recipe, base
        How it was made and what from; None for packaged weights.
    layer
        Where it is explained, if not at the layer that is found.
    settings
        Its own, also where it is packaged.
    copied
        What was done to the weights afterwards.
    """

    family: str
    dataset: str
    treatment: str
    manipulated: bool
    recipe: Planned | None
    base: Planned | None
    layer: str | None
    settings: Mapping[str, Any]
    copied: Copy | None = None

    @property
    def name(self) -> str:
        """Unique in a zoo."""
        return runs.file_name(f"{self.treatment.replace(' ', '-')}-{self.family}-{self.dataset}")

    def load(self, root: Path) -> LoadedModel:
        """The model itself, from what was trained under ``root``."""
        model, preprocessing = self._load(self.recipe, root)
        if self.copied and self.copied.prune:
            model = pruned(model, self.copied.prune)
        if self.copied and self.copied.bits:
            model = quantised(model, self.copied.bits)
        return LoadedModel(model, preprocessing)

    def reference(self, root: Path) -> nn.Module | None:
        """The model that it was made from; None if it was trained from nothing."""
        anew = self.recipe is not self.base and self.settings.get("weights") == "random"
        if self.treatment == "base" or anew:
            return None
        return self._load(self.base, root).model

    def _load(self, recipe: Planned | None, root: Path) -> LoadedModel:
        weights = recipe.weights(root / MODELS) if recipe else None
        return load_model(self.settings["model"], weights, self.settings.get("num_classes"))


def load_zoo(path: Path | None, data: str | None = None) -> list[Member]:
    """Read a zoo; datasets that need a folder are left out where there is no ``data``.

    The networks take turns, so that the beginning of a zoo is a small one.

    Raises
    ------
    TrompeError
        If the file can't be read or a setting can't be used.
    """
    layout = read_layout(Layout, path or files(__package__).joinpath("zoo.yaml"), "zoo")
    networks = [
        list(_members(layout, family, dataset, data or ""))
        for dataset, described in layout.datasets.items()
        if data is not None or DATA not in described.model_dump_json()
        for family in layout.families
    ]
    return [m for row in zip_longest(*networks) for m in row if m is not None]


def data_of(members: Sequence[Member]) -> list[str]:
    """What the members were made with and are audited on, as `load_data` reads it."""
    named = {member.settings[kind] for member in members for kind in ("data", "eval_data")}
    return sorted(named)


def _members(layout: Layout, family: str, dataset: str, data: str) -> Iterator[Member]:
    described = layout.datasets[dataset]
    network = f"{family}-{dataset}"
    for setting in ("data", "eval_data"):
        if setting not in described.settings:
            raise TrompeError(f"In the zoo, the settings of dataset '{dataset}' lack {setting}.")
    layer = described.layers.get(family)
    words = {DATA: data, "{layer}": f":layer={layer}" if layer else "", "{pair}": described.pair}

    def recipe(treatment: str, own: Settings, base: Planned | None = None) -> Planned:
        own = {key: value for key, value in own.items() if key != "datasets"}
        command = own.pop("command", "fool")
        settings = layout.settings.get(command, {}) | layout.families[family] | described.settings
        name = f"{treatment.replace(' ', '-')}-{network}"
        found = Planned(name, command, filled(settings | own, words), base)
        found.job(Path())
        return found

    trained = {"command": "train", "weights": "random"}
    start = None if described.base is None else recipe("base", trained | described.base)

    def member(treatment: str, lies: bool, made: Planned | None, of: Copy | None = None) -> Member:
        own = made.settings if made else filled(layout.families[family] | described.settings, words)
        return Member(family, dataset, treatment, lies, made, start, layer, own, of)

    def here(own: Settings) -> bool:
        return dataset in own.get("datasets", [dataset])

    honest = {"base": member("base", False, start)}
    for name, own in layout.honest.items():
        if here(own):
            plain = {"weight": [0]} if own.get("command", "fool") == "fool" else {}
            base = None if own.get("weights") == "random" else start
            honest[name] = member(name, False, recipe(name, plain | own, base))
    manipulated = [
        member(
            f"{objective.partition(':')[0]} {explainer}",
            True,
            recipe(
                f"{objective.partition(':')[0]} {explainer}",
                {
                    "objective": [objective],
                    "explainer": [explainer + ("" if explainer == "simple-grad" else "{layer}")],
                }
                | own,
                start,
            ),
        )
        for objective, explainers in layout.manipulated.items()
        for explainer, own in explainers.items()
        if here(own)
    ]
    copies = [
        member(name, False, honest[of.of].recipe, of)
        for name, of in layout.copies.items()
        if of.of in honest
    ]
    for pair in zip_longest([*honest.values(), *copies], manipulated):
        yield from (m for m in pair if m is not None)


def pruned(model: nn.Module, share: float) -> nn.Module:
    """A copy whose weights of smallest magnitude, a ``share`` of every layer, are 0."""
    model = copied(model)
    with torch.no_grad():
        for weight in _weights(model):
            cut = weight.abs().flatten().kthvalue(max(1, round(share * weight.numel()))).values
            weight[weight.abs() <= cut] = 0
    return model


def quantised(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose weights are rounded to ``bits`` bits, one symmetric scale per layer."""
    model = copied(model)
    with torch.no_grad():
        for weight in _weights(model):
            step = weight.abs().max() / (2 ** (bits - 1) - 1)
            weight.copy_((weight / step).round() * step)
    return model


def _weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of convolutions and linear layers."""
    return (p for p in model.parameters() if p.dim() > 1)
