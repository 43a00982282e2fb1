"""The plan of a job on SageMaker: role, bucket, image, channels and request, all found out and checked together.

AWS is asked only what cannot be known otherwise (who is asking, where no role says it), and nothing is changed. What is
sent is the business of `submission`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from smkit import contract, supervisor
from smkit.cloud.aws import Clients, connect
from smkit.cloud.connection import Connection
from smkit.cloud.images import Image, find_image, read_image
from smkit.cloud.instances import accelerators
from smkit.cloud.prices import ask_prices
from smkit.cloud.request import build_request, processes_per_host
from smkit.cloud.request_checks import request_problems, request_warnings
from smkit.cloud.role import account_of, find_role
from smkit.cloud.service_model import ServiceModel
from smkit.cloud.storage import PREFIX, Storage
from smkit.cloud.submission import LAUNCH_TAG, Submission
from smkit.cloud.uploads import LocalData, address
from smkit.errors import ConfigurationError
from smkit.inputs import local_files
from smkit.launch_arguments import LaunchArguments, refuse
from smkit.plan import Plan
from smkit.preparation import Preparation, prepare
from smkit.report import amount, count
from smkit.s3_uris import is_bucket_name
from smkit.source.archive import content_hash
from smkit.source.vendor import vendored

_PYTHON_OF_UNKNOWN_IMAGES = "3.12"
_Found = TypeVar("_Found")


def make_plan(arguments: LaunchArguments, problems: Sequence[str]) -> Plan:
    """Return the plan of a job on SageMaker.

    Args:
        arguments: What `launch` was given.
        problems: What is wrong with them already.

    Raises:
        ConfigurationError: All that is wrong, together; nothing has been made.
    """
    findings = _Findings(list(problems))
    draft = _draft(_with_monitored_metric(arguments), findings)
    request = draft.request()
    findings.problems += draft.problems(request)
    refuse(findings.problems, arguments)
    role, storage, code = draft.role, draft.storage, draft.code
    if role is None or storage is None or code is None:
        raise AssertionError("what could not be found out has left a problem")
    return Plan(
        name=draft.prepared.name,
        request=request,
        files=draft.files,
        rows=draft.rows(request, role, storage),
        warnings=draft.warnings(),
        estimate=partial(draft.estimate, request, storage.clients),
        start=draft.submission(request, storage, code).start,
    )


class _Findings:
    """What is wrong, gathered on the way: a step that fails leaves None and lets the others go on."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems

    def attempt(self, subject: str, step: Callable[[], _Found]) -> _Found | None:
        try:
            return step()
        except ConfigurationError as error:
            text = f": {error.what}; {error.fix}"
            # What keeps two steps from going on, such as missing credentials, is one problem.
            if not any(problem.endswith(text) for problem in self.problems):
                self.problems.append(subject + text)
            return None


@dataclass(frozen=True)
class _Code:
    """The source as it will lie in the bucket, with what travels along."""

    sha256: str
    vendored: Mapping[str, bytes | Path]

    @property
    def key(self) -> str:
        return f"{PREFIX}/source/{self.sha256}/sourcedir.tar.gz"


