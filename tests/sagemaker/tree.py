"""What a host finds in /opt/ml when its container starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagemaker.storage import Mirror, download_channel


@dataclass(frozen=True)
class Tree:
    """The folders of one host of one attempt, on this machine."""

    folder: Path

    @property
    def base(self) -> Path:
        """What is /opt/ml in the container."""
        return self.folder / "ml"

    @property
    def views(self) -> Path:
        """Channels of FastFile: each is to be seen read-only in `input/data`."""
        return self.folder / "views"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def here(self, path: str) -> Path:
        """Return where the container's /opt/ml/... lies."""
        return self.base / path.removeprefix("/opt/ml").strip("/")

    @property
    def model(self) -> Path:
        return self.base / "model"

    @property
    def output(self) -> Path:
        return self.base / "output" / "data"

    def failure(self) -> str:
        """Return what the job wrote into output/failure."""
        try:
            return (self.base / "output/failure").read_text("utf-8", "replace")[:1024]
        except OSError:
            return ""

    def mirrors(self, s3: Any, job: str, request: Mapping[str, Any]) -> tuple[list[Mirror], list[Mirror]]:
        """Return the mirrors of the checkpoints and those of TensorBoard's files, each none or one."""
        checkpoints, board = request.get("CheckpointConfig"), request.get("TensorBoardOutputConfig")
        kept, written = [], []
        if checkpoints:
            local = self.here(checkpoints.get("LocalPath", "/opt/ml/checkpoints"))
            local.mkdir(parents=True, exist_ok=True)
            kept.append(Mirror(s3, local, checkpoints["S3Uri"]))
        if board:
            local = self.here(board.get("LocalPath", "/opt/ml/output/tensorboard"))
            local.mkdir(parents=True, exist_ok=True)
            uri = f"{board['S3OutputPath'].rstrip('/')}/{job}/tensorboard-output"
            written.append(Mirror(s3, local, uri))
        return kept, written


def build(tree: Tree, host: str, hosts: Sequence[str], request: Mapping[str, Any], s3: Any) -> None:
    """Make the folders, write the files of input/config and download the channels."""
    for name in ("input/config", "input/data", "model", "output/data", "code"):
        (tree.base / name).mkdir(parents=True)
    tree.views.mkdir()
    tree.home.mkdir()
    channels = {channel["ChannelName"]: _mode(channel, request) for channel in request.get("InputDataConfig") or []}
    _configure(tree, host, hosts, request, channels)
    for channel in request.get("InputDataConfig") or []:
        name, source = channel["ChannelName"], channel["DataSource"]["S3DataSource"]
        mounted = tree.base / "input/data" / name
        mounted.mkdir()
        sharded = source.get("S3DataDistributionType") == "ShardedByS3Key"
        share = (list(hosts).index(host), len(hosts)) if sharded else (0, 1)
        target = tree.views / name if channels[name] == "FastFile" else mounted
        download_channel(s3, source["S3Uri"], target, share)


def _mode(channel: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    return str(channel.get("InputMode") or request["AlgorithmSpecification"]["TrainingInputMode"])


def _configure(
    tree: Tree, host: str, hosts: Sequence[str], request: Mapping[str, Any], channels: Mapping[str, str]
) -> None:
    resources = request["ResourceConfig"]
    kind = resources.get("SelectedInstanceType") or resources["InstanceType"]
    group = {"instance_group_name": "homogeneousCluster", "instance_type": kind, "hosts": list(hosts)}
    inputs = {}
    for channel in request.get("InputDataConfig") or []:
        inputs[channel["ChannelName"]] = {
            # FastFile looks like File from within.
            "TrainingInputMode": channels[channel["ChannelName"]].replace("FastFile", "File"),
            "S3DistributionType": channel["DataSource"]["S3DataSource"].get(
                "S3DataDistributionType", "FullyReplicated"
            ),
            "RecordWrapperType": channel.get("RecordWrapperType", "None"),
        } | ({"ContentType": channel["ContentType"]} if "ContentType" in channel else {})
    files = {
        "hyperparameters": request.get("HyperParameters") or {},
        "inputdataconfig": inputs,
        "resourceconfig": {
            "current_host": host,
            "hosts": list(hosts),
            "current_instance_type": kind,
            "current_group_name": "homogeneousCluster",
            "instance_groups": [group],
            # The hosts of a job are addresses of the loopback interface.
            "network_interface_name": "lo",
        },
    }
    if request.get("CheckpointConfig"):
        path = request["CheckpointConfig"].get("LocalPath", "/opt/ml/checkpoints")
        files["checkpointconfig"] = {"LocalPath": path}
    for name, content in files.items():
        (tree.base / "input/config" / f"{name}.json").write_text(json.dumps(content))
