"""Channels as SageMaker provides them: on every host as a whole, in parts, streamed from S3, as a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import smkit
from smkit.data.mounts import is_streamed
from smkit.errors import ConfigurationError, DataError

pytestmark = pytest.mark.train


class Settings(smkit.Hyperparameters):
    batch_size: int = 8


def write_rows(folder: Path, start: int, stop: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "x.npy", np.arange(start, stop))
    return folder


def job(base: Path, *, mode: str = "File", distribution: str = "FullyReplicated", **channel: str) -> dict[str, str]:
    """The environment of a job whose files lie in `base`, with one channel, `train`."""
    config = base / "input" / "config"
    config.mkdir(parents=True, exist_ok=True)
    described = {"TrainingInputMode": mode, "S3DistributionType": distribution, "RecordWrapperType": "None", **channel}
    (config / "inputdataconfig.json").write_text(json.dumps({"train": described}))
    (config / "hyperparameters.json").write_text("{}")
    (base / "input" / "data" / "train").mkdir(parents=True, exist_ok=True)
    return {
        "SAGEMAKER_BASE_DIR": str(base),
        "SM_MODEL_DIR": str(base / "model"),
        "SM_OUTPUT_DIR": str(base / "output"),
        "SM_OUTPUT_DATA_DIR": str(base / "output" / "data"),
    }


def load(env: dict[str, str], *argv: str) -> smkit.TrainingContext[Settings]:
    return smkit.TrainingContext.load(Settings, argv=list(argv), env=env)


# -- one process -------------------------------------------------------------------------------------------------------


def test_a_context_opens_a_channel_as_batches(tmp_path):
    context = load(job(tmp_path))
    write_rows(tmp_path / "input/data/train", 0, 20)
    loader = context.dataloader("train")
    assert (len(loader), loader.steps_per_epoch, loader.pin_memory) == (3, 3, False)
    assert sorted(number for (batch,) in loader for number in batch.tolist()) == list(range(20))
    straight = context.dataloader("train", shuffle=False, batch_size=10, transform=lambda batch, random: batch[0] + 1)
    assert [batch.tolist() for batch in straight] == [list(range(1, 11)), list(range(11, 21))]
    own = context.dataloader("eval", dataset=[1, 2, 3], shuffle=False)
    assert [batch.tolist() for batch in own] == [[1, 2, 3]]
    built = context.dataloader("train", build_dataset=lambda channel: [channel.name] * 2)
    assert list(built) == [["train", "train"]]
    with pytest.raises(ConfigurationError, match="0 is out of range"):
        context.dataloader("train", batch_size=0)
    with pytest.raises(DataError, match="there is no channel 'test'"):
        context.dataloader("test")


def test_a_part_of_the_data_is_all_there_is_to_a_process_that_trains_alone(tmp_path):
    context = load(job(tmp_path, distribution="ShardedByS3Key") | {"SM_HOSTS": '["algo-1", "algo-2"]'})
    write_rows(tmp_path / "input/data/train", 0, 20)
    assert context.dataloader("train").steps_per_epoch == 3


def test_processes_that_cannot_talk_to_each_other_are_refused_parts_of_the_data(tmp_path):
    places = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    context = load(job(tmp_path, distribution="ShardedByS3Key") | places)
    with pytest.raises(ConfigurationError, match=r"(?s)ShardedByS3Key.*init_process_group"):
        context.dataloader("train")


# -- several hosts -----------------------------------------------------------------------------------------------------

SCRIPT = """
import json, os, sys, torch, smkit
from torch import distributed
class Settings(smkit.Hyperparameters):
    batch_size: int = 8
context = smkit.TrainingContext.load(Settings, argv=[])
distributed.init_process_group("gloo")
try:
    loader = context.dataloader("train", gradient_accumulation_steps=2)
except smkit.DataError as error:
    result = {"error": str(error)}
else:
    result = {"groups": list(loader.groups()), "length": len(loader), "batches": [], "state": loader.state_dict()}
    for epoch in range(2):
        shares = [share for group in loader.groups() for share in group.shares]
        result["batches"].append([batch[0].tolist()[:share] for batch, share in zip(loader, shares, strict=False)])
with open(f"{sys.argv[1]}/{context.rank}.json", "w") as file:
    json.dump(result, file)
distributed.destroy_process_group()
"""


def on_two_hosts(tmp_path: Path, fill, *, distribution: str = "ShardedByS3Key", per_host: int = 2) -> list[dict]:
    """Run the script in true processes of two hosts, each with files of its own, and return what each rank says."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environments = []
    for host in range(2):
        base = tmp_path / f"host{host}"
        env = job(base, distribution=distribution)
        fill(host, base / "input/data/train")
        env |= {"SM_HOSTS": '["algo-1", "algo-2"]', "SM_CURRENT_HOST": f"algo-{host + 1}"}
        environments += [
            {**env, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(per_host)} for rank in range(per_host)
        ]
    run = {"script": str(script), "world_size": 2 * per_host, "arguments": [str(tmp_path)]}
    run |= {"log": str(tmp_path / "log"), "environments": environments}
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), json.dumps([run])]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    (result,) = json.loads(ended.stdout)
    assert result["statuses"] == [0] * len(environments), result["texts"]
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2 * per_host)]


