"""What the platform says of a run: `SM_*`, torchrun's variables, and the job's other files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

import smkit
from torture.contract.examples import Verdict, judged
from torture.contract.reference import strict_json

HOSTS = ["algo-1", "algo-2", "", "a\nb", "é"]
NAMES = ["train", "validation", "a.b", "a-b", "A", "", "..", "../x", "a b", "x" * 65, "é", "\ud800", "code"]
BROKEN = [None, 0, 5, True, 1.5, "", "x", [], {}, [1], {"a": 1}, "Pipe", "FastFile", "file", "[" * 5000, "\ud800"]
BYTES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff",
    b"\xef\xbb\xbf{}",
    b'{"a": 1, "a": 2}',
    b"[" * 99_999,
    b"{}" + b" " * 99_999,
]
MODES = ["File", "FastFile", "Pipe"]
TEXTS = [
    "",
    "0",
    "1",
    "2",
    "-1",
    "1.5",
    "x",
    "1e3",
    "9" * 5000,
    "null",
    "[]",
    "{}",
    '["a"]',
    '["a", "a"]',
    "[1]",
    "\udcff",
]

broken = st.sampled_from(BROKEN)
channel_entry = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "TrainingInputMode": st.sampled_from(MODES),
            "S3DistributionType": st.sampled_from(["FullyReplicated", "ShardedByS3Key"]),
            "RecordWrapperType": st.sampled_from(["None", "RecordIO"]),
            "ContentType": st.none() | st.sampled_from(["text/csv", ""]),
        },
    ),
    st.dictionaries(
        st.sampled_from(["TrainingInputMode", "S3DistributionType", "ContentType", "x"]), broken, max_size=3
    ),
    broken,
)


def jobs_files(data: st.DataObject, folder: Path) -> Verdict:
    """resourceconfig, inputdataconfig and checkpointconfig: right, of wrong types, of any bytes, or no files at all."""
    config = folder / "input" / "config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text("{}")
    hosts = st.lists(st.sampled_from(HOSTS[:2]), min_size=1, max_size=2) | broken | st.lists(broken, max_size=2)
    contents: dict[str, Any] = {
        "resourceconfig": data.draw(
            st.fixed_dictionaries(
                {}, optional={"current_host": st.sampled_from(HOSTS) | broken, "hosts": hosts, "num_cpus": broken}
            )
        ),
        "inputdataconfig": data.draw(
            st.dictionaries(st.sampled_from(NAMES[:3]) | st.sampled_from(NAMES), channel_entry, max_size=3)
        ),
        "checkpointconfig": data.draw(
            st.just({}) | st.fixed_dictionaries({"LocalPath": st.just("/opt/ml/kept") | broken})
        ),
    }
    odd = data.draw(st.none() | st.none() | st.sampled_from(sorted(contents)))
    for name, content in contents.items():
        (config / f"{name}.json").write_bytes(json.dumps(content).encode())
    is_broken = False
    if odd is not None:
        way = data.draw(st.sampled_from(BYTES) | st.binary(max_size=20) | st.sampled_from(["folder", "pipe"]))
        _replace(config / f"{odd}.json", way)
        contents[odd], is_broken = _object(way)
    is_broken = is_broken or not _are_right(contents)
    return judged(
        lambda: smkit.TrainingContext.load(smkit.Hyperparameters, [], {"SAGEMAKER_BASE_DIR": str(folder)}),
        folder,
        is_right=lambda context: _wrong_facts(context, contents, folder),
        must="refuse" if is_broken else "accept",
    )


def _replace(file: Path, way: bytes | str) -> None:
    file.unlink()
    if way == "folder":
        file.mkdir()
    elif way == "pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(way if isinstance(way, bytes) else b"")


def _object(way: bytes | str) -> tuple[Any, bool]:
    try:
        found = strict_json(way.decode("utf-8").removeprefix("\ufeff")) if isinstance(way, bytes) else None
    except (ValueError, RecursionError):
        found = None
    return (found, False) if isinstance(found, dict) else ({}, True)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_right(contents: Mapping[str, Any]) -> bool:
    resources, inputs = contents["resourceconfig"], contents["inputdataconfig"]
    hosts = resources.get("hosts", ["localhost"])
    path = contents["checkpointconfig"].get("LocalPath")
    names = ("current_host", "current_instance_type", "network_interface_name")
    return (
        isinstance(hosts, list)
        and len(hosts) > 0
        and all(map(_is_text, hosts))
        and all(_is_text(resources[name]) for name in names if name in resources)
        and (path is None or isinstance(path, str))
        and all(_is_channel(name, entry) for name, entry in inputs.items())
    )


def _is_channel(name: str, entry: Any) -> bool:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or name in (".", "..") or not isinstance(entry, dict):
        return False
    mode, cut = (
        entry.get(key) or "" if entry.get(key) in (None, "") else entry[key]
        for key in ("TrainingInputMode", "S3DistributionType")
    )
    others = [entry.get(key) for key in ("RecordWrapperType", "ContentType")]
    return (
        (mode == "" or mode in MODES)
        and (cut == "" or cut in ("FullyReplicated", "ShardedByS3Key"))
        and all(value is None or _is_text(value) for value in others)
    )


def _wrong_facts(context: Any, contents: Mapping[str, Any], folder: Path) -> str | None:
    resources, inputs = contents["resourceconfig"], contents["inputdataconfig"]
    expected = {
        "hosts": tuple(resources.get("hosts", ["localhost"])),
        "current_host": resources.get("current_host", "localhost"),
        "checkpoint_dir": Path(contents["checkpointconfig"].get("LocalPath") or folder / "checkpoints"),
    }
    wrong = [name for name, value in expected.items() if getattr(context, name) != value]
    found = [
        (each.name, str(each.path), each.input_mode, each.s3_distribution, each.record_wrapper, each.content_type)
        for each in context.channels
    ]
    meant = [
        (
            name,
            f"{folder}/input/data/{name}",
            entry.get("TrainingInputMode") or "File",
            entry.get("S3DistributionType") or "FullyReplicated",
            entry.get("RecordWrapperType") or "None",
            entry.get("ContentType") or None,
        )
        for name, entry in inputs.items()
    ]
    return f"{wrong or found} instead of {expected} and {meant}" if wrong or found != meant else None


def variables(data: st.DataObject, folder: Path) -> Verdict:
    """`SM_*` and torchrun's: right, empty, of wrong types, huge, in lower case, no UTF-8."""
    text = st.sampled_from(TEXTS)
    given = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "SM_NUM_GPUS": st.integers(0, 9).map(str) | text,
                "SM_NUM_CPUS": st.integers(1, 99).map(str) | text,
                "SM_HOSTS": st.lists(st.sampled_from(HOSTS), min_size=1).map(json.dumps) | text,
                "SM_CURRENT_HOST": st.sampled_from(HOSTS[:3]),
                "SM_CHANNELS": st.lists(st.sampled_from(NAMES[:3]), max_size=2).map(json.dumps) | text,
                "SM_CHANNEL_TRAIN": st.just("/data/train") | st.just(""),
                "SM_USER_ARGS": st.just("[]") | text,
                "SM_HPS": st.just("{}") | text,
                "sm_num_gpus": st.just("7"),
                "SM_model_dir": st.just("/elsewhere"),
                "SM_HP_EPOCHS": text,
            },
        )
    )
    if data.draw(st.booleans()):
        number = st.integers(0, 3).map(str) | text
        given |= data.draw(st.fixed_dictionaries(dict.fromkeys(PLACES, number)))
    argv = ["--run-dir", str(folder / "run")]
    return judged(
        lambda: smkit.TrainingContext.load(smkit.Hyperparameters, argv, {"SAGEMAKER_BASE_DIR": str(folder), **given}),
        folder,
        is_right=lambda context: _wrong_by_variables(context, given, folder),
        must="accept" if _variables_are_right(given) else "refuse",
    )


