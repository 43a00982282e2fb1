"""Files of every layout that a channel can have: whole, then truncated, flipped, spliced, with odd values, or bombs.

Each is read by smkit and by a reference that shares no line with it: Python's csv, json, tarfile and struct, numpy,
Pillow and pyarrow as they are. What smkit takes must be what the reference makes of the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import torch
from hypothesis import strategies as st
from PIL import Image, ImageOps

from smkit.data.layouts import open_dataset
from smkit.data.source import allocate
from torture.contract.examples import Verdict, judged

Columns = dict[str, list[Any]]
"""What a batch holds, by name: numbers, texts, or lists of them; features of one matrix by their place."""


@dataclass
class Folder:
    path: Path
    name: str = "train"


MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None")
CELLS = [
    "",
    "NA",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1e-400",
    "x",
    "cat",
    "1_0",
    "\u0661",
    "9" * 30,
    "1.5",
    "-0",
    " 1",
    "1 ",
    "true",
]
CELLS += [
    "2024-01-01",
    "\0",
    "é",
    "'",
    ";",
    "\t",
    "9223372036854775807",
    "9223372036854775808",
    "1e3",
    "+1",
    "\u202e",
    "00",
]
PIECES = [b"", b"\0", b"\xff" * 4, b"\n", b",", b'"', b"\r", b"{", b"[" * 500, b"\xef\xbb\xbf", b"\x7f" * 8, b"1" * 400]

number = st.integers(-1000, 1000).map(str) | st.floats(-100, 100, width=32).map(repr)


def read_all(folder: Path, cache: Path, options: Mapping[str, Any]) -> Columns:
    """Open a folder with smkit and read every sample of it."""
    found: Any = open_dataset(Folder(folder), cache_dir=cache, **options)
    count = len(found)
    batch = found.read(torch.arange(count), allocate) if count else ()
    if isinstance(batch, dict):
        return {name: part if isinstance(part, list) else part.tolist() for name, part in batch.items()}
    parts: Columns = {str(place): part.tolist() for place, part in enumerate(batch)}
    return parts | ({"classes": list(found.classes)} if found.classes else {})


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Return some bytes with none, one or several of them changed."""
    ways = data.draw(st.lists(st.sampled_from(["cut", "flip", "splice", "zeros", "again", "tail"]), max_size=3))
    for way in ways:
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        if way == "cut":
            content = content[:place]
        elif way == "flip" and content:
            flipped = content[place] ^ (1 << data.draw(st.integers(0, 7)))
            content = content[:place] + bytes([flipped]) + content[place + 1 :]
        elif way == "splice":
            content = content[:place] + data.draw(st.sampled_from(PIECES)) + content[place:]
        elif way == "zeros":
            content = content[:place] + bytes(8) + content[place + 8 :]
        elif way == "again":
            content = content[:place] + content[max(0, place - 16) :]
        else:
            content += data.draw(st.sampled_from(PIECES))
    return content


def compared(
    folder: Path,
    files: Mapping[str, bytes],
    reference: Callable[[], Columns],
    *,
    is_whole: bool,
    options: Mapping[str, Any] = {},
) -> Verdict:
    """Write the files, read them with smkit, and compare with what the reference makes of them."""
    channel = folder / "channel"
    for name, content in files.items():
        path = channel / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        meant, reason = reference(), ""
    except Exception as error:
        meant, reason = None, f"{type(error).__name__}: {error}"
    wish = "refuse" if meant is None else "accept" if is_whole else ""
    verdict = judged(
        lambda: read_all(channel, folder / "cache", options),
        folder,
        is_right=lambda found: None if _same(found, meant) else f"{found!r:.300} instead of {meant!r:.300}",
        must=wish,
    )
    return verdict[0], f"{verdict[1]} (reference: {reason or 'reads it'})" if verdict[1] else ""


