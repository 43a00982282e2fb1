"""Pickles that run code when they are read, in the place of every file that smkit reads.

A round is one payload in one file, and then what a user does to have the file read. It is silent if the code ran; lost
if it ended with an error that is not smkit's own; refused if it was; survived if what came of it is right, as where an
older checkpoint is used, or a file is carried and never read. The code leaves a mark, so that no other sign is needed.

Of the peers, the documented call that reads a checkpoint is given the payload in each of its files.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import smkit
from smkit.artifacts import unpack
from smkit.local import LocalJobs
from torture.tally import Campaign, Outcome


class _Payload:
    """Its pickle makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.mark)!r}, 'a').write('x')",))


def payloads(mark: Path) -> dict[str, bytes]:
    """Return the same code in every wrapping."""
    payload = _Payload(mark)
    array = np.empty(2, dtype=object)
    array[:] = [payload, payload]
    npy, npz, legacy, archived, tarred, nested = (io.BytesIO() for _ in range(6))
    np.save(npy, array, allow_pickle=True)
    np.savez(npz, a=array)
    torch.save({"a": payload}, archived)
    torch.save({"a": payload}, legacy, _use_new_zipfile_serialization=False)
    with tarfile.open(fileobj=tarred, mode="w") as packed:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(payload, 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))
    with zipfile.ZipFile(nested, "w") as packed:
        packed.writestr("a.npy", npy.getvalue())
        packed.writestr("archive/data.pkl", pickle.dumps(payload, 2))
        packed.writestr("archive/version", "3\n")
        packed.writestr("data.pkl", pickle.dumps(payload))
    raw = pickle.dumps(payload, 2)
    header = json.dumps({"__metadata__": {"a": raw.hex()}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})
    return {
        "raw": raw,
        "raw, newest protocol": pickle.dumps({"model": [payload]}),
        "old protocol": pickle.dumps(payload, 0),
        "torch's zip": archived.getvalue(),
        "torch's legacy file": legacy.getvalue(),
        "torch's legacy tar": tarred.getvalue(),
        "npy": npy.getvalue(),
        "npz": npz.getvalue(),
        "nested zip": nested.getvalue(),
        "safetensors": len(header).to_bytes(8, "little") + header.encode() + b"\0",
        "JSON": json.dumps(
            {"a": raw.decode("latin-1"), "py/reduce": [{"py/function": "os.system"}, ["true"]]}
        ).encode(),
        "YAML": f"a: !!python/object/apply:os.system ['touch {mark}']\n".encode(),
    }


DATA_ENDINGS = (
    *("npy", "npz", "safetensors", "pt", "pth", "csv", "tsv", "jsonl", "parquet", "arrow", "feather", "libsvm"),
    *("recordio", "rec", "png", "jpg", "tar", "pkl", "pickle", "bin"),
)
CONFIG_ENDINGS = ("json", "toml", "yaml", "yml")
SHARD_FIELDS = ("npy", "npz", "pth", "pt", "pkl", "pickle", "json", "cls", "txt", "png", "safetensors")


def attack(campaign: Campaign) -> None:
    mark = campaign.folder / "executed"
    wrapped = payloads(mark)
    # The short form takes every file, and of the wrappings one after the other.
    step = 1 if campaign.rounds >= 10 else 5
    number = 0
    for place, read in _places(campaign.folder / "smkit"):
        for kind, content in wrapped.items():
            number += 1
            if number % step == 0:
                _round(campaign, "smkit", f"{kind} as {place}", mark, lambda r=read, c=content: r(c))
    for subject in campaign.subjects:
        if subject in _PEERS:
            for place, read in _PEERS[subject](campaign.folder / subject):
                for kind in ("raw", "torch's zip", "torch's legacy file"):
                    _round(campaign, subject, f"{kind} as {place}", mark, lambda r=read, c=wrapped[kind]: r(c))


