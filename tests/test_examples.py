"""The examples and every snippet of the README are run; a model that an example leaves is used."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import SECONDS, patient_with

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What a user starts is started as the user has it, and as fast.
pytestmark = pytest.mark.usefixtures("unmeasured")
BLOCKS = re.findall(r"(?:<!-- file: (\S+) -->\n)?```(\w+)\n(.*?)```", README, re.DOTALL)


def run(*command: str, cwd: Path, status: int = 0) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def here(digits: Path, tmp_path: Path) -> Path:
    """A folder with the examples and their data, as a user has it after a clone."""
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__", "runs"))
    shutil.copytree(digits, tmp_path / "data")
    return tmp_path


@pytest.mark.train
@pytest.mark.toolkit
def test_the_main_job_trains_the_digits_through_the_toolkit_and_leaves_a_usable_model(here: Path) -> None:
    said = run(sys.executable, "examples/digits/launch.py", cwd=here)
    accuracies = [float(value) for value in re.findall(r"validation/accuracy=(\S+)", said)]
    assert max(accuracies) >= 0.97
    model_dir = Path(re.findall(r"its model: (.*)", said)[-1])
    model_dir = model_dir if model_dir.is_absolute() else here / model_dir
    settings = json.loads((model_dir / "settings.json").read_text())
    assert settings["hyperparameters"]["epochs"] == 30
    assert settings["origins"]["epochs"] == "hyperparameters.json"
    use = f"""
import numpy, sys, torch
sys.path.insert(0, "examples/digits")
from safetensors.torch import load_file
state = load_file({str(model_dir / "model.safetensors")!r})
arrays = numpy.load("data/validation/digits.npz")
hidden = torch.relu(torch.from_numpy(arrays["images"]) @ state["0.weight"].T + state["0.bias"])
logits = hidden @ state["3.weight"].T + state["3.bias"]
print((logits.argmax(1).numpy() == arrays["labels"]).mean())
"""
    assert float(run(sys.executable, "-c", use, cwd=here)) == pytest.approx(max(accuracies), abs=1e-6)


@pytest.mark.train
@pytest.mark.toolkit
def test_a_job_that_is_stopped_goes_on_in_the_next_one(here: Path) -> None:
    launch = """
import itertools, smkit
def launch(checkpoints):
    return smkit.launch("train.py", source_dir="examples/digits", instance_type="local", checkpoint_dir=checkpoints,
                        inputs={"train": "data/train", "validation": "data/validation"},
                        hyperparameters={"epochs": 40, "log_every_steps": 10})
stopped = launch("shared")
next(line for line in stopped.logs() if "step=100 " in line)
stopped.stop()
assert stopped.status == "Stopped", stopped.status
assert "stopped by SIGTERM: step" in "".join(stopped.logs())
assert not list((stopped.service.model_dirs(stopped.name)[0]).iterdir())
again, alone = launch("shared").wait(), launch("alone").wait()
assert any("goes on after step" in line for line in again.logs())
same = [(job.model_dir / "model.safetensors").read_bytes() for job in (again, alone)]
assert same[0] == same[1]
"""
    run(sys.executable, "-c", launch, cwd=here)


@pytest.mark.train
@pytest.mark.toolkit
@pytest.mark.parametrize("script", ["train.py", "train_smkit.py"])
def test_an_argparse_script_is_launched_as_it_is(script: str, here: Path) -> None:
    launch = f"""
import smkit
job = smkit.launch({script!r}, source_dir="examples/argparse_script", instance_type="local",
                   inputs={{"train": "data/train"}},
                   hyperparameters={{"epochs": 3, "batch-size": 128, "learning-rate": 0.05}})
