"""Which of a model's outputs the classes of a data set are."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

from trompe.base import yaml_text
from trompe.base.messages import listed
from trompe.data.dataset import Source
from trompe.errors import TrompeError

_WHOLE = re.compile(r"\s*-?\d{1,15}(\.0+)?\s*")
_WORDNET_ID = re.compile(r"n\d{8}")


class Mapped(Source):
    """A source whose classes are outputs of a model.

    Parameters
    ----------
    source : Source
        Where the pictures come from.
    outputs : sequence of int
        The output that each of its classes is.
    names : sequence of str
        Names of the outputs, where they are known.
    """

    mapped = True

    def __init__(self, source: Source, outputs: Sequence[int], names: Sequence[str]) -> None:
        self.source = source
        self.labels = torch.tensor(outputs)[source.labels]
        own = dict(zip(outputs, source.classes, strict=True))
        self.classes = tuple(names) or tuple(own.get(i, str(i)) for i in range(max(outputs) + 1))
        self.has_masks, self.generated = source.has_masks, source.generated

    def open(self, row: int) -> Image.Image:
        """Return the picture of a row."""
        return self.source.open(row)

    def prepared(self, row: int) -> Tensor | None:
        """Return the row's image as the model takes it, where there is no picture."""
        return self.source.prepared(row)

    def content(self, row: int) -> Any:
        """Return what tells the picture of a row from others."""
        return self.source.content(row)

    def name(self, row: int) -> str:
        """Return what people call the row."""
        return self.source.name(row)

    def mask(self, row: int) -> Image.Image:
        """Return the object's mask."""
        return self.source.mask(row)


def mapped(
    source: Source, known: Sequence[str], class_map: Mapping[str, int | str] | str | Path | None
) -> Source:
    """The source with the model's outputs as its classes, where it is known which they are.

    Parameters
    ----------
    source
        Classes with names: folders, texts, those of a table.
    known
        Names of the model's outputs; none if nobody knows them.
    class_map
        The output (its number or name) of each class, or a YAML or JSON file of them. By default,
        classes that are called like outputs are those, in any case and with or without spaces;
        ImageNet's are known by their WordNet ids and synonyms too.

    Raises
    ------
    TrompeError
        If the map can't be read, lacks a class, or names an output that does not exist.
    """
    names = source.classes
    if class_map is not None:
        return Mapped(source, _listed_outputs(names, known, class_map), known)
    outputs = _outputs_by_name(names, known)
    if None not in outputs:
        same = outputs == [*range(len(known))]
        return source if same else Mapped(source, [i for i in outputs if i is not None], known)
    unknown = [name for name, output in zip(names, outputs, strict=True) if output is None]
    if 2 * len(unknown) < len(names):
        warnings.warn(
            f"{len(names) - len(unknown)} of the {len(names)} classes are outputs of the model by "
            f"their names, but {listed('are not', unknown)}: all are numbered by their order. Give "
            "class_map, which says for each class which output it is.",
            stacklevel=3,
        )
    _warn_of_numbers(names)
    return source


def as_numbers(names: Sequence[str]) -> list[int] | None:
    """The whole numbers that all of ``names`` are, None if one is something else."""
    if all(map(_WHOLE.fullmatch, names)):
        return [int(float(name)) for name in names]
    return None


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Names of the 1,000 classes of ImageNet (ILSVRC 2012), in the order of networks' outputs."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


def _warn_of_numbers(names: Sequence[str]) -> None:
    numbers = as_numbers(names)
    if numbers is not None and numbers != [*range(len(names))]:
        shown = ", ".join(f"{i} is '{name}'" for i, name in enumerate(names[:3]))
        warnings.warn(
            f"The names of the classes are numbers, but not those from 0 to {len(names) - 1}: they "
            f"are numbered by their order, class {shown} and so on. If the model's outputs are in "
            "another order, give class_map.",
            stacklevel=4,
        )


def _listed_outputs(
    names: Sequence[str], known: Sequence[str], class_map: Mapping[str, int | str] | str | Path
) -> list[int]:
    given = class_map if isinstance(class_map, Mapping) else _read(Path(class_map))
    by_class = {str(name): output for name, output in given.items()}
    if absent := [name for name in names if name not in by_class]:
        raise TrompeError(
            f"class_map says no output for {listed('classes', absent)}; add them, as in "
            f"'{absent[0]}: 0'."
        )
    places = {_key(name): place for place, name in enumerate(known)}
    outputs = [_output(by_class[name], places) for name in names]
    last = len(known) - 1 if known else None
    wrong = [
        f"{name}: {by_class[name]}"
        for name, output in zip(names, outputs, strict=True)
        if output is None or output < 0 or (last is not None and output > last)
    ]
    if wrong:
        expected = "0 or more" if last is None else f"from 0 to {last}, or a name of one"
        raise TrompeError(
            f"class_map has {listed('entries that are no outputs', wrong)}; expected the number of "
            f"an output of the model, {expected}."
        )
    return [output for output in outputs if output is not None]


def _output(given: Any, places: Mapping[str, int]) -> int | None:
    numbers = as_numbers([str(given)])
    return numbers[0] if numbers else places.get(_key(str(given)))


def _read(path: Path) -> Mapping[str, str]:
    """A mapping in a file, all of it text, so that a class may be called ``no`` or ``1e3``."""
    try:
        found = yaml_text.loaded(path.read_text(encoding="utf-8"), as_text=True)
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise TrompeError(
            f"class_map can't be read from {path} ({why}); give a YAML or JSON file that maps "
            "each class to an output of the model."
        ) from error
    if not isinstance(found, Mapping):
        raise TrompeError(f"{path} holds no mapping; write one line 'CLASS: OUTPUT' for each.")
    return found


def _outputs_by_name(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    places = {_key(name): place for place, name in enumerate(known)}
    outputs = [_found(name, places) for name in names]
    if None in outputs and tuple(known) == imagenet_classes():
        places = _imagenet_synonyms() | places
        outputs = [_found(name, places) for name in names]
    return outputs


def _found(name: str, places: Mapping[str, int]) -> int | None:
    """The place of a name, of the WordNet id in it, or of one of several names in it."""
    for text in (name, *_WORDNET_ID.findall(name), *name.split(",")):
        if (place := places.get(_key(text))) is not None:
            return place
    return None


@cache
def _imagenet_synonyms() -> dict[str, int]:
    """Outputs by WordNet id, and by synonyms that only one of the classes has."""
    from timm.data.imagenet_info import ImageNetInfo  # takes seconds, and few need it

    info: Any = ImageNetInfo()
    synonyms = [{_key(text) for text in names.split(",")} for names in info.label_descriptions()]
    counts = Counter(text for texts in synonyms for text in texts)
    found = {text: i for i, texts in enumerate(synonyms) for text in texts if counts[text] == 1}
    return found | {wordnet_id: i for i, wordnet_id in enumerate(info.label_names())}


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