def _round(campaign: Campaign, subject: str, what: str, mark: Path, read: Callable[[], None]) -> None:
    outcome, note = Outcome.SURVIVED, what
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            read()
    except smkit.SmkitError as error:
        outcome, note = Outcome.REFUSED, f"{what}: {error}"
    except BaseException as error:
        # Others have no error of their own for this.
        is_foreign = subject == "smkit"
        outcome = Outcome.LOST if is_foreign else Outcome.REFUSED
        note = f"{what}: {type(error).__name__}: {str(error)[:200]}"
    if mark.exists():
        mark.unlink()
        outcome, note = Outcome.SILENT, f"{what}: it was executed"
    campaign.tally.count("pickles", subject, outcome, note)


_Places = Iterator[tuple[str, Callable[[bytes], None]]]


def _places(folder: Path) -> _Places:
    yield from _checkpoint_files(folder / "checkpoints")
    yield from _data_files(folder / "data")
    yield from _shards(folder / "shards")
    yield from _caches(folder / "caches")
    yield from _job_files(folder / "job")
    yield from _archives(folder / "archives")


def _checkpoint_files(folder: Path) -> _Places:
    store = smkit.CheckpointStore(folder / "made")
    tensor = torch.arange(4.0)
    for step in (1, 2):
        store.save(step, {"model": {"w": tensor * step}, "settings": {"lr": 0.1}})
    newest = sorted(path for path in (folder / "made").iterdir() if path.is_dir())[-1]
    for file in sorted(path.relative_to(folder / "made") for path in newest.rglob("*") if path.is_file()):

        def read(content: bytes, file: Path = file) -> None:
            place = folder / "read"
            shutil.copytree(folder / "made", place)
            try:
                (place / file).write_bytes(content)
                found = smkit.CheckpointStore(place).latest()
                assert found is not None
                assert torch.equal(found.state["model"]["w"], tensor), "something else than the older checkpoint"
            finally:
                shutil.rmtree(place)

        yield f"checkpoint/{file.name}", read


def _read_all(channel: Path) -> None:
    for batch in smkit.make_loader(
        smkit.open_dataset(smkit.Channel(name="train", path=channel)), batch_size=1, shuffle=False
    ):
        del batch


def _data_files(folder: Path) -> _Places:
    for ending in DATA_ENDINGS:

        def read(content: bytes, ending: str = ending) -> None:
            place = folder / ending
            place.mkdir(parents=True)
            try:
                (place / f"a.{ending}").write_bytes(content)
                _read_all(place)
            finally:
                shutil.rmtree(place)

        yield f"data/a.{ending}", read


def _shards(folder: Path) -> _Places:
    for field in SHARD_FIELDS:

        def read(content: bytes, field: str = field) -> None:
            folder.mkdir(parents=True)
            try:
                with tarfile.open(folder / "a-000.tar", "w") as packed:
                    for key in ("one", "two"):
                        entry = tarfile.TarInfo(f"{key}.{field}")
                        entry.size = len(content)
                        packed.addfile(entry, io.BytesIO(content))
                _read_all(folder)
            finally:
                shutil.rmtree(folder)

        yield f"a sample's .{field} in a shard", read


def _caches(folder: Path) -> _Places:
    data, cache = folder / "data", folder / "cache"
    data.mkdir(parents=True)
    (data / "a.csv").write_text("x,y\n1,2\n3,4\n")

    def batches() -> list[Any]:
        dataset = smkit.open_dataset(smkit.Channel(name="train", path=data), cache_dir=cache)
        return [copy.copy(batch) for batch in smkit.make_loader(dataset, batch_size=2, shuffle=False)]

    right = str(batches())
    for name in sorted({path.name for path in cache.rglob("*") if path.is_file()}):

        def read(content: bytes, name: str = name) -> None:
            # What is damaged is made anew, perhaps by the next one who reads.
            batches()
            found = next(cache.rglob(name))
            found.chmod(0o600)
            found.write_bytes(content)
            assert str(batches()) == right

        yield f"the cache of a table: {name}", read


