"""What must not be said: secrets that the process knows, in whatever it says; and what a terminal would obey."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AfterValidator, Field, Secret, SecretBytes, SecretStr

import smkit
from smkit import redaction, report
from smkit.commands import screens

CANARY = 'canary/7"f3a'


@pytest.fixture(autouse=True)
def nothing_is_known_afterwards() -> Iterator[None]:
    yield
    redaction._known.clear()


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < 40:
        raise ValueError(f"{secret.get_secret_value()} is too short")
    return secret


class Settings(smkit.Hyperparameters):
    token: SecretStr = SecretStr("")
    key: SecretBytes = SecretBytes(b"")
    by_host: dict[str, SecretStr] = Field(default_factory=dict)
    checked: Annotated[SecretStr, AfterValidator(_long_enough)] = SecretStr("x" * 40)


def load(*argv: str) -> smkit.TrainingContext[Settings]:
    return smkit.TrainingContext.load(Settings, argv=list(argv), env={})


@pytest.mark.parametrize(
    "argv", [("--token", CANARY), ("--key", CANARY), ("--by-host", json.dumps({"a": CANARY})), ("--token=" + CANARY,)]
)
@pytest.mark.parametrize("form", ["{}", "{!r}", "https://u:{}@host"])
def test_an_error_that_quotes_a_secret_does_not_publish_it(
    argv: tuple[str, ...], form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load("--run-dir", str(tmp_path), *argv)
    error = RuntimeError(form.format(CANARY))
    error.__cause__ = ValueError(json.dumps({"token": CANARY}))
    report.end(error, program="train.py", output_dir=tmp_path)
    said = capsys.readouterr().err + (tmp_path / "failure").read_text()
    assert "RuntimeError" in said
    assert redaction.MASK in said
    assert CANARY not in said
    assert json.dumps(CANARY) not in said


@pytest.mark.parametrize(
    "argv",
    [("--checked", CANARY), ("--token", "x", CANARY), (CANARY,), (f"--token{CANARY}",), (f"--by_host{CANARY}", "x")],
)
def test_a_mistake_beside_a_secret_does_not_show_it(argv: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(smkit.ConfigurationError) as caught:
        load("--run-dir", str(tmp_path), *argv)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("text", ["token: {0}: {0}\n", "token: {0}\nother: [1, {0}\n", "token: !x {0}\n", '"{0}: 1\n'])
def test_a_config_file_that_cannot_be_read_is_not_quoted(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text.format("canary-7f3a"))
    with pytest.raises(smkit.ConfigurationError, match=r"c\.yaml: cannot be read: .* in line \d") as caught:
        load("--run-dir", str(tmp_path), "--config", str(tmp_path / "c.yaml"))
    assert "canary" not in str(caught.value)


def test_a_short_secret_takes_nothing_away_from_texts() -> None:
    redaction.note(["on", b"off", 7, None])
    assert redaction.redacted("one of 7 on, one off") == "one of 7 on, one off"


def test_a_secret_that_is_no_text_is_refused_where_it_is_declared() -> None:
    with pytest.raises(smkit.ConfigurationError, match=r"write pydantic\.SecretStr or SecretBytes"):

        class _Numbers(smkit.Hyperparameters):
            pin: dict[str, Secret[int]] = Field(default_factory=dict)


OBEYED = [
    "\x1b]0;owned\x07",
    "\x1b]52;c;ZWNobyBoaQ==\x1b\\",
    "\x1b[2J",
    "\x1b[1A",
    "\x9b2J",
    "\x08",
    "\r",
    "\x1bc",
    "\x7f",
]


@pytest.mark.parametrize("sequence", OBEYED)
def test_a_log_gives_the_terminal_no_orders(sequence: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"loss{sequence}\tepoch \x1b[31mred\x1b[0m\nnext"
    report.say(line)
    screens.write(line)
    screens.write_json({"line": line})
    said = capsys.readouterr()
    *shown, document = said.err, *said.out.split("\n{", 1)
    for text in shown:
        assert "\tepoch \x1b[31mred\x1b[0m\nnext" in text
        assert not set(text.replace("\x1b[31m", "").replace("\x1b[0m", "")) & set("\x1b\x07\x08\r\x7f\x9b")
    assert json.loads("{" + document) == {"line": line}
    assert not set(document) & set("\x1b\x07\x08\r\x7f\x9b")


def test_the_words_of_a_launch_are_not_repeated(tmp_path: Path) -> None:
    from smkit.cli import main

    (tmp_path / "train.py").write_text("import sys\n")
    words = ["launch", "--source-dir", str(tmp_path), "--no-such-option", "train.py", "--api-key", CANARY]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(words) == 2
    assert "smkit" in said.getvalue()
    assert CANARY not in said.getvalue()
