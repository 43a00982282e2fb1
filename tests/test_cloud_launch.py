"""From launch to a finished job on SageMaker: real boto3, real requests, real jobs; and what the server received."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from patience import patient_with
from sagemaker.fixture import SageMaker

import smkit

pytestmark = pytest.mark.aws

Launch = Callable[..., smkit.Job]

ARGPARSE_SCRIPT = """
    import argparse, json, os, pathlib

    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
    parser.add_argument("--output-data-dir", default=os.environ["SM_OUTPUT_DATA_DIR"])
    parser.add_argument("--train", default=os.environ["SM_CHANNEL_TRAIN"])
    parser.add_argument("--test", default=os.environ["SM_CHANNEL_TEST"])
    args = parser.parse_args()
    rows = {name: sorted(path.name for path in pathlib.Path(name).iterdir()) for name in (args.train, args.test)}
    pathlib.Path(args.model_dir, "model.json").write_text(json.dumps([args.epochs, args.learning_rate, *rows.values()]))
    pathlib.Path(args.output_data_dir, "plot.txt").write_text("a plot")
    for epoch in range(args.epochs):
        print(f"[metrics] step={epoch + 1} epoch={epoch + 1} train/loss={1 / (epoch + 1)}", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def launch(sagemaker: SageMaker, folder: Path) -> Launch:
    """Launch a script that is given as a text, on a SageMaker that hides torch, whose import takes the longest."""
    sagemaker.hide("torch")

    def launch(text: str, **arguments: Any) -> Any:
        script = folder / "code" / arguments.pop("entry", "train.py")
        script.parent.mkdir(exist_ok=True)
        script.write_text(textwrap.dedent(text))
        given = {"role": sagemaker.role, "bucket": sagemaker.bucket, "instance_type": "ml.m5.large"} | arguments
        return smkit.launch(script.name, source_dir="code", **given)

    return launch


def write(file: Path, text: str = "") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.toolkit
def test_the_document_step_by_step(sagemaker: SageMaker, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profile, session, default bucket, role, the estimator's arguments, channels of both kinds, model and output."""
    sagemaker.hide("torch")
    write(folder / "aws", f"[profile research]\nregion = {sagemaker.region}\n")
    write(folder / "keys", "[research]\naws_access_key_id = client\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "aws"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "keys"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    write(folder / "code/train.py", textwrap.dedent(ARGPARSE_SCRIPT))
    write(folder / "data/train/a b.csv", "1,2")
    sagemaker.put({"digits/test/1.csv": "1", "digits/test/2.csv": "2"})

    session = boto3.Session(profile_name="research")
    job = smkit.launch(
        entry="train.py",
        source_dir="code",
        session=session,
        role="SmkitTests",
        instance_type="ml.m5.xlarge",
        instance_count=1,
        framework_version="2.10",
        hyperparameters={"epochs": 3, "learning-rate": 1e-05},
        inputs={
            "train": (folder / "data/train").as_uri(),
            "test": f"s3://{sagemaker.bucket}/digits/test",
        },
    )
    assert job.wait() is job

    bucket = f"sagemaker-{sagemaker.region}-{sagemaker.account}"
    assert job.model_uri == f"s3://{bucket}/smkit/jobs/{job.name}/output/model.tar.gz"
    model = job.download("model")
    assert json.loads((model / "model.json").read_text()) == [3, 1e-05, ["a b.csv"], ["1.csv", "2.csv"]]
    assert (job.download("output", what="output") / "plot.txt").read_text() == "a plot"
    assert [row["train/loss"] for row in job.metrics().rows] == [1, 0.5, pytest.approx(1 / 3)]
    request = sagemaker.job(job.name)
    image = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-cpu-py313"
    assert request["AlgorithmSpecification"]["TrainingImage"] == image
    assert request["RoleArn"] == sagemaker.role
    again = smkit.attach(job.name, session=session)
    assert again.status == "Completed"
    record = json.loads(
        sagemaker.objects(f"smkit/jobs/{job.name}/code.json", bucket)[f"smkit/jobs/{job.name}/code.json"]
    )
    assert record == {"code_sha256": record["code_sha256"], "git": None}


def snapshot(folder: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime for path in folder.rglob("*")}


def test_a_second_launch_uploads_nothing_and_takes_three_requests(sagemaker: SageMaker, launch: Launch) -> None:
    first = launch("print('same')", name="first")
    before = sagemaker.actions()
    sagemaker.forget_requests()
    second = launch("print('same')", name="second")
    assert before.count("PutObject") == 2
    assert sorted(sagemaker.actions()) == ["CreateTrainingJob", "HeadObject", "PutObject"]
    (source,) = sagemaker.objects("smkit/source/")
    for job in (first, second):
        given = job.describe()["HyperParameters"]
        assert json.loads(given["sagemaker_submit_directory"]) == f"s3://{sagemaker.bucket}/{source}"
    assert not [request for request in sagemaker.requests() if request.lacks_expected_owner]


def test_a_dry_run_has_no_effect_and_its_plan_can_be_started(sagemaker: SageMaker, folder: Path) -> None:
    write(folder / "data/1.csv", "1,2")
    write(folder / "code/train.py", "import json")
    write(folder / "code/sub/module.py", "import smkit\n")
    before = snapshot(folder)
    plan = smkit.launch(
        "train.py",
        source_dir="code",
        role=sagemaker.role,
        bucket=sagemaker.bucket,
        instance_type="ml.m5.large",
        inputs={"train": "data"},
        tags={"team": "vision"},
        dry_run=True,
    )
    assert snapshot(folder) == before
    assert sagemaker.actions() == []
    assert sagemaker.objects() == {}
    request = plan.request
    assert request["ResourceConfig"] == {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30}
    assert {"Key": "team", "Value": "vision"} in request["Tags"]
    files = dict(plan.files)
    assert {"train.py", "sub/module.py", "requirements.txt", "smkit/__init__.py", "smkit/py.typed"} <= files.keys()
    assert files["train.py"] == len("import json")
    shown = str(plan)
    assert re.search(r"instances +1 x ml\.m5\.large, one process +instance_type", shown)
    assert re.search(r"input train +s3://smkit-tests/smkit/data/\w+/ +File, 1 file, 3 B, uploaded once", shown)
    job = plan.start()
    assert job.describe()["HyperParameters"] == request["HyperParameters"]
    assert len(sagemaker.objects("smkit/data/")) == 1


def test_all_mistakes_are_found_before_anything_is_sent(sagemaker: SageMaker, folder: Path) -> None:
    write(folder / "code/train.py", "import argparse")
    write(folder / "code/setup.py")
    write(folder / "code/.env", "TOKEN=abc")
    said = run_cli(
        "launch",
        *("--instance-type=ml.p3.2xlarge", "--instance-count=2", "--framework-version=2.13", "--source-dir=code"),
        *("--input", "train=nowhere", "--environment", "SM_HOSTS=x", "--name=not_valid", "--max-hours=0"),
        *("--bucket=Not_A_Bucket", f"--role={sagemaker.role}", "--dry-run", "train.py", "--sagemaker_program", "x"),
        status=2,
    )
    assert len([line for line in said.splitlines() if line.startswith("  - ")]) == 9, said
    assert sagemaker.requests() == []


def test_a_bucket_that_was_named_is_never_made(sagemaker: SageMaker, launch: Launch) -> None:
    with pytest.raises(smkit.ConfigurationError, match="there is no bucket 'smkit-tsets' in account 123456789012"):
        launch("", bucket="smkit-tsets")
    assert not {"CreateBucket", "PutObject", "CreateTrainingJob"} & set(sagemaker.actions())


def run_cli(*words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "smkit", *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_estimators_words_are_answered_with_launchs(sagemaker: SageMaker, launch: Launch) -> None:
    with pytest.raises(smkit.ConfigurationError) as caught:
        launch("", train_instance_type="ml.p3.2xlarge", use_spot_instances=True, instance_typ="x")
    assert caught.value.what.splitlines()[1:] == [
        "  - train_instance_type: the estimator's word; launch's is instance_type",
        "  - use_spot_instances: the estimator's word; launch's is spot",
        "  - instance_typ: launch has no such argument; did you mean 'instance_type'?",
    ]
    with pytest.raises(smkit.ConfigurationError, match="entry_point: the estimator's word; launch's is entry"):
        smkit.launch(entry_point="train.py", instance_type="local")  # type: ignore[call-overload]
    assert sagemaker.requests() == []


def test_a_reply_that_is_lost_starts_no_second_job(sagemaker: SageMaker, launch: Launch) -> None:
    sagemaker.settings(lost_replies={"CreateTrainingJob": 1})
    job = launch("print(1)", name="only-one")
    assert sagemaker.actions().count("CreateTrainingJob") == 2
    assert job.describe()["TrainingJobName"] == "only-one"
    with pytest.raises(smkit.ConfigurationError, match="only-one"):
        launch("print(2)", name="only-one")


@pytest.mark.toolkit
def test_a_failing_script_is_shown_with_its_own_traceback(
    sagemaker: SageMaker, launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = launch("def read():\n    raise ValueError('no column label')\n\nread()\n")
    with pytest.raises(smkit.JobError) as caught:
        job.wait()
    assert "ValueError: no column label" in caught.value.what
    assert "line 2, in read" in caught.value.what
    assert "no column label" in sagemaker.job(job.name)["FailureReason"]
    # The toolkit writes what a script says in pieces, each in a line of its own.
    assert "ValueError:nocolumnlabel" in re.sub(r"\s", "", capsys.readouterr().err)
    assert "cloudwatch" in caught.value.where


@pytest.mark.toolkit
@pytest.mark.train
@pytest.mark.usefixtures("meeting_port")
def test_two_hosts_train_one_model_in_parts_which_are_put_together_after_an_interruption(
    sagemaker: SageMaker, folder: Path, digits: Path
) -> None:
    """Each host saves its parts to a folder of its own, and finds those of both in it when it starts again."""
    from safetensors.numpy import load_file

    sagemaker.settings(hidden=[], interrupt_at="step=60 ")
    job = smkit.launch(
        "train.py",
        source_dir=Path(__file__).parents[1] / "examples/digits",
        role=sagemaker.role,
        instance_type="ml.m5.large",
        instance_count=2,
        spot=True,
        bucket=sagemaker.bucket,
        inputs={name: digits / name for name in ("train", "validation")},
        hyperparameters={"epochs": 4, "strategy": "fsdp", "log_every_steps": 20, "checkpoint_every_seconds": 0.5},
    )
    model = load_file(job.wait(show_logs=False).download(folder / "model") / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in model.items()} == {
        "0.weight": (128, 64),
        "0.bias": (128,),
        "3.weight": (10, 128),
        "3.bias": (10,),
    }
    assert "Interrupted" in [step["Status"] for step in job.describe()["SecondaryStatusTransitions"]]
    lines = list(job.logs(follow=False))
    assert any("goes on after step" in line for line in lines)
    assert [line.partition(" ")[0] for line in lines if "finished: 180 steps" in line] == ["[algo-1]"]
    saved = sagemaker.objects(f"smkit/jobs/{job.name}/checkpoints/")
    assert {"tensors.safetensors", "tensors-00001.safetensors"} < {name.rpartition("/")[2] for name in saved}


@pytest.mark.toolkit
def test_a_stopped_job_has_been_told_and_its_model_is_kept(sagemaker: SageMaker, launch: Launch) -> None:
    sagemaker.settings(grace=60.0)
    script = """
        import os, pathlib, signal, sys, time

        def save(*_):
            pathlib.Path(os.environ["SM_MODEL_DIR"], "saved").write_text("so far")
            sys.exit(143)

        signal.signal(signal.SIGTERM, save)
        print("ready", flush=True)
        time.sleep(600)
    """
    job = launch(script, graceful_stop=True)
    next(line for line in job.logs() if line == "ready")
    job.stop()
    assert job.status == "Stopped"
    with pytest.raises(smkit.JobError, match="was stopped"):
        job.wait(show_logs=False)
    assert sagemaker.archive(f"smkit/jobs/{job.name}/output/model.tar.gz") == {"saved": b"so far"}


@pytest.mark.toolkit
@pytest.mark.train
def test_an_interrupted_spot_job_ends_with_the_weights_of_an_undisturbed_one(
    sagemaker: SageMaker, folder: Path, digits: Path
) -> None:
    sagemaker.settings(hidden=[], interrupt_at="step=100 ")
    arguments: dict[str, Any] = {
        "source_dir": Path(__file__).parents[1] / "examples/digits",
        "role": sagemaker.role,
        "instance_type": "ml.m5.large",
        "inputs": {name: digits / name for name in ("train", "validation")},
        "hyperparameters": {"epochs": 12, "log_every_steps": 10, "checkpoint_every_seconds": 0.5},
    }
    jobs = [smkit.launch("train.py", spot=spot, **arguments) for spot in (True, False)]
    models = [job.wait().download(job.name) / "model.safetensors" for job in jobs]
    assert models[0].read_bytes() == models[1].read_bytes()
    interrupted = jobs[0]
    assert "Interrupted" in [step["Status"] for step in interrupted.describe()["SecondaryStatusTransitions"]]
    assert any("goes on after step" in line for line in interrupted.logs(follow=False))
    assert interrupted.cost().spot_saving_percent > 0


@pytest.mark.toolkit
@pytest.mark.usefixtures("unmeasured")
def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(sagemaker: SageMaker, launch: Launch) -> None:
    job = launch("import time; print('ready', flush=True); time.sleep(2)")
    command = [sys.executable, "-m", "smkit", "attach", job.name]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as waiting,
        patient_with(waiting),
    ):
        assert waiting.stderr is not None
        assert any(line == "ready\n" for line in waiting.stderr)
        waiting.send_signal(signal.SIGINT)
        said = waiting.stderr.read()
    assert f"smkit attach {job.name}" in said
    assert f"smkit stop {job.name}" in said
    assert waiting.returncode == 130
    assert job.wait().status == "Completed"
