"""The `smkit` command: what it understands, what it shows and where, and the status that it ends with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from patience import patient_with

from smkit.cli import main
from smkit.commands import launch_options, screens

if TYPE_CHECKING:
    from sagemaker.fixture import SageMaker

SMKIT = [sys.executable, "-m", "smkit"]

SCRIPT = """\
import os, sys, time
from pathlib import Path

print(" ".join(["words", *sorted(sys.argv[1:])]), flush=True)
print("[metrics] step=1 epoch=0 train/loss=0.5", flush=True)
print("[metrics] step=2 epoch=1 train/loss=0.25", flush=True)
print("[metrics] step=3 epoch=2 train/loss=nan", flush=True)
Path(os.environ["SM_MODEL_DIR"], "model.txt").write_text("weights")
if "--wait" in sys.argv:
    print("waiting", flush=True)
    time.sleep(600)
if "--fail" in sys.argv:
    raise RuntimeError("no such luck")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a script, as the current one; jobs in it find no torch, whose import takes them seconds."""
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "torch.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    if (tmp_path / "runs").exists():
        for folder in (tmp_path / "runs").iterdir():
            main(["stop", folder.name])


@pytest.fixture
def smkit(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in the project; return its exit status, its standard output and its standard error."""

    def run(line: str, *words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([*line.split(), *words])
        return (status, *capsys.readouterr())

    return run


Smkit = Callable[..., "tuple[int, str, str]"]


# --- what it understands ----------------------------------------------------------------------------------------------


def test_what_follows_the_script_is_the_scripts() -> None:
    line = (
        "--instance-type ml.g5.xlarge --instance-type=ml.g4dn.xlarge --spot --max-hours 1.5 --input train=s3://b/a=b "
        "--env A=1 --environment B=x=y --tag k=v --profile-name me --retries 2 --no-wait "
        '--request {"a":1} train.py --spot --name x --json'
    )
    words = launch_options.sort(line.split())
    assert (words.script, words.script_words) == ("train.py", ["--spot", "--name", "x", "--json"])
    assert words.switches == {"--detach"}
    assert words.arguments == {
        "instance_type": ["ml.g5.xlarge", "ml.g4dn.xlarge"],
        "spot": True,
        "max_hours": 1.5,
        "inputs": {"train": "s3://b/a=b"},
        "environment": {"A": "1", "B": "x=y"},
        "tags": {"k": "v"},
        "profile_name": "me",
        "retries": 2,
        "request": {"a": 1},
    }


def test_wrong_words_are_all_found_and_hide_no_script() -> None:
    line = (
        "--instance-count two --max-hours long --train-instance-type ml.p3.2xlarge --nonsense --tag k --request {x "
        "--hyperparameters none.yaml train.py --role"
    )
    words = launch_options.sort(line.split())
    assert words.script == "train.py"
    assert words.script_words == ["--role"]
    assert words.arguments == {"train_instance_type": ["ml.p3.2xlarge"], "nonsense": []}
    assert words.problems == [
        "--instance-count: 'two' is no whole number",
        "--max-hours: 'long' is no number",
        "--tag: 'k' is not written NAME=VALUE",
        "--request: is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "--hyperparameters: hyperparameters file 'none.yaml': does not exist",
    ]
    assert launch_options.sort(["--role"]).problems == ["--role: needs a value, --role ROLE"]


def test_a_mistyped_command_is_an_error_with_a_suggestion(smkit: Smkit) -> None:
    assert smkit("jbos") == (
        2,
        "",
        "smkit: there is no command 'jbos'; did you mean 'jobs'?\n"
        "  where: smkit COMMAND\n"
        "  fix:   one of: launch, jobs, status, logs, attach, stop, metrics, download, images, doctor, policy\n",
    )
    status, out, error = smkit("status")
    assert (status, out) == (2, "")
    assert error.startswith("smkit: the following arguments are required: NAME\n  where: smkit status\n")
    assert smkit("jobs --limit 0 --local")[0] == 2


def test_help_names_every_command_and_every_argument_of_launch(smkit: Smkit) -> None:
    status, out, _ = smkit("")
    assert status == 0
    assert all(f"    {name} " in out for name in ("launch", "jobs", "status", "logs", "attach", "stop", "doctor"))
    from inspect import signature

    from smkit.launcher import launch

    _, out, _ = smkit("launch -h")
    options = {option.argument for group in launch_options.GROUPS.values() for option in group}
    known = set(signature(launch).parameters) - {"entry", "session", "wait", "dry_run", "other_words"}
    assert options - set(launch_options.INPUT_DETAILS) == known
    assert all(f"  {option.flag}" in out for group in launch_options.GROUPS.values() for option in group)
    assert max(map(len, out.split("\n"))) <= 120


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_colours_are_for_who_wants_them(smkit: Smkit, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = smkit("images")[1]
    assert "\x1b" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[2m" in smkit("images")[1]
    assert smkit("nonsense")[2].startswith("\x1b[31msmkit\x1b[0m: ")
    monkeypatch.setenv("NO_COLOR", "1")
    assert smkit("images")[1] == plain


def test_the_table_of_images_as_json(smkit: Smkit) -> None:
    status, out, _ = smkit("images --json")
    newest, *_ = json.loads(out)
    assert status == 0
    assert list(newest) == ["pytorch", "python", "cuda", "end_of_patch", "runs_on_p3", "gpu_image", "cpu_image"]


def test_no_jobs_are_no_error(smkit: Smkit) -> None:
    assert smkit("jobs --local") == (
        0,
        "",
        "there is no job; 'smkit launch train.py' starts one, and local ones are looked for in runs\n",
    )
    assert smkit("jobs --local --json")[:2] == (0, "[]\n")


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        run = subprocess.run([*SMKIT, "images"], stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")


@pytest.mark.parametrize("word", ["images", "--version"])
def test_a_full_disk_is_one_error(word: str) -> None:
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run([*SMKIT, word], stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("smkit: standard output cannot be written: No space left on device\n  where: ")


# --- jobs on this machine ---------------------------------------------------------------------------------------------


@pytest.mark.toolkit
def test_a_local_job_from_its_launch_to_its_model(smkit: Smkit, project: Path) -> None:
    status, out, error = smkit(
        "launch --name one --environment", f"PYTHONPATH={project / 'hidden'}", "train.py", "--lr", "1e-3"
    )
    assert (status, out) == (0, "")
    assert "job one" in error
    assert "words --lr 1e-3" in error

    status, out, _ = smkit("jobs --local --json")
    (job,) = json.loads(out)
    assert {key: job[key] for key in ("name", "status", "secondary_status", "place")} == {
        "name": "one",
        "status": "Completed",
        "secondary_status": "Completed",
        "place": "local",
    }
    head, row = smkit("jobs --local")[1].splitlines()
    assert head.split() == ["job", "status", "where", "started", "took"]
    assert row.split()[:3] == ["one", "Completed", "local"]

    document = json.loads(smkit("status one --json")[1])
    assert document["model_uri"] == (project / "runs/one/algo-1/model").as_uri()
    assert (document["instance_type"], document["instance_count"], document["failure_reason"]) == ("local", 1, None)
    assert "  status   Completed" in smkit("status one")[1].splitlines()

    status, out, _ = smkit("logs one")
    assert "words --lr 1e-3" in out.splitlines()
    assert json.loads(smkit("logs one --json")[1]) == {"name": "one", "lines": out.splitlines()}
    rows = json.loads(smkit("metrics one --json")[1])["rows"]
    assert rows == [
        {"step": 1, "epoch": 0, "train/loss": 0.5},
        {"step": 2, "epoch": 1, "train/loss": 0.25},
        {"step": 3, "epoch": 2, "train/loss": None},
    ]
    assert "train/loss" in smkit("metrics one")[1]

    assert json.loads(smkit("download one model --json")[1])["files"] == [{"path": "model.txt", "size": 7}]
    assert (project / "model/model.txt").read_text() == "weights"
    assert smkit("attach one")[0] == 0


@pytest.mark.toolkit
def test_a_failed_job_ends_with_1_and_says_why(smkit: Smkit, project: Path) -> None:
    status, out, error = smkit(
        "launch --env", f"PYTHONPATH={project / 'hidden'}", "--name", "bad", "train.py", "--fail"
    )
    assert (status, out) == (1, "")
    assert "smkit: job 'bad' failed: RuntimeError: no such luck" in error
    assert "\n  where: " in error
    status, out, _ = smkit("attach bad --json")
    document = json.loads(out)
    assert (status, document["name"], document["status"]) == (1, "bad", "Failed")
    assert "no such luck" in document["failure_reason"]
    assert smkit("status bad")[0] == 0
    assert "no such luck" in json.loads(smkit("status bad --json")[1])["failure_reason"]


@pytest.mark.toolkit
def test_a_detached_job_is_stopped_by_name(smkit: Smkit, project: Path) -> None:
    status, out, _ = smkit("launch --detach --env", f"PYTHONPATH={project / 'hidden'}", "train.py", "--wait")
    name = out.strip()
    assert status == 0
    assert json.loads(smkit(f"status {name} --json")[1])["status"] == "InProgress"
    assert json.loads(smkit(f"stop {name} --json")[1]) == {"name": name, "status": "Stopped"}
    status, _, error = smkit(f"attach {name}")
    assert status == 1
    assert "was stopped" in error


@pytest.mark.toolkit
def test_ctrl_c_ends_with_130(project: Path, unmeasured: None) -> None:
    command = [*SMKIT, "launch", "--env", f"PYTHONPATH={project / 'hidden'}", "train.py", "--wait"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, patient_with(process):
        assert process.stderr is not None
        lines = [line for line in iter(process.stderr.readline, "waiting\n") if line]
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, [*lines, rest]
    assert "Traceback" not in rest


# --- launches that are refused ----------------------------------------------------------------------------------------


@pytest.mark.aws
def test_nine_mistakes_are_nine_findings_and_nothing_is_sent(project: Path, sagemaker: SageMaker, smkit: Smkit) -> None:
    line = (
        "launch --dry-run --instance-type ml.g5.xlrge --instance-count none --max-hours 1000 --tag team "
        f"--train-volume-size 30 --name -x- --env SM_HOSTS=1 --role {sagemaker.role} trian.py "
        "--channel train=missing --epochs=1"
    )
    status, out, error = smkit(line)
    assert (status, out) == (2, "")
    shown = error.replace(str(project), "<project>")
    assert re.sub(r"one of \d+", "one of <number>", shown) == NINE_FINDINGS
    assert not {"CreateTrainingJob", "CreateBucket", "PutObject"} & set(sagemaker.actions())


NINE_FINDINGS = """\
smkit: 9 problems in the launch of 'trian.py':
  - --instance-count: 'none' is no whole number
  - --tag: 'team' is not written NAME=VALUE
  - train_volume_size: the estimator's word; launch's is request={'ResourceConfig': {'VolumeSizeInGB': ...}}
  - name '-x-': 1 to 63 letters, digits and '-', and neither end is '-'
  - environment 'SM_HOSTS': names that start with SM_ or SAGEMAKER_ belong to the platform
  - entry 'trian.py': not in <project>; did you mean 'train.py'?
  - input 'train': there is no <project>/missing
  - --instance-type 'ml.g5.xlrge': not one of <number>; did you mean 'ml.g5.xlarge'?
  - --max-hours 1000.0: more than 0 and at most 672 (28 days)
  where: smkit launch trian.py
  fix:   change what is named above; nothing has been made, uploaded or started
"""


@pytest.mark.toolkit
def test_a_launch_of_nothing(smkit: Smkit) -> None:
    assert smkit("launch --json --role") == (
        2,
        "",
        "smkit: 2 problems in the launch:\n"
        "  - --role: needs a value, --role ROLE\n"
        "  - the script is missing: smkit launch [options] train.py [the script's own options]\n"
        "  where: smkit launch\n"
        "  fix:   change what is named above; nothing has been made, uploaded or started\n",
    )


@pytest.mark.aws
def test_a_dry_run_shows_the_plan(project: Path, sagemaker: SageMaker, smkit: Smkit) -> None:
    line = f"launch --dry-run --instance-type ml.m5.xlarge --role {sagemaker.role} --vendor none"
    words = ["train.py", "--epochs", "3", "--channel", "train=s3://smkit-tests/data"]
    status, out, _ = smkit(line, *words)
    assert status == 0
    assert "nothing has been made, uploaded or started" in out
    document = json.loads(smkit(f"{line} --json", *words)[1])
    assert set(document) == {"name", "request", "files", "resolved", "estimate", "warnings"}
    assert document["request"]["HyperParameters"]["epochs"] == "3"
    assert document["request"]["InputDataConfig"][0]["ChannelName"] == "train"
    assert "train.py" in [file["path"] for file in document["files"]]
    assert not {"CreateTrainingJob", "CreateBucket", "PutObject"} & set(sagemaker.actions())


# --- jobs on SageMaker ------------------------------------------------------------------------------------------------


@pytest.mark.aws
@pytest.mark.toolkit
def test_a_job_on_sagemaker_fails_with_its_own_exception(project: Path, sagemaker: SageMaker, smkit: Smkit) -> None:
    sagemaker.settings(log_delay=0.0)
    status, out, error = smkit(
        f"launch --instance-type ml.m5.xlarge --role {sagemaker.role} --vendor none --name far",
        *("--env", f"PYTHONPATH={project / 'hidden'}", "train.py", "--fail"),
    )
    assert (status, out) == (1, "")
    assert "smkit: job 'far' failed: RuntimeError: no such luck" in error
    (job,) = json.loads(smkit("jobs --json")[1])
    assert (job["name"], job["status"], job["place"]) == ("far", "Failed", "us-east-1")
    assert "words --fail True" in smkit("logs far --no-follow")[1].splitlines()
    assert smkit("attach far")[0] == 1
    document = json.loads(smkit("status far --json")[1])
    assert "no such luck" in document["failure_reason"]
    assert document["instance_type"] == "ml.m5.xlarge"
    assert "  runs on    1 x ml.m5.xlarge in us-east-1" in smkit("status far")[1].splitlines()
    status, _, error = smkit("download far model")
    assert status == 1
    assert "no such luck" in error


@pytest.mark.aws
def test_without_an_account_local_jobs_are_shown_all_the_same(
    project: Path, smkit: Smkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    status, out, error = smkit("jobs --json")
    assert (status, json.loads(out)) == (0, [])
    assert error == (
        "jobs on SageMaker are not shown: nothing says which AWS region to use\n"
        "  fix: --region eu-west-1, or export AWS_DEFAULT_REGION=eu-west-1, or 'aws configure set region eu-west-1'; "
        "or --local\n"
    )
    status, out, error = smkit("status none --profile nobody")
    assert (status, out) == (2, "")
    assert "there is no AWS profile 'nobody'\n  where: --profile-name\n" in error


def test_messages_about_arguments_become_messages_about_options() -> None:
    text = "launch(region='eu-west-1'), boto3.Session(profile_name=...), give the role (role=...)"
    assert screens.as_options(text) == "--region eu-west-1, boto3.Session(profile_name=...), give the role --role ..."
    assert screens.as_options("profile_name of launch") == "--profile-name"
