"""Local runs: real jobs of the real toolkit. Each test also pins what smkit relies on in it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import patient_with

import smkit
from smkit.errors import ConfigurationError, JobError
from smkit.job import Job
from smkit.launcher import launch
from smkit.local import LocalJobs

pytestmark = pytest.mark.toolkit

Start = Callable[..., Job]
InAProcess = Callable[..., contextlib.AbstractContextManager["subprocess.Popen[str]"]]


@pytest.fixture
def start(tmp_path: Path, no_torch: dict[str, str]) -> Iterator[Start]:
    """Launch scripts given as texts; stop what still runs at the end."""
    jobs: list[Job] = []

    def start(text: str, entry: str = "train.py", **arguments: Any) -> Job:
        source = tmp_path / f"source-{len(jobs)}"
        write(source / entry, text)
        given: dict[str, Any] = {"environment": no_torch, "output_dir": tmp_path / "runs"} | arguments
        jobs.append(launch(entry, source_dir=source, instance_type="local", **given))
        return jobs[-1]

    yield start
    for job in jobs:
        job.stop(grace_seconds=0)


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A variable that hides torch, whose import is more than half of the toolkit's start-up."""
    folder = tmp_path_factory.mktemp("no-torch")
    write(folder / "torch.py", "raise ImportError")
    return {"PYTHONPATH": str(folder)}


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text))
    return file


def wait_for(line: str, job: Job) -> None:
    assert line in job.logs()


def folder_of(job: Job) -> Path:
    return job.service.model_dirs(job.name)[0].parents[1]


def processes_of(job: Job) -> list[str]:
    return processes_below(folder_of(job))


def processes_below(folder: Path) -> list[str]:
    """Return the command lines of all processes with a base folder below `folder` in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"SAGEMAKER_BASE_DIR=" + os.fsencode(folder) in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


# --- a good run -----------------------------------------------------------------------------------------------------

PLAIN_SCRIPT = """
    import argparse, json, os, pathlib, sys

    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--momentum", type=float)
    known, _ = parser.parse_known_args()
    checkpoints = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"], "checkpoints")
    seen = {
        "parsed": vars(known),
        "argv": sys.argv[1:],
        "environment": dict(os.environ),
        "rows": pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "rows.csv").read_text(),
        "labels": pathlib.Path(os.environ["SM_CHANNEL_LABELS"], "labels é.txt").read_text(),
        "code": sorted(str(path) for path in pathlib.Path().rglob("*")),
        "input": sys.stdin.read(),
        "former checkpoints": [path.name for path in checkpoints.iterdir()],
    }
    (checkpoints / "2.pt").write_text("")
    pathlib.Path(os.environ["SM_MODEL_DIR"], "seen.json").write_text(json.dumps(seen))
    pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "plot.txt").write_text("")
    print("trained 3 epochs ✓")