def _same(mine: Any, its: Any) -> bool:
    if isinstance(mine, dict) and isinstance(its, dict):
        return mine.keys() == its.keys() and all(_same(mine[name], its[name]) for name in mine)
    if isinstance(mine, list) and isinstance(its, list):
        return len(mine) == len(its) and all(map(_same, mine, its))
    if isinstance(mine, (int, float)) and isinstance(its, (int, float)):
        # By way of a float64, halfway between two float32, a text can become the other one.
        is_next = mine in (np.nextafter(np.float32(its), np.float32(way)) for way in (-math.inf, math.inf))
        return mine == its or (math.isnan(mine) and math.isnan(its)) or (isinstance(its, float) and bool(is_next))
    return bool(mine == its)


def float32(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


# --- tables of text ---------------------------------------------------------------------------------------------------


def _rows(data: st.DataObject) -> list[list[str]]:
    """Rows of a label and two features: numbers, with an odd cell here and there."""
    cell = number | number | number | st.sampled_from(CELLS)
    rows = data.draw(
        st.lists(st.tuples(st.integers(0, 3).map(str) | number | st.sampled_from(CELLS), cell, cell), max_size=6)
    )
    return [list(row) for row in rows]


def comma_separated(data: st.DataObject, folder: Path) -> Verdict:
    """CSV with a header."""
    rows = (data.draw(st.booleans()) and _rows(data)) or data.draw(_right_rows)
    content = b"label,a,b\n" + b"".join(",".join(row).encode() + b"\n" for row in rows)
    changed = damaged(data, content)
    is_right = changed == content and bool(rows) and rows in _RIGHT
    return compared(folder, {"a.csv": changed}, lambda: _csv(changed), is_whole=is_right)


_RIGHT = [
    [["0", "1.5", "2"], ["1", "-3", "1e3"]],
    [["0.5", "1", "2"], ["-1", "0", "3.25"]],
    [["cat", "1", "2"], ["dog", "3", "4"], ["cat", "", "0"]],
    [["1", "x", "2"], ["2", "y", "3"]],
]
_right_rows = st.sampled_from(_RIGHT)


def _csv(content: bytes) -> Columns:
    text = content.decode("utf-8").removeprefix("\ufeff")
    # At the start of a line it is nothing to any reader that knows lines.
    text = re.sub(r"\n\r(?!\n)", "\n", text.strip("\r\n"))
    if "\r" in text.replace("\r\n", "") or "\0" in text:
        raise ValueError("a line end or a NUL that readers take differently")
    if "\n\ufeff" in text:
        raise ValueError("the beginning of another file in this one")
    # Of quotes in the names, as of anything there, only what they come to counts.
    header = next(csv.reader(io.StringIO(text, newline="")), [])
    _, *rows = csv.reader(io.StringIO(text, newline=""), strict=text.partition("\n")[0].count('"') == 0)
    if not rows and any(_number(cell) is not None for cell in header):
        # A line with a number in it, alone, is a row; as SageMaker has it, the first column is the label.
        names = [str(place) for place in range(len(header))]
        return _batch({name: _typed([cell]) for name, cell in zip(names, header, strict=True)}, label="0")
    if not rows or len(set(header)) < len(header) or any(len(row) != len(header) for row in rows):
        raise ValueError("rows of several lengths, or none")
    columns = dict(zip((name.strip() for name in header), map(list, zip(*rows, strict=True)), strict=True))
    return _batch({name: _typed(cells) for name, cells in columns.items()})


def _typed(cells: Sequence[str]) -> list[Any]:
    """Return cells as whole numbers, numbers, or the texts that they are."""
    stripped = [cell.strip(" \t") for cell in cells]
    if all(re.fullmatch(r"[+-]?[0-9]{1,19}", cell) and -(2**63) <= int(cell) < 2**63 for cell in stripped):
        return [int(cell) for cell in stripped]
    numbers = [math.nan if cell in MISSING else _number(text) for cell, text in zip(cells, stripped, strict=True)]
    return list(cells) if None in numbers else numbers


def _number(cell: str) -> float | None:
    try:
        return float(cell) if "_" not in cell and cell.isascii() else None
    except ValueError:
        return None


def _batch(columns: Mapping[str, list[Any]], label: str = "") -> Columns:
    """Return columns as a batch has them: one matrix if all features are numbers; labels that are texts as classes."""
    known = (label,) if label else ("label", "labels", "y", "target", "targets")
    names = [name for name in columns if name.lower() in known]
    if len(names) != 1:
        raise ValueError("no label, or several")
    labels = columns[names[0]]
    features = {name: cells for name, cells in columns.items() if name != names[0]}
    if any(isinstance(value, float) and not math.isfinite(float32(value)) for value in labels) or "" in labels:
        raise ValueError("a label is missing or infinite")
    if labels and isinstance(labels[0], str):
        classes = sorted(set(labels))
        whole = [name for name in classes if re.fullmatch("-?[0-9]+", name)]
        if 0 < len(classes) - len(whole) < len(whole):
            raise ValueError("a stray text among numbers")
        found: Columns = {"classes": classes, "label": [classes.index(name) for name in labels]}
    else:
        is_whole = all(isinstance(value, int) for value in labels)
        found = {"label": labels if is_whole else [float32(value) for value in labels]}
    if not features:
        raise ValueError("no features")
    if all(not isinstance(value, (str, list)) for cells in features.values() for value in cells):
        rows = [[float32(value) for value in row] for row in zip(*features.values(), strict=True)]
        matrix: Columns = {"0": rows, "1": found.pop("label")}
        return matrix | found
    found.pop("classes", None)
    single = {
        name: [float32(value) if isinstance(value, float) else value for value in cells]
        for name, cells in features.items()
    }
    return single | {names[0]: found["label"]}


JSON_VALUES = [None, True, 1, 1.5, -1, "x", "", [1, 2], [1.5], [], {}, {"a": 1}, 2**63, 1e300, "\ud800", "9" * 400]


def json_lines(data: st.DataObject, folder: Path) -> Verdict:
    """JSON lines: keys that are missing, null, of another type, given twice; lines that are no objects."""
    value = st.integers(-100, 100) | st.floats(-100, 100, width=32)
    odd = st.sampled_from(JSON_VALUES)
    is_odd = data.draw(st.booleans())
    part = value | value | odd if is_odd else value
    count = data.draw(st.integers(1, 5))
    rows = [
        {"label": data.draw(st.integers(0, 3) | (odd if is_odd else st.integers(0, 3))), "a": data.draw(part)}
        for _ in range(count)
    ]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    changed = damaged(data, content)
    is_right = changed == content and not is_odd
    return compared(folder, {"a.jsonl": changed}, lambda: _json_lines(changed), is_whole=is_right)


def _json_lines(content: bytes) -> Columns:
    from torture.contract.reference import strict_json

    text = content.decode("utf-8").lstrip("\ufeff").rstrip("\r\n")
    rows = [strict_json(line) for line in text.split("\n")]
    if not all(isinstance(row, dict) for row in rows) or re.search(
        "[\ud800-\udfff]", json.dumps(rows, ensure_ascii=False)
    ):
        raise ValueError("a line is no object, or no UTF-8")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _batch({name: _json_column([row.get(name) for row in rows]) for name in names})


def _json_column(values: Sequence[Any]) -> list[Any]:
    some = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in some) and some:
        numbers: list[Any] = [None if value is None else int(value) for value in values]
    elif all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in some):
        is_whole = all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in some) and bool(some)
        numbers = [value if is_whole or value is None else _real(value) for value in values]
    elif all(isinstance(value, str) for value in some):
        return ["" if value is None else value for value in values]
    elif all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        parts = [part for value in values for part in value]
        if not parts or not all(type(part) in (int, float) for part in parts):
            raise ValueError("lists of what is no number")
        is_real = any(isinstance(part, float) for part in parts)
        return [[float32(part) if is_real else part for part in value] for value in values]
    else:
        raise ValueError("values of several types")
    return [math.nan if value is None else value for value in numbers]


