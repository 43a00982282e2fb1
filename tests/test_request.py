"""The CreateTrainingJob request: what is sent, and everything that forbids to send it."""

import copy
import functools
import json
import re
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from smkit import wire
from smkit.cloud.images import Image, find_image
from smkit.cloud.request import build_request, merge, processes_per_host, uses_torchrun
from smkit.cloud.request_checks import request_problems, request_warnings
from smkit.cloud.service_model import ServiceModel
from smkit.inputs import Input
from smkit.launch_arguments import LaunchArguments

pytestmark = pytest.mark.aws

GOLDEN = Path(__file__).parent / "golden"
TODAY = date(2026, 11, 25)
ROLE = "arn:aws:iam::123456789012:role/SageMaker"
DEFAULTS: dict[str, Any] = {
    "entry": "train.py",
    "source_dir": ".",
    "instance_type": "ml.g5.xlarge",
    "instance_count": 1,
    "inputs": {},
    "environment": {},
    "name": "digits",
    "role": ROLE,
    "region": "eu-west-1",
    "spot": False,
    "max_hours": 24,
    "keep_alive_minutes": 0,
    "retries": 0,
    "graceful_stop": False,
    "metrics": [],
    "tags": {},
    "vendor": "source",
    "allow_secrets": [],
    "request": {},
    "output_dir": "runs",
}


@functools.cache
def model() -> ServiceModel:
    return ServiceModel.load()


def arguments(**changes: Any) -> LaunchArguments:
    nothing = dict.fromkeys(field.name for field in fields(LaunchArguments))
    return LaunchArguments(**{**nothing, **DEFAULTS, **changes})


def image(given: LaunchArguments) -> Image | None:
    return find_image(
        given.framework_version, given.py_version, region="eu-west-1", instance_types=given.instance_types
    )[0]


def build(given: LaunchArguments, **changes: Any) -> dict[str, Any]:
    inputs = {name: data if isinstance(data, Input) else Input(data) for name, data in given.inputs.items()}
    parts: dict[str, Any] = {
        "name": given.name,
        "role": given.role,
        "region": "eu-west-1",
        "image": given.image_uri or image(given),
        "hyperparameters": wire.encode(given.hyperparameters or {}),
        "channels": [(name, str(data.source), data) for name, data in inputs.items()],
        "source_uri": "s3://bucket/smkit/source/0123.tar.gz",
        "output_uri": "s3://bucket/smkit",
        "checkpoint_uri": given.checkpoint_uri,
        "environment": given.environment,
        "tags": given.tags,
    }
    return build_request(given, **{**parts, **changes})


def problems(*, has_setup_py: bool = False, has_requirements: bool = False, **changes: Any) -> list[str]:
    given = arguments(**changes)
    return request_problems(
        build(given),
        given,
        model=model(),
        image=image(given),
        has_setup_py=has_setup_py,
        has_requirements=has_requirements,
    )


def warnings(*, has_setup_py: bool = False, has_requirements: bool = False, **changes: Any) -> list[str]:
    given = arguments(**changes)
    return request_warnings(
        given, image=image(given), has_setup_py=has_setup_py, has_requirements=has_requirements, today=TODAY
    )


def is_valid(request: dict[str, Any]) -> bool:
    from botocore.validate import ParamValidator

    return not ParamValidator().validate(request, model().shape).has_errors()


FULL = arguments(
    instance_type="ml.p4d.24xlarge",
    instance_count=2,
    processes_per_host=4,
    inputs={
        "train": Input("s3://data/train", mode="FastFile", sharded=True, content_type="text/csv"),
        "test": "s3://data/test",
    },
    hyperparameters={"learning_rate": 0.1, "layers": [1, 2], "name": "ada"},
    environment={"COLOUR": "blue"},
    spot=True,
    max_hours=1.5,
    checkpoint_uri="s3://bucket/checkpoints",
    retries=3,
    metrics=["valid/loss"],
    tags={"team": "vision"},
)


