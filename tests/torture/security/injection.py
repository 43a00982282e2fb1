"""Words that would be orders, if anybody obeyed: in hyperparameters, names, keys, variables, lines of a log.

A round is one word in one place. It is silent if it was obeyed: a file was made, a place was written to that the words
alone name, a terminal was given an order; refused if smkit says no; survived if it came through as the word that it is.
Further rounds look at what a local job leaves open: ports, rights of files, names in the temporary folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import smkit
from smkit.cli import main
from smkit.job import Job
from torture.tally import Campaign, Outcome

_SCRIPT = """
import json, sys
from pathlib import Path
import smkit

class Settings(smkit.Hyperparameters):
    text: str = ""
    items: list[str] = []
    pairs: dict[str, str] = {}
    anything: object = None

context = smkit.TrainingContext.load(Settings)
Path(context.model_dir, "seen.json").write_text(json.dumps(context.hp.model_dump(mode="json")))
"""
_WORDS = {
    "a shell": "$(touch {mark}); `touch {mark}` | touch {mark} && touch {mark}",
    "Python": "__import__('os').system('touch {mark}')",
    "Python's format": "{{0.__class__.__init__.__globals__}}",
    "YAML": "!!python/object/apply:os.system ['touch {mark}']",
    "a template": "{{{{ cycler.__init__.__globals__.os.popen('touch {mark}') }}}}",
    "JSON": '{{"__class__": "os.system", "py/reduce": [{{"py/function": "os.system"}}, ["touch {mark}"]]}}',
    "an option": "--model-dir={mark}",
    "an end of line": "a\n--model-dir {mark}\n",
    "a variable": "${{HOME}} $HOME %HOME% ~",
    "a file to read": "@/etc/passwd",
}
_TAKES_OVER = ("model_dir", "run_dir", "checkpoint_dir", "output_data_dir", "channel", "config", "help")
_OBEYED = ("\x1b]0;owned\x07", "\x1b]52;c;aGk=\x07", "\x1b[2J", "\x1b[1;1H", "\x9b2J", "\x08\x08", "\x1bP+q\x1b\\")


def attack(campaign: Campaign) -> None:
    words(campaign)
    count, folder = campaign.tally.count, _folder(campaign)
    for what, outcome, note in _names(folder):
        count("names of jobs and channels", "smkit", outcome, f"{what}: {note}")
    for what, outcome, note in _left_open(folder):
        count("what is left open", "smkit", outcome, f"{what}: {note}")


def words(campaign: Campaign) -> None:
    """Attack without a job and without launching."""
    count, folder = campaign.tally.count, _folder(campaign)
    for what, outcome, note in _words(folder):
        count("words that are orders", "smkit", outcome, f"{what}: {note}")
    for what, outcome, note in _take_over(folder):
        count("hyperparameters that take over", "smkit", outcome, f"{what}: {note}")
    for what, outcome, note in _terminal():
        count("orders for a terminal", "smkit", outcome, f"{what}: {note}")


def _folder(campaign: Campaign) -> Path:
    folder = campaign.folder / "injection"
    (folder / "code").mkdir(parents=True, exist_ok=True)
    (folder / "code/train.py").write_text(_SCRIPT)
    return folder


_Rounds = Iterator[tuple[str, Outcome, str]]


def _tree(folder: Path, hyperparameters: dict[str, str]) -> dict[str, str]:
    """Write what the toolkit would be given, and return the variables of the job."""
    config = folder / "input/config"
    config.mkdir(parents=True, exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    return {"SAGEMAKER_BASE_DIR": str(folder), "SM_MODEL_DIR": str(folder / "model"), "SM_USER_ARGS": "[]"}


def _words(folder: Path) -> _Rounds:
    mark = folder / "obeyed"

    class Settings(smkit.Hyperparameters):
        text: str = ""
        items: tuple[str, ...] = ()
        anything: Any = None

    for kind, form in _WORDS.items():
        word = form.format(mark=mark)
        ways: dict[str, Callable[[], Any]] = {
            "a job's hyperparameter": lambda w=word: _read(folder, Settings, {"text": json.dumps(w)}).text,
            "a job's plain text": lambda w=word: _read(folder, Settings, {"text": w}).text,
            "an item": lambda w=word: _read(folder, Settings, {"items": json.dumps([w])}).items[0],
            "a value of any type": lambda w=word: _read(folder, Settings, {"anything": json.dumps(w)}).anything,
            "the command line": lambda w=word: _by_argv(folder, Settings, w).text,
        }
        for way, read in ways.items():
            outcome, note = _judged(read, word, mark)
            yield f"{kind} by {way}", outcome, note


def _read(folder: Path, settings: type[Any], hyperparameters: dict[str, str]) -> Any:
    return smkit.TrainingContext.load(settings, argv=[], env=_tree(folder / "job", hyperparameters)).hp


def _by_argv(folder: Path, settings: type[Any], word: str) -> Any:
    argv = ["--run-dir", str(folder / "run"), f"--text={word}"]
    return smkit.TrainingContext.load(settings, argv=argv, env={}).hp


def _judged(read: Callable[[], Any], word: str, mark: Path) -> tuple[Outcome, str]:
    try:
        found = read()
    except smkit.SmkitError as error:
        return (Outcome.SILENT, "it was obeyed") if mark.exists() else (Outcome.REFUSED, str(error))
    except Exception as error:
        return Outcome.LOST, f"{type(error).__name__}: {error}"
    if mark.exists():
        return Outcome.SILENT, "it was obeyed"
    return (Outcome.SURVIVED, "") if found == word else (Outcome.SILENT, f"it became {found!r}")


def _take_over(folder: Path) -> _Rounds:
    """Try hyperparameters that bear the names of what only the platform, or who starts the script, decides."""
    for name in _TAKES_OVER:
        elsewhere = folder / "elsewhere"
        value = {"channel": f"train={elsewhere}", "config": str(elsewhere / "a.yaml")}.get(name, str(elsewhere))
        # The toolkit makes arguments of hyperparameters too.
        argv = [f"--{name}", value] if name != "help" else []
        environment = _tree(folder / "job", {name: json.dumps(value)}) | {"SM_USER_ARGS": json.dumps(argv)}
        try:
            context = smkit.TrainingContext.load(smkit.Hyperparameters, argv=argv, env=environment)
            is_moved = str(elsewhere) in f"{context!r} {context.channels}"
            yield name, Outcome.SILENT if is_moved else Outcome.SURVIVED, repr(context)[:300]
        except smkit.ConfigurationError as error:
            yield name, Outcome.REFUSED, str(error)
    for name in ("sagemaker_program", "sagemaker_submit_directory", "a;b", "a b", "PATH\n", "-x", "a=b"):
        with _a_cloud():
            try:
                smkit.launch("train.py", source_dir=folder / "code", hyperparameters={name: "x"}, **_CLOUD)
                yield f"launch with {name!r}", Outcome.SILENT, "it travels"
            except smkit.ConfigurationError as error:
                yield f"launch with {name!r}", Outcome.REFUSED, str(error)


class _Service:
    """A job whose every word is an order for a terminal."""

    poll_seconds = 0.01
    stops_on_interrupt = False

    def __init__(self, order: str, status: str) -> None:
        self.order, self.status = order, status

    def describe(self, name: str) -> dict[str, Any]:
        return {
            "TrainingJobName": name,
            "TrainingJobStatus": self.status,
            "FailureReason": f"AlgorithmError: {self.order}",
            "ModelArtifacts": {"S3ModelArtifacts": f"s3://bucket/{self.order}/model.tar.gz"},
            "SecondaryStatusTransitions": [{"Status": "Training", "StatusMessage": self.order}],
        }

    def log_location(self, name: str) -> str:
        return f"a log of {name}"

    def log_lines(self, name: str) -> Iterator[Any]:
        from smkit.log_view import LogLine

        yield LogLine(f"epoch 1 {self.order} loss", host=f"algo-1{self.order}", shows_host=True)
        while True:
            yield None

    def settle_seconds(self, description: Any) -> float:
        return 0.0

    def last_words(self, name: str) -> list[str]:
        return ["Traceback (most recent call last):", '  File "a.py", line 1', f"ValueError: {self.order}"]


def _terminal() -> _Rounds:
    for order in _OBEYED:
        for status in ("Completed", "Failed"):
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                try:
                    Job("a-job", _Service(order, status)).wait()  # type: ignore[arg-type]
                except smkit.JobError as error:
                    from smkit import report

                    report.say(str(error))
            controls = set(said.getvalue()) & set("\x1b\x07\x08\x9b\r")
            outcome = Outcome.SILENT if controls else Outcome.SURVIVED
            yield f"{order!r} of a job that is {status}", outcome, repr(said.getvalue()[:200])


_CLOUD: dict[str, Any] = {
    "instance_type": "ml.m5.large",
    "role": "arn:aws:iam::123456789012:role/Training",
    "bucket": "a-bucket",
    "region": "us-east-1",
    "vendor": "none",
    "dry_run": True,
}


@contextlib.contextmanager
def _a_cloud() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="y", AWS_EC2_METADATA_DISABLED="true")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _names(folder: Path) -> _Rounds:
    bad = ("../up", "a/b", "/abs", "a b", "$(id)", "-x", "a\n", "a" * 64, "", ".", "~")
    for name in bad:
        # A channel's name may begin with "-" and have 64 letters (API: ChannelName).
        for what in ("job", "attach") if name in ("-x", "a" * 64) else ("job", "channel", "attach"):
            with _a_cloud():
                try:
                    if what == "attach":
                        with contextlib.redirect_stderr(io.StringIO()) as said:
                            status = main(["status", "--output-dir", str(folder / "runs"), "--", name])
                        yield f"{what} {name!r}", Outcome.REFUSED if status else Outcome.SILENT, said.getvalue()
                        continue
                    changed = {"name": name} if what == "job" else {"inputs": {name: "s3://bucket/data"}}
                    smkit.launch("train.py", source_dir=folder / "code", **_CLOUD, **changed)
                    yield f"{what} {name!r}", Outcome.SILENT, "it was taken"
                except smkit.SmkitError as error:
                    yield f"{what} {name!r}", Outcome.REFUSED, str(error)
                except Exception as error:
                    yield f"{what} {name!r}", Outcome.LOST, f"{type(error).__name__}: {error}"


def _left_open(folder: Path) -> _Rounds:
    """Start a local job and look at what others on this machine could get at."""
    mask = os.umask(0o022)
    os.umask(mask)
    before = {path.name for path in Path(tempfile.gettempdir()).iterdir()}
    job = smkit.launch("train.py", instance_type="local", source_dir=folder / "code", output_dir=folder / "runs")
    with contextlib.suppress(smkit.SmkitError):
        job.wait(show_logs=False)
    loose = [
        str(path.relative_to(folder))
        for path in (folder / "runs").rglob("*")
        if not path.is_symlink() and path.stat().st_mode & stat.S_IWOTH
    ]
    outcome = Outcome.SILENT if loose and mask & 0o002 else Outcome.SURVIVED
    yield "files of a run that anybody may write to", outcome, ", ".join(loose)
    listening = _open_ports(job.name)
    yield "ports that a run listens on", Outcome.SILENT if listening else Outcome.SURVIVED, ", ".join(listening)
    left = {path.name for path in Path(tempfile.gettempdir()).iterdir()} - before
    ours = [name for name in left if name.startswith("smkit")]
    yield "files left in the temporary folder", Outcome.SILENT if ours else Outcome.SURVIVED, ", ".join(ours)
    yield _squatted(folder)


def _open_ports(name: str) -> list[str]:
    """Return the addresses that processes of a job listen on, other than this machine's own."""
    found = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=False).stdout
    return [line.split()[3] for line in found.splitlines() if name in line]


def _squatted(folder: Path) -> tuple[str, Outcome, str]:
    """Take the name of smkit's cache in the temporary folder before it is made, by a link to what is another's."""
    place, others = folder / "tmp", folder / "others"
    place.mkdir()
    others.mkdir()
    (place / f"smkit-cache-{os.geteuid()}").symlink_to(others)
    (folder / "table").mkdir()
    (folder / "table/a.csv").write_text("x,y\n1,2\n")
    code = "import smkit; print(smkit.open_dataset(smkit.Channel(name='train', path='table')))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    is_used = any(others.iterdir())
    outcome = Outcome.SILENT if is_used else Outcome.REFUSED if run.returncode else Outcome.SURVIVED
    return "a link in the place of the cache", outcome, run.stderr[-300:]