def _real(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def libsvm(data: st.DataObject, folder: Path) -> Verdict:
    """libsvm: `label index:value`."""
    lines = data.draw(
        st.lists(st.tuples(number, st.dictionaries(st.integers(1, 6), number, max_size=3)), min_size=1, max_size=5)
    )
    text = "".join(
        " ".join([label, *(f"{index}:{pairs[index]}" for index in sorted(pairs))]) + "\n" for label, pairs in lines
    )
    changed = damaged(data, text.encode())
    return compared(folder, {"a.libsvm": changed}, lambda: _libsvm(changed), is_whole=False)


def _libsvm(content: bytes) -> Columns:
    text = content.decode("ascii").rstrip("\r\n")
    labels: list[float] = []
    rows: list[dict[int, float]] = []
    for line in text.split("\n"):
        label, *words = re.sub(r"#.*|qid:\S*", "", line).split()
        pairs = [word.split(":") for word in words]
        if any("_" in word for word in (label, *words)) or any(not index.isdecimal() for index, _ in pairs):
            raise ValueError("no number")
        indices = [int(index) for index, _ in pairs]
        if indices != sorted(set(indices)):
            raise ValueError("indices that do not grow")
        labels.append(float(label))
        rows.append({int(index): float(value) for index, value in pairs})
    base = 0 if any(0 in row for row in rows) else 1
    width = max(max(row, default=base - 1) for row in rows) + 1 - base
    matrix = [[float32(row.get(place + base, 0.0)) for place in range(width)] for row in rows]
    is_whole = all(label.is_integer() for label in labels)
    return {"0": matrix, "1": [int(label) if is_whole else float32(label) for label in labels]}


# --- arrays -----------------------------------------------------------------------------------------------------------

TYPES = ["<f4", "<f8", "<i8", "|u1", "|b1", ">f4", "<u8", "<c8", "<U3", "|O", "<M8[s]", "<f2", "|S2", "|V4"]


def arrays(data: st.DataObject, folder: Path) -> Verdict:
    """.npy and .npz: types that torch has not, objects, shapes that do not fit, headers that claim too much."""
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    kind = data.draw(st.sampled_from(["<f4", "<f4", "<i8", *TYPES]))
    array = np.arange(int(np.prod(shape))).reshape(shape).astype("<i8").astype(kind)
    file = io.BytesIO()
    is_archive = data.draw(st.booleans())
    if is_archive:
        np.savez(file, x=array)
    else:
        np.lib.format.write_array(file, array, allow_pickle=True)
    content = file.getvalue()
    claim = data.draw(
        st.none()
        | st.none()
        | st.sampled_from([b"(9223372036854775807,)", b"(-1,)", b"(999999999999,)", b"(2,", b"True"])
    )
    if claim is not None and not is_archive:
        content = content.replace(repr(shape).encode(), claim[: len(repr(shape))].ljust(len(repr(shape))), 1)
    changed = damaged(data, content)
    name = f"x.np{'z' if is_archive else 'y'}"
    is_right = changed == file.getvalue() and kind in ("<f4", "<f8", "<i8", "|u1") and len(shape) > 0
    return compared(folder, {name: changed}, lambda: _arrays(changed, name), is_whole=is_right)


def _arrays(content: bytes, name: str) -> Columns:
    if name.endswith("z"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = {
                each.removesuffix(".npy"): np.load(archive.open(each), allow_pickle=False)
                for each in archive.namelist()
            }
    else:
        found = {"x": np.load(io.BytesIO(content), allow_pickle=False)}
    if len({array.shape[0] for array in found.values()}) != 1:
        raise ValueError("several lengths")
    return (
        {str(place): array.tolist() for place, (_, array) in enumerate(sorted(found.items()))}
        if len(next(iter(found.values())))
        else {}
    )


def safetensors(data: st.DataObject, folder: Path) -> Verdict:
    """.safetensors: offsets that overlap or lie outside, types that nothing has, a header that is too long."""
    count = data.draw(st.integers(0, 4))
    header = {
        "x": {"dtype": "F32", "shape": [count, 2], "data_offsets": [0, 8 * count]},
        "label": {"dtype": "I64", "shape": [count], "data_offsets": [8 * count, 16 * count]},
    }
    odd = data.draw(
        st.none()
        | st.none()
        | st.none()
        | st.sampled_from(
            [("dtype", "F99"), ("shape", [2**62, 4]), ("data_offsets", [0, 2**63]), ("shape", [-1]), ("x", 1)]
        )
    )
    if odd is not None:
        header["x"][odd[0]] = odd[1]  # type: ignore[index]
    text = json.dumps(header).encode()
    body = np.arange(2 * count, dtype="<f4").tobytes() + np.arange(count, dtype="<i8").tobytes()
    content = struct.pack("<Q", data.draw(st.sampled_from([len(text)] * 9 + [0, 2**40, 2**63]))) + text + body
    changed = damaged(data, content)
    return compared(folder, {"a.safetensors": changed}, lambda: _safetensors(changed), is_whole=False)


def _safetensors(content: bytes) -> Columns:
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size].decode())
    body = content[8 + size :]
    header.pop("__metadata__", None)
    kinds = {
        "F32": "<f4",
        "I64": "<i8",
        "F64": "<f8",
        "I32": "<i4",
        "U8": "|u1",
        "I16": "<i2",
        "F16": "<f2",
        "I8": "|i1",
        "BOOL": "|b1",
    }
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        array = np.frombuffer(body[begin:end], kinds[entry["dtype"]])
        found[name] = array.reshape(entry["shape"])
    if len({len(array) for array in found.values()}) != 1:
        raise ValueError("several lengths")
    labels = [name for name in found if name.lower() in ("label", "labels", "y", "target", "targets")]
    order = [*sorted(name for name in found if name not in labels), *labels]
    return (
        {str(place): found[name].tolist() for place, name in enumerate(order)}
        if len(next(iter(found.values())))
        else {}
    )