def test_a_request_to_the_letter() -> None:
    request = build(FULL, entrypoint=(["python3", "-c"], ["pass"]))
    assert json.dumps(request, indent=1) + "\n" == (GOLDEN / "request.json").read_text(encoding="utf-8")
    assert is_valid(request)
    assert model().check(request) == []
    given = FULL
    assert not request_problems(
        request, given, model=model(), image=image(given), has_setup_py=False, has_requirements=True
    )


def test_the_least_request_is_sent_without_what_nobody_asked_for() -> None:
    request = build(arguments())
    assert is_valid(request)
    assert problems() == warnings() == []
    assert set(request) == {
        *("TrainingJobName", "AlgorithmSpecification", "HyperParameters", "OutputDataConfig", "ResourceConfig"),
        *("StoppingCondition", "TensorBoardOutputConfig", "RoleArn"),
    }
    assert set(request["HyperParameters"]) == {
        *("sagemaker_program", "sagemaker_submit_directory", "sagemaker_job_name", "sagemaker_region"),
        "sagemaker_container_log_level",
    }


def test_the_toolkit_reads_what_is_sent() -> None:
    mapping = pytest.importorskip("sagemaker_training.mapping")
    values = {key: json.loads(text) for key, text in build(FULL)["HyperParameters"].items()}
    platform, own = mapping.split_by_criteria(values, prefix="sagemaker")
    assert own == {"learning_rate": 0.1, "layers": [1, 2], "name": "ada"}
    assert platform["sagemaker_torch_distributed_enabled"] is True
    assert platform["sagemaker_mpi_num_of_processes_per_host"] == 4
    assert platform["sagemaker_container_log_level"] == 20


def test_several_instance_types_are_preferences_with_one_count_for_all() -> None:
    request = build(arguments(instance_type=["ml.g5.xlarge", "ml.g6.xlarge"], keep_alive_minutes=10))
    assert request["ResourceConfig"] == {
        "InstanceCount": 1,
        "VolumeSizeInGB": 30,
        "InstancePreferences": [{"InstanceType": "ml.g5.xlarge"}, {"InstanceType": "ml.g6.xlarge"}],
        "KeepAlivePeriodInSeconds": 600,
    }
    assert is_valid(request)


def test_on_spot_a_job_may_wait_as_long_as_it_runs_but_never_past_the_limit() -> None:
    def condition(hours: float) -> dict[str, int]:
        return build(arguments(spot=True, max_hours=hours))["StoppingCondition"]

    assert condition(1) == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert condition(600) == {"MaxRuntimeInSeconds": 2_160_000, "MaxWaitTimeInSeconds": 2_419_200}


def test_without_a_network_the_source_comes_as_a_channel() -> None:
    request = build(arguments(request={"EnableNetworkIsolation": True}))
    assert request["HyperParameters"]["sagemaker_submit_directory"] == '"/opt/ml/input/data/code/0123.tar.gz"'
    (channel,) = request["InputDataConfig"]
    assert channel["ChannelName"] == "code"
    assert channel["DataSource"]["S3DataSource"]["S3Uri"] == "s3://bucket/smkit/source/0123.tar.gz"
    assert is_valid(request)


def test_a_hyperparameter_that_torchrun_takes_for_its_own_is_named() -> None:
    names = ["monitor", "max", "max_steps", "log_dir", "epochs", "rdzv_id", "no", "monitor_metric"]
    given = arguments(instance_count=2)
    flags: dict[str, Any] = {"has_setup_py": False, "has_requirements": False, "today": TODAY}
    found = request_warnings(given, image=image(given), hyperparameters=names, **flags)
    assert [text.split("'")[1] for text in found if "abbreviation" in text] == ["monitor", "max", "no"]
    alone = request_warnings(arguments(), image=image(given), hyperparameters=names, **flags)
    assert not [text for text in alone if "abbreviation" in text]