@dataclass(frozen=True)
class _Draft:
    """Everything that was found out; None is what could not be, which has left a problem."""

    arguments: LaunchArguments
    prepared: Preparation
    clients: Clients | None
    role: tuple[str, str] | None
    storage: Storage | None
    image: Image | str | None
    data: Mapping[str, LocalData]
    code: _Code | None

    @property
    def known_image(self) -> Image | None:
        return self.image if isinstance(self.image, Image) else None

    @property
    def files(self) -> Sequence[tuple[str, int]]:
        """All that is in the archive, with its size in bytes."""
        extra = self.code.vendored if self.code else {}
        sizes = {file.path: file.size for file in self.prepared.source.files}
        sizes |= {path: len(each) if isinstance(each, bytes) else each.stat().st_size for path, each in extra.items()}
        return sorted(sizes.items())

    def request(self) -> dict[str, Any]:
        """Return the request; with a stand-in for what is missing, so that all else can be checked."""
        bucket = self.storage.bucket if self.storage else "bucket"
        jobs = f"s3://{bucket}/{PREFIX}/jobs"
        tags = self._tags()
        request = build_request(
            self.arguments,
            name=self.prepared.name,
            role=self.role and self.role[0],
            region=self.clients.region if self.clients else "",
            image=self.image,
            hyperparameters=self.prepared.hyperparameters,
            channels=[
                (given.name, given.uri or f"s3://{bucket}/{self.data[given.name].key()}", given.input)
                for given in self.prepared.inputs
                if given.uri or given.name in self.data
            ],
            source_uri=f"s3://{bucket}/{self.code.key}" if self.code else None,
            output_uri=jobs,
            checkpoint_uri=self.arguments.checkpoint_uri or f"{jobs}/{self.prepared.name}/checkpoints",
            environment=self.arguments.environment,
            tags=tags,
            entrypoint=supervisor.entrypoint() if self.arguments.graceful_stop else None,
        )
        if isinstance(self.arguments.request.get("Tags"), (list, tuple)):
            # Tags in the user's own words take the place of all others but the one that a lost reply is mended by.
            request["Tags"] = [*request["Tags"], {"Key": LAUNCH_TAG, "Value": tags[LAUNCH_TAG]}]
        return request

    def problems(self, request: Mapping[str, Any]) -> Sequence[str]:
        """Return what is wrong with a request; nothing where botocore, which knows, is missing."""
        if importlib.util.find_spec("botocore") is None:
            return ()
        return request_problems(
            request,
            self.arguments,
            model=ServiceModel.load(),
            image=self.known_image,
            has_setup_py=self.prepared.source.has_setup_py,
            # smkit that travels along brings a requirements.txt of its own.
            has_requirements=any(path == "requirements.txt" for path, _ in self.files),
        )

    def warnings(self) -> Sequence[str]:
        return [
            *self.prepared.warnings,
            *(warning for data in self.data.values() for warning in data.warnings),
            *request_warnings(
                self.arguments,
                image=self.known_image,
                has_setup_py=self.prepared.source.has_setup_py,
                has_requirements=self._has("requirements.txt"),
                today=datetime.now(timezone.utc).date(),
                hyperparameters=self.prepared.hyperparameters,
            ),
        ]

    def rows(
        self, request: Mapping[str, Any], role: tuple[str, str], storage: Storage
    ) -> Sequence[tuple[str, str, str]]:
        """Return what was resolved, and where from."""
        arguments = self.arguments
        clients = storage.clients
        algorithm = request.get("AlgorithmSpecification", {})
        size = sum(size for _, size in self.files)
        inputs = [
            (f"input {channel['ChannelName']}", _place_of(channel), self._from(channel))
            for channel in request.get("InputDataConfig", ())
        ]
        checkpoints = str(request.get("CheckpointConfig", {}).get("S3Uri", "none"))
        spot = " on spot instances" if arguments.spot else ""
        return [
            ("script", arguments.entry, str(self.prepared.source.root)),
            ("instances", _instances(arguments), "instance_type, instance_count"),
            ("image", str(algorithm.get("TrainingImage", "none")), self._image_origin),
            ("role", *role),
            ("account", f"{storage.owner} in {clients.region}", clients.profile_name or "default credentials"),
            ("source", f"{count(len(self.files), 'file')}, {amount(size)}", self.prepared.origin_text),
            ("hyperparameters", str(len(self.prepared.hyperparameters)), self.prepared.check),
            *inputs,
            ("results", f"{request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.prepared.name}", "bucket"),
            ("checkpoints", checkpoints, "checkpoint_uri" if arguments.checkpoint_uri else "this job's own"),
            ("time", f"at most {_hours(request):g} h{spot}", "max_hours"),
        ]

    def estimate(self, request: Mapping[str, Any], clients: Clients) -> str:
        """Return what the job can cost at most, as AWS's pricing API tells it now."""
        types = self.arguments.instance_types
        prices = ask_prices(Connection(clients), types)
        if not prices.keys() >= set(types):
            return "price unknown: AWS's pricing API tells none (it takes the permission pricing:GetProducts)"
        price = max(prices.values(), key=lambda each: each.dollars_per_hour)
        hours, hosts, warm = _hours(request), self.arguments.instance_count, self.arguments.keep_alive_minutes
        return (
            f"at most ${price.dollars_per_hour * (hours + warm / 60) * hosts:,.2f}: {hours:g} h"
            f"{f' and {warm} min warm' if warm else ''} on {hosts} x "
            f"${price.dollars_per_hour:g}/h ({price.origin}){', less on spot' if self.arguments.spot else ''}"
        )

    def submission(self, request: Mapping[str, Any], storage: Storage, code: _Code) -> Submission:
        origin = self.prepared.origin
        return Submission(
            # Who wants the results encrypted with a key of their own wants code and data encrypted so as well.
            storage=replace(storage, kms_key=request["OutputDataConfig"].get("KmsKeyId") or None),
            request=request,
            source=self.prepared.source,
            vendored=code.vendored,
            source_key=code.key,
            source_sha256=code.sha256,
            data=list(self.data.values()),
            record_key=f"{PREFIX}/jobs/{self.prepared.name}/code.json",
            record=origin.as_json(code.sha256) if origin else json.dumps({"code_sha256": code.sha256, "git": None}),
        )

    def _has(self, name: str) -> bool:
        return any(file.path == name for file in self.prepared.source.files)

    def _tags(self) -> dict[str, str]:
        origin = self.prepared.origin.as_tags() if self.prepared.origin else {}
        code = {"smkit:code-sha256": self.code.sha256} if self.code else {}
        return {**origin, **code, LAUNCH_TAG: secrets.token_hex(8), **self.arguments.tags}

    @property
    def _image_origin(self) -> str:
        return self.image.origin if isinstance(self.image, Image) else "image_uri"

    def _from(self, channel: Mapping[str, Any]) -> str:
        data = self.data.get(channel["ChannelName"])
        sent = "as it is" if data is None else f"{count(len(data.files), 'file')}, {amount(data.size)}, uploaded once"
        return f"{channel.get('InputMode', 'File')}, {sent}"