def _job_files(folder: Path) -> _Places:
    config = folder / "input/config"
    for name in ("hyperparameters.json", "resourceconfig.json", "inputdataconfig.json", "checkpointconfig.json"):

        def read(content: bytes, name: str = name) -> None:
            config.mkdir(parents=True)
            try:
                (config / name).write_bytes(content)
                environment = {"SAGEMAKER_BASE_DIR": str(folder), "SM_MODEL_DIR": str(folder / "model")}
                smkit.TrainingContext.load(smkit.Hyperparameters, argv=[], env=environment)
            finally:
                shutil.rmtree(folder)

        yield name, read
    for ending in CONFIG_ENDINGS:

        def read_config(content: bytes, ending: str = ending) -> None:
            folder.mkdir(parents=True)
            file = folder / f"settings.{ending}"
            file.write_bytes(content)
            try:
                argv = ["--config", str(file), "--run-dir", str(folder / "run")]
                smkit.TrainingContext.load(smkit.Hyperparameters, argv=argv, env={})
            finally:
                shutil.rmtree(folder)

        yield f"--config settings.{ending}", read_config

    def attach(content: bytes) -> None:
        (folder / "runs/job/algo-1").mkdir(parents=True)
        (folder / "runs/job/algo-1/process.json").write_bytes(content)
        try:
            LocalJobs(folder / "runs").describe("job")
        finally:
            shutil.rmtree(folder)

    yield "process.json of a local job", attach


def _archives(folder: Path) -> _Places:
    for kind in ("model.tar.gz itself", "a file in model.tar.gz"):

        def read(content: bytes, kind: str = kind) -> None:
            (folder / "out").mkdir(parents=True)
            archive = folder / "model.tar.gz"
            try:
                archive.write_bytes(content)
                if kind.startswith("a file"):
                    with tarfile.open(archive, "w:gz") as packed:
                        entry = tarfile.TarInfo("model.pkl")
                        entry.size = len(content)
                        packed.addfile(entry, io.BytesIO(content))
                unpack(archive, folder / "out", name="model.tar.gz")
            finally:
                shutil.rmtree(folder)

        yield kind, read


# --- peers ------------------------------------------------------------------------------------------------------------


def _of_folder(folder: Path, read: Callable[[Path], None]) -> _Places:
    """Yield each file of a folder, with what reads a copy of the folder in which the payload has its place."""
    for file in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):

        def replaced(content: bytes, file: Path = file) -> None:
            place = folder.with_name(f"{folder.name}-read")
            shutil.copytree(folder, place)
            try:
                (place / file).write_bytes(content)
                read(place)
            finally:
                shutil.rmtree(place)

        yield str(file), replaced


def _torch_save(folder: Path) -> _Places:
    from torch.distributed import checkpoint

    (folder / "one").mkdir(parents=True)
    torch.save({"w": torch.ones(2)}, folder / "one/a.pt")
    yield from _of_folder(folder / "one", lambda place: torch.load(place / "a.pt"))
    checkpoint.save({"w": torch.ones(2)}, checkpoint_id=folder / "dcp", no_dist=True)
    yield from (
        (f"torch.distributed.checkpoint: {name}", read)
        for name, read in _of_folder(
            folder / "dcp", lambda place: checkpoint.load({"w": torch.zeros(2)}, checkpoint_id=place, no_dist=True)
        )
    )


def _lightning(folder: Path) -> _Places:
    from lightning.fabric import Fabric

    (folder / "one").mkdir(parents=True)
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.save(folder / "one/a.ckpt", {"model": nn.Linear(2, 2)})
    yield from _of_folder(folder / "one", lambda place: fabric.load(place / "a.ckpt"))


def _accelerate(folder: Path) -> _Places:
    from accelerate import Accelerator

    def prepared() -> Any:
        accelerator = Accelerator(cpu=True)
        model = nn.Linear(2, 2)
        accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        return accelerator

    folder.mkdir(parents=True)
    prepared().save_state(str(folder / "one"))
    yield from _of_folder(folder / "one", lambda place: prepared().load_state(str(place)))


_PEERS: dict[str, Callable[[Path], _Places]] = {
    "torch.save": _torch_save,
    "lightning": _lightning,
    "accelerate": _accelerate,
}
