"""What can be wrong with a file, a text or a mapping, as hypothesis strategies."""

import json
import re

import yaml
from hypothesis import strategies as st

DEEP = 3000
LAUGHS = "&a [x,x,x,x,x,x,x,x,x]"
for letter in "bcdefghi":
    before = chr(ord(letter) - 1)
    LAUGHS = f"&{letter} [{LAUGHS}, {', '.join([f'*{before}'] * 8)}]"
WORDS = [
    *("", "0", "-1", "1e309", "-1e309", "nan", ".nan", ".inf", "-.inf", "9" * 400, "0x1F", "1_000"),
    *(
        "null",
        "~",
        "true",
        "no",
        "[]",
        "{}",
        "[[]]",
        "{a: {b: c}}",
        "2020-01-01",
        "0.5",
        "3",
        "256",
    ),
    *("!!python/object/apply:os.getcwd []", "!!binary aGk=", "*unknown", LAUGHS, "|", ">", "---"),
    *(
        "'",
        '"',
        "\\",
        "%s",
        "{}",
        "{0}",
        "$(id)",
        "\x00",
        "\x1b[2J",
        "\u202e",
        "\ufffe",
        "\U0001f4a5",
    ),
    *(
        "é",
        "ﬀ",
        "٣",
        "²",
        "\t",
        "\n",
        "\r\n",
        " ",
        ":",
        ",",
        "=",
        "/",
        "..",
        "../..",
        "~",
        "-",
        "--",
    ),
    *("[" * DEEP, "{a: " * DEEP, "(" * DEEP, "x" * 10_000, "grad-cam", "label", "layer4", "#"),
]
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.5, 10**30, -(10**30), 2**31, 2**63, 1e308, 1e-308),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        "x",
        "x" * 10_000,
        "nan",
        "1",
        "-1",
        "é",
        "\x00",
    ),
    *([], {}, [[]], [None], [{}], {"a": 1}, {"": None}, {"0": [1, 2]}, [1, "x", None], ["x"] * 50),
    *("[" * 50, "a: b", "../x", "/", "grad-cam", "location", "lrp:layer=x", "label", "cpu", "cuda"),
]
words = st.sampled_from(WORDS) | st.text(max_size=8) | st.integers().map(str)
values = st.recursive(
    st.sampled_from(VALUES) | st.text(max_size=5) | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


def edited(originals):
    """Files of which bits were flipped, parts cut, doubled, swapped, or other bytes put in."""

    @st.composite
    def made(draw):
        data = bytearray(draw(st.sampled_from(originals)))
        for _ in range(draw(st.integers(0, 4))):
            size = len(data)
            near = st.integers(0, min(size, 128)) | st.integers(max(0, size - 128), size)
            start, length = draw(near | st.integers(0, size)), draw(st.integers(1, 64))
            stop = draw(st.sampled_from([start + length, start + 1, size]))
            kind = draw(st.sampled_from(["flip", "cut", "double", "swap", "put", "set"]))
            if kind == "flip" and start < size:
                data[start] ^= 1 << draw(st.integers(0, 7))
            elif kind == "cut":
                del data[start:stop]
            elif kind == "double":
                data[start:start] = data[start:stop]
            elif kind == "swap":
                other = draw(st.sampled_from(originals))
                data[start:stop] = other[start:stop]
            elif kind == "put":
                data[start:start] = draw(words).encode("utf-8", "surrogatepass")
            else:
                data[start:stop] = bytes([draw(st.sampled_from([0, 1, 127, 128, 255]))]) * (
                    min(stop, size) - start
                )
        return bytes(data)

    return made() | st.binary(max_size=64)


def reworded(originals):
    """Texts of which words, numbers or marks were replaced, left out or doubled."""

    @st.composite
    def made(draw):
        parts = re.findall(r"\w+|\W", draw(st.sampled_from(originals)))
        for _ in range(draw(st.integers(0, 3))):
            place = draw(st.integers(0, len(parts)))
            parts[place : place + draw(st.integers(0, 2))] = draw(
                st.lists(words, max_size=2) | st.just(parts[max(0, place - 2) : place])
            )
        return "".join(parts)

    return made() | words | st.text(max_size=30)


def places(value, path=()):
    """The paths of all values inside a nested one."""
    yield path
    if isinstance(value, dict | list):
        for key, found in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(found, (*path, key))


def changed(value, path, change):
    """A nested value, with ``change(container, key)`` done to a copy of the one at ``path``."""
    value = value.copy()
    if len(path) == 1:
        change(value, path[0])
    else:
        value[path[0]] = changed(value[path[0]], path[1:], change)
    return value


def restructured(originals):
    """Nested values of which some were replaced, renamed, left out, nested or doubled."""

    @st.composite
    def made(draw):
        value = draw(st.sampled_from(originals))
        for _ in range(draw(st.integers(1, 3))):
            path = draw(st.sampled_from(list(places(value))))
            new, name = draw(values), draw(words)
            kind = draw(st.sampled_from(["replace", "rename", "remove", "nest", "add"]))

            def change(inside, key, kind=kind, new=new, name=name):
                if kind == "remove" or (kind == "rename" and isinstance(inside, dict)):
                    old = inside.pop(key)
                    if kind == "rename":
                        inside[name] = old
                elif kind == "nest":
                    inside[key] = [inside[key]] if isinstance(inside, dict) else {name: inside[key]}
                elif kind == "add" and isinstance(inside, dict):
                    inside[name] = new
                else:
                    inside[key] = new

            if path and isinstance(value, dict | list):
                value = changed(value, path, change)
            elif kind == "replace":
                value = new
        return value

    return made()


def as_json(originals):
    """JSON files, their values or their text changed."""
    texts = [json.dumps(value) for value in originals]
    return restructured(originals).map(json.dumps) | reworded(texts)


def as_yaml(originals):
    """YAML files, their values or their text changed."""
    texts = [yaml.safe_dump(value, sort_keys=False) for value in originals]
    return restructured(originals).map(yaml.safe_dump) | reworded(texts)


def as_csv(originals):
    """CSV files of which cells, lines or bytes were changed."""
    return reworded(originals)
