"""What launch refuses before anything is made, each problem in the user's own words and all of them together."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smkit.errors import ConfigurationError, JobError
from smkit.hyperparameters import Hyperparameters
from smkit.launcher import attach, launch

# A launch is checked against this machine, too: without the toolkit there is one problem more.
pytestmark = pytest.mark.toolkit


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a script, as the current one; nothing may be made in it."""
    (tmp_path / "train.py").write_text("")
    (tmp_path / "train.sh").write_text("")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "runs").exists()


def refusal(entry: str = "train.py", **arguments: Any) -> ConfigurationError:
    """Return how launch refuses these arguments."""
    with pytest.raises(ConfigurationError) as caught:
        launch(entry, **({"instance_type": "local", "dry_run": True} | arguments))
    return caught.value


def problems(entry: Any = "train.py", **arguments: Any) -> list[str]:
    try:
        launch(entry, **({"instance_type": "local", "dry_run": True} | arguments))
    except ConfigurationError as error:
        return error.what.split("\n  - ")[1:]
    return []


def test_all_problems_are_reported_together(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(project / "bin/python"))
    (project / "link").symlink_to("/tmp")
    error = refusal(
        "trian.py",
        instance_count=0,
        processes_per_host=-2,
        inputs={"train": "s3://bucket/train", "two words": "dta", "valid": ""},
        hyperparameters={"sagemaker_program": 1, "rate": object()},
        environment={"SM_HOSTS": "[]", "A-B": "", "DEBUG": 1},
        name="-x-",
        checkpoint_dir="train.sh",
    )
    text = str(error).replace(str(project), "<project>")
    assert re.sub(r"(hyperparameter \w+): .*", r"\1: ...", text) == ALL_PROBLEMS


ALL_PROBLEMS = """\
16 problems in the launch of 'trian.py':
  - instance_count 0: at least 1
  - processes_per_host -2: at least 1
  - name '-x-': 1 to 63 letters, digits and '-', and neither end is '-'
  - environment 'SM_HOSTS': names that start with SM_ or SAGEMAKER_ belong to the platform
  - environment 'A-B': a name has letters, digits and '_', and starts with no digit
  - environment 'DEBUG': a value is a text, not a value of type int
  - entry 'trian.py': not in <project>; did you mean 'train.py'?
  - source_dir: the link 'link' leads out of the folder, to /tmp; put a copy in its place, or give data as an input
  - input 'two words': there is no <project>/dta; did you mean 'data'?
  - input 'two words': a channel's name has 1 to 64 letters, digits, '.', '-' or '_'
  - input 'valid': the path is empty
  - hyperparameter sagemaker_program: ...
  - hyperparameter rate: ...
  - input 'train': a local run does not download 's3://bucket/train'; download it (aws s3 sync) and give the folder
  - checkpoint_dir '<project>/train.sh': not a folder
  - this machine: the toolkit is not installed in <project>/bin; pip install 'smkit[local]'
  where: launch('trian.py', instance_type='local', ...)
  fix:   change what is named above; nothing has been started"""