# --- columnar files ---------------------------------------------------------------------------------------------------


def columnar(data: st.DataObject, folder: Path) -> Verdict:
    """Parquet and Arrow: damaged anywhere, of types that no batch can hold, nulls, lists of several lengths."""
    count = data.draw(st.integers(0, 4))
    kind = data.draw(
        st.sampled_from(
            [
                pa.float32(),
                pa.int64(),
                pa.string(),
                pa.float64(),
                pa.bool_(),
                pa.list_(pa.int64()),
                pa.date32(),
                pa.struct([("b", pa.int8())]),
            ]
        )
    )
    value = {
        pa.string(): st.text(max_size=3),
        pa.bool_(): st.booleans(),
        pa.list_(pa.int64()): st.lists(st.integers(0, 5), max_size=2),
    }
    items = data.draw(st.lists(st.none() | value.get(kind, st.integers(0, 9)), min_size=count, max_size=count))
    column = pa.array(items, kind) if not pa.types.is_struct(kind) else pa.array([{"b": 1}] * count, kind)
    table = pa.table({"label": pa.array(range(count), pa.int64()), "a": column})
    sink = io.BytesIO()
    form = data.draw(st.sampled_from(["parquet", "arrow", "stream"]))
    if form == "parquet":
        pa.parquet.write_table(table, sink, write_page_checksum=True)
    else:
        with (pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream)(sink, table.schema) as writer:
            writer.write_table(table)
    changed = damaged(data, sink.getvalue())
    name = "a.parquet" if form == "parquet" else "a.arrow"
    return compared(folder, {name: changed}, lambda: _columnar(changed, form), is_whole=False)


