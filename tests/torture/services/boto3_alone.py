"""boto3 alone under the same faults: upload_file, create_training_job, download_file, and the logs' paginators."""

from __future__ import annotations

import random

from torture.faulty_proxy import plan
from torture.services.deeds import RIGHT, Deed, Verdict, same, same_lines, verdict
from torture.services.kinds import ONLY_OF, TIMES, WEIGHTED, note_round
from torture.services.launches import Launch, forget_launches
from torture.services.world import Client, World
from torture.tally import Campaign, Outcome

_FOR_BOTO3 = {
    "launch": (
        *("500", "503 SlowDown", "throttled", "reset before the body", "reset in the body", "reply lost"),
        *("bit flipped in what is put", "hang after the work", "delivered twice", "delivered late"),
        *("garbage for an answer", "error in a 200"),
    ),
    "download": (
        *("503 SlowDown", "reset in the reply", "reply cut off", "reply shortened", "bit flipped in an object"),
        *("wrong tag and checksum", "slow reply", "hang in the reply", "garbage for an answer"),
    ),
    "logs": ("503 SlowDown", "throttled", "reply cut off", "garbage for an answer", "error in a 200"),
}
_SLOW_ROUNDS = 2
"""Of what ends in a time-out: boto3's own are minutes."""


def attack(campaign: Campaign, world: World) -> None:
    """Let faults meet boto3, which takes the time that it says."""
    world.client.end()
    hurried, world.client = world.client, Client(world.account, 1.0)
    for what, kinds in _FOR_BOTO3.items():
        for kind in kinds:
            is_slow = kind.startswith(("hang", "slow"))
            for number in range(min(_SLOW_ROUNDS, campaign.rounds) if is_slow else campaign.rounds):
                _boto3_round(campaign, world, kind, what, number)
    world.client.end()
    world.client = hurried


def _boto3_round(campaign: Campaign, world: World, kind: str, what: str, number: int) -> None:
    draw = campaign.draws(f"boto3 {kind} {what} {number}")
    deed = {"launch": _boto3_launch, "download": _boto3_download, "logs": _boto3_logs}[what](world, draw)
    actions = ONLY_OF.get(kind, {"launch": ".*", "download": "GetObject", "logs": ".*Log.*"}[what])
    times = draw.choice(TIMES)
    if what == "launch" and kind in WEIGHTED and number % 2:
        actions = "CreateTrainingJob"
    plan(world.proxy, kind=kind, first=draw.randrange(2), times=times, actions=actions, seed=number)
    came = world.client.do({**deed.order, "endpoint": world.proxy})
    told = plan(world.proxy, kind="")
    if "refused" in came:
        outcome, note = deed.of_refused(came["refused"])
    else:
        outcome, note = verdict(deed, came)
    place = f"{what}, {times} x {told['met']}"
    campaign.tally.count(kind, "boto3", outcome, f"round {number}: {place}: {note}")
    note_round(world, f"boto3: {kind}", place, outcome, note, came)
    forget_launches(world)


def _boto3_launch(world: World, draw: random.Random) -> Deed:
    launch, key = Launch.make(world, draw), f"smkit/{world.fresh('boto3')}"
    data, account = launch.data / "big", world.account
    request = {
        "TrainingJobName": launch.name,
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "RoleArn": account.role,
        "OutputDataConfig": {"S3OutputPath": f"s3://{account.bucket}/jobs"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 300},
    }

    def of_done(_: str, __: str) -> Verdict:
        if account.objects("smkit/").get(key) != data.read_bytes():
            return Outcome.SILENT, "other bytes"
        return same(launch.jobs(), [launch.name])

    def of_refused(text: str) -> Verdict:
        runs = launch.jobs()
        return (Outcome.LOST, f"{runs} runs, but: {text[:200]}") if runs else (Outcome.REFUSED, "")

    order = {"do": "boto3_launch", "file": str(data), "bucket": account.bucket, "key": key, "request": request}
    return Deed(order, of_done, of_refused)


def _boto3_download(world: World, _: random.Random) -> Deed:
    file = world.folder / world.fresh("boto3")

    def right() -> bool:
        return file.exists() and file.read_bytes() == world.files["big"]

    order = {"do": "boto3_download", "bucket": world.account.bucket, "file": str(file)}
    return Deed(
        {**order, "key": "jobs/plain/output/model/big"},
        lambda _, __: RIGHT if right() else (Outcome.SILENT, "other bytes"),
        lambda _: (Outcome.LOST, "half a file") if file.exists() and not right() else (Outcome.REFUSED, ""),
    )


def _boto3_logs(world: World, _: random.Random) -> Deed:
    return Deed({"do": "boto3_logs", "name": "packed"}, lambda lines, _: same_lines(lines, world.lines))
