"""What the platform says: folders, hosts, hardware, channels, processes; from either runtime, and off SageMaker."""

# ruff: noqa: RUF012 - pydantic copies a default

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import runtimes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import smkit

Context = smkit.TrainingContext[smkit.Hyperparameters]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["code/train.py"])
    return tmp_path


def load(*argv: str, env: Mapping[str, str] | None = None) -> Context:
    return smkit.TrainingContext.load(smkit.Hyperparameters, argv, env or {})


def refusal(*argv: str, env: Mapping[str, str] | None = None) -> str:
    with pytest.raises(smkit.ConfigurationError) as refused:
        load(*argv, env=env)
    return str(refused.value)


INPUTS = {
    "train": {"TrainingInputMode": "File", "S3DistributionType": "ShardedByS3Key", "RecordWrapperType": "None"},
    "my-valid.2": {
        "TrainingInputMode": "Pipe",
        "ContentType": "text/csv",
        "RecordWrapperType": "RecordIO",
    },
}
RESOURCES = {
    "current_host": "algo-1",
    "hosts": ["algo-1", "algo-2"],
    "current_instance_type": "ml.p3.2xlarge",
    "current_group_name": "homogeneousCluster",
    "instance_groups": [],
    "network_interface_name": "eth0",
}


@pytest.fixture
def job(here: Path) -> Path:
    """The files of a job, in a folder `ml`."""
    return runtimes.write_config(
        here / "ml",
        hyperparameters={},
        resourceconfig=RESOURCES,
        inputdataconfig=INPUTS,
        checkpointconfig={"LocalPath": "/opt/ml/kept"},
    )


def check_job(context: Context, job: Path) -> None:
    assert context.is_sagemaker
    assert (context.model_dir, context.output_dir) == (job / "model", job / "output")
    assert (context.output_data_dir, context.checkpoint_dir) == (job / "output" / "data", Path("/opt/ml/kept"))
    assert (context.hosts, context.current_host) == (("algo-1", "algo-2"), "algo-1")
    assert (context.current_instance_type, context.network_interface_name) == ("ml.p3.2xlarge", "eth0")
    assert (context.rank, context.local_rank, context.world_size, context.local_world_size) == (0, 0, 1, 1)
    train = context.channels[0]
    assert (train.name, train.path) == ("train", job / "input" / "data" / "train")
    assert (train.input_mode, train.s3_distribution, train.record_wrapper) == ("File", "ShardedByS3Key", "None")
    assert train.content_type is None


def test_every_fact_of_a_toolkit_job_is_read(job: Path) -> None:
    context = load(env=runtimes.toolkit(job, {}, ["my-valid.2", "train"][::-1]).env)
    check_job(context, job)
    assert (context.num_cpus, context.num_gpus, context.job_name) == (8, 1, "digits-1")
    valid = context.channels[1]
    assert (valid.name, valid.path) == ("my-valid.2", job / "input" / "data" / "my-valid.2")
    assert (valid.input_mode, valid.content_type) == ("Pipe", "text/csv")
    assert not (job / "model").exists()


def test_every_fact_of_a_job_of_the_v3_driver_is_read_and_its_own_channels_are_hidden(job: Path) -> None:
    context = load(env=runtimes.driver(job, {}, ["train"]).env)
    check_job(context, job)
    assert (context.num_cpus, context.num_gpus, context.job_name) == (8, 1, "digits-1")
    assert [channel.name for channel in context.channels] == ["train"]


def test_a_channel_called_code_is_hidden_only_where_the_driver_made_it(job: Path) -> None:
    context = load(env=runtimes.toolkit(job, {}, ["code", "train"]).env)
    assert [channel.name for channel in context.channels] == ["code", "train"]


def test_a_bare_process_in_a_jobs_container_reads_the_jobs_files(job: Path) -> None:
    context = load(env={"SAGEMAKER_BASE_DIR": str(job)})
    check_job(context, job)
    assert (context.num_gpus, context.job_name) == (None, None)
    assert [channel.name for channel in context.channels] == ["train", "my-valid.2"]


def test_variables_win_over_the_jobs_files_and_options_over_both(job: Path) -> None:
    env = {"SAGEMAKER_BASE_DIR": str(job), "SM_MODEL_DIR": "/m", "SM_HOSTS": '["b"]', "SM_CURRENT_INSTANCE_TYPE": ""}
    context = load("--output-data-dir", "/o", "--checkpoint-dir", "/c", env=env)
    assert (context.model_dir, context.output_data_dir, context.checkpoint_dir) == (Path("/m"), Path("/o"), Path("/c"))
    assert (context.hosts, context.current_instance_type) == (("b",), "ml.p3.2xlarge")
    context = load("--run-dir", "mine", env=env)
    assert context.model_dir == Path("mine/model")
    assert context.checkpoint_dir == Path("mine/checkpoints")