ENDLESS: dict[str, Any] = {}
ENDLESS["VpcConfig"] = {"Subnets": [ENDLESS]}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"entry": "train"}, "entry 'train': a path relative to source_dir, ending in .py or .sh"),
        ({"output_dir": "\ud800"}, "output_dir: holds half a character (a surrogate)"),
        ({"source_dir": "dat"}, "there is no such folder; did you mean 'data'?"),
        ({"entry": "train.sh", "processes_per_host": 2}, "torchrun starts Python scripts only, and not 'train.sh'"),
        ({"inputs": {"..": "data"}}, "input '..': a channel's name has 1 to 64 letters"),
        ({"inputs": {"a": "data", "A": "data"}}, "input 'A': shares its variable SM_CHANNEL_A with 'a'"),
        ({"inputs": {"a": "file://host/data"}}, "input 'a': 'file://host/data' is on the machine 'host'"),
        ({"inputs": {"a": "https://host/data"}}, "'https://host/data' is neither a path nor a file:// URI"),
        ({"inputs": {f"c{i}": "data" for i in range(21)}}, "inputs: a job takes 20 channels, not 21"),
        ({"inputs": {"a": "data/x\0"}}, "input 'a': there is no "),
        ({"environment": {"A": "\0"}}, "environment 'A': a value has no NUL characters"),
        ({"environment": {"A": "\ud83d"}}, "environment 'A': a value has no half characters (surrogates)"),
        ({"environment": {"A": "ssm:two words"}}, "environment 'A': begins like a reference to a secret, and is none"),
        ({"instance_count": 255}, "instance_count: at most 254 hosts are to be had of one machine"),
        ({"instance_count": 10**5000}, "instance_count: at most 254 hosts are to be had of one machine"),
        (
            {"inputs": ["s3://b/x", Path("data")]},
            "inputs ['s3://b/x', PosixPath('data')]: a dict from the names of channels to their data belongs here; "
            "did you mean {'train': 's3://b/x', 'test': 'data'}?",
        ),
        ({"inputs": []}, "inputs []: a dict from the names of channels to their data belongs here: {'train': 's3://"),
        ({"environment": 0}, "environment: is of type int, and a dict with texts for names belongs here"),
        ({"hyperparameters": []}, "hyperparameters: is of type list, and an instance of a settings class, or a dict,"),
        ({"tags": ()}, "tags: is of type tuple, and a dict with texts for names belongs here"),
        ({"request": ENDLESS}, "request: contains itself, or is nested more than 50 deep"),
        ({"spot": ENDLESS}, "spot: is of type dict, and a single value belongs here"),
        (
            {"source_dir": "s3://b/x"},
            "source_dir 's3://b/x': a path on this machine belongs here; 'aws s3 sync' copies",
        ),
        (
            {"model_dir": "s3://b/x"},
            "model_dir: the estimator's word; launch's is nothing: the script writes its model",
        ),
        ({"rules": []}, "rules: the estimator's word; launch's is request={'DebugRuleConfigurations': [...]"),
        ({"output_dir": "."}, "holds the script, so that each job would hold all former ones"),
        ({"output_dir": "train.py"}, "train.py': not a folder"),
        ({"output_dir": "..", "name": "here"}, "holds a job of that name"),
    ],
)
def test_each_mistake_is_said_in_the_users_words(arguments: dict[str, Any], problem: str, project: Path) -> None:
    (project.parent / "here").mkdir(exist_ok=True)
    (found,) = problems(**arguments)
    assert problem in found


@pytest.mark.parametrize("given", ["data", "./data", "file://{}/my%20data", "file://localhost{}/my%20data", "train.py"])
def test_an_input_is_a_folder_a_file_or_a_file_uri(given: str, project: Path) -> None:
    (project / "my data").mkdir()
    assert problems(inputs={"train": given.format(project)}) == []


def test_links_out_of_the_source_are_refused_except_in_what_stays_behind(project: Path) -> None:
    (project / "sub").mkdir()
    (project / "sub/up").symlink_to("../train.py")
    (project / "cache").symlink_to("/tmp")
    (project / ".git").mkdir()
    (project / ".git/out").symlink_to("/tmp")
    (found,) = problems()
    assert found.startswith("source_dir: the link 'cache' leads out of the folder, to /tmp; ")
    assert problems(inputs={"train": "cache"}) == []


def test_several_hosts_need_their_port(project: Path, meeting_port: int) -> None:
    with socket.socket() as taken:
        # The test before may have left connections that linger.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", meeting_port))
        taken.listen()
        (found,) = problems(instance_count=2)
        assert found.startswith("this machine: several hosts meet at port 7777, which is taken")
        assert problems("train.sh", instance_count=2) == problems(processes_per_host=2) == []


@given(entry=st.text(st.sampled_from("aZ0._+-/é"), max_size=80))
def test_every_script_has_a_valid_default_name(entry: str) -> None:
    assert not [problem for problem in problems(f"{entry}.py", source_dir="nowhere") if problem.startswith("name ")]


def test_what_the_machine_lacks_is_said_before_a_job_fails_of_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(project / "python"))
    monkeypatch.setenv("PATH", str(project))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert problems(processes_per_host=2) == [
        "this machine: the toolkit needs Linux, and this is Darwin",
        f"this machine: the toolkit is not installed in {project}; pip install 'smkit[local]'",
        "this machine: the toolkit calls the program 'which', and there is none; install it",
        f"this machine: torchrun is not installed in {project}; pip install 'smkit[train]'",
    ]


def test_a_system_that_refuses_is_said_as_it_says_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"the job cannot be started: .*Not a directory"):
        launch("train.py", instance_type="local", output_dir="train.sh/runs")
    (project / "bin").mkdir()
    (project / "bin/train").write_text("#!/no/such/interpreter")
    (project / "bin/train").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(project / "bin/python"))
    with pytest.raises(ConfigurationError, match=r"the job cannot be started: .*bin/train"):
        launch("train.py", instance_type="local", output_dir="../other runs")


