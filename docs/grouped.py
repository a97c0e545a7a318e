"""An extension of griffe: names that share a description each have their own type."""

from typing import Any

from griffe import (
    Alias,
    DocstringAttribute,
    DocstringSectionAttributes,
    DocstringSectionParameters,
    Extension,
    Module,
    Object,
)


class Grouped(Extension):
    """Of ``first, second`` griffe takes the first one's type, or none where they are attributes."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Mend what a package documents."""
        _mend(pkg)


def _mend(documented: Object | Alias) -> None:
    if documented.is_alias:
        return
    for section in documented.docstring.parsed if documented.docstring else ():
        if isinstance(section, DocstringSectionParameters):
            known = getattr(documented, "parameters", ())
            for parameter in section.value:
                if parameter.name in known:
                    parameter.annotation = known[parameter.name].annotation
                    parameter.value = known[parameter.name].default
                elif parameter.name in documented.members:
                    parameter.annotation = _type(documented, parameter.name)
        elif isinstance(section, DocstringSectionAttributes):
            section.value = [
                DocstringAttribute(
                    name, annotation=_type(documented, name), description=group.description
                )
                for group in section.value
                for name in group.name.split(", ")
            ]
    for member in documented.members.values():
        _mend(member)


def _type(documented: Object | Alias, name: str) -> Any:
    return getattr(documented.members.get(name), "annotation", None)