def _columnar(content: bytes, form: str) -> Columns:
    source = pa.BufferReader(content)
    readers = {"parquet": pa.parquet.read_table, "arrow": lambda file: pa.ipc.open_file(file).read_all()}
    table = readers.get(form, lambda file: pa.ipc.open_stream(file).read_all())(source)
    table.validate(full=True)
    return _batch({name: _arrow_column(table.column(name)) for name in table.column_names})


def _arrow_column(column: Any) -> list[Any]:
    values = column.to_pylist()
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return [math.nan if value is None else int(value) for value in values]
    if pa.types.is_floating(kind):
        return [math.nan if value is None else float(value) for value in values]
    return ["" if value is None else value for value in values] if pa.types.is_string(kind) else _json_column(values)


# --- images and shards ------------------------------------------------------------------------------------------------


def _picture(data: st.DataObject) -> tuple[bytes, str]:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "WEBP"]))
    mode = data.draw(st.sampled_from(["RGB", "L"]))
    pixels = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 255, (6, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue(), {"JPEG": "jpg"}.get(kind, kind.lower())


def _decoded(content: bytes) -> Any:
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "BMP", "WEBP")) as image:
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith(("I", "F")):
            raise ValueError("more than 8 bits")
        whole = turned.convert("RGBA") if turned.mode in ("P", "PA") else turned
        return np.asarray(whole.convert("RGB"))