@pytest.mark.toolkit
def test_an_entry_is_refused_exactly_where_the_toolkit_would_refuse_it(project: Path) -> None:
    names = ["".join(letters) + ".py" for size in range(5) for letters in itertools.product("a.-+/é", repeat=size)]
    program = """
import json, sys
from sagemaker_training import errors, process

def refuses(name):
    try:
        process.validate_entry_point(name)
    except errors.ClientError:
        return True

print(json.dumps([name for name in json.load(sys.stdin) if refuses(name)]))
"""
    environment = os.environ | {"SAGEMAKER_BASE_DIR": str(project / "base")}
    toolkit = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(names),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    refused = [name for name in names if any("a path relative to source_dir" in problem for problem in problems(name))]
    assert refused == json.loads(toolkit.stdout)


WRONG_TYPES: dict[str, tuple[object, str]] = {
    "entry": (b"train.py", "entry b'train.py': is of type bytes, and a text belongs here"),
    "source_dir": (None, "source_dir None: a path belongs here"),
    "instance_count": ("2", "instance_count '2': is of type str, and a whole number belongs here"),
    "processes_per_host": (1.5, "processes_per_host 1.5: is of type float, and a whole number belongs here"),
    "inputs": (["data"], "inputs ['data']: a dict from the names of channels to their data belongs here; did you"),
    "hyperparameters": ("epochs=1", "hyperparameters: is of type str, and an instance of a settings class, or a dict,"),
    "environment": (["A=1"], "environment: is of type list, and a dict with texts for names belongs here"),
    "name": (3, "name 3: is of type int, and a text belongs here"),
    "framework_version": (2.1, "framework_version 2.1: is of type float, and a text belongs here"),
    "graceful_stop": ("no", "graceful_stop 'no': is of type str, and True or False belongs here"),
    "metrics": ("loss", "metrics 'loss': a list of texts belongs here; did you mean ['loss']?"),
    "tags": ([{"Key": "a"}], "tags: is of type list, and a dict with texts for names belongs here"),
    "vendor": (None, "vendor None: a text belongs here"),
    "allow_secrets": ("*.pem", "allow_secrets '*.pem': a list of texts belongs here; did you mean ['*.pem']?"),
    "request": ([("A", 1)], "request: is of type list, and a dict with texts for names belongs here"),
    "output_dir": ("a\0b", "output_dir: holds a NUL character"),
    "checkpoint_dir": (3, "checkpoint_dir 3: is of type int, and a path belongs here"),
}


def test_arguments_of_wrong_types_are_all_reported_together(project: Path) -> None:
    found = problems(**{name: value for name, (value, _) in WRONG_TYPES.items()})
    for name, (_, problem) in WRONG_TYPES.items():
        assert any(each.startswith(problem) for each in found), (name, found)


def test_a_settings_class_is_not_its_instance(project: Path) -> None:
    class Settings(Hyperparameters):
        epochs: int = 1

    expected = "hyperparameters: is the class Settings, and an instance belongs here: Settings(...)"
    assert expected in problems(hyperparameters=Settings)


def test_a_script_may_be_a_path_and_a_home_may_be_nobodys(project: Path) -> None:
    assert not problems(Path("train.py"))
    assert any("there is no such folder" in each for each in problems(source_dir="~nobody-of-that-name/code"))


@pytest.mark.parametrize("name", [None, b"job", "", "..", "/etc", "a/b", "two words"])
def test_what_cannot_be_a_jobs_name_is_attached_to_nothing(name: Any) -> None:
    with pytest.raises(JobError, match="there can be no job"):
        attach(name)


def test_attach_says_what_is_of_a_wrong_type() -> None:
    with pytest.raises(ConfigurationError) as caught:
        attach("job", region=5, output_dir=3)  # type: ignore[arg-type]
    assert caught.value.problems == (
        "region 5: is of type int, and a text belongs here",
        "output_dir 3: is of type int, and a path belongs here",
    )


def test_no_instance_type_is_one_problem(project: Path) -> None:
    found = [problem for problem in problems(instance_type=[]) if "instance_type" in problem]
    assert found == ["instance_type: missing; 'local', or a type such as 'ml.g5.xlarge'"]