@pytest.mark.parametrize(
    ("changes", "torchrun", "processes"),
    [
        ({"instance_type": "ml.g5.xlarge"}, False, 1),
        ({"instance_type": "ml.g5.12xlarge"}, True, 4),
        ({"instance_type": "ml.m5.large", "instance_count": 2}, True, 1),
        ({"instance_type": "ml.g5.12xlarge", "processes_per_host": 1}, False, 1),
        ({"instance_type": "ml.m5.large", "processes_per_host": 2}, True, 2),
        ({"instance_type": ["ml.g5.xlarge", "ml.g5.12xlarge"]}, True, None),
        ({"instance_type": "ml.g5.48xlarge", "instance_count": 2, "entry": "run.sh"}, False, 1),
    ],
)
def test_torchrun_starts_a_python_script_on_more_than_one_gpu_or_host(
    changes: dict[str, Any], torchrun: bool, processes: int | None
) -> None:
    given = arguments(**changes)
    assert (uses_torchrun(given), processes_per_host(given)) == (torchrun, processes)
    assert ("sagemaker_torch_distributed_enabled" in build(given)["HyperParameters"]) == torchrun


def test_the_users_own_fields_are_merged_last() -> None:
    own = {
        "ResourceConfig": {"VolumeSizeInGB": 200, "KeepAlivePeriodInSeconds": None},
        "TensorBoardOutputConfig": None,
        "Tags": [{"Key": "a", "Value": "b"}],
        "VpcConfig": {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
    }
    before = copy.deepcopy(own)
    request = build(arguments(request=own, keep_alive_minutes=5, tags={"c": "d"}))
    assert own == before
    assert request["ResourceConfig"] == {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 200}
    assert request["Tags"] == [{"Key": "a", "Value": "b"}]
    assert request["VpcConfig"] == own["VpcConfig"]
    assert "TensorBoardOutputConfig" not in request
    assert merge({"a": 1}, {"a": {"b": None, "c": 2}}) == {"a": {"c": 2}}


def without_counts(text: str) -> str:
    """Return a text that is the same with every botocore: each knows more instance types."""
    return re.sub(r"not one of \d+", "not one of N", text)


def test_nine_mistakes_are_nine_findings() -> None:
    found = problems(
        instance_type="ml.g5.xlarg",
        role="SageMaker",
        spot=True,
        max_hours=1000,
        retries=99,
        inputs={"test": "data/test"},
        tags={"cost$": "1"},
        environment={"TOKEN": "x" * 600},
        request={"VpcConfg": {}},
    )
    assert without_counts("\n".join(found)) + "\n" == (GOLDEN / "nine-mistakes.txt").read_text(encoding="utf-8")
    assert len(found) == 9


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"spot": True}, "spot True: an interrupted job would begin anew, again and again; give checkpoint_uri"),
        (
            {"spot": True, "checkpoint_uri": "s3://b/c", "instance_type": ["ml.g5.xlarge", "ml.g6.xlarge"]},
            "spot True: goes with one instance_type, and not with 2 to choose from",
        ),
        (
            {"spot": True, "checkpoint_uri": "s3://b/c", "keep_alive_minutes": 1},
            "spot True: SageMaker keeps no spot instance warm; leave keep_alive_minutes out",
        ),
        (
            {"request": {"EnableManagedSpotTraining": True}, "checkpoint_uri": "s3://b/c"},
            "request StoppingCondition.MaxWaitTimeInSeconds None: on spot, at least 86,400",
        ),
        (
            {"max_hours": 0, "spot": True, "checkpoint_uri": "s3://b/c"},
            "max_hours 0: more than 0 and at most 672 (28 days)",
        ),
        ({"max_hours": float("nan")}, "max_hours nan: more than 0 and at most 672 (28 days)"),
        ({"retries": 10**5000}, "retries <int>: a whole number from 0 to 30"),
        ({"max_hours": 10**400}, f"max_hours 1{'0' * 59}...{'0' * 10}: more than 0 and at most 672 (28 days)"),
        ({"keep_alive_minutes": 361}, "keep_alive_minutes 361: 0 to 360"),
        ({"retries": 1.5}, "retries 1.5: a whole number from 0 to 30"),
        ({"instance_type": ["ml.g5.xlarge"] * 2}, "instance_type 'ml.g5.xlarge': is there twice"),
        ({"instance_count": "2"}, "instance_count '2': is a text, and a whole number belongs here"),
        (
            {"instance_type": "ml.g7.2xlarge"},
            "instance_type 'ml.g7.2xlarge': this smkit does not know how many GPUs it has; give processes_per_host",
        ),
        (
            {"processes_per_host": 2},
            "processes_per_host 2: 'ml.g5.xlarge' has 1 GPU, and each process needs its own",
        ),
        (
            {"framework_version": "2.9", "instance_type": "ml.p3.2xlarge"},
            "instance_type 'ml.p3.2xlarge': the image of PyTorch 2.9.0 (CUDA 13.0) has no kernels for its V100 "
            "(sm_70); the newest that surely has them is framework_version '2.6.0'",
        ),
        (
            {"instance_count": 2, "has_setup_py": True},
            "source_dir: has a setup.py, which makes the toolkit install it as a package, and torchrun starts none; "
            "name it in .smkitignore, or give a source_dir below it",
        ),
        (
            {"request": {"EnableNetworkIsolation": True}, "has_requirements": True},
            "request EnableNetworkIsolation: the job cannot reach an index to install its requirements.txt from; "
            "give vendor='wheels'",
        ),
        (
            {"request": {"EnableNetworkIsolation": True}, "inputs": {"code": "s3://b/c"}},
            "input 'code': a job without a network gets its source under this name; take another",
        ),
        (
            {"request": {"HyperParameters": {"layers": "3"}}},
            "request HyperParameters.layers: give it in hyperparameters, where it is encoded and checked",
        ),
        (
            {"request": {"HyperParameters": {"sagemaker_container_log_level": "INFO"}}},
            "request HyperParameters.sagemaker_container_log_level 'INFO': the toolkit takes a number only",
        ),
        (
            {"request": {"ResourceConfig": {"InstancePreferences": [{"InstanceType": "ml.g5.xlarge"}]}}},
            "request ResourceConfig: InstanceType and InstancePreferences exclude each other; set InstanceType to None",
        ),
        (
            {"request": {"StoppingCondition": {"MaxRuntimeInSeconds": 2_419_201}}},
            "request StoppingCondition.MaxRuntimeInSeconds 2419201: at most 2,419,200 (28 days)",
        ),
        (
            {"request": {"TrainingJobName": "x"}},
            "request TrainingJobName: give name='x', which its results and checkpoints are named by, too",
        ),
        ({"tags": {"AWS:x": "1"}}, "tag 'AWS:x': names that start with aws: belong to AWS"),
        (
            {"request": {"Tags": [{"Key": "aws:x", "Value": "1"}]}},
            "request Tags[0].Key 'aws:x': names that start with aws: belong to AWS",
        ),
        ({"tags": {"a": "\ud83d"}}, "tag 'a' '?': holds half a character (a surrogate), which nothing can send"),
        ({"instance_count": 10**6}, "instance_count 1000000: no account may have so many; at most 10,000"),
        ({"request": {"RoelArn": "x"}}, "request RoelArn: there is no such field; did you mean 'RoleArn'?"),
        ({"role": "SageMaker"}, "role 'SageMaker': 9 characters, and at least 20 are needed"),
        (
            {"request": {"EnableNetworkIsolation": True}, "inputs": {f"i{n}": "s3://b/c" for n in range(20)}},
            "inputs: 21 entries, and at most 20 are taken",
        ),
        ({"tags": {"cost$": "1"}}, r"tag 'cost$': does not match ([\p{L}\p{Z}\p{N}_.:/=+\-@]*)"),
        ({"tags": {"cost": "1$"}}, r"tag 'cost' '1$': does not match ([\p{L}\p{Z}\p{N}_.:/=+\-@]*)"),
        (
            {"tags": {str(number): "" for number in range(51)}},
            "tags: 51 entries, and at most 50 are taken",
        ),
        ({"metrics": ["loss"] * 41}, "metrics: 41 entries, and at most 40 are taken"),
        (
            {"environment": {f"V{number}": "" for number in range(101)}},
            "environment: 101 entries, and at most 100 are taken",
        ),
        (
            {"image_uri": "i" * 256, "framework_version": "none"},
            f"image_uri '{'i' * 59}...{'i' * 9}': 256 characters, and at most 255 are taken",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_mistake_is_said_once_in_the_words_of_launch(changes: dict[str, Any], problem: str) -> None:
    assert problems(**changes) == [problem]


def test_the_platforms_own_hyperparameters_count_too() -> None:
    values = {f"k{number}": "x" * 2441 for number in range(49)}
    (found,) = problems(hyperparameters=values)
    assert found == (
        "hyperparameters: 120,019 bytes with the platform's own, and the toolkit can hand on 120,000; "
        "put the large ones into a file in a channel"
    )


def test_what_could_not_be_found_is_left_out_so_that_the_rest_is_checked() -> None:
    given = arguments(instance_type="ml.p2.xlarge", max_hours=0)
    request = build(given, image=None, source_uri=None, role=None)
    assert "TrainingImage" not in request["AlgorithmSpecification"]
    found = request_problems(request, given, model=model(), image=None, has_setup_py=False, has_requirements=False)
    assert found == ["max_hours 0: more than 0 and at most 672 (28 days)"]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"entry": "run.sh", "has_requirements": True}, "installs no requirements.txt for a shell script"),
        ({"entry": "run.sh", "instance_type": "ml.g5.12xlarge"}, "is started once on each host"),
        ({"has_setup_py": True}, "installs it as a package"),
        ({"instance_type": "ml.g5.12xlarge", "processes_per_host": 2}, "has 4 GPUs, and all are paid for"),
        ({"inputs": {"a": Input("s3://b/c", sharded=True)}}, "sharded changes nothing on one host"),
        ({"inputs": {"a": Input("s3://b/c", sharded=True)}, "instance_count": 3}, "with fewer than 3 a host gets none"),
        ({"inputs": {"a": Input("s3://b/c", mode="Pipe")}}, "a pipe is read once"),
        ({"framework_version": "2.8"}, "has not mended it since 2026-08-06"),
    ],
)
def test_what_is_doubtful_is_a_warning(changes: dict[str, Any], warning: str) -> None:
    (text,) = warnings(**changes)
    assert warning in text