def images(data: st.DataObject, folder: Path) -> Verdict:
    """Images in class folders or beside a table: one is damaged, claims to be gigabytes, or has an odd label."""
    content, suffix = _picture(data)
    changed = damaged(data, content)
    if suffix == "jpg" and data.draw(st.integers(0, 9)) == 0 and (at := changed.find(b"\xff\xc0")) > 0:
        changed = changed[: at + 5] + struct.pack(">HH", 65_500, 65_500) + changed[at + 9 :]
    labels = data.draw(
        st.sampled_from(
            [("0", "1"), ("cat", "dog"), ("1", "x"), ("1", ""), ("0.5", "1"), ("1", "2,3"), ("9" * 30, "1")]
        )
    )
    name = data.draw(st.sampled_from(["a", "a\nb", "é", "a b"]))
    files = {f"{name}.{suffix}": changed, f"z.{suffix}": content}
    table = "file,label\n" + "".join(f'"{file}",{label}\n' for file, label in zip(files, labels, strict=True))
    files["labels.csv"] = table.encode()

    def reference() -> Columns:
        pixels = [_decoded(changed), _decoded(content)]
        if (
            len({picture.shape for picture in pixels}) != 1
            or "" in labels
            or "0.5" in labels
            or any("," in label for label in labels)
        ):
            raise ValueError("several sizes, or odd labels")
        if max(map(len, labels)) > 18:
            raise ValueError("beyond 64 bits")
        names = all(label.isdecimal() for label in labels)
        numbers = [int(label) for label in labels] if names else [sorted(labels).index(label) for label in labels]
        found: Columns = {"0": [picture.transpose(2, 0, 1).tolist() for picture in pixels], "1": numbers}
        return found | ({} if names else {"classes": sorted(labels)})

    is_right = changed == content and labels in (("0", "1"), ("cat", "dog"))
    return compared(folder, files, reference, is_whole=is_right and suffix != "jpg")