@pytest.mark.endurance
def test_hosts_with_parts_of_the_data_see_every_sample_once_in_the_same_number_of_steps(tmp_path):
    ranks = on_two_hosts(tmp_path, lambda host, folder: write_rows(folder, 100 * host, 100 * host + (25, 12)[host]))
    steps = [[samples for samples, _ in rank["groups"]] for rank in ranks]
    assert all(samples == steps[0] for samples in steps)
    assert all(rank["state"] == ranks[0]["state"] for rank in ranks)
    assert ranks[0]["state"]["n"] == 37
    assert sum(steps[0]) == 37
    assert len(ranks[0]["groups"]) == 5
    for epoch in range(2):
        passes = [rank["batches"][epoch] for rank in ranks]
        assert {len(batches) for batches in passes} == {ranks[0]["length"]}
        seen = sorted(sample for batches in passes for batch in batches for sample in batch)
        assert seen == [*range(25), *range(100, 112)]
        sizes = [sum(map(len, shares)) for shares in zip(*passes, strict=True)]
        own = [[share for _, shares in rank["groups"] for share in shares] for rank in ranks]
        assert sizes == [sum(shares) for shares in zip(*own, strict=True)]
        assert max(sizes) <= 5, "as even as the hosts' parts allow"


@pytest.mark.endurance
def test_hosts_with_all_of_the_data_share_it(tmp_path):
    ranks = on_two_hosts(
        tmp_path, lambda _, folder: write_rows(folder, 0, 20), distribution="FullyReplicated", per_host=1
    )
    passes = [rank["batches"][0] for rank in ranks]
    assert sorted(sample for batches in passes for batch in batches for sample in batch) == list(range(20))


@pytest.mark.endurance
def test_a_host_without_data_ends_all_of_them_with_its_name(tmp_path):
    ranks = on_two_hosts(tmp_path, lambda host, folder: None if host else write_rows(folder, 0, 9), per_host=1)
    assert ranks[0] == ranks[1]
    assert "host algo-2 cannot open its part" in ranks[0]["error"]
    assert "FullyReplicated" in ranks[0]["error"]


@pytest.mark.endurance
def test_hosts_with_different_classes_are_refused(tmp_path):
    def fill(host: int, folder: Path) -> None:
        from PIL import Image

        for name in ("cat", ("dog", "eel")[host]):
            (folder / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / name / "1.png")

    ranks = on_two_hosts(tmp_path, fill, per_host=1)
    assert ranks[0] == ranks[1]
    assert "algo-1 and algo-2 have different classes in their parts: cat, dog and cat, eel" in ranks[0]["error"]


# -- streamed from S3 --------------------------------------------------------------------------------------------------


def test_a_fuse_mount_is_a_streamed_channel(tmp_path):
    mounts = tmp_path / "mountinfo"
    nested = tmp_path / "in put" / "train"
    nested.mkdir(parents=True)
    escaped = str(tmp_path / "in put").replace(" ", "\\040")
    mounts.write_text(
        "22 1 0:21 / / rw - ext4 /dev/root rw\n"
        f"23 22 0:22 / {escaped} ro,nosuid shared:1 - fuse.mount-s3 s3 ro\n"
        "nonsense\n"
    )
    assert is_streamed(nested, mounts)
    assert is_streamed(tmp_path / "in put", mounts)
    assert not is_streamed(tmp_path, mounts)
    assert not is_streamed(tmp_path, tmp_path / "none")
    assert not is_streamed(tmp_path)


# -- pipes -------------------------------------------------------------------------------------------------------------


class Line(smkit.Trainer):
    def build_model(self) -> nn.Module:
        return nn.Linear(2, 1)

    def build_optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.01)

    def training_step(self, batch):
        features, labels = batch
        return (self.model(features.float())[:, 0] - labels.float()).pow(2).mean()


def test_a_trainer_learns_from_a_pipe_as_many_steps_as_it_is_told(tmp_path):
    env = job(tmp_path, mode="Pipe", ContentType="text/csv")
    (tmp_path / "input/data/train").rmdir()
    rows = "".join(f"{number},{number},1\n" for number in range(20)).encode()

    def write(path: Path) -> None:
        path.write_bytes(rows)

    pipes = [tmp_path / f"input/data/train_{epoch}" for epoch in range(2)]
    for pipe in pipes:
        os.mkfifo(pipe)
    writers = [threading.Thread(target=write, args=(pipe,)) for pipe in pipes]
    for writer in writers:
        writer.start()
    with pytest.raises(ConfigurationError, match=r"(?s)a stream without a length.*--max-steps"):
        Line(load(env)).fit()
    trainer = Line(load(env, "--max-steps", "6"))
    trainer.fit()
    assert trainer.step == 6
    assert trainer.epoch == 2
    for writer in writers:
        writer.join(timeout=10)
        assert not writer.is_alive()