def test_off_sagemaker_a_run_has_a_folder_of_its_own_and_load_makes_it(here: Path) -> None:
    first, second = load(), load()
    assert re.fullmatch(r"runs/train-\d{8}-\d{6}-[0-9a-f]{4}/model", str(first.model_dir))
    assert first.model_dir != second.model_dir
    assert first.model_dir.is_dir()
    assert first.output_data_dir.is_dir()
    assert (first.is_sagemaker, first.job_name, first.channels, first.num_gpus) == (False, None, (), None)
    assert (first.hosts, first.current_host, first.num_cpus) == (("localhost",), "localhost", os.cpu_count())
    assert first.checkpoint_dir == first.model_dir.parent / "checkpoints"


def test_a_folder_that_cannot_be_made_is_a_problem_not_a_traceback(here: Path) -> None:
    (here / "file").write_text("")
    for place in ("file", "file/below", "a" * 300, "nul\0"):
        assert "cannot be made: " in refusal("--run-dir", place)
    assert "--model-dir is empty; name a folder" in refusal("--model-dir", "")


def test_a_process_of_torchrun_knows_its_place_and_shares_the_runs_folder() -> None:
    env = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "x"}
    context = load("--run-dir", "run", env=env)
    assert (context.rank, context.local_rank, context.world_size, context.local_world_size) == (3, 1, 4, 2)
    assert "several processes share one run; give them one --run-dir" in refusal(env=env)


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"RANK": "0"}, "LOCAL_RANK: must be a whole number, as torchrun sets it (got '')"),
        ({"WORLD_SIZE": "0"}, "RANK: must be a whole number, as torchrun sets it (got '')"),
        ({"RANK": "²"}, "RANK: must be a whole number, as torchrun sets it (got '²')"),
        ({"RANK": "1" * 5000}, "RANK: must be a whole number"),
        (
            {"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            "RANK: 4 is not below WORLD_SIZE, 4",
        ),
        (
            {"RANK": "0", "LOCAL_RANK": "2", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            "LOCAL_RANK: 2 is not below LOCAL_WORLD_SIZE, 2",
        ),
        ({"SM_NUM_GPUS": "-1"}, "SM_NUM_GPUS must be greater than or equal to 0 (got '-1')"),
        ({"SM_HOSTS": "{}"}, "SM_HOSTS: should be a list, and is a dict"),
        ({"SM_HOSTS": "[]"}, "SM_HOSTS"),
        ({"SM_CHANNELS": "train"}, "SM_CHANNELS: is not JSON: "),
    ],
)
def test_a_broken_variable_is_a_problem_under_its_own_name(env: dict[str, str], problem: str) -> None:
    text = refusal("--run-dir", "run", env=env)
    assert f"  - {problem}" in text


def test_a_broken_checkpoint_configuration_is_a_problem(job: Path) -> None:
    runtimes.write_config(job, checkpointconfig=[])
    assert "checkpointconfig.json: should be an object, and is a list" in refusal(env={"SAGEMAKER_BASE_DIR": str(job)})


# --- channels ---------------------------------------------------------------------------------------------------------


def test_channels_can_be_given_on_a_laptop_and_replaced_in_a_job(here: Path, job: Path) -> None:
    (here / "data").mkdir()
    context = load("--channel", "train=data", "--channel", "more=data", env=runtimes.toolkit(job, {}, ["train"]).env)
    assert [(channel.name, channel.path) for channel in context.channels] == [
        ("train", Path("data")),
        ("more", Path("data")),
    ]
    context = load("--run-dir", "run", env={"SM_CHANNEL_TRAIN": "data", "SM_CHANNEL_MY_VALID": "data"})
    assert [channel.name for channel in context.channels] == ["train", "my_valid"]
    assert (context.has_channel("train"), context.has_channel("test")) == (True, False)


def no_channel(context: Context, name: str) -> str:
    with pytest.raises(smkit.DataError) as missing:
        context.channel(name)
    return str(missing.value)


def test_a_misspelt_channel_is_told_with_what_there_is_and_what_to_do(here: Path, job: Path) -> None:
    env = runtimes.toolkit(job, {}, ["train", "valid"]).env
    assert no_channel(load(env=env), "trian") == (
        "there is no channel 'trian'; there are: train, valid; is it 'train'?\n"
        "  where: the channels of this run\n"
        "  fix:   launch with inputs={'trian': ...}"
    )
    assert no_channel(load(), "train") == (
        "there is no channel 'train'; this run has no channels\n"
        "  where: the channels of this run\n"
        "  fix:   give --channel train=PATH on the command line"
    )


def test_a_missing_an_empty_and_an_unreadable_folder_are_told_apart(here: Path) -> None:
    folder = here / "data"
    folder.mkdir()
    context = load("--channel", f"train={folder}")
    assert no_channel(context, "train").startswith(
        f"{folder} is empty\n  where: channel 'train'\n  fix:   put data there"
    )
    (folder / "a").write_text("")
    assert context.channel("train").path == folder
    (folder / "a").unlink()
    folder.rmdir()
    assert no_channel(context, "train").startswith(f"{folder} does not exist\n")
    context = load(env={"SM_CHANNEL_TRAIN": f"{here}/{'x' * 300}"})
    assert "cannot be read: " in no_channel(context, "train")


def test_a_channel_given_on_the_command_line_must_be_there() -> None:
    for path in ("missing", "x" * 5000, "nul\0"):
        assert "does not exist" in refusal("--channel", f"train={path}")