def shards(data: st.DataObject, folder: Path) -> Verdict:
    """Tar shards: damaged headers, links, devices, samples that lack a part, names given twice."""
    content, suffix = _picture(data)
    file = io.BytesIO()
    count = data.draw(st.integers(1, 3))
    odd = data.draw(
        st.none() | st.none() | st.sampled_from([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
    )
    with tarfile.open(
        fileobj=file, mode="w", format=data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    ) as tar:
        for sample in range(count):
            for extension, part in ((suffix, content), ("cls", str(sample).encode())):
                entry = tarfile.TarInfo(f"{sample:03}.{extension}")
                entry.size = len(part)
                tar.addfile(entry, io.BytesIO(part))
        if odd is not None:
            entry = tarfile.TarInfo(data.draw(st.sampled_from(["../../x.cls", "/etc/x.cls", "000.cls"])))
            entry.type, entry.linkname = odd, "/etc/passwd"
            tar.addfile(entry)
    changed = damaged(data, file.getvalue())

    def reference() -> Columns:
        with tarfile.open(fileobj=io.BytesIO(changed)) as opened:
            members = opened.getmembers()
            if not all(member.isfile() for member in members):
                raise ValueError("what is no file")
            parts = {member.name: opened.extractfile(member).read() for member in members}  # type: ignore[union-attr]
        names = list(dict.fromkeys(name.partition(".")[0] for name in parts))
        if len(parts) != len(members) or len(parts) != 2 * len(names):
            raise ValueError("samples that lack a part")
        pixels = [_decoded(parts[f"{name}.{suffix}"]) for name in names]
        if len({picture.shape for picture in pixels}) != 1:
            raise ValueError("several sizes")
        labels = [int(parts[f"{name}.cls"]) for name in names]
        return {"0": [picture.transpose(2, 0, 1).tolist() for picture in pixels], "1": labels}

    return compared(
        folder, {"a.tar": changed}, reference, is_whole=changed == file.getvalue() and odd is None and suffix != "jpg"
    )


# --- RecordIO ---------------------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _record(features: Sequence[float], label: float) -> bytes:
    def entry(values: Sequence[float]) -> bytes:
        return _field(1, b"values") + _field(2, _field(2, _field(1, np.asarray(values, "<f4").tobytes())))

    record = _field(1, entry(features)) + _field(2, entry([label]))
    return struct.pack("<II", 0xCED7230A, len(record)) + record + bytes(-len(record) % 4)


def record_io(data: st.DataObject, folder: Path) -> Verdict:
    """RecordIO of SageMaker's Record messages: lengths that claim too much, keys, shapes and varints without an end."""
    rows = data.draw(st.lists(st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=2), min_size=1, max_size=4))
    content = b"".join(_record(row, number) for number, row in enumerate(rows))
    changed = damaged(data, content)
    whole = {"0": rows, "1": list(range(len(rows)))}

    def reference() -> Columns:
        # A record has no checksum: what the bytes of its numbers were changed to is their value.
        found = [_plain_record(part) for part in _frames(changed)]
        labels = [label for _, label in found]
        is_whole = all(float(label).is_integer() for label in labels)
        return {"0": [row for row, _ in found], "1": [int(label) if is_whole else label for label in labels]}

    return compared(
        folder, {"a.rec": changed}, (lambda: whole) if changed == content else reference, is_whole=changed == content
    )


def _frames(content: bytes) -> list[bytes]:
    frames = []
    while content:
        magic, length = struct.unpack("<II", content[:8])
        if magic != 0xCED7230A or len(content) < 8 + length + -length % 4:
            raise ValueError("no record")
        frames.append(content[8 : 8 + length])
        content = content[8 + length + -length % 4 :]
    return frames


def _plain_record(record: bytes) -> tuple[list[float], float]:
    """Return the numbers of a record that is as `_record` writes it but for its numbers and the names of its tensors.

    One tensor needs no name: another one, or one in a field that nobody knows, is as good.
    """
    plain = _record([0.0, 0.0], 0.0)[8:]
    start, label = plain.find(bytes(8)), plain.rfind(bytes(4))
    as_written = bytearray(record)
    as_written[start : start + 8] = bytes(8)
    as_written[label : label + 4] = bytes(4)
    for place in (plain.find(b"values"), plain.rfind(b"values")):
        as_written[place : place + 6] = b"values"
        tag = as_written[place - 2]
        if tag & 7 == 2 and tag >> 3 != 2:
            as_written[place - 2] = plain[place - 2]
    if as_written != plain[: len(record)]:
        raise ValueError("other than it is written")
    return list(struct.unpack("<2f", record[start : start + 8])), struct.unpack("<f", record[label : label + 4])[0]
