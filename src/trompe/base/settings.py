"""Settings that are checked in one place, from whichever way they come: Python, YAML, options."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trompe.base import yaml_text
from trompe.errors import TrompeError

M = TypeVar("M", bound=BaseModel)


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError("it must be a whole number")
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError("it must be a whole number") from None


Whole = Annotated[int, BeforeValidator(_whole)]
"""A whole number; 2.5, 2.0 and text are none."""


class Settings(BaseModel):
    """Settings by name, each with its range, default and description.

    Raises
    ------
    TrompeError
        If one is unknown, missing or out of its range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise self._refused(error) from error

    @classmethod
    def called(cls, name: str) -> str:
        """What people call a setting."""
        return name

    @classmethod
    def _refused(cls, error: ValidationError) -> TrompeError:
        """The first of pydantic's complaints in a sentence."""
        first = error.errors()[0]
        ours = first.get("ctx", {}).get("error")
        if isinstance(ours, TrompeError):
            return ours
        missing = [str(one["loc"][0]) for one in error.errors() if one["type"] == "missing"]
        if missing:
            fields = cls.model_fields
            absent = [f"{cls.called(m)} is missing ({fields[m].description})" for m in missing]
            return TrompeError(f"{'; '.join(absent)}.")
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = ", ".join(cls.model_fields)
            return TrompeError(f"There is no setting '{name}'; known are {known}.")
        said = _BOUNDS.get(first["type"], "can't be {input!r}: " + first["msg"])
        bounds = {key: _plain(value) for key, value in first.get("ctx", {}).items()}
        told = said.removesuffix(".").format(input=first["input"], **bounds)
        return TrompeError(f"{cls.called(name)} {told.replace('Value error, ', '')}.")


def _plain(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, int | float) else str(bound).replace("'", "")


_BOUNDS = {
    "greater_than": "must be above {gt}, not {input}",
    "greater_than_equal": "must be at least {ge}, not {input}",
    "less_than": "must be below {lt}, not {input}",
    "less_than_equal": "must be at most {le}, not {input}",
    "finite_number": "must be a number, not {input}",
    "float_parsing": "must be a number, not {input!r}",
    "float_type": "must be a number, not {input!r}",
    "bool_parsing": "must be true or false, not {input!r}",
    "literal_error": "can't be {input!r}; choose {expected}",
}


class Execution(Settings):
    """How a run happens."""

    seed: Whole = Field(0, ge=0, description="seed of everything random")
    device: Literal["cpu", "cuda"] | None = Field(
        None, description="where it computes (default: cuda, if there is a GPU)"
    )
    quiet: bool = Field(False, description="show no progress and no tables")


class Loading(Execution):
    """How a run that reads much data happens."""

    workers: Whole = Field(0, ge=0, description="processes that decode images")


def filled(settings: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    """Settings whose texts, also those in lists, have every word replaced by what it stands for."""

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            for word, replacement in words.items():
                value = value.replace(word, replacement)
        return [fill(v) for v in value] if isinstance(value, list) else value

    return {key: fill(value) for key, value in settings.items()}


def parsed(file: Traversable, what: str) -> Any:
    """What a YAML file holds.

    Raises
    ------
    TrompeError
        If it can't be read.
    """
    try:
        return yaml_text.loaded(file.read_text())
    except FileNotFoundError as error:
        raise TrompeError(f"There is no {what} '{file}'; check the path.") from error
    except IsADirectoryError as error:
        raise TrompeError(f"The {what} '{file}' is a folder; give a YAML file.") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrompeError(f"The {what} '{file}' can't be read as YAML: {error}.") from error


def read_layout(kind: type[M], file: Traversable, what: str) -> M:
    """Read a YAML file that lays out many runs: ``what`` is a grid, or a zoo.

    Raises
    ------
    TrompeError
        If the file can't be read, or a part is unknown, missing or out of range.
    """
    try:
        return kind.model_validate(parsed(file, what))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise TrompeError(f"In the {what} '{file}', {where}: {first['msg']}.") from error
