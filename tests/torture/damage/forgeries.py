"""Checkpoints that verify and are wrong all the same: a hash is no signature, and whoever can write can hash.

Those that hold other values in the right places cannot be told from true ones. All others can: manifests that lie, and
states of another structure.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

MANIFEST, TREE, TENSORS = "manifest.json", "state.json", "tensors.safetensors"
Forgery = Callable[[Path, random.Random], None]


def sealed(content: dict[str, Any]) -> bytes:
    """Return a manifest whose own hash is right."""
    content.pop("sha256", None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(content | {"sha256": hashlib.sha256(canonical).hexdigest()}, indent=2).encode()


def vouch(directory: Path) -> None:
    """Let the manifest say what the files now hold."""
    content = json.loads((directory / MANIFEST).read_bytes())
    for name in content["files"]:
        data = (directory / name).read_bytes()
        content["files"][name] = {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    (directory / MANIFEST).write_bytes(sealed(content))


def _manifest(change: Callable[[dict[str, Any]], object]) -> Forgery:
    def forge(directory: Path, _: random.Random) -> None:
        content = json.loads((directory / MANIFEST).read_bytes())
        change(content)
        (directory / MANIFEST).write_bytes(sealed(content))

    return forge


def _raw(content: bytes) -> Forgery:
    return lambda directory, _: (directory / MANIFEST).write_bytes(content) and None


def _entry(name: str, value: Any) -> Forgery:
    return _manifest(lambda content: content["files"][TENSORS].update({name: value}))


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def _twice(directory: Path, _: random.Random) -> None:
    """Name each key twice, the wrong value first."""
    content = json.loads((directory / MANIFEST).read_bytes())
    doubled = ", ".join(f'"{key}": 0, "{key}": {json.dumps(value)}' for key, value in content.items())
    (directory / MANIFEST).write_text(f"{{{doubled}}}")


def _twice_wrong(directory: Path, _: random.Random) -> None:
    """Name each key twice, the right value first."""
    content = json.loads((directory / MANIFEST).read_bytes())
    doubled = ", ".join(f'"{key}": {json.dumps(value)}, "{key}": 0' for key, value in content.items())
    (directory / MANIFEST).write_text(f"{{{doubled}}}")


_NUMBERS: tuple[Any, ...] = (
    *(-1, 2**63, 10**4000, 1.5, float("nan"), float("inf"), -float("inf"), True, None, "7", "nan", [], {}, [1]),
)
MANIFESTS: dict[str, Forgery] = {
    **{
        f"{field} {value!r:.12}": _manifest(lambda content, field=field, value=value: content.update({field: value}))
        for field in ("step", "ordinal", "score", "format")
        for value in _NUMBERS
    },
    **{
        f"directory {value!r:.20}": _manifest(lambda content, value=value: content.update({"directory": value}))
        for value in ("..", "", None, 3, "step-000000001-abcdef", "x" * 300_000)
    },
    **{f"bytes {value!r:.12}": _entry("bytes", value) for value in (*_NUMBERS, 0, 2**40, 2**62)},
    **{f"hash {value!r:.12}": _entry("xxh3_128", value) for value in ("", "0" * 32, None, 7, [], float("nan"))},
    **{
        f"without {field}": _manifest(lambda content, field=field: content.pop(field))
        for field in ("format", "directory", "step", "ordinal", "score", "files")
    },
    **{f"without {name}": _manifest(lambda content, name=name: content["files"].pop(name)) for name in (TREE, TENSORS)},
    **{
        f"files {value!r:.12}": _manifest(lambda content, value=value: content.update({"files": value}))
        for value in ({}, [], None, 3, "x", [TREE, TENSORS], {TREE: None, TENSORS: 3}, {TREE: [1, "x"]})
    },
    **{
        f"also {name!r:.24}": _manifest(
            lambda content, name=name: content["files"].update({name: {"bytes": 5, "xxh3_128": "0" * 32}})
        )
        for name in (
            "../../../../etc/passwd",
            "/etc/passwd",
            "",
            ".",
            "a/b",
            "a\0b",
            "\ud800",
            "tensors-00001.safetensors",
        )
    },
    "many files": _manifest(
        lambda content: content["files"].update({str(n): {"bytes": 0, "xxh3_128": ""} for n in range(9000)})
    ),
    "deep": _manifest(lambda content: content.update({"more": _deep(900)})),
    "more": _manifest(lambda content: content.update({"more": "x" * 900_000})),
    "keys twice": _twice,
    "keys twice, wrong": _twice_wrong,
    "very deep": _raw(b'{"sha256": ' + b"[" * 500_000),
    "very deep objects": _raw(b'{"a":' * 150_000),
    "blanks": _raw(b" " * 2**21),
    "a number": _raw(b"7"),
    "a list": _raw(b"[]"),
    "a text": _raw(b'"x"'),
    "null": _raw(b"null"),
    "NaN": _raw(b"NaN"),
    "an empty object": _raw(b"{}"),
    "digits": _raw(b"9" * 10_000),
    "zeros": _raw(bytes(1000)),
    "utf-16": lambda directory, _: (
        (directory / MANIFEST).write_bytes((directory / MANIFEST).read_text().encode("utf-16")) and None
    ),
    "a mark in front": lambda directory, _: (
        (directory / MANIFEST).write_bytes(b"\xef\xbb\xbf" + (directory / MANIFEST).read_bytes()) and None
    ),
}
"""Manifests that lie."""


def _tree(change: Callable[[list[Any], random.Random], Any]) -> Forgery:
    """Change the structure: the state is a dict, a list of [key, value]."""

    def forge(directory: Path, chance: random.Random) -> None:
        tree = json.loads((directory / TREE).read_bytes())
        found = change(tree["dict"], chance)
        (directory / TREE).write_text(json.dumps(tree if found is None else found))
        vouch(directory)

    return forge


def _set(entries: list[Any], key: str, value: Any) -> None:
    next(entry for entry in entries if entry[0] == key)[1] = copy.deepcopy(value)


def _drop(entries: list[Any], key: str) -> None:
    entries[:] = [entry for entry in entries if entry[0] != key]


def _inner(entries: list[Any], key: str, change: Callable[[list[Any]], object]) -> None:
    """Change a dict within."""
    value = next(entry for entry in entries if entry[0] == key)[1]
    if isinstance(value, dict) and "dict" in value:
        change(value["dict"])


def _header(change: Callable[[dict[str, Any], str], Any]) -> Forgery:
    """Change the header of the tensors; `change` is handed it and the name of a large tensor."""

    def forge(directory: Path, chance: random.Random) -> None:
        del chance
        file = directory / TENSORS
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        name = max(header, key=lambda one: header[one]["data_offsets"][1] - header[one]["data_offsets"][0])
        changed = change(header, name)
        text = json.dumps(header if changed is None else changed).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])
        vouch(directory)

    return forge


def _bytes(change: Callable[[bytes], bytes], name: str = TENSORS) -> Forgery:
    def forge(directory: Path, chance: random.Random) -> None:
        del chance
        (directory / name).write_bytes(change((directory / name).read_bytes()))
        vouch(directory)

    return forge


def _offsets(change: Callable[[int, int], tuple[Any, Any]]) -> Forgery:
    def forge(header: dict[str, Any], name: str) -> None:
        header[name]["data_offsets"] = list(change(*header[name]["data_offsets"]))

    return _header(forge)


PARTS = (
    "model",
    "optimizer",
    "average",
    "scheduler",
    "random",
    "data",
    "metrics",
    "hyperparameters",
    "built",
    "placement",
    "monitor",
    "loss_guard",
    "own",
)
"""Of a run's state."""
_VALUES: tuple[Any, ...] = (
    None,
    7,
    "x",
    [],
    {"dict": []},
    {"tuple": []},
    {"float": "7ff8000000000000"},
    {"int": "0x" + "f" * 9999},
)

