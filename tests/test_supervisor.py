"""A graceful stop: SIGTERM to process 1 of a container reaches the script. The real toolkit, in a PID namespace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from runtimes import ONE_HOST

from smkit import supervisor_program
from smkit.contract import JobTree, failure_file, success_file
from smkit.supervisor import entrypoint

pytestmark = pytest.mark.toolkit

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
BIN = Path(sys.executable).parent
STOCK = [str(BIN / "train")]
PROGRAM = [sys.executable, supervisor_program.__file__]
PACKED = [*entrypoint()[0], *entrypoint()[1]]


@pytest.fixture(scope="module", autouse=True)
def _namespace() -> None:
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no process here may make a PID namespace; it takes root")


class Container:
    """A job's folder and the process that is number 1 of a namespace of its own."""

    def __init__(self, base: Path, command: Sequence[str], entry: str, processes: int) -> None:
        self.tree = JobTree(base)
        self.code = self.tree.code_dir
        values = {"program": entry, "region": "us-east-1", "job_name": "stopped"}
        if processes > 1:
            values |= {"torch_distributed_enabled": True, "mpi_num_of_processes_per_host": processes}
        files = {
            self.tree.hyperparameters_file: {f"sagemaker_{name}": json.dumps(value) for name, value in values.items()},
            self.tree.input_data_config_file: {},
            self.tree.resource_config_file: ONE_HOST,
        }
        for folder in (self.tree.config_dir, self.tree.model_dir, self.tree.output_data_dir):
            folder.mkdir(parents=True)
        for file, content in files.items():
            file.write_text(json.dumps(content))
        (base / "no-torch").mkdir()
        (base / "no-torch" / "torch.py").write_text("raise ImportError")
        environment = os.environ | {
            "SAGEMAKER_BASE_DIR": str(base),
            "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",
            "SM_STUDIO_LOCAL_MODE": "True",
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{self.code}:{BIN}:{os.environ['PATH']}",
            # The toolkit imports torch if it is there, which is most of its start-up.
            "PYTHONPATH": "" if processes > 1 else str(base / "no-torch"),
        }
        self._log = base / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([*UNSHARE, *command], env=environment, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def terminate(self) -> None:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)

    def wait_for(self, *names: str) -> None:
        """Wait until the script has written files of these names."""
        deadline = time.monotonic() + 60
        while not all((self.code / name).exists() for name in names):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def end(self) -> int:
        """Wait for process 1, and return its exit status."""
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            pytest.fail(self.log)


Start = Callable[..., Container]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Container] = []

    def start(
        text: str,
        command: Sequence[str] = PROGRAM,
        *,
        processes: int = 1,
        entry: str = "train.py",
        shell: tuple[str, str] = ("unused.sh", ""),
    ) -> Container:
        base = tmp_path / f"ml-{len(started)}"
        for name, content in (("train.py", text), shell):
            file = base / "code" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(content))
            file.chmod(0o755)
        started.append(Container(base, command, entry, processes))
        return started[-1]

    yield start
    for container in started:
        container.process.kill()
        container.process.wait()


SCRIPT = """
    import os, pathlib, signal, subprocess, sys, time

    rank = os.environ.get("RANK", "0")

    def save(number, frame):
        with open(f"signals-{rank}", "a") as file:
            file.write("SIGTERM\\n")
        if "--slow" in open(__file__).read().splitlines()[-1]:
            pathlib.Path("saving").touch()
            while not pathlib.Path("saved").exists():
                time.sleep(0.02)
        print(f"rank {rank} saved", flush=True)
        sys.exit(143)

    signal.signal(signal.SIGTERM, save)
    pathlib.Path(f"ready-{rank}").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.02)
"""


def test_the_stock_entry_point_drops_the_signal(start: Start) -> None:
    job = start(SCRIPT, STOCK)
    job.wait_for("ready-0")
    job.terminate()
    (job.code / "go").touch()
    assert job.end() == 0
    assert "saved" not in job.log