def test_a_request_with_a_secret_is_refused_and_no_message_shows_a_value() -> None:
    secret = "hunter2" * 90
    found = problems(
        tags={"owner": SecretStr(secret)},
        environment={"TOKEN": secret},
        request={"HyperParameters": {"sagemaker_x": secret * 9}, "VpcConfig": {"Subnets": [SecretStr(secret)]}},
    )
    assert found == [
        "request HyperParameters.sagemaker_x: 5,670 characters, and at most 2,500 are taken",
        "environment 'TOKEN': 630 characters, and at most 512 are taken",
        "request VpcConfig.SecurityGroupIds: is missing",
        "tag 'owner': a secret would be readable in the job's description; send its name in a store instead",
        "request VpcConfig.Subnets[0]: a secret would be readable in the job's description; "
        "send its name in a store instead",
    ]
    assert "hunter2" not in "".join(found)


# --- the model itself -------------------------------------------------------------------------------------------------


def test_the_model_speaks_in_the_words_of_the_request() -> None:
    request = build(arguments())
    request["ResourceConfig"].update(InstanceType="ml.g5.xlarg", VolumeSizeInGB=True, InstanceCount=-1)
    request["AlgorithmSpecification"]["TrainingInputMode"] = "Fille"
    request["HyperParameters"] = {"k" * 300: "", "key": b"bytes", "other": None}
    request["StoppingCondition"] = None
    del request["OutputDataConfig"]
    request[3] = 3
    assert list(map(without_counts, model().check(request))) == [
        "AlgorithmSpecification.TrainingInputMode 'Fille': not one of 'Pipe', 'File', 'FastFile'; did you mean 'File'?",
        f"HyperParameters.{'k' * 59}...{'k' * 9}: its name: 300 characters, and at most 256 are taken",
        "HyperParameters.key: is a bytes, and a text belongs here",
        "HyperParameters.other: is None, and a text belongs here",
        "ResourceConfig.InstanceCount -1: at least 0",
        "ResourceConfig.VolumeSizeInGB True: is true or false, and a whole number belongs here",
        "ResourceConfig.InstanceType 'ml.g5.xlarg': not one of N; did you mean 'ml.g5.xlarge'?",
        "StoppingCondition None: is None, and an object belongs here",
        "3: there is no such field",
        "OutputDataConfig: is missing",
    ]
    assert model().check("text") == ["the request 'text': is a text, and an object belongs here"]