"""

HYPERPARAMETERS = {
    "epochs": 3,
    "learning-rate": 1e-05,
    "momentum": -0.5,
    "shift": -1e-05,
    "amp": True,
    "note": "it's 1.10\n",
    "version": "1.10",
    "layers": [64, "a"],
    "nothing": None,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, no_torch: dict[str, str]) -> tuple[Job, dict[str, Any]]:
    """Run a script that knows nothing of smkit, in folders with difficult names; return its job and what it saw."""
    project = tmp_path_factory.mktemp("my projéct")
    write(project / "code/train.py", PLAIN_SCRIPT)
    write(project / "code/requirements.txt", "./never-installed")
    write(project / "code/setup.py", "raise SystemExit('setup.py was run')")
    write(project / "code/package/module.py", "")
    (project / "code/link.py").symlink_to("package/module.py")
    for folder in (".git", "package/__pycache__", "any name", "old runs/job", "data"):
        write(project / "code" / folder / "left_out.txt", "")
    write(project / "code/any name/pyvenv.cfg", "")
    write(project / "code/data/rows.csv", "1,2")
    write(project / "labels é.txt", "cat")
    write(project / "checkpoints/1.pt", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_PROFILE", "a-profile-that-does-not-exist")
        patch.setenv("SM_MODEL_DIR", "/another/job")
        patch.setenv("SAGEMAKER_PROGRAM", "another.py")
        patch.setenv("WORLD_SIZE", "8")
        job = launch(
            "train.py",
            source_dir=project / "code",
            instance_type="local",
            inputs={"train": project / "code/data", "labels": (project / "labels é.txt").as_uri()},
            hyperparameters=HYPERPARAMETERS,
            environment={"FLAVOUR": "sweet", **no_torch},
            output_dir=project / "code/old runs",
            checkpoint_dir=project / "checkpoints",
        )
    return job.wait(show_logs=False), json.loads((job.model_dir / "seen.json").read_text())


def test_a_script_without_smkit_runs_as_on_sagemaker(finished: tuple[Job, dict[str, Any]]) -> None:
    job, seen = finished
    base = job.model_dir.parent
    assert job.status == "Completed"
    assert job.failure_reason is None
    assert job.name.startswith("train-")
    assert (base / "output/data/plot.txt").exists()
    assert "trained 3 epochs ✓" in job.logs()
    assert (seen["rows"], seen["labels"], seen["input"]) == ("1,2", "cat", "")
    expected = {
        "SAGEMAKER_BASE_DIR": str(base),
        "SM_MODEL_DIR": str(base / "model"),
        "SM_CHANNELS": '["labels","train"]',
        "SM_HOSTS": '["algo-1"]',
        "TRAINING_JOB_NAME": job.name,
        "FLAVOUR": "sweet",
    }
    assert {name: seen["environment"][name] for name in expected} == expected
    assert not {"AWS_PROFILE", "WORLD_SIZE", "SAGEMAKER_PROGRAM"} & seen["environment"].keys()


def test_hyperparameters_travel_as_json_and_arrive_as_the_toolkit_writes_them(
    finished: tuple[Job, dict[str, Any]],
) -> None:
    job, seen = finished
    on_disk = json.loads((job.model_dir.parent / "input/config/hyperparameters.json").read_text())
    own = {name: value for name, value in on_disk.items() if not name.startswith("sagemaker_")}
    assert own == {name: json.dumps(value) for name, value in HYPERPARAMETERS.items()}
    assert json.loads(seen["environment"]["SM_HPS"]) == HYPERPARAMETERS
    assert seen["parsed"] == {"epochs": 3, "learning_rate": 1e-05, "momentum": -0.5}
    assert dict(zip(seen["argv"][::2], seen["argv"][1::2], strict=True)) == {
        "--epochs": "3",
        "--learning-rate": "1e-05",
        "--momentum": "-0.5",
        "--shift": "-1e-05",
        "--amp": "True",
        "--note": "it's 1.10\n",
        "--version": "1.10",
        "--layers": "[64, 'a']",
        "--nothing": "",
    }


def test_the_code_is_a_copy_without_caches_data_jobs_and_what_pip_would_install(
    finished: tuple[Job, dict[str, Any]],
) -> None:
    _, seen = finished
    assert [path for path in seen["code"] if "__pycache__" not in path] == [
        "link.py",
        "package",
        "package/module.py",
        "train.py",
    ]


def test_checkpoints_outlive_the_job_in_a_folder_of_the_users_choice(finished: tuple[Job, dict[str, Any]]) -> None:
    job, seen = finished
    base = job.model_dir.parent
    assert seen["former checkpoints"] == ["1.pt"]
    assert sorted(path.name for path in (base / "checkpoints").resolve().iterdir()) == ["1.pt", "2.pt"]
    assert json.loads((base / "input/config/checkpointconfig.json").read_text()) == {
        "LocalPath": str(base / "checkpoints")
    }


def test_a_download_never_overwrites_a_file_that_differs(finished: tuple[Job, dict[str, Any]], tmp_path: Path) -> None:
    job, _ = finished
    target = job.download(tmp_path / "model")
    assert (target / "seen.json").read_bytes() == (job.model_dir / "seen.json").read_bytes()
    assert job.download(target) == target
    (target / "seen.json").write_text("mine")
    with pytest.raises(JobError, match=r"'seen\.json' would overwrite another file"):
        job.download(target)
    assert (target / "seen.json").read_text() == "mine"


def test_the_end_says_where_the_model_is(
    finished: tuple[Job, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    job, _ = finished
    assert job.wait() is job
    output = capsys.readouterr()
    assert output.err.endswith(f"job '{job.name}' completed; its model: {job.model_dir}\n")
    assert "trained 3 epochs ✓\n" in output.err
    assert output.out == ""


def test_a_line_is_given_once_and_whole(finished: tuple[Job, dict[str, Any]]) -> None:
    job, _ = finished
    lines = job.service.log_lines(job.name)
    assert list(iter(lines.__next__, None)) == list(job.logs())
    with (job.model_dir.parent / "log.txt").open("a", newline="") as log:
        log.write("hal")
        log.flush()
        assert next(lines) is None
        log.write("f\r\x85\n")
    assert [next(lines), next(lines)] == ["half\r\x85", None]


def test_a_process_that_has_got_the_number_of_an_ended_one_is_not_taken_for_it(
    finished: tuple[Job, dict[str, Any]],
) -> None:
    job, _ = finished
    identity = job.model_dir.parent / "process.json"
    recorded = json.loads(identity.read_text())
    identity.write_text(json.dumps(recorded | {"pid": os.getpid()}))
    assert job.status == "Completed"
    identity.write_text(json.dumps(recorded))


def test_an_unknown_job_is_said_with_the_nearest_name(finished: tuple[Job, dict[str, Any]]) -> None:
    job, _ = finished
    with pytest.raises(JobError, match=f"there is no job '{job.name}x'") as caught:
        _ = Job(f"{job.name}x", job.service).status
    assert caught.value.fix == f"did you mean '{job.name}'?"


# --- failures -------------------------------------------------------------------------------------------------------

FAILING_SCRIPTS = {
    "raises": ("raise ValueError('no column label')", r"ExecuteUserScriptError:\nExitCode 1\n[^$]*no column label"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", r"ExecuteUserScriptError:\nExitCode -9\n"),
    "ends with a text": ("import sys; sys.exit('no column label')", r"ExecuteUserScriptError:\nExitCode 1\n"),
    "explains itself": (
        "import os, pathlib; pathlib.Path(os.environ['SM_OUTPUT_DIR'], 'failure').write_text('é' * 2000); exit(3)",
        "^é{1024}$",
    ),
    "explains itself and exits with 0": (
        "import os, pathlib; pathlib.Path(os.environ['SM_OUTPUT_DIR'], 'failure').write_text('I failed')",
        "^I failed$",
    ),
    "crashes in gloo": (
        """
        import sys
        sys.exit("RuntimeError: terminate called after throwing an instance of 'gloo::EnforceNotMet'")
        """,
        "^the script crashed in gloo",
    ),
    "removes the folder of the marks": (
        "import os, shutil; shutil.rmtree(os.environ['SM_OUTPUT_DIR']); exit(1)",
        "^the toolkit's process is gone and left neither",
    ),
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, no_torch: dict[str, str]) -> dict[str, Job]:
    """Run all failing scripts at once."""
    jobs = {}
    runs = tmp_path_factory.mktemp("runs")
    for case, (text, _) in FAILING_SCRIPTS.items():
        source = write(tmp_path_factory.mktemp("failing") / "train.py", text).parent
        jobs[case] = launch("train.py", source_dir=source, instance_type="local", output_dir=runs, environment=no_torch)
    return jobs


@pytest.mark.parametrize("case", FAILING_SCRIPTS)
def test_the_reason_is_the_best_there_is_of_a_script_that(case: str, failed: dict[str, Job]) -> None:
    job = failed[case]
    with pytest.raises(JobError, match=f"^job '{job.name}' failed: ") as caught:
        job.wait(show_logs=False)
    assert job.status == "Failed"
    assert re.search(FAILING_SCRIPTS[case][1], job.failure_reason or "")
    assert caught.value.where == str(job.service.model_dirs(job.name)[0].parent / "log.txt")
    said = {"ends with a text": "\n    the end of its log:\n    no column label", "is killed": "out of memory"}
    assert said.get(case, "") in caught.value.what


def test_a_failed_job_has_no_model(failed: dict[str, Job], tmp_path: Path) -> None:
    with pytest.raises(JobError, match="failed: I failed"):
        _ = failed["explains itself and exits with 0"].model_dir
    with pytest.raises(JobError, match="failed: I failed"):
        failed["explains itself and exits with 0"].download(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_end_of_the_toolkit_is_the_end_of_its_script(start: Start) -> None:
    job = start("import time; print('ready'); time.sleep(600)")
    wait_for("ready", job)
    os.kill(json.loads((folder_of(job) / "algo-1/process.json").read_text())["pid"], signal.SIGKILL)
    with pytest.raises(JobError, match="the toolkit's process is gone and left neither"):
        job.wait()
    assert processes_of(job) == []


def test_a_failed_host_takes_the_others_along_and_gives_the_reason(start: Start) -> None:
    job = start(
        """\
        #!/bin/sh
        echo "this is $SM_CURRENT_HOST of $SM_HOSTS"
        test "$SM_CURRENT_HOST" = 127.0.0.1 && sleep 600
        echo "no disk" > "$SM_OUTPUT_DIR/failure"
        exit 3
        """,
        entry="train.sh",
        instance_count=2,
    )
    with pytest.raises(JobError, match="failed: no disk") as caught:
        job.wait()
    assert caught.value.where == str(folder_of(job) / "127.0.0.2/log.txt")
    assert processes_of(job) == []
    hosts = '["127.0.0.1","127.0.0.2"]'
    assert {f"[{host}] this is {host} of {hosts}" for host in json.loads(hosts)} < set(job.logs())


def test_of_several_failed_hosts_the_first_gives_the_reason(start: Start) -> None:
    job = start(
        """\
        #!/bin/sh
        first=../../127.0.0.2/output/failure
        test "$SM_CURRENT_HOST" = 127.0.0.1 && while ! test -s $first; do sleep 0.05; done && sleep 0.05
        echo "failure of $SM_CURRENT_HOST" > "$SM_OUTPUT_DIR/failure"
        exit 3
        """,
        entry="train.sh",
        instance_count=2,
    )
    with pytest.raises(JobError, match=r"failed: failure of 127\.0\.0\.2"):
        job.wait()
    assert job.failure_reason == "failure of 127.0.0.2"


# --- stopping -------------------------------------------------------------------------------------------------------

STOPPABLE_SCRIPT = """
    import os, pathlib, signal, subprocess, sys, time

    def save(*_):
        print("saving")
        pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "saved").write_text("")
        sys.exit(0)

    signal.signal(signal.SIGTERM, save)
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    print("ready")
    time.sleep(600)
