"""The record of one training job: what DescribeTrainingJob and ListTrainingJobs tell of it."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from sagemaker.wire import ACCOUNT, service_model

ENDED = frozenset({"Completed", "Failed", "Stopped"})
# What a managed spot job pays of its time here; on AWS the market says.
_SPOT_SHARE = 0.3


class TrainingJob:
    """A job's request and its life so far; every method may be called from any thread."""

    def __init__(self, request: Mapping[str, Any], region: str) -> None:
        self.request = copy.deepcopy(dict(request))
        self.tags = {tag["Key"]: tag["Value"] for tag in self.request.pop("Tags", [])}
        self.name: str = request["TrainingJobName"]
        self.region = region
        self.arn = f"arn:aws:sagemaker:{region}:{ACCOUNT}:training-job/{self.name}"
        self.created = self.modified = _now()
        self.status = "InProgress"
        self.transitions: list[dict[str, Any]] = []
        self.stop_asked = threading.Event()
        self.interruption_asked = threading.Event()
        self.cancelled = threading.Event()
        self._facts: dict[str, Any] = {}
        self._metrics: dict[str, dict[str, Any]] = {}
        self._training = 0.0
        self._lock = threading.RLock()
        self.step("Starting", "Starting the training job")

    @property
    def is_spot(self) -> bool:
        return bool(self.request.get("EnableManagedSpotTraining"))

    @property
    def secondary_status(self) -> str:
        return str(self.transitions[-1]["Status"])

    def step(self, status: str, message: str) -> None:
        """Go over to this secondary status."""
        with self._lock:
            now = _now()
            if self.transitions:
                self.transitions[-1]["EndTime"] = now
            self.transitions.append({"Status": status, "StartTime": now, "StatusMessage": message})
            self.modified = now
            if status == "Stopping":
                self.status = status

    def ask_to_stop(self) -> str | None:
        """Begin to stop; return the status of a job that has ended already."""
        with self._lock:
            if self.status in ENDED:
                return self.status
            self.status = "Stopping"
            self.stop_asked.set()
            return None

    def started_training(self) -> None:
        """Note when the containers started, the first time."""
        with self._lock:
            self._facts.setdefault("TrainingStartTime", _now())

    def trained_for(self, seconds: float) -> None:
        """Add the time of one attempt."""
        with self._lock:
            self._training += seconds
            # Two seconds at least, so that a spot job's saving shows in whole seconds.
            whole = max(2, math.ceil(self._training))
            paid = max(1, math.floor(whole * _SPOT_SHARE)) if self.is_spot else whole
            self._facts |= {"TrainingTimeInSeconds": whole, "BillableTimeInSeconds": paid}

    def selected(self, instance_type: str, count: int) -> None:
        """Note which of the preferred instance types the job got."""
        with self._lock:
            chosen = {"SelectedInstanceType": instance_type, "SelectedInstanceCount": count}
            self.request["ResourceConfig"] = self.request["ResourceConfig"] | chosen

    def has_model(self, uri: str) -> None:
        with self._lock:
            self._facts["ModelArtifacts"] = {"S3ModelArtifacts": uri}

    def measured(self, name: str, value: float) -> None:
        """Note the last value of a metric."""
        with self._lock:
            self._metrics[name] = {"MetricName": name, "Value": value, "Timestamp": _now()}

    def end(self, status: str, secondary: str, message: str, failure: str = "") -> None:
        """End the job."""
        with self._lock:
            self.step(secondary, message)
            self.transitions[-1]["EndTime"] = self.modified
            self.status = status
            self._facts["TrainingEndTime"] = self.modified
            if failure:
                self._facts["FailureReason"] = failure[:1024]

    def description(self) -> dict[str, Any]:
        """Return the answer of DescribeTrainingJob."""
        known = service_model("sagemaker").operation_model("DescribeTrainingJob").output_shape.members
        with self._lock:
            asked = {name: value for name, value in self.request.items() if name in known}
            switches = ("EnableNetworkIsolation", "EnableInterContainerTrafficEncryption", "EnableManagedSpotTraining")
            answer = dict.fromkeys(switches, False) | asked | self._facts
            answer |= {
                "TrainingJobArn": self.arn,
                "TrainingJobStatus": self.status,
                "SecondaryStatus": self.secondary_status,
                "SecondaryStatusTransitions": self.transitions,
                "CreationTime": self.created,
                "LastModifiedTime": self.modified,
            }
            if self._metrics:
                answer["FinalMetricDataList"] = list(self._metrics.values())
            if self.status in ENDED and self.request["ResourceConfig"].get("KeepAlivePeriodInSeconds"):
                answer["WarmPoolStatus"] = {"Status": "Available"}
            return copy.deepcopy(answer)

    def summary(self) -> dict[str, Any]:
        """Return the job's item in the answer of ListTrainingJobs."""
        fields = service_model("sagemaker").shape_for("TrainingJobSummary").members
        return {name: value for name, value in self.description().items() if name in fields}


def _now() -> datetime:
    return datetime.now(timezone.utc)