def test_names_that_are_no_text_are_read_all_the_same(here: Path) -> None:
    (here / "\udcff.json").write_text('{"epochs": 5}')
    context = load("--config", "\udcff.json", env={"TRAINING_JOB_NAME": "\udcff"})
    assert (context.job_name, context.origins["epochs"]) == ("\\udcff", "config file \\udcff.json")


def test_a_file_and_a_pipe_are_channels_too(here: Path, job: Path) -> None:
    (here / "a.csv").write_text("1")
    assert load("--channel", "train=a.csv").channel("train").path == Path("a.csv")
    context = load(env=runtimes.toolkit(job, {}, ["my-valid.2"]).env)
    assert context.channel("my-valid.2").input_mode == "Pipe"


# --- anything at all: a context or a ConfigurationError, and nothing else ---------------------------------------------


class Part(BaseModel, frozen=True, extra="forbid"):
    hidden: int = 1
    deep: list[list[int]] = []


class Fields(smkit.Hyperparameters):
    lr: float = 0.1
    layers: list[int] = [1]
    kw: dict[str, Any] = {}
    anything: Any = None
    part: Part = Part()
    maybe: Part | None = None
    parts: list[Part] = []
    path: Path = Path()
    amp: bool = False
    q: int | str = 1


DEEP = ["[" * 100_000, "[" * 900 + "]" * 900, '{"kw":' * 400 + "1" + "}" * 400]
NASTY = ["", " ", "null", "[]", "{}", "1" * 5000, "1e999", "NaN", '"\\ud800"', '"a\\u0000b"', '{"lr": 1, "lr": 2}']
NASTY += ["[1,", '{"part": {"hidden": [1]}, "part.hidden": 3}', "\ufeff{}", "!!bool x", "!!timestamp x", "&a [*a]"]
NAMES = [*Fields.model_fields, "part.hidden", "batch-size", "config", "channel", "run_dir", "hosts", "LocalPath", ""]
NAMES += ["TrainingInputMode", "S3DistributionType", "current_host", "sagemaker_x", "help", "train"]
FILES = ["hyperparameters", "resourceconfig", "inputdataconfig", "checkpointconfig"]
PROCESS = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "TRAINING_JOB_NAME"]
OWN = ["HPS", "CHANNELS", "HOSTS", "NUM_GPUS", "NUM_CPUS", "MODEL_DIR", "OUTPUT_DIR", "CURRENT_HOST", "CHANNEL_TRAIN"]
OWN += ["USER_ARGS", "SOURCE_DIR", "TRAINING_ENV"]
VARIABLES = [*PROCESS, "SAGEMAKER_BASE_DIR", *(f"SM_{name}" for name in OWN)]

names = st.sampled_from(NAMES)
texts = st.sampled_from(NASTY + DEEP) | st.text(max_size=20)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))
jsons = values.map(json.dumps)
bytes_of_files = st.one_of(
    st.binary(max_size=60),
    (texts | jsons).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.dictionaries(names, texts | jsons, max_size=5).map(lambda content: json.dumps(content).encode()),
)
words = st.one_of(
    texts,
    names.map(lambda name: f"--{name}"),
    names.map(lambda name: f"--no-{name}"),
    st.tuples(names, texts | jsons).map(lambda pair: f"--{pair[0]}={pair[1]}"),
    st.sampled_from(
        ["-q", "-h", "-", "--", "---", "=", "-1e-05", "train=/tmp", "a=b,c", f"train={'x' * 5000}", "/nul\0"]
    ),
)


def settle(argv: list[str], env: dict[str, str], folder: Path) -> None:
    """Load and save, or be refused; only help ends otherwise."""
    try:
        smkit.TrainingContext.load(Fields, argv, env).save_settings(folder)
    except smkit.ConfigurationError:
        pass
    except SystemExit:
        if not {"-h", "--help"} & set(argv):
            raise


fuzz = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(
    files=st.dictionaries(st.sampled_from(FILES), bytes_of_files, max_size=4),
    env=st.dictionaries(st.sampled_from(VARIABLES), texts | jsons, max_size=5),
    is_job=st.booleans(),
)
def test_any_files_and_variables_of_a_job(files: dict[str, bytes], env: dict[str, str], is_job: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = runtimes.write_config(Path(folder), **files)
        own = runtimes.toolkit(base, {}).env if is_job else {"SAGEMAKER_BASE_DIR": folder}
        settle(["--run-dir", folder], own | env, base)


@fuzz
@given(argv=st.lists(words, max_size=8), hps=st.none() | jsons)
def test_any_command_line(argv: list[str], hps: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {"SAGEMAKER_BASE_DIR": folder} | ({} if hps is None else {"SM_HPS": hps})
        settle(["--run-dir", folder, *argv], env, Path(folder))


@fuzz
@given(data=bytes_of_files, ending=st.sampled_from(["json", "yaml", "toml", "txt"]))
def test_any_config_file(data: bytes, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"config.{ending}"
        file.write_bytes(data)
        settle(["--run-dir", folder, "--config", str(file)], {}, Path(folder))