"""

DEAF_SCRIPT = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(600)"


def test_stop_lets_the_script_save_and_leaves_no_process(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "source-0/train.py", STOPPABLE_SCRIPT)
    job = start("#!/bin/sh\npython train.py\n", entry="train.sh")
    wait_for("ready", job)
    with pytest.raises(JobError, match=r"is still running after 0\.2 s"):
        job.wait(timeout_seconds=0.2)
    with pytest.raises(JobError, match="is still running and has no model"):
        _ = job.model_dir
    assert job.status == "InProgress"
    assert processes_of(job) != []
    job.stop()
    assert (folder_of(job) / "algo-1/output/data/saved").exists()
    assert job.status == "Stopped"
    assert job.failure_reason is None
    assert processes_of(job) == []
    with pytest.raises(JobError, match="was stopped"):
        job.wait()


@pytest.mark.train
def test_stop_reaches_the_workers_and_not_torchrun_which_would_kill_them_30_seconds_later(start: Start) -> None:
    job = start(
        """
        import os, pathlib, signal, sys

        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        print("ready " + os.environ["LOCAL_RANK"], flush=True)
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        # Only one that torchrun has sent it to has torchrun's patience against it.
        saved = "by torchrun" if sender == os.getppid() else "in peace"
        pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], os.environ["LOCAL_RANK"]).write_text(saved)
        sys.exit(143)
        """,
        processes_per_host=2,
        environment={},
    )
    lines = iter(job.logs())
    waited_for = {"ready 0", "ready 1"}
    while waited_for:
        waited_for.discard(next(lines))
    job.stop()
    saved = {file.name: file.read_text() for file in (folder_of(job) / "algo-1/output/data").iterdir()}
    assert saved == {"0": "in peace", "1": "in peace"}
    assert (job.status, processes_of(job)) == ("Stopped", [])


def test_a_job_that_cannot_be_started_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "train.py", "print(1)\n")
    arguments: dict[str, Any] = {"source_dir": source, "instance_type": "local", "output_dir": tmp_path / "runs"}
    plan = launch("train.py", name="job", dry_run=True, **arguments)
    (source / "train.py").rename(tmp_path / "elsewhere.py")
    os.mkfifo(source / "train.py")
    with pytest.raises(ConfigurationError, match="the job cannot be started"):
        plan.start()
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_plan_that_is_started_twice_leaves_its_job_alone(tmp_path: Path, no_torch: dict[str, str]) -> None:
    write(tmp_path / "source/train.py", "import time\nprint('running', flush=True)\ntime.sleep(600)\n")
    plan = launch(
        "train.py",
        source_dir=tmp_path / "source",
        instance_type="local",
        environment=no_torch,
        output_dir=tmp_path / "runs",
        dry_run=True,
    )
    job = plan.start()
    try:
        wait_for("running", job)
        with pytest.raises(ConfigurationError, match=f"there is a job '{plan.name}' already"):
            plan.start()
        assert job.status == "InProgress"
    finally:
        job.stop(grace_seconds=0)


def test_a_script_that_does_not_stop_is_killed_after_the_grace(start: Start) -> None:
    job = start(DEAF_SCRIPT)
    wait_for("ready", job)
    job.stop(grace_seconds=0.2)
    assert (job.status, processes_of(job)) == ("Stopped", [])


def test_stopping_an_ended_job_changes_nothing(finished: tuple[Job, dict[str, Any]]) -> None:
    job, _ = finished
    job.stop()
    assert job.status == "Completed"


@pytest.fixture
def launch_in_a_process(tmp_path: Path, no_torch: dict[str, str], unmeasured: None) -> Iterator[InAProcess]:
    """Launch the job `job` below `tmp_path` from a process of its own; stop what still runs at the end."""

    @contextlib.contextmanager
    def launch_in_a_process(script: str, *, wait: bool) -> Iterator[subprocess.Popen[str]]:
        write(tmp_path / "code/train.py", script)
        arguments = {"source_dir": str(tmp_path / "code"), "output_dir": str(tmp_path), "name": "job", "wait": wait}
        program = f"from smkit.launcher import launch; launch('train.py', instance_type='local', **{arguments})"
        with (
            subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=Path(smkit.__file__).parents[1],
                env=os.environ | no_torch | {"PYTHONFAULTHANDLER": "1"},
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            ) as launcher,
            patient_with(launcher),
        ):
            yield launcher
            launcher.wait()

    yield launch_in_a_process
    Job("job", LocalJobs(tmp_path)).stop(grace_seconds=0)


def press_ctrl_c(launcher: subprocess.Popen[str]) -> None:
    """Interrupt the launcher's whole group, as a terminal does."""
    os.killpg(launcher.pid, signal.SIGINT)


