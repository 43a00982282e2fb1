"""The script's own settings class judges hyperparameters at launch, in a process that has no torch."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import smkit
from smkit import script_settings
from smkit.script_settings import Checked, check

SETTINGS = """
    from typing import Literal
    import smkit

    class Settings(smkit.Hyperparameters):
        width: int
        optimizer: Literal["sgd", "adam"] = "sgd"
"""
NOT_CHECKED = "hyperparameters are not checked against the script's settings class: "
WRONG = {"epochs": 0, "optimizer": "adm", "epoks": 3}
PROBLEMS = (
    "hyperparameters: unknown hyperparameter 'epoks'; did you mean 'epochs'?",
    "hyperparameters: epochs must be at least 1 (got 0)",
    "hyperparameters: width is required; give --width INT",
    "hyperparameters: optimizer must be 'sgd' or 'adam' (got 'adm'); did you mean 'adam'?",
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


def write(source: Path, **files: str) -> None:
    for name, text in files.items():
        file = source / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))


TRAINER = """
    import torch
    import smkit
    from settings import Settings

    class Mine(smkit.Trainer[Settings]):
        def training_step(self, batch):
            return torch.zeros(1)

    print("not run")
    raise SystemExit("not run")
"""
IN_ONE_FILE = f"""
    from __future__ import annotations
    import torch
    from smkit import Trainer as T
    print("not run", open("/not/run"))
    {SETTINGS.lstrip()}
    class Mine(T[Settings]):
        loss = torch.nn.MSELoss()
"""
SCRIPTS = {
    "trainer": ("train.py", {"train": TRAINER, "settings": SETTINGS}),
    "one file": ("train.py", {"train": IN_ONE_FILE}),
    "context": (
        "train.py",
        {
            "train": "import smkit, settings as s\nc = smkit.TrainingContext.load(s.Settings)\nimport torch",
            "settings": SETTINGS,
        },
    ),
    "parse_args": (
        "jobs/train.py",
        {
            "jobs/train": """
                if __name__ == "__main__":
                    from smkit import parse_args
                    from common.settings import Settings
                    parse_args(settings=Settings)
            """,
            "common/settings": "from .base import *\nimport torch" + SETTINGS.replace("\n    ", "\n"),
            "common/base": "",
        },
    ),
    "package": (
        "train.py",
        {
            "train": "import smkit\nfrom common import Settings\nclass A(smkit.Trainer['Settings']): ...",
            "common/__init__": "from common.settings import Settings",
            "common/settings": SETTINGS,
        },
    ),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_the_class_judges_wherever_it_stands(source: Path, case: str) -> None:
    entry, files = SCRIPTS[case]
    write(source, **files)
    assert check(source, entry, WRONG) == Checked(PROBLEMS)


def test_nothing_is_written_and_nothing_is_said(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(source, train=TRAINER, settings="print('at import')" + textwrap.dedent(SETTINGS))
    before = sorted(source.rglob("*"))
    assert check(source, "train.py", {"width": 8, "optimizer": "adam", "epochs": 3}) == Checked()
    assert sorted(source.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


def test_an_instance_of_another_class_is_judged_too(source: Path) -> None:
    write(source, train=TRAINER, settings=SETTINGS)

    class Other(smkit.Hyperparameters):
        width: int = 8
        depth: int = 2

    assert check(source, "train.py", Other()) == Checked(
        ("hyperparameters: unknown hyperparameter 'depth'; did you mean 'width'?",)
    )


def test_a_trainer_without_a_class_of_its_own_has_the_settings_of_every_run(source: Path) -> None:
    write(source, train="import torch, smkit\nclass Mine(smkit.Trainer): ...")
    assert check(source, "train.py", {"epochs": 0}) == Checked((PROBLEMS[1],))


def test_neither_aws_nor_a_path_of_the_job_is_there_and_a_secret_does_not_travel(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hunter2")
    write(
        source,
        train="""
            import os
            from pydantic import DirectoryPath, SecretStr
            import smkit
            assert not any(name.startswith("AWS_") for name in os.environ)

            class Settings(smkit.Hyperparameters):
                data: DirectoryPath
                token: SecretStr = SecretStr(str(os.environ.get("AWS_ACCESS_KEY_ID")))

            hp = smkit.parse_args(Settings)
        """,
    )
    values = {"data": "/opt/ml/input/data/nowhere", "token": SecretStr("secretsmanager:hf")}
    assert check(source, "train.py", values) == Checked()
    (problem,) = check(source, "train.py", {**values, "token": "hunter2"}).problems
    assert problem.startswith("hyperparameters: token is a secret, and would be readable in the job's description")
    assert "hunter2" not in problem


def test_a_class_that_smkit_refuses_is_a_problem(source: Path) -> None:
    write(source, train="import smkit\nclass S(smkit.Hyperparameters):\n    config: int = 1\nsmkit.parse_args(S)")
    (problem,) = check(source, "train.py", {}).problems
    assert "the hyperparameter 'config' has the name of an option that every script has" in problem


@pytest.mark.parametrize(
    ("files", "values", "reason"),
    [
        ({"train": "import argparse"}, {}, "train.py has no settings class"),
        ({"train": "import smkit\nsmkit.parse_args(A)\nsmkit.parse_args(B)"}, {}, "train.py has several: A, B"),
        ({"train": "import smkit\nsmkit.parse_args(A)"}, {}, "A cannot be imported here: AttributeError: "),
        ({"train": "def"}, {}, "train.py cannot be read: "),
        ({}, {}, "train.py cannot be read: "),
        ({"train": TRAINER, "settings": SETTINGS}, {"config": "a.yaml"}, "the job also reads config files"),
        (
            {"train": TRAINER, "settings": "    from torch import nn" + SETTINGS + "        layer: nn.Module"},
            {},
            "Settings needs torch",
        ),
        (
            {"train": TRAINER, "settings": "1 / 0\nSettings = 1 / 0"},
            {},
            "Settings cannot be imported here: ZeroDivision",
        ),
        ({"train": TRAINER, "settings": "Settings = exit(3)"}, {}, "Settings cannot be imported here: SystemExit: 3"),
        (
            {"train": TRAINER, "settings": "import os\nSettings = os._exit(3)"},
            {},
            "Settings cannot be imported here: exit status 3",
        ),
    ],
)
def test_where_the_class_cannot_be_asked_a_note_says_why(
    source: Path, files: dict[str, str], values: dict[str, Any], reason: str
) -> None:
    write(source, **files)
    checked = check(source, "train.py", values)
    assert checked.problems == ()
    assert checked.note.startswith(NOT_CHECKED + reason)


def test_a_class_that_takes_too_long_is_not_waited_for(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script_settings, "_SECONDS", 2.0)
    write(source, train=TRAINER, settings="import time\nSettings = time.sleep(1000)")
    assert check(source, "train.py", {}).note == f"{NOT_CHECKED}importing Settings takes more than 2 s"


def test_a_shell_script_has_no_class(source: Path) -> None:
    assert check(source, "train.sh", {}).note == f"{NOT_CHECKED}train.sh is no Python script"
