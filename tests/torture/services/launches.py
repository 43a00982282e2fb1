"""A launch as a round's deed: one job or none, of exactly what was launched, and nothing in the way of the next.

It knows no fault.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture.faulty_proxy import plan
from torture.services.deeds import RIGHT, Deed, Verdict, status_of
from torture.services.world import World
from torture.tally import Outcome


@dataclass
class Launch:
    """A launch of a source and of data that S3 does not have yet."""

    world: World
    name: str
    source: Path
    data: Path

    @staticmethod
    def make(world: World, draw: random.Random) -> Launch:
        name = world.fresh("launch")
        source, data = world.folder / name / "source", world.folder / name / "data"
        for folder in (source, data):
            folder.mkdir(parents=True)
        (source / "train.py").write_text(f"print('{name}')\n")
        (source / "more.py").write_bytes(b"#" * draw.randrange(1, 20_000))
        (data / "small").write_text(name)
        (data / "empty").write_text("")
        (data / "big").write_bytes(draw.randbytes(5_300_000))
        world.account.settings(starting=600.0)
        return Launch(world, name, source, data)

    def order(self, name: str) -> dict[str, Any]:
        given = {"role": self.world.account.role, "bucket": self.world.account.bucket, "instance_type": "ml.m5.large"}
        return {
            "do": "launch",
            "name": name,
            "source_dir": str(self.source),
            "inputs": {"train": str(self.data)},
            **given,
        }

    def of_done(self, name: str, _: str = "") -> Verdict:
        """Compare the job and all that it names with what was launched."""
        jobs = self.jobs()
        if jobs != [name]:
            return Outcome.SILENT, f"jobs: {jobs}"
        wrong = self._wrong(name)
        return (Outcome.SILENT, f"other bytes: {wrong}") if wrong else RIGHT

    def of_refused(self, text: str) -> Verdict:
        """Let there be a job only if the error says that there may, and nothing that a second launch stumbles on."""
        jobs = self.jobs()
        if jobs and not ("is not known" in text or f"smkit attach {jobs[0]}" in text):
            return Outcome.LOST, f"job {jobs} runs, but: {text}"
        if wrong := [wrong for name in jobs for wrong in self._wrong(name)]:
            return Outcome.SILENT, f"other bytes: {wrong}"
        self._stop_jobs()
        plan(self.world.proxy, kind="")
        again = self.world.client.do({**self.order(f"{self.name}-again"), "endpoint": self.world.proxy})
        if "done" not in again:
            return Outcome.LOST, f"after {text}, a second launch: {again}"
        wrong = self._wrong(again["done"])
        return (Outcome.SILENT, f"the second launch used: {wrong}") if wrong else (Outcome.REFUSED, "")

    def jobs(self) -> list[str]:
        listed = self.world.account.client("sagemaker").list_training_jobs(NameContains=self.name, MaxResults=50)
        return [job["TrainingJobName"] for job in listed["TrainingJobSummaries"] if _is_of(job, self.name)]

    def uploads_left(self) -> int:
        """How many uploads in parts S3 keeps of this launch, which cost money."""
        account = self.world.account
        return len(account.client("s3").list_multipart_uploads(Bucket=account.bucket).get("Uploads", ()))

    def clean(self) -> None:
        account = self.world.account
        self._stop_jobs()
        s3, place = account.client("s3"), {"Bucket": account.bucket}
        for key in account.objects("smkit/"):
            s3.delete_object(Key=key, **place)
        for upload in s3.list_multipart_uploads(**place).get("Uploads", ()):
            s3.abort_multipart_upload(Key=upload["Key"], UploadId=upload["UploadId"], **place)
        account.settings(starting=0.0)

    def _stop_jobs(self) -> None:
        client = self.world.account.client("sagemaker")
        for name in self.jobs():
            if status_of(self.world, name) == "InProgress":
                client.stop_training_job(TrainingJobName=name)

    def _wrong(self, name: str) -> list[str]:
        account, job = self.world.account, self.world.account.job(name)
        objects, start = account.objects("smkit/"), f"s3://{account.bucket}/"
        packed = objects.get(json.loads(job["HyperParameters"]["sagemaker_submit_directory"]).removeprefix(start))
        if packed is None:
            return ["there is no source"]
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            code = {item.name: archive.extractfile(item).read() for item in archive if item.isfile()}  # type: ignore[union-attr]
        there = job["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"].removeprefix(start)
        data = {key.removeprefix(there): body for key, body in objects.items() if key.startswith(there)}
        wrong = []
        for found, folder in ((code, self.source), (data, self.data)):
            wanted = {path.name: path.read_bytes() for path in folder.iterdir()}
            wrong += [each for each in found.keys() | wanted.keys() if found.get(each) != wanted.get(each)]
        return wrong


def _is_of(job: dict[str, Any], name: str) -> bool:
    return job["TrainingJobName"] in (name, f"{name}-again")


def launch(world: World, draw: random.Random) -> Deed:
    """Launch something new."""
    made = Launch.make(world, draw)
    return Deed(made.order(made.name), made.of_done, made.of_refused)


def forget_launches(world: World) -> None:
    """Leave nothing of any launch for the next round."""
    Launch(world, "launch", world.folder, world.folder).clean()