def test_ctrl_c_stops_the_job_and_says_so(tmp_path: Path, launch_in_a_process: InAProcess) -> None:
    with launch_in_a_process(STOPPABLE_SCRIPT, wait=True) as launcher:
        assert launcher.stderr is not None
        assert any(line == "ready\n" for line in launcher.stderr)
        press_ctrl_c(launcher)
        errors = launcher.stderr.read()
    assert launcher.returncode == -signal.SIGINT, errors
    log = tmp_path / "job/algo-1/log.txt"
    assert f"stopping job 'job', Ctrl-C again to kill it; its log: {log}" in errors.splitlines()
    assert (tmp_path / "job/algo-1/output/data/saved").exists()
    assert Job("job", LocalJobs(tmp_path)).status == "Stopped"
    assert processes_below(tmp_path) == []


def test_a_second_ctrl_c_does_not_wait_for_the_script(tmp_path: Path, launch_in_a_process: InAProcess) -> None:
    with launch_in_a_process(DEAF_SCRIPT, wait=True) as launcher:
        assert launcher.stderr is not None
        for sign in ("ready", "stopping job"):
            assert any(line.startswith(sign) for line in launcher.stderr)
            press_ctrl_c(launcher)
        errors = launcher.stderr.read()
    assert launcher.returncode == -signal.SIGINT, errors
    assert Job("job", LocalJobs(tmp_path)).status == "Stopped"
    assert processes_below(tmp_path) == []


