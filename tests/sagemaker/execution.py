"""A training job from its instances to its end, in a thread of its own."""

from __future__ import annotations

import shutil
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sagemaker.container import TRAIN, Container, write_hosts
from sagemaker.logs import LogStream, Metrics
from sagemaker.settings import Settings
from sagemaker.storage import DataFaultError, Mirror, upload_output
from sagemaker.training_job import TrainingJob
from sagemaker.tree import Tree, build
from sagemaker.wire import KEYS

_TICK = 0.02
_NO_CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
)
# How a job ends that was told to, by the cause: its secondary status and the status message.
_TOLD_TO_END = {
    "stop": ("Stopped", "Training job stopped"),
    "runtime": ("MaxRuntimeExceeded", "Training job runtime exceeded MaxRuntimeInSeconds provided"),
    "wait": ("MaxWaitTimeExceeded", "Training job exceeded MaxWaitTimeInSeconds provided"),
}


class Execution(threading.Thread):
    """Runs one job. Not to be joined from a request: a job may last."""

    def __init__(
        self, job: TrainingJob, settings: Settings, clients: Any, folder: Path, endpoint: str, *, isolated: bool
    ) -> None:
        super().__init__(daemon=True, name=job.name)
        self._job, self._settings, self._clients = job, settings, clients
        self._folder, self._endpoint, self._isolated = folder, endpoint, isolated
        self._containers: list[Container] = []
        self._mirrors: list[Mirror] = []
        self._streams: list[LogStream] = []
        self._trained, self._stream_second = 0.0, 0
        definitions = job.request["AlgorithmSpecification"].get("MetricDefinitions") or []
        self._metrics = Metrics(definitions, job.measured)

    def run(self) -> None:
        try:
            self._run()
        except DataFaultError as fault:
            self._fail(f"ClientError: {fault}")
        except Exception as error:
            if not self._job.cancelled.is_set():
                traceback.print_exc(file=sys.stderr)
            self._fail(f"InternalServerError: {error!r}")
        finally:
            for container in self._containers:
                container.kill()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        attempt = 0
        while True:
            attempt += 1
            told = self._obtain_instances()
            if told == "capacity":
                self._fail(_NO_CAPACITY)
                return
            trees = [] if told else self._download(self._folder / f"attempt-{attempt}")
            told = told or self._told_to_end()
            if not told:
                told = self._train(trees)
            if told != "interruption":
                self._conclude(trees, told)
                return
            message = "Training job interrupted: its managed spot capacity was reclaimed"
            self._job.step("Interrupted", message)
            self._job.interruption_asked.clear()
            self._job.step("Starting", "Starting the training job again")

    def _obtain_instances(self) -> str:
        # Return why there is none, if so. A spot job waits for capacity, any other one fails.
        resources = self._job.request["ResourceConfig"]
        wanted = resources.get("InstancePreferences") or [resources]
        ready = time.monotonic() + self._settings.starting
        while True:
            told = self._told_to_end()
            if told:
                return told
            if time.monotonic() >= ready:
                free = [item for item in wanted if item["InstanceType"] not in self._settings.without_capacity]
                if free and "InstancePreferences" in resources:
                    self._job.selected(free[0]["InstanceType"], free[0].get("InstanceCount") or self._count())
                if free or not self._job.is_spot:
                    return "" if free else "capacity"
            time.sleep(_TICK)

    def _count(self) -> int:
        resources = self._job.request["ResourceConfig"]
        return int(resources.get("SelectedInstanceCount") or resources.get("InstanceCount") or 1)

    def _hosts(self) -> list[str]:
        if self._isolated or self._count() == 1:
            return [f"algo-{number}" for number in range(1, self._count() + 1)]
        # Without an /etc/hosts of its own, the job's hosts have no names that can be resolved.
        return [f"127.0.0.{number}" for number in range(1, self._count() + 1)]

    def _download(self, folder: Path) -> list[Tree]:
        self._job.step("Downloading", "Downloading input data")
        hosts, trees, s3 = self._hosts(), [], self._clients.s3
        self._mirrors = []
        for host in hosts:
            tree = Tree(folder / host)
            build(tree, host, hosts, self._job.request, s3)
            write_hosts(tree, hosts)
            checkpoints, board = tree.mirrors(s3, self._job.name, self._job.request)
            for mirror in checkpoints:
                mirror.restore()
            self._mirrors += [*checkpoints, *board]
            trees.append(tree)
        return trees

    def _train(self, trees: Sequence[Tree]) -> str:
        self._job.step("Training", "Training image download completed. Training in progress.")
        self._job.started_training()
        begin = time.monotonic()
        self._start_containers(trees)
        try:
            return self._watch(begin)
        finally:
            self._trained += time.monotonic() - begin
            self._job.trained_for(time.monotonic() - begin)

    def _start_containers(self, trees: Sequence[Tree]) -> None:
        request = self._job.request
        spec = request["AlgorithmSpecification"]
        command = [*(spec.get("ContainerEntrypoint") or [TRAIN]), *(spec.get("ContainerArguments") or [])]
        self._stream_second = max(int(time.time()), self._stream_second + 1)
        cut_off = bool(request.get("EnableNetworkIsolation"))
        self._containers = []
        for position, tree in enumerate(trees):
            container = Container(
                tree,
                command,
                self._environment(cut_off=cut_off),
                isolated=self._isolated,
                alone=cut_off and len(trees) == 1,
                hidden=self._settings.hidden,
            )
            self._containers.append(container)
            stream = LogStream(
                container.output,
                self._clients.logs,
                f"{self._job.name}/algo-{position + 1}-{self._stream_second}",
                delay=self._delay_of(position),
                on_line=self._read_line,
                cancelled=self._job.cancelled,
            )
            self._streams.append(stream)

    @property
    def delivered(self) -> bool:
        """Whether all lines of all attempts can be read."""
        return not self.is_alive() and all(stream.delivered for stream in self._streams)

    def wait_for_all(self) -> None:
        """Wait until nothing of the job is left to do."""
        self.join()
        for stream in self._streams:
            stream.wait_for_delivery()

    def _delay_of(self, position: int) -> Any:
        # Hosts differ, so that lines of several ones become readable out of order.
        return lambda: self._settings.log_delay * (1 if position % 2 == 0 else 1 / 3)

    def _read_line(self, line: str) -> None:
        self._metrics.read(line)
        if self._job.is_spot and self._settings.use_up_interruption(line):
            self._job.interruption_asked.set()

    def _environment(self, *, cut_off: bool) -> dict[str, str]:
        network = {} if cut_off else {"AWS_ENDPOINT_URL": self._endpoint}
        keys = {} if cut_off else {"AWS_ACCESS_KEY_ID": KEYS["job"], "AWS_SECRET_ACCESS_KEY": "secret"}
        return {
            "TRAINING_JOB_NAME": self._job.name,
            "TRAINING_JOB_ARN": self._job.arn,
            "AWS_REGION": self._job.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",
            "PYTHONUNBUFFERED": "1",
            "LANG": "C.UTF-8",
            **network,
            **keys,
            **(self._job.request.get("Environment") or {}),
        }

    def _told_to_end(self) -> str:
        # Why the job may not go on, if so.
        stopping = self._job.request.get("StoppingCondition") or {}
        age = time.time() - self._job.created.timestamp()
        if self._job.cancelled.is_set() or self._job.stop_asked.is_set():
            return "stop"
        if self._job.is_spot and age > stopping["MaxWaitTimeInSeconds"]:
            return "wait"
        return ""

    def _watch(self, begin: float) -> str:
        # Return what ended the containers: the empty text where they ended by themselves.
        most = (self._job.request.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds", 86400)
        cause, kill_at, next_sync = "", float("inf"), 0.0
        while any(container.exit_code() is None for container in self._containers):
            now = time.monotonic()
            if not cause:
                late = self._trained + now - begin > most
                asked = "interruption" if self._job.interruption_asked.is_set() else ""
                cause = self._told_to_end() or ("runtime" if late else asked)
                failed = any(container.exit_code() for container in self._containers)
                cause = cause or ("failure" if failed else "")
                if cause:
                    kill_at = now + self._settings.grace
                    self._end_containers(cause)
            if now > kill_at or self._job.cancelled.is_set():
                for container in self._containers:
                    container.kill()
            if now > next_sync:
                self._sync()
                next_sync = time.monotonic() + self._settings.sync_interval
            time.sleep(_TICK)
        for stream in self._streams:
            stream.wait_for_end()
        if cause != "interruption":
            # Nothing promises that the last state of a host that was taken away reaches S3.
            self._sync()
        return cause

    def _end_containers(self, cause: str) -> None:
        if cause in _TOLD_TO_END:
            self._job.step("Stopping", "Stopping the training job")
        for container in self._containers:
            container.terminate()

    def _sync(self) -> None:
        for mirror in self._mirrors:
            mirror.sync()

    def _conclude(self, trees: Sequence[Tree], told: str) -> None:
        codes = [container.exit_code() or 0 for container in self._containers]
        good = not any(codes) and told not in _TOLD_TO_END
        if trees and self._containers:
            self._upload(trees, needs_model=good)
        if told in _TOLD_TO_END:
            self._job.end("Stopped", *_TOLD_TO_END[told])
        elif good:
            self._job.end("Completed", "Completed", "Training job completed")
        else:
            text = next((tree.failure() for tree in trees if tree.failure()), "")
            # A host that was killed because another one had failed is not the cause.
            code = next((code for code in codes if code not in (0, 137)), max(codes))
            ending = f", exit code: {code}"
            self._fail(f"AlgorithmError: {text}"[: 1024 - len(ending)] + ending)

    def _upload(self, trees: Sequence[Tree], *, needs_model: bool) -> None:
        self._job.step("Uploading", "Uploading generated training model")
        output = self._job.request["OutputDataConfig"]
        uri = f"{output['S3OutputPath'].rstrip('/')}/{self._job.name}/output"
        compressed = output.get("CompressionType", "GZIP") == "GZIP"
        s3 = self._clients.s3
        models, outputs = [tree.model for tree in trees], [tree.output for tree in trees]
        if needs_model or _any_file(models):
            self._job.has_model(upload_output(s3, models, uri, "model", compressed=compressed))
        if _any_file(outputs):
            upload_output(s3, outputs, uri, "output", compressed=compressed)

    def _fail(self, reason: str) -> None:
        self._job.end("Failed", "Failed", "Training job failed", reason)


def _any_file(folders: Sequence[Path]) -> bool:
    return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)
