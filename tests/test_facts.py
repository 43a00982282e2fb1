"""What the platform says: folders, hosts, hardware, channels, processes; from either runtime, and off SageMaker."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import runtimes

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
        ({"SM_CHANNELS": "[1]"}, "the job's channels: 1 is no name of a channel"),
        ({"SM_CHANNELS": '["../../etc"]'}, "the job's channels: '../../etc' is no name of a channel"),
        ({"SM_CHANNEL_A B": "data"}, "the job's channels: 'a b' is no name of a channel"),
        ({"SM_USER_ARGS": "--epochs 3"}, "SM_USER_ARGS: is not JSON: "),
        ({"SM_NUM_CPUS": "9" * 5000}, "SM_NUM_CPUS must be a whole number (got '99"),
        ({"SM_HPS": '{"epochs": 1, "epochs": 2}'}, "SM_HPS: gives the name 'epochs' twice; keep one"),
    ],
)
def test_a_broken_variable_is_a_problem_under_its_own_name(env: dict[str, str], problem: str) -> None:
    text = refusal("--run-dir", "run", env=env)
    assert f"  - {problem}" in text


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("checkpointconfig", [], "checkpointconfig.json: should be an object, and is a list"),
        ("checkpointconfig", {"LocalPath": 5}, "checkpointconfig.json: LocalPath must be the path of a folder (got 5)"),
        ("inputdataconfig", {"train": 5}, "inputdataconfig.json: train: must be an object (got 5)"),
        ("inputdataconfig", {"train": {"TrainingInputMode": 0}}, "TrainingInputMode must be 'File', 'FastFile' or"),
        ("inputdataconfig", {"..": {}}, "the job's channels: '..' is no name of a channel"),
        ("resourceconfig", {"hosts": []}, "resourceconfig.json: hosts must have at least 1 item, not 0 (got [])"),
        ("hyperparameters", b'{"epochs": "1", "epochs": "2"}', "hyperparameters.json: gives the name 'epochs' twice"),
        ("hyperparameters", {"epochs": "[" * 9999}, "hyperparameters.json: epochs is nested too deeply"),
        ("hyperparameters", {"epochs": "true"}, "hyperparameters.json: epochs holds true or false where a number"),
    ],
)
def test_a_broken_file_of_the_job_is_a_problem_and_no_default(job: Path, file: str, content: Any, problem: str) -> None:
    runtimes.write_config(job, **{file: content})
    assert problem in refusal(env={"SAGEMAKER_BASE_DIR": str(job)})


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_lies_in_the_place_of_a_jobs_file_is_not_passed_over(make: Callable[[Path], None], job: Path) -> None:
    env = {"SAGEMAKER_BASE_DIR": str(job)}
    for name in ("hyperparameters", "resourceconfig", "inputdataconfig", "checkpointconfig"):
        file = job / "input" / "config" / f"{name}.json"
        text = file.read_bytes()
        file.unlink()
        make(file)
        assert f"{name}.json: cannot be read: it is no file but a folder, a pipe or a device" in refusal(env=env)
        file.rmdir() if file.is_dir() else file.unlink()
        file.write_bytes(text)


def test_a_variable_of_lower_case_is_another_programs(here: Path) -> None:
    assert load(env={"sm_num_gpus": "7", "SM_num_cpus": "x"}).num_gpus is None


def test_arguments_and_variables_are_texts(here: Path) -> None:
    for argv in (["--epochs", 3], "--epochs 3", [b"--epochs"], [None]):
        with pytest.raises(smkit.ConfigurationError, match="not a list of texts, as a command line is"):
            smkit.TrainingContext.load(smkit.Hyperparameters, argv, {})  # type: ignore[arg-type]
    with pytest.raises(smkit.ConfigurationError, match="env is 'WORLD_SIZE': 2, and not texts by name"):
        smkit.TrainingContext.load(smkit.Hyperparameters, [], {"WORLD_SIZE": 2})  # type: ignore[dict-item]


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