job.wait()
print(job.download("model"))
"""
    said = run(sys.executable, "-c", launch, cwd=here)
    assert "epoch 3: loss" in said
    assert (here / "model" / "model.pt").is_file()
    (written,) = here.glob("runs/*/algo-1/output/data/settings.txt")
    assert "'epochs': 3, 'batch_size': 128, 'learning_rate': 0.05" in written.read_text()


@pytest.mark.train
def test_images_in_class_folders_are_classified(tmp_path: Path) -> None:
    run(sys.executable, str(EXAMPLES / "images" / "data.py"), cwd=tmp_path)
    channels = (f"--channel={name}=images/{name}" for name in ("train", "validation"))
    said = run(sys.executable, str(EXAMPLES / "images" / "train.py"), *channels, cwd=tmp_path)
    assert "Images(1,438 samples of 10 classes: 8x8 uint8)" in said
    assert float(re.findall(r"validation/accuracy=(\S+)", said)[-1]) >= 0.95


@pytest.mark.train
def test_csv_files_are_classified_and_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # Parsed rows are kept there.
    run(sys.executable, str(EXAMPLES / "tabular" / "data.py"), cwd=tmp_path)
    channels = [f"--channel={name}=tables/{name}" for name in ("train", "validation")]
    command = [sys.executable, str(EXAMPLES / "tabular" / "train.py"), *channels]
    said = run(*command, "--run-dir=first", cwd=tmp_path)
    assert "456 rows of 1 csv file: 30 features" in said
    assert float(re.findall(r"validation/accuracy=(\S+)", said)[-1]) >= 0.96

    caches = {path: path.stat().st_mtime_ns for path in tmp_path.glob("smkit-cache*/**/*") if path.is_file()}
    assert caches
    run(*command, "--run-dir=again", cwd=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in caches} == caches
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("first", "again")]
    assert models[0] == models[1]


@pytest.mark.train
@pytest.mark.endurance
def test_processes_that_hold_a_part_each_train_the_gpt_by_the_readme(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "gpt", tmp_path / "examples" / "gpt")
    run(sys.executable, "examples/gpt/data.py", "text", cwd=tmp_path)
    (command,) = (line for line in CONSOLE if line.startswith("torchrun "))
    said = run(sys.executable, "-m", "torch.distributed.run", *command.split()[1:], cwd=tmp_path)
    assert re.findall(r"train/tokens=(\S+)", said) == ["20480", "40960", "61440"]
    losses = [float(value) for value in re.findall(r"train/loss=(\S+)", said)]
    assert losses[-1] < 4.0 < math.log(256)


@pytest.mark.train
@pytest.mark.toolkit
@pytest.mark.usefixtures("meeting_port")
def test_two_hosts_of_two_processes_train_one_gpt(tmp_path: Path) -> None:
    said = run(sys.executable, str(EXAMPLES / "gpt" / "launch.py"), cwd=tmp_path)
    losses = [float(value) for value in re.findall(r"train/loss=(\S+)", said)]
    assert len(losses) == 4  # One process of the four says them.
    assert losses[-1] < 3.5 < math.log(256)
    assert len(list(tmp_path.glob("runs/*/*/model/model.safetensors"))) == 1


@pytest.mark.train
@pytest.mark.endurance
def test_a_loop_of_ones_own_ends_with_the_same_weights_after_a_kill_and_a_stop(digits: Path, tmp_path: Path) -> None:
    def train(run_dir: str, *, until: str = "", number: int = 0) -> tuple[int, list[str]]:
        words = "--epochs=6 --log-every-steps=10 --checkpoint-every-seconds=0.02"
        command = [sys.executable, str(EXAMPLES / "own_loop" / "train.py"), f"--channel=train={digits}/train"]
        with (
            subprocess.Popen(
                [*command, *words.split(), f"--run-dir={tmp_path / run_dir}"], stdout=subprocess.PIPE, text=True
            ) as process,
            patient_with(process),
        ):
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if until and until in line:
                    process.send_signal(number)
        return process.returncode, said

    assert train("torn", until="step=60 ", number=signal.SIGKILL)[0] == -signal.SIGKILL
    assert train("torn", until="step=120 ", number=signal.SIGTERM)[0] == 143
    status, said = train("torn")
    assert status == train("whole")[0] == 0
    assert int(re.findall(r"step=(\d+)", said[0])[0]) > 120

    def left(run_dir: Path) -> tuple[bytes, list[dict[str, float]]]:
        rows = (run_dir / "output" / "data" / "metrics.jsonl").read_text().splitlines()
        weights = (run_dir / "model" / "model.safetensors").read_bytes()
        return weights, [json.loads(row) | {"time": 0} for row in rows]

    assert left(tmp_path / "torn") == left(tmp_path / "whole")


@pytest.mark.train
def test_a_validation_channel_with_other_classes_is_refused_before_training(tmp_path: Path) -> None:
    run(sys.executable, str(EXAMPLES / "images" / "data.py"), cwd=tmp_path)
    shutil.rmtree(tmp_path / "images" / "validation" / "7")
    channels = (f"--channel={name}=images/{name}" for name in ("train", "validation"))
    said = run(sys.executable, str(EXAMPLES / "images" / "train.py"), *channels, cwd=tmp_path, status=1)
    assert "training and validation do not have the same classes: only training has 7" in said


@pytest.mark.train
def test_the_readme_shows_the_examples_as_they_are() -> None:
    shown = {file: code for file, _, code in BLOCKS if file}
    assert set(shown) == {"examples/digits/settings.py", "examples/digits/train.py"}
    for file, code in shown.items():
        assert (ROOT / file).read_text(encoding="utf-8") == code


PYTHON = [code for file, language, code in BLOCKS if language == "python" and not file]
CONSOLE = [line for _, language, code in BLOCKS if language == "console" for line in code.splitlines()]


ALLOW_ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


def name_of(code: str) -> str:
    return code.splitlines()[0].removeprefix("# runs: ")


@pytest.mark.train
@pytest.mark.toolkit
@pytest.mark.parametrize("code", [code for code in PYTHON if not name_of(code).startswith("sagemaker")], ids=name_of)
def test_a_python_snippet_of_the_readme_runs(code: str, here: Path) -> None:
    run_snippet(code, here)


def run_snippet(code: str, here: Path) -> str:
    (here / "snippet.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "snippet.py"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(here / "examples" / "digits")},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.aws
@pytest.mark.train
@pytest.mark.toolkit
def test_the_readme_on_sagemaker_works_to_the_letter(
    here: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sagemaker = request.getfixturevalue("sagemaker")
    iam, s3 = sagemaker.client("iam"), sagemaker.client("s3")
    trusted = iam.get_role(RoleName=sagemaker.role.rpartition("/")[2])["Role"]["AssumeRolePolicyDocument"]
    iam.create_role(RoleName="SageMakerTraining", AssumeRolePolicyDocument=json.dumps(trusted))
    iam.put_role_policy(RoleName="SageMakerTraining", PolicyName="all", PolicyDocument=json.dumps(ALLOW_ALL))
    s3.create_bucket(Bucket="my-bucket")
    s3.upload_file(str(here / "data/validation/digits.npz"), "my-bucket", "digits/validation/digits.npz")
    (here / "aws").write_text(f"[profile research]\nregion = {sagemaker.region}\n")
    (here / "keys").write_text("[research]\naws_access_key_id = client\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(here / "aws"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(here / "keys"))
    monkeypatch.setenv("SMKIT_ROLE", "SageMakerTraining")
    launch, attach = (code for code in PYTHON if name_of(code).startswith("sagemaker"))
    said = run_snippet(launch, here)
    assert "s3://sagemaker-us-east-1-123456789012/smkit/jobs/train-" in said
    assert list(here.glob("model/model.safetensors"))
    sagemaker.hide("torch")
    waiting = "import time\nprint('[metrics] step=1 epoch=1 train/loss=0.5', flush=True)\ntime.sleep(600)"
    (here / "waiting").mkdir()
    (here / "waiting" / "train.py").write_text(waiting)
    begin = "import smkit; smkit.launch('train.py', source_dir='waiting', instance_type='ml.m5.large', name='my-job')"
    run(sys.executable, "-c", begin, cwd=here)
    sagemaker.until_line("my-job", "[metrics] step=1 epoch=1 train/loss=0.5")
    assert re.search(r"train/loss\n.*0\.5", run_snippet(attach, here))
    for line in [line for line in CONSOLE if line.startswith("smkit ")]:
        # The job has been stopped by the snippet, which is no success.
        run(sys.executable, "-m", *line.split(), cwd=here, status=1 if line == "smkit attach my-job" else 0)


@pytest.mark.train
@pytest.mark.parametrize("line", [line for line in CONSOLE if line.startswith("python examples")])
def test_a_command_of_the_readme_runs(line: str, here: Path) -> None:
    run(sys.executable, *line.split()[1:], cwd=here)


def test_ci_runs_the_second_command_of_the_readme_and_nothing_else() -> None:
    setup, command = (line for line in CONSOLE if line.startswith("python3 -m venv"))
    assert setup.endswith("nox -s quickstart")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in ci if line and not line.startswith(("#", "set ", "cd "))]
    assert " && ".join(commands) == command