STATES: dict[str, Forgery] = {
    **{f"without {part}": _tree(lambda entries, _, part=part: _drop(entries, part)) for part in PARTS},
    **{
        f"{part} is {value!r:.20}": _tree(lambda entries, _, part=part, value=value: _set(entries, part, value))
        for part in PARTS
        for value in _VALUES
        if not (part in ("average", "scheduler") and value is None) and part != "own"
    },
    **{
        f"{part} is empty within": _tree(lambda entries, _, part=part: _inner(entries, part, list.clear))
        for part in PARTS
        if part not in ("own", "placement")
    },
    **{
        f"{part} holds null": _tree(
            lambda entries, _, part=part: _inner(entries, part, lambda own: [item.__setitem__(1, None) for item in own])
        )
        for part in ("model", "optimizer", "data", "metrics", "built", "monitor", "loss_guard")
    },
    "unknown kind": _tree(lambda entries, _: _set(entries, "own", {"pickle": "x"})),
    "two kinds": _tree(lambda entries, _: _set(entries, "own", {"dict": [], "tuple": []})),
    "no kind": _tree(lambda entries, _: _set(entries, "own", {})),
    "no such tensor": _tree(lambda entries, _: _set(entries, "own", {"tensor": "nowhere"})),
    "tensor is a list": _tree(lambda entries, _: _set(entries, "own", {"tensor": []})),
    "key is a list": _tree(lambda entries, _: _set(entries, "own", {"dict": [[[], 1]]})),
    "pair of three": _tree(lambda entries, _: _set(entries, "own", {"dict": [["a", 1, 2]]})),
    "a part of nothing": _tree(lambda entries, _: _set(entries, "own", {"part": ["nowhere", [5], 0]})),
    "a part of a huge whole": _tree(lambda entries, _: _set(entries, "own", {"part": ["model.counted", [2**60], 0]})),
    "a part of no dimension": _tree(lambda entries, _: _set(entries, "own", {"part": ["model.counted", [], 0]})),
    "a part by dimension 9": _tree(lambda entries, _: _set(entries, "own", {"part": ["model.counted", [5], 9]})),
    "the state is a list": _tree(lambda entries, _: [1, 2]),
    "the state is null": _bytes(lambda _: b"null", TREE),
    "no JSON": _bytes(lambda _: b"\x80\x04.", TREE),
    "very deep": _bytes(lambda _: b'{"tuple":[' * 100_000, TREE),
    "deep": _bytes(lambda _: b'{"tuple":[' * 5_000 + b"]}" * 5_000, TREE),
    "state of nothing": _bytes(lambda _: b"", TREE),
    "shape of another order": _header(
        lambda header, name: header[name].update({"shape": [2, header[name]["shape"][0] // 2]})
    ),
    "shape that is longer": _header(
        lambda header, name: header[name].update({"shape": [header[name]["shape"][0] + 1]})
    ),
    "shape that is shorter": _header(
        lambda header, name: header[name].update({"shape": [header[name]["shape"][0] - 1]})
    ),
    **{
        f"shape {shape!r:.20}": _header(lambda header, name, shape=shape: header[name].update({"shape": shape}))
        for shape in ([], [-1], [2**62], [2**62, 4], [2.0], ["x"], None, 7, [[]], [0])
    },
    "nothing of a right shape": _header(lambda header, name: header[name].update({"data_offsets": [0, 0]})),
    "nothing of a huge shape": _header(
        lambda header, name: header[name].update({"data_offsets": [0, 0], "shape": [2**50]})
    ),
    **{
        f"dtype {dtype!r:.12}": _header(lambda header, name, dtype=dtype: header[name].update({"dtype": dtype}))
        for dtype in ("F64", "F16", "U8", "F4", "", None, 7, [], "object")
    },
    "backwards": _offsets(lambda begin, end: (end, begin)),
    "to the end": _offsets(lambda begin, end: (begin, begin - 4)),
    "before the beginning": _offsets(lambda begin, end: (begin - end - 8, -8)),
    "over the end": _offsets(lambda begin, end: (begin + 2**20, end + 2**20)),
    "far over the end": _offsets(lambda begin, end: (2**62, 2**62 + end - begin)),
    "offsets in halves": _offsets(lambda begin, end: (begin + 0.5, end + 0.5)),
    "offsets of text": _offsets(lambda begin, end: (str(begin), str(end))),
    "one offset more": _header(lambda header, name: header[name]["data_offsets"].append(0)),
    "one field more": _header(lambda header, name: header[name].update({"more": 1})),
    "without dtype": _header(lambda header, name: header[name].pop("dtype") and None),
    "without a tensor": _header(lambda header, name: header.pop(name) and None),
    "header is a list": _header(lambda header, name: [header]),
    "entry is null": _header(lambda header, name: header.update({name: None})),
    "with metadata": _header(lambda header, name: header.update({"__metadata__": {"format": "pt"}})),
    "header longer than all": _bytes(lambda data: (2**62).to_bytes(8, "little") + data[8:]),
    "header of nothing": _bytes(lambda data: bytes(8) + data[8:]),
    "header is deep": _bytes(lambda data: (10**6).to_bytes(8, "little") + b"[" * 10**6),
    "tensors of nothing": _bytes(lambda data: b""),
    "tensors cut": _bytes(lambda data: data[:-100]),
}
"""States of another structure, vouched for by their manifest."""