def test_patterns_of_java_are_read() -> None:
    def tag(key: str) -> list[str]:
        return [f.rule for f in model().findings({"Tags": [{"Key": key, "Value": ""}]}) if f.path[:1] == ("Tags",)]

    assert tag("größe 项目 ½_+=-@:/.") == []
    assert tag("a;b") == tag("a\tb") == ["pattern"]
    assert tag("k" * 129) == tag("") == ["size"]


def test_a_pattern_that_python_cannot_read_refuses_nothing() -> None:
    from botocore.model import ShapeResolver

    shapes = {
        "Odd": {"type": "structure", "members": {"name": {"shape": "Name"}, "time": {"shape": "Time"}}},
        "Name": {"type": "string", "pattern": r"[\p{Greek}]+"},
        "Time": {"type": "timestamp"},
    }
    assert ServiceModel(ShapeResolver(shapes).get_shape_by_name("Odd")).check({"name": "x", "time": TODAY}) == []


def test_choices_are_found_by_the_path_of_a_field() -> None:
    assert "ml.p3.2xlarge" in model().enum("ResourceConfig.InstanceType")
    assert model().enum("InputDataConfig.InputMode") == ["Pipe", "File", "FastFile"]
    assert model().enum("RoleArn") == []
    with pytest.raises(KeyError):
        model().enum("ResourceConfig.Instance")