def test_a_job_outlives_its_launcher_and_is_picked_up_from_its_folder(
    tmp_path: Path, launch_in_a_process: InAProcess
) -> None:
    script = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('gone on')"
    with launch_in_a_process(script, wait=False) as launcher:
        pass
    assert launcher.returncode == 0
    job = Job("job", LocalJobs(tmp_path))
    assert job.status == "InProgress"
    write(tmp_path / "job/algo-1/code/go", "")
    assert job.wait(show_logs=False).status == "Completed"
    assert "gone on" in job.logs(follow=False)


# --- several hosts --------------------------------------------------------------------------------------------------


@pytest.mark.train
def test_two_hosts_meet_under_torchrun_and_their_models_are_merged(
    start: Start, tmp_path: Path, meeting_port: int
) -> None:
    job = start(
        """
        import os, pathlib, torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        rank = dist.get_rank()
        total = torch.tensor(rank + 1)
        dist.all_reduce(total)
        model = pathlib.Path(os.environ["SM_MODEL_DIR"])
        (model / f"rank-{rank}.txt").write_text(f"{total} of {os.environ['WORLD_SIZE']} by {os.environ['LOCAL_RANK']}")
        (model / "common.txt").write_text("equal")
        dist.destroy_process_group()
        """,
        instance_count=2,
        environment={},
    )
    model = job.wait().download(tmp_path / "model")
    assert {path.name: path.read_text() for path in model.iterdir()} == {
        "rank-0.txt": "3 of 2 by 0",
        "rank-1.txt": "3 of 2 by 0",
        "common.txt": "equal",
    }


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": null, "started": 1}', "\udc80"])
def test_a_job_whose_process_is_not_known_is_a_clear_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "runs/job/algo-1").mkdir(parents=True)
    (tmp_path / "runs/job/algo-1/process.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(JobError, match=r"process\.json is not what smkit has written"):
        _ = Job("job", LocalJobs(tmp_path / "runs")).status