def _draft(arguments: LaunchArguments, findings: _Findings) -> _Draft:
    """Find out everything, and note what is wrong."""
    prepared = prepare(arguments)
    findings.problems += prepared.problems
    connecting = partial(
        connect, profile_name=arguments.profile_name, session=arguments.session, region=arguments.region
    )
    clients = findings.attempt("AWS", connecting)
    role = storage = None
    if clients is not None:
        role = findings.attempt("role", partial(find_role, arguments.role, clients, environ=os.environ))
        storage = findings.attempt("bucket", partial(_storage, arguments, clients, role and role[0]))
    image = _find_image(arguments, clients, findings)
    return _Draft(
        arguments=arguments,
        prepared=prepared,
        clients=clients,
        role=role,
        storage=storage,
        image=image,
        data=_read_data(prepared, findings),
        code=_read_code(arguments, prepared, image, findings),
    )


def _storage(arguments: LaunchArguments, clients: Clients, role: str | None) -> Storage:
    """Return the bucket with its owner: the account of the role, since a job runs in the account of its role."""
    known = clients.with_account(account_of(role)) if role else clients
    bucket = arguments.bucket or contract.default_bucket(known.region, known.account)
    if not is_bucket_name(bucket):
        raise ConfigurationError(
            f"'{bucket}' is no name of a bucket", where="bucket of launch", fix="give the name alone, without s3://"
        )
    return Storage(known, bucket, known.account)


def _find_image(arguments: LaunchArguments, clients: Clients | None, findings: _Findings) -> Image | str | None:
    if arguments.image_uri:
        return read_image(arguments.image_uri) or arguments.image_uri
    if clients is None or not arguments.instance_types:
        return None
    image, problems = find_image(
        arguments.framework_version,
        arguments.py_version,
        region=clients.region,
        instance_types=arguments.instance_types,
    )
    findings.problems += problems
    return image


def _read_data(prepared: Preparation, findings: _Findings) -> dict[str, LocalData]:
    """Hash what lies on this machine; its hash is its place in the bucket."""
    data: dict[str, LocalData] = {}
    for given in prepared.inputs:
        files, problems = local_files(given)
        findings.problems += problems
        if files and not problems:
            found = findings.attempt(f"input '{given.name}'", partial(address, given.name, files))
            data |= {given.name: found} if found else {}
    return data


def _read_code(
    arguments: LaunchArguments, prepared: Preparation, image: Image | str | None, findings: _Findings
) -> _Code | None:
    """Read all that the archive will hold; its hash is its place in the bucket."""
    if prepared.source.problems:
        return None
    release = image.release if isinstance(image, Image) else None
    extra = findings.attempt(
        "source_dir",
        lambda: vendored(
            prepared.source,
            vendor=arguments.vendor,
            python_version=release.python if release else _PYTHON_OF_UNKNOWN_IMAGES,
            torch_version=release.version if release else None,
        ),
    )
    if extra is None or extra.problems:
        findings.problems += extra.problems if extra else ()
        return None
    sha256 = findings.attempt("source_dir", partial(content_hash, prepared.source, extra.files))
    return _Code(sha256, extra.files) if sha256 else None


def _with_monitored_metric(arguments: LaunchArguments) -> LaunchArguments:
    """Add the metric that the script watches to those that SageMaker is told of."""
    given = arguments.hyperparameters
    monitor = given.get("monitor_metric") if isinstance(given, Mapping) else getattr(given, "monitor_metric", None)
    if not isinstance(monitor, str) or not monitor:
        return arguments
    name = monitor if "/" in monitor else f"validation/{monitor}"
    return replace(arguments, metrics=list(dict.fromkeys([*arguments.metrics, name])))


def _place_of(channel: Mapping[str, Any]) -> str:
    """Return where a channel's data lies: in S3, or where else the user's own request says."""
    source = channel["DataSource"]
    if "S3DataSource" in source:
        return str(source["S3DataSource"]["S3Uri"])
    files = source.get("FileSystemDataSource")
    return f"{files['FileSystemId']}:{files['DirectoryPath']}" if files else "as request says"


def _hours(request: Mapping[str, Any]) -> float:
    """Return how long a job may run: what `max_hours` or the user's own request says, else a day (API)."""
    return float(request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 24 * 3600)) / 3600


def _instances(arguments: LaunchArguments) -> str:
    """Return hosts x GPUs as a person reads them."""
    chips = {name: accelerators(name) for name in arguments.instance_types}
    names = " or ".join(
        f"{name} ({chip.count or 'unknown number of'} x {chip})" if chip.kind == "GPU" else name
        for name, chip in chips.items()
    )
    processes = processes_per_host(arguments)
    each = "one process" if processes == 1 else f"torchrun: {processes or 'one for each GPU'} per host"
    return f"{arguments.instance_count} x {names}, {each}"