@pytest.mark.parametrize("command", [PROGRAM, PACKED], ids=["program", "as it travels"])
def test_the_script_is_told_and_the_toolkit_lives_to_note_the_end(start: Start, command: list[str]) -> None:
    job = start(SCRIPT, command)
    job.wait_for("ready-0")
    job.terminate()
    assert job.end() == 1
    assert "rank 0 saved" in job.log
    assert "ExitCode 143" in failure_file(job.tree.output_dir).read_text()


def test_a_shell_is_passed_over(start: Start) -> None:
    job = start(SCRIPT, entry="train.sh", shell=("train.sh", "#!/bin/bash\npython train.py\necho the shell saw $?\n"))
    job.wait_for("ready-0")
    job.terminate()
    assert job.end() == 0
    assert "rank 0 saved" in job.log
    assert "the shell saw 143" in job.log


@pytest.mark.train
def test_every_worker_of_torchrun_is_told_once_and_saves(start: Start) -> None:
    pytest.importorskip("torch")
    job = start(SCRIPT, processes=2)
    job.wait_for("ready-0", "ready-1")
    job.terminate()
    assert job.end() != 0
    assert "rank 0 saved" in job.log
    assert "rank 1 saved" in job.log
    assert "SignalException" not in job.log


def test_more_signals_do_no_harm(start: Start) -> None:
    job = start(SCRIPT + "    # --slow")
    job.wait_for("ready-0")
    job.terminate()
    job.wait_for("saving")
    job.terminate()
    job.terminate()
    (job.code / "saved").touch()
    assert job.end() == 1
    assert (job.code / "signals-0").read_text() == "SIGTERM\n"


def test_what_a_script_leaves_behind_does_not_keep_the_job_alive(start: Start) -> None:
    leave = 'subprocess.Popen(["sleep", "1000"], start_new_session=True)\n    pathlib.Path(f"ready'
    job = start(SCRIPT.replace('pathlib.Path(f"ready', leave))
    job.wait_for("ready-0")
    job.terminate()
    assert job.end() == 1
    assert "rank 0 saved" in job.log


def test_the_containers_own_start_up_script_is_kept(start: Start) -> None:
    own = "#!/bin/bash\necho prepared for $1\nCURRENT=algo-1 train\n"
    job = start(SCRIPT, shell=("start_with_right_hostname.sh", own))
    job.wait_for("ready-0")
    job.terminate()
    assert job.end() == 1
    assert "prepared for train" in job.log
    assert "rank 0 saved" in job.log


ORPHANS = """
    import os, pathlib, sys, time

    if os.fork() == 0:
        orphan = os.fork()
        if orphan:
            pathlib.Path("orphan").write_text(str(orphan))
            os._exit(0)
        os._exit(0)
    os.wait()
    orphan = pathlib.Path("/proc", pathlib.Path("orphan").read_text())
    deadline = time.monotonic() + 30
    while orphan.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    print("to stderr", file=sys.stderr)
    sys.exit(5 if orphan.exists() else STATUS)
"""


@pytest.mark.parametrize("status", [0, 3])
def test_orphans_are_reaped_and_the_toolkit_ends_as_ever(start: Start, status: int) -> None:
    job = start(ORPHANS.replace("STATUS", str(status)))
    assert job.end() == (1 if status else 0)
    assert "to stderr" in job.log
    assert success_file(job.tree.output_dir).exists() == (status == 0)
    assert failure_file(job.tree.output_dir).exists() == (status != 0)


@pytest.mark.parametrize(("ending", "status"), [("exit 7", 7), ("kill -KILL $$", 137)])
def test_the_exit_status_of_train_is_that_of_the_container(start: Start, ending: str, status: int) -> None:
    job = start("", shell=("train", f"#!/bin/bash\n{ending}\n"))
    assert job.end() == status


def test_the_entry_point_keeps_the_limits_of_the_api() -> None:
    command, arguments = entrypoint()
    assert 1 <= len(command) <= 100
    assert 1 <= len(arguments) <= 100
    assert all(len(item) <= 256 for item in (*command, *arguments))