ODD = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.binary(max_size=3)),
    st.just(SecretStr("s")),
)
FIELDS = st.deferred(
    lambda: st.sampled_from([*model().shape.members, "InstanceType", "InstancePreferences", "S3Uri", "Key", "x"])
)
TREES = st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4))
TYPES = st.sampled_from(["ml.p3.2xlarge", "ml.g5.48xlarge", "ml.m5.large", "ml.trn1.2xlarge", "ml.p9.x", "ml.", ""])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    scalars=st.fixed_dictionaries(
        {
            name: st.just(DEFAULTS.get(name)) | ODD
            for name in (
                *("entry", "instance_count", "processes_per_host", "name", "role", "spot", "max_hours"),
                *("checkpoint_uri", "keep_alive_minutes", "retries", "image_uri", "vendor"),
            )
        }
    ),
    instance_type=TYPES | st.lists(TYPES, max_size=6),
    environment=st.dictionaries(st.text(max_size=3), ODD, max_size=3),
    tags=st.dictionaries(st.text(max_size=3), ODD, max_size=3),
    request=st.dictionaries(FIELDS, TREES, max_size=4),
    flags=st.fixed_dictionaries({"has_setup_py": st.booleans(), "has_requirements": st.booleans()}),
)
def test_whatever_launch_was_given_the_answer_is_texts(
    scalars: dict[str, Any],
    instance_type: Any,
    environment: dict[str, Any],
    tags: dict[str, Any],
    request: Any,
    flags: dict[str, bool],
) -> None:
    given = arguments(**scalars, instance_type=instance_type, environment=environment, tags=tags, request=request)
    built = build(given)
    found = request_problems(built, given, model=model(), image=image(given), **flags)
    assert all(isinstance(text, str) and ": " in text and "\n" not in text for text in found)
    assert all(isinstance(text, str) for text in request_warnings(given, image=image(given), today=TODAY, **flags))
    # What passes here passes botocore's own check too; role and environment are looked at before.
    assert found or is_valid({"RoleArn": ROLE, **built, "Environment": {}})


@pytest.mark.parametrize("part", ["AlgorithmSpecification", "ResourceConfig", "OutputDataConfig", "StoppingCondition"])
def test_no_part_that_a_job_needs_can_be_taken_out(part: str) -> None:
    assert (
        f"request {part}: a job needs it; leave it out of request=, or give the parts that are to change"
        in problems(request={part: None})
    )