PLACES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def _count(text: str, least: int) -> int | None:
    """Return a number of GPUs or CPUs; None if it is none."""
    if re.fullmatch(r"[0-9]{1,9}|[0-9]{1,9}\.0", text):
        return int(float(text)) if int(float(text)) >= least else None
    return None


def _list(text: str) -> list[str] | None:
    try:
        found = strict_json(text)
    except ValueError:
        return None
    return found if isinstance(found, list) and all(map(_is_text, found)) else None


def _variables_are_right(given: Mapping[str, str]) -> bool:
    said = {name: text for name, text in given.items() if text}
    is_right = all(
        _count(said.get(f"SM_NUM_{kind}", "1"), least) is not None for kind, least in (("GPUS", 0), ("CPUS", 1))
    )
    is_right &= bool(_list(said.get("SM_HOSTS", '["x"]')))
    channels = _list(said.get("SM_CHANNELS", "[]"))
    is_right &= channels is not None and all(_is_channel(name, {}) for name in channels)
    # What the toolkit put on the command line matters only if it is a list.
    is_right &= isinstance(_json_of(said.get("SM_USER_ARGS", "[]")), list) and _json_of(said.get("SM_HPS", "{}")) == {}
    if "RANK" in given and (said.get("RANK") or said.get("WORLD_SIZE")):
        numbers = [int(given[name]) if re.fullmatch("[0-9]{1,9}", given[name]) else None for name in PLACES]
        rank, local_rank, size, local_size = (-1 if number is None else number for number in numbers)
        is_right &= None not in numbers and rank < size and local_rank < local_size
    return is_right


def _json_of(text: str) -> Any:
    try:
        return strict_json(text)
    except ValueError:
        return None


def _wrong_by_variables(context: Any, given: Mapping[str, str], folder: Path) -> str | None:
    said = {name: text for name, text in given.items() if text}
    channels = _list(said["SM_CHANNELS"]) if "SM_CHANNELS" in said else ["train"] if "SM_CHANNEL_TRAIN" in said else []
    places = {"train": Path(said["SM_CHANNEL_TRAIN"])} if "SM_CHANNEL_TRAIN" in said else {}
    expected: dict[str, Any] = {
        "num_gpus": _count(said["SM_NUM_GPUS"], 0) if "SM_NUM_GPUS" in said else None,
        "num_cpus": _count(said["SM_NUM_CPUS"], 1) if "SM_NUM_CPUS" in said else os.cpu_count(),
        "hosts": tuple(_list(said["SM_HOSTS"]) or ()) if "SM_HOSTS" in said else ("localhost",),
        "current_host": said.get("SM_CURRENT_HOST", "localhost"),
        "model_dir": folder / "run" / "model",
    }
    wrong = {name: getattr(context, name) for name, value in expected.items() if getattr(context, name) != value}
    found = {each.name: each.path for each in context.channels}
    meant = {name: places.get(name, folder / "input" / "data" / name) for name in channels or []}
    ranks = (
        (said.get("RANK"), said.get("WORLD_SIZE"))
        if "RANK" in given and (said.get("RANK") or said.get("WORLD_SIZE"))
        else (0, 1)
    )
    if wrong or found != meant or (context.rank, context.world_size) != tuple(map(int, ranks)):
        return f"{wrong}, {found} instead of {expected}, {meant}"
    return None
