"""A job's handle, with a service that plays a script of the test; and what it makes of logs and archives."""

from __future__ import annotations

import contextlib
import datetime
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import patient_with

from smkit import contract
from smkit.artifacts import Artifact, Remains, unpack
from smkit.errors import ConfigurationError, JobError
from smkit.job import Job
from smkit.job_cost import Price
from smkit.log_view import LogLine, collapse_bars, last_lines, last_traceback
from smkit.metric_rows import JobMetrics, read_metrics
from smkit.watching import OutOfReach

OUTAGE = OutOfReach("AWS cannot be reached", where="job 'job'", fix="check the network")


class Service:
    """A service that plays a script: its looks at the log, and the descriptions it gives, one after the other."""

    def __init__(
        self, log: Sequence[Any] = (), descriptions: Sequence[Any] = (), *, words: Sequence[str] = (), hosts: int = 1
    ) -> None:
        self.poll_seconds = 0.0
        self.stops_on_interrupt = False
        self.log, self.words, self.hosts = list(log), words, hosts
        self.descriptions = list(descriptions) or [completed()]
        self.stopped: list[float] = []

    def describe(self, name: str) -> Mapping[str, Any]:
        next_one = self.descriptions.pop(0) if len(self.descriptions) > 1 else self.descriptions[0]
        if isinstance(next_one, BaseException):
            raise next_one
        return {"TrainingJobName": name, **next_one}

    def list_jobs(self, name_contains: str | None = None, limit: int = 20) -> Sequence[Mapping[str, Any]]:
        return []

    def log_location(self, name: str) -> str:
        return f"the log of {name}"

    def log_lines(self, name: str) -> Iterator[LogLine | None]:
        return _Lines(self.log, shows_host=self.hosts > 1)

    def settle_seconds(self, description: Mapping[str, Any]) -> float:
        return 0.05

    def last_words(self, name: str) -> Sequence[str]:
        return self.words

    def stop(self, name: str, *, grace_seconds: float) -> None:
        self.stopped.append(grace_seconds)

    def model_dirs(self, name: str) -> Sequence[Path]:
        return []

    @contextlib.contextmanager
    def remains(self, description: Mapping[str, Any], what: Artifact, *, near: Path) -> Iterator[Remains]:
        yield Remains([], are_ours=False)

    def prices(self, description: Mapping[str, Any]) -> Mapping[str, Price]:
        return {"ml.g5.xlarge": Price(2.0, "pricing API, 2026-11-01")}


class _Lines(Iterator["LogLine | None"]):
    def __init__(self, log: Sequence[Any], *, shows_host: bool) -> None:
        self._log, self._shows_host = iter(log), shows_host

    def __next__(self) -> LogLine | None:
        step = next(self._log, None)
        if isinstance(step, BaseException):
            raise step
        if step is None:
            return None
        host, text = re.fullmatch(r"(?:(\w+)\|)?(.*)", step, re.DOTALL).groups()  # type: ignore[union-attr]
        return LogLine(text, host=host or "algo-1", shows_host=self._shows_host)


def running(*states: str) -> dict[str, Any]:
    changes = [{"Status": state, "StartTime": number, "StatusMessage": "..."} for number, state in enumerate(states)]
    return {"TrainingJobStatus": "InProgress", "SecondaryStatusTransitions": changes}


def completed() -> dict[str, Any]:
    return {"TrainingJobStatus": "Completed", "ModelArtifacts": {"S3ModelArtifacts": "s3://bucket/job/model.tar.gz"}}


def failed(reason: str) -> dict[str, Any]:
    return {"TrainingJobStatus": "Failed", "FailureReason": reason}


# --- waiting --------------------------------------------------------------------------------------------------------


def test_a_wait_tells_the_states_until_the_log_begins_and_then_only_what_a_script_cannot_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = ["Starting", "Downloading", "Training", "Interrupted", "Starting"]
    descriptions = [running(*states[:count]) for count in (1, 2, 2, 3, 4, 5)] + [completed()]
    log = [None, None, None, "epoch 1", None, None, None, "epoch 2", None]
    Job("job", Service(log, descriptions)).wait()
    assert capsys.readouterr().err.splitlines() == [
        "job 'job': Starting: ...",
        "job 'job': Downloading: ...",
        "epoch 1",
        "job 'job': Interrupted: ...",
        "job 'job': Starting: ...",
        "epoch 2",
        "job 'job' completed; its model: s3://bucket/job/model.tar.gz",
    ]


def test_a_line_that_comes_after_the_end_is_not_lost() -> None:
    assert list(Job("job", Service(["a", None, None, "b", None, "c"])).logs()) == ["a", "b", "c"]


def test_a_log_that_is_slow_to_read_is_looked_at_more_than_once_after_the_end() -> None:
    service = Service(["a", None, None, "b", None, "c"])
    service.settle_seconds = lambda _: 1e-9  # type: ignore[method-assign]
    assert list(Job("job", service).logs()) == ["a", "b", "c"]


def test_outages_do_not_end_a_wait_and_each_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smkit.watching._SAID_AFTER_SECONDS", 0.0)
    monkeypatch.setattr("smkit.watching._FIRST_PAUSE_SECONDS", 0.01)
    service = Service(["a", OUTAGE, OUTAGE, "b", None, OUTAGE, "c"], [OUTAGE, running(), completed()])
    Job("job", service).wait()
    said = "job 'job' goes on, but cannot be asked: AWS cannot be reached; check the network; trying again"
    assert capsys.readouterr().err.splitlines() == [
        "a",
        said,
        "b",
        said,
        "c",
        "job 'job' completed; its model: s3://bucket/job/model.tar.gz",
    ]


def test_an_outage_between_the_end_of_a_job_and_the_next_look_is_waited_out_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smkit.watching._FIRST_PAUSE_SECONDS", 0.01)
    assert list(Job("job", Service(["a", None, OUTAGE, "b", None])).logs()) == ["a", "b"]


def test_patience_ends_where_only_a_person_can_help_and_the_job_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smkit.watching._FIRST_PAUSE_SECONDS", 0.01)
    expired = OutOfReach(
        "the credentials have expired",
        where="job 'job'",
        fix="aws sso login",
        patience_seconds=0.02,
        is_said_at_once=True,
    )
    with pytest.raises(JobError) as caught:
        Job("job", Service([expired] * 20)).wait()
    assert str(caught.value) == (
        "job 'job' cannot be watched any longer, but goes on by itself: the credentials have expired\n"
        "  where: job 'job'\n"
        "  fix:   aws sso login; then smkit attach job"
    )
    assert capsys.readouterr().err == (
        "job 'job' goes on, but cannot be asked: the credentials have expired; aws sso login; trying again\n"
    )


def test_a_deadline_falls_into_an_outage_as_well() -> None:
    with pytest.raises(JobError, match=r"is still running after 0\.1 s"):
        Job("job", Service([], [OUTAGE])).wait(timeout_seconds=0.1)


def test_a_log_that_always_grows_is_read_up_to_now_all_the_same() -> None:
    endless = Job("job", Service([*itertools.chain.from_iterable(zip("abc" * 99, itertools.repeat(None)))]))
    assert "".join(endless.logs(follow=False)) == "abcabcabcab"
    assert list(Job("job", Service(["a", None, "b", None, None, "c"])).logs(follow=False)) == ["a", "b"]


def test_a_log_that_never_pauses_does_not_outlast_the_time_to_wait() -> None:
    def endless() -> Iterator[LogLine]:
        for number in itertools.count():
            yield LogLine(f"line {number}", host="algo-1", shows_host=False)

    service = Service(descriptions=[running("Training")])
    service.log_lines = lambda name: endless()  # type: ignore[assignment, method-assign]
    with pytest.raises(JobError, match="is still running after 0 s"):
        Job("job-1", service).wait(timeout_seconds=0)
    ended = Service([f"line {number}" for number in range(5)])
    assert Job("job-1", ended).wait(timeout_seconds=0).status == "Completed"


def test_the_environment_that_the_toolkit_shows_is_folded_and_no_line_of_the_script(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = ["Training Env:", "{", "Invoking script with the following command:", "end"]
    before = ["pip install", "Training Env:", "{", "SM_HOSTS=[]"]
    log = [*before, "Invoking script with the following command:", "python train.py", *script]
    Job("job-1", Service(log)).wait()
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == ["pip install", "(the job's environment: 3 lines in the log)", *log[4:5]]
    assert said[3:8] == ["python train.py", *script]
    assert list(Job("job-1", Service(log)).logs()) == log


WAIT_FOR_EVER = """
    import sys; sys.path.insert(0, {tests!r})
    from test_job import Job, Service, running
    service = Service(["ready"], [running("Training")])
    service.poll_seconds = 600.0
    Job("job-1", service).wait()
"""


def test_ctrl_c_leaves_a_job_alone_and_says_how_to_come_back(unmeasured: None) -> None:
    program = textwrap.dedent(WAIT_FOR_EVER.format(tests=str(Path(__file__).parent)))
    with (
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as waiting,
        patient_with(waiting),
    ):
        assert waiting.stderr is not None
        assert any(line == "ready\n" for line in waiting.stderr)
        waiting.send_signal(signal.SIGINT)
        said = waiting.stderr.read()
    assert "detached; job 'job-1' goes on:\n  smkit attach job-1\n  smkit stop job-1\n" in said
    assert "KeyboardInterrupt" in said
    assert waiting.returncode in (-signal.SIGINT, 130)


# --- the end --------------------------------------------------------------------------------------------------------

TORCHRUN_LOG = """epoch 1
[rank1]: Traceback (most recent call last):
[rank1]:   File "/opt/ml/code/train.py", line 3, in <module>
[rank1]:     main()
[rank1]:   File "/opt/ml/code/train.py", line 2, in main
[rank1]:     raise ValueError("no column 'label'")
[rank1]: ValueError: no column 'label'
W1125 torch/distributed/elastic: Sending process 21 closing signal SIGTERM
Traceback (most recent call last):
  File "/usr/local/bin/torchrun", line 8, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
"""


def test_a_failure_is_raised_with_the_scripts_own_traceback_and_the_address_of_the_log() -> None:
    service = Service(
        [], [failed("AlgorithmError: ExecuteUserScriptError:\nExitCode 1")], words=TORCHRUN_LOG.split("\n")
    )
    with pytest.raises(JobError) as caught:
        Job("job", service).wait(show_logs=False)
    assert str(caught.value) == (
        "job 'job' failed: ValueError: no column 'label'\n"
        "    Traceback (most recent call last):\n"
        '      File "/opt/ml/code/train.py", line 3, in <module>\n'
        "        main()\n"
        '      File "/opt/ml/code/train.py", line 2, in main\n'
        "        raise ValueError(\"no column 'label'\")\n"
        "    ValueError: no column 'label'\n"
        "    FailureReason: AlgorithmError: ExecuteUserScriptError:\n"
        "    ExitCode 1\n"
        "  where: the log of job\n"
        "  fix:   mend what the log says and launch again"
    )


def test_a_reason_that_holds_the_exception_is_not_given_twice() -> None:
    service = Service([], [failed("AlgorithmError: ValueError: no column 'label'")], words=TORCHRUN_LOG.split("\n"))
    with pytest.raises(JobError) as caught:
        Job("job", service).wait(show_logs=False)
    assert "FailureReason" not in str(caught.value)


@pytest.mark.parametrize(("code", "said"), [("1", ""), ("-9", "    killed: perhaps it was out of memory\n")])
def test_without_a_traceback_a_failure_shows_what_the_script_said_last(code: str, said: str) -> None:
    log = [
        *(
            "SM_MODULE_NAME=train",
            "",
            "Invoking script with the following command:",
            "",
            "/usr/bin/python3 train.py",
            "",
        ),
        *(f"epoch {number}" for number in range(20)),
        "cannot go on: no column 'label'",
        "2026-11-25 23:29:13,608 sagemaker-training-toolkit INFO     Waiting for the process to finish",
        f"2026-11-25 23:29:13,609 sagemaker-training-toolkit ERROR    ExecuteUserScriptError:\nExitCode {code}",
        'ErrorMessage ""',
    ]
    reason = f'AlgorithmError: ExecuteUserScriptError:\nExitCode {code}\nErrorMessage ""'
    with pytest.raises(JobError) as caught:
        Job("job", Service([], [failed(reason)], words=log)).wait(show_logs=False)
    assert caught.value.what == (
        "job 'job' failed: AlgorithmError: ExecuteUserScriptError:\n"
        f"    ExitCode {code}\n"
        '    ErrorMessage ""\n'
        f"{said}"
        "    the end of its log:\n"
        + "".join(f"    epoch {number}\n" for number in range(11, 20))
        + "    cannot go on: no column 'label'"
    )
    assert last_lines(log[:6]) == last_lines([]) == []


def test_arguments_of_a_wrong_type_are_said(tmp_path: Path) -> None:
    job = Job("job", Service())
    for seconds in ("3", float("nan"), True):
        with pytest.raises(ConfigurationError, match="is no length of time"):
            job.wait(timeout_seconds=seconds)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="None is no path"):
        job.download(None)  # type: ignore[arg-type]


TOOLKIT_LOG = """\
hello
@
Traceback (most recent call last):
File "/opt/ml/code/train.py", line 6, in <module>
@
f()
@
File "/opt/ml/code/train.py", line 3, in f
@
raise ValueError('no column label')
@
ValueError
:
no column label
@
@
The above exception was the direct cause of the following exception:
@
Traceback (most recent call last):
File "/opt/ml/code/train.py", line 8, in <module>
@
raise RuntimeError('cannot read') from e
@
RuntimeError
:
cannot read
@
2026-11-25 23:29:13,608 sagemaker-training-toolkit INFO     Waiting for the process to finish and give a return code.
2026-11-25 23:29:13,609 sagemaker-training-toolkit ERROR    ExecuteUserScriptError:
ExitCode 1
ErrorMessage "raise ValueError('no column label')
 Traceback (most recent call last)
 RuntimeError
 cannot read"
""".replace("@", " ")


def test_what_the_toolkit_has_cut_into_pieces_is_put_together() -> None:
    assert "\n".join(last_traceback(TOOLKIT_LOG.split("\n"))) == textwrap.dedent("""\
        Traceback (most recent call last):
          File "/opt/ml/code/train.py", line 6, in <module>
            f()
          File "/opt/ml/code/train.py", line 3, in f
            raise ValueError('no column label')
        ValueError: no column label

        The above exception was the direct cause of the following exception:

        Traceback (most recent call last):
          File "/opt/ml/code/train.py", line 8, in <module>
            raise RuntimeError('cannot read') from e
        RuntimeError: cannot read""")


@given(
    chance=st.randoms(use_true_random=False),
    depth=st.integers(0, 6),
    message=st.sampled_from(["a: b", "", "two words"]),
    is_stripped=st.booleans(),
)
def test_a_traceback_survives_wherever_it_was_cut(
    chance: random.Random, depth: int, message: str, *, is_stripped: bool
) -> None:
    def fall(left: int) -> None:
        if left:
            fall(left - 1)
        raise ValueError(message)

    try:
        fall(depth)
    except ValueError:
        whole = traceback.format_exc()
    pieces = [line + chance.choice(["", "\n", " \n"]) for line in whole.splitlines(keepends=True)]
    name = chance.choice(["ValueError: ", "ValueError\n:\n", "ValueError:\n"])
    lines = "".join(pieces).replace("ValueError: ", name).split("\n")
    found = last_traceback([line.strip() for line in lines] if is_stripped else lines)
    assert found[-1] == (f"ValueError: {message}" if message else "ValueError")
    frames = [line for line in found if line.startswith("  File ")]
    repeated = [int(words[1]) for line in found if (words := re.search(r"repeated (\d+) more", line))]
    assert len(frames) + sum(repeated) == depth + 2


@given(st.lists(st.sampled_from([*TOOLKIT_LOG.split("\n"), *TORCHRUN_LOG.split("\n"), "x", "    y", ":"]), max_size=60))
def test_any_log_has_a_last_traceback_or_none(texts: list[str]) -> None:
    assert len(last_traceback(texts)) <= 30


def test_only_a_traceback_near_the_end_is_why_a_script_has_failed_and_a_long_one_is_cut() -> None:
    short = ["Traceback (most recent call last):", '  File "a.py", line 1', "KeyError: 'a'"]
    assert last_traceback([*short, *["line"] * 300]) == []
    assert last_traceback([*short, "line"]) == short
    assert last_traceback(["Traceback (most recent call last):"]) == []
    deep = [short[0], *(f'  File "a.py", line {number}' for number in range(100)), short[-1]]
    assert last_traceback(deep) == [*deep[:14], "  ... 73 lines ...", *deep[-15:]]


@pytest.mark.parametrize(
    ("secondary", "said"),
    [
        ("Stopped", "was stopped"),
        ("MaxRuntimeExceeded", "was stopped: it ran for longer than it was allowed to"),
        ("MaxWaitTimeExceeded", "was stopped: it waited for spot instances for longer"),
    ],
)
def test_a_stopped_job_says_what_stopped_it(secondary: str, said: str) -> None:
    stopped = {"TrainingJobStatus": "Stopped", "SecondaryStatus": secondary}
    with pytest.raises(JobError, match=f"^job 'job' {said}"):
        Job("job", Service([], [stopped])).wait()


def test_a_job_that_left_no_model_says_so() -> None:
    with pytest.raises(JobError, match="has completed and left no model"):
        _ = Job("job", Service([], [{"TrainingJobStatus": "Completed"}])).model_uri


def test_what_a_job_costs() -> None:
    times: dict[str, Any] = {"TrainingTimeInSeconds": 7200, "BillableTimeInSeconds": 1800}
    on_spot = completed() | times | {"ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2}}
    cost = Job("job", Service([], [on_spot])).cost()
    assert (cost.dollars, cost.spot_saving_percent, cost.instance_count) == (2.0, 75.0, 2)
    assert str(cost) == (
        "1,800 billable s of 7,200 s on 2 x ml.g5.xlarge, spot saves 75 %: $2.00 ($2/h for ml.g5.xlarge by the "
        "pricing API, 2026-11-01)"
    )
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=90)
    groups = [{"InstanceType": kind, "InstanceCount": 1} for kind in ("ml.g5.xlarge", "ml.c5.xlarge")]
    mixed = running("Training") | {"TrainingStartTime": start, "ResourceConfig": {"InstanceGroups": groups}}
    cost = Job("job", Service([], [mixed])).cost()
    assert cost.dollars is None
    assert 90 <= cost.billable_seconds < 120
    assert str(cost).endswith("s on 1 x ml.g5.xlarge + 1 x ml.c5.xlarge: price unknown, so far")


# --- the log --------------------------------------------------------------------------------------------------------


def test_a_bar_is_seen_at_its_last_state_on_each_host() -> None:
    steps = [
        *(
            "start",
            "epoch 1:   0%|          | 0/2 [00:00<?, ?it/s]",
            "b|epoch 1:  50%|#####     | 1/2 [00:01<00:01,  1.0it/s]",
        ),
        *("epoch 1: 100%|##########| 2/2 [00:02<00:00,  1.0it/s]", None, "loss 0.1", "b|done"),
        *("epoch 2:   0%|          | 0/2 [00:00<?, ?it/s]", "epoch 3:   0%|          | 0/2 [00:00<?, ?it/s]"),
        *(
            "epoch 3:  50%|#####     | 1/2 [00:01<00:01,  1.0it/s]",
            "12it [00:01, 9.3it/s]",
            "13it [00:02, 9.3it/s]",
            "2it [00:01, 2.0it/s]",  # A count that is lower belongs to another bar.
            "a 50% b",
        ),
        *("\r  0%| | 0/9 [00:00<?, ?it/s]\r 11%|# | 1/9 [00:01<00:08, 1.0it/s]\r", "\r\r", "end [1/2]"),
    ]
    assert list(Job("job", Service(steps, hosts=2)).logs()) == [
        "[algo-1] start",
        "[algo-1] epoch 1: 100%|##########| 2/2 [00:02<00:00,  1.0it/s]",
        "[algo-1] loss 0.1",
        "[b] epoch 1:  50%|#####     | 1/2 [00:01<00:01,  1.0it/s]",
        "[b] done",
        "[algo-1] epoch 2:   0%|          | 0/2 [00:00<?, ?it/s]",
        "[algo-1] epoch 3:  50%|#####     | 1/2 [00:01<00:01,  1.0it/s]",
        "[algo-1] 13it [00:02, 9.3it/s]",
        "[algo-1] 2it [00:01, 2.0it/s]",
        "[algo-1] a 50% b",
        "[algo-1]  11%|# | 1/9 [00:01<00:08, 1.0it/s]",
        "[algo-1] ",
        "[algo-1] end [1/2]",
    ]


def test_a_bar_that_goes_on_is_shown_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smkit.log_view._BAR_SECONDS", 0.0)
    bars = [LogLine(f" {n}0%|## | {n}/9 [00:01<00:01, 1.0it/s]", host="a", shows_host=False) for n in range(4)]
    lines = [bars[0], None, None, bars[1], bars[2], None, bars[3]]
    assert list(collapse_bars(iter(lines))) == [bars[0], None, None, bars[2], None, bars[3]]


def test_a_line_that_a_pattern_could_choke_on_is_no_bar() -> None:
    line = "5%|" + "|" * 200_000
    assert list(Job("job", Service([line, "end"])).logs()) == [line, "end"]


@given(
    st.lists(
        st.none() | st.text(alphabet=st.characters(exclude_characters="\r"), max_size=20).filter(lambda t: "|" not in t)
    )
)
def test_lines_that_are_no_bars_come_as_they_are(texts: list[str | None]) -> None:
    lines = [None if text is None else LogLine(text, host="a", shows_host=False) for text in texts]
    assert list(collapse_bars(iter(lines))) == lines


def test_each_host_has_a_colour_on_a_terminal_that_wants_it() -> None:
    program = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_job import Job, Service
        Job("job", Service(["a|1", "b|2", "a|3"], hosts=2)).wait()
    """)
    coloured = "\x1b[36m[a]\x1b[0m 1\r\n\x1b[33m[b]\x1b[0m 2\r\n\x1b[36m[a]\x1b[0m 3\r\n"
    assert coloured in on_terminal(program, {})
    assert "[a] 1\r\n[b] 2\r\n[a] 3\r\n" in on_terminal(program, {"NO_COLOR": "1"})


def on_terminal(program: str, environment: dict[str, str]) -> str:
    """Run a program whose standard error is a terminal, and return what it wrote there."""
    mine, its = os.openpty()
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen([sys.executable, "-c", program], stderr=its, env=plain | environment) as process:
        os.close(its)
        written = b""
        with contextlib.suppress(OSError):  # The end of a terminal is an error.
            while part := os.read(mine, 4096):
                written += part
    os.close(mine)
    assert process.returncode == 0, written
    return written.decode()


def test_lines_are_texts_that_can_be_sent_to_another_process() -> None:
    lines = list(Job("job", Service(["a|1"], hosts=2)).logs())
    (line,) = pickle.loads(pickle.dumps(lines))
    assert (line, line.host, line.text) == ("[a] 1", "a", "1")
    assert json.dumps(lines) == '["[a] 1"]'


# --- metrics --------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_characters=" =\n", exclude_categories=("Z", "C")), min_size=1, max_size=12)
VALUES = st.dictionaries(NAMES, st.floats(), min_size=1, max_size=5)


@given(st.integers(0, 10**9), st.integers(0, 10**4), VALUES, st.sampled_from(["", "[algo-1] ", "INFO "]))
def test_a_metric_line_is_read_back(step: int, epoch: int, values: dict[str, float], before: str) -> None:
    record = contract.parse_metric_line(before + contract.metric_line(step, epoch, values))
    assert record is not None
    assert record[:2] == (step, epoch)
    assert record[2] == pytest.approx({name: float(f"{value:.6g}") for name, value in values.items()}, nan_ok=True)


@given(st.text() | st.from_regex(r"\[metrics\] step=\d+ epoch=\d+ .{0,20}"))
def test_any_other_line_is_no_record_and_no_error(line: str) -> None:
    record = contract.parse_metric_line(line)
    assert record is None or "[metrics] step=" in line


def record(step: int, **values: float) -> str:
    return contract.metric_line(step, step // 10, values).rstrip()


def test_metrics_are_rows_and_the_second_life_of_a_job_counts() -> None:
    log = [record(10, loss=0.9), record(20, loss=0.7), record(20, accuracy=0.5), "...", record(30, loss=math.nan)]
    log += [record(20, loss=0.6), record(20, accuracy=0.4), record(30, loss=0.65)]
    metrics = Job("job", Service(log)).metrics()
    assert metrics.rows == [
        {"step": 10, "epoch": 1, "loss": 0.9},
        {"step": 20, "epoch": 2, "loss": 0.6, "accuracy": 0.4},
        {"step": 30, "epoch": 3, "loss": 0.65},
    ]
    assert str(metrics) == textwrap.dedent("""\
        3 rows
            step  epoch  loss  accuracy
            10    1      0.9
            20    2      0.6   0.4
            30    3      0.65
          best loss: 0.6 at step 20
          best accuracy: 0.4 at step 20""")


def test_without_metric_lines_the_services_own_findings_are_given() -> None:
    found = completed() | {"FinalMetricDataList": [{"MetricName": "loss", "Value": 0.25}]}
    assert Job("job", Service(["loss=0.25"], [found])).metrics().rows == [{"step": 0, "epoch": 0, "loss": 0.25}]
    nothing = Job("job", Service(["hello"])).metrics()
    assert (nothing.rows, str(nothing)) == ([], "no metrics: the log has no line that begins with [metrics]")


@pytest.mark.train
def test_metrics_become_an_event_file_that_tensorboard_reads(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    texts = [record(10, loss=0.5), record(20, loss=0.25)]
    lines = [LogLine(text, host="a", shows_host=False, seconds=100.0 + n) for n, text in enumerate(texts)]
    folder = read_metrics(lines).write_tensorboard(tmp_path / "events")
    read = EventAccumulator(str(folder)).Reload().Scalars("loss")
    assert [(point.wall_time, point.step, point.value) for point in read] == [(100.0, 10, 0.5), (101.0, 20, 0.25)]


def test_without_tensorboard_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"] or ["tensorboard"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match="pip install tensorboard"):
        JobMetrics([]).write_tensorboard(tmp_path)


# --- archives -------------------------------------------------------------------------------------------------------


def archive(path: Path, *entries: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for entry in entries:
            if isinstance(entry, tuple):
                information = tarfile.TarInfo(entry[0])
                information.size, information.mode = len(entry[1]), 0o6777
                file.addfile(information, io.BytesIO(entry[1]))
            else:
                file.addfile(entry)
    return path


def entry(name: str, kind: bytes, to: str = "", **further: Any) -> tarfile.TarInfo:
    information = tarfile.TarInfo(name)
    information.type, information.linkname = kind, to
    for word, value in further.items():
        setattr(information, word, value)
    return information


def test_links_become_copies_and_rights_those_of_a_plain_file(tmp_path: Path) -> None:
    packed = archive(
        *(tmp_path / "a.tar.gz", entry(".", tarfile.DIRTYPE), entry("./empty", tarfile.DIRTYPE)),
        *(entry("latest", tarfile.SYMTYPE, "steps/2"), entry("best", tarfile.SYMTYPE, "latest")),
        *(("./steps/1/w", b"one"), ("steps/2/w", b"two"), entry("hard", tarfile.LNKTYPE, "steps/1/w")),
        entry("steps/2/first", tarfile.SYMTYPE, "../1/w"),
    )
    (tmp_path / "out").mkdir()
    unpack(packed, tmp_path / "out", name="model.tar.gz")
    found = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items() if "first" not in name} == {
        "steps/1/w": b"one",
        "steps/2/w": b"two",
        "latest/w": b"two",
        "best/w": b"two",
        "hard": b"one",
    }
    assert found["steps/2/first"].read_bytes() == b"one"
    assert not any(path.is_symlink() or path.stat().st_mode & 0o7022 for path in found.values())


# What leads out of the folder, and much more, is tried in torture/test_security_archives.py.
TOO_MUCH: dict[str, tuple[Callable[[], Sequence[Any]], str]] = {
    "a bomb": (lambda: [("zeros", bytes(120 * 2**20))], "more than 105 MB come of it"),
    "folders in folders": (lambda: [("d/" * 300 + "x", b"x")], "lies more than 200 folders deep"),
    "two of one name": (lambda: [("a", b"x"), ("a", b"y")], "has the name of another one"),
    "a chain of links": (
        lambda: [("l99", b"x"), *(entry(f"l{number}", tarfile.SYMTYPE, f"l{number + 1}") for number in range(99))],
        "or through more than 40 others",
    ),
    "many folders": (lambda: [entry("d", tarfile.DIRTYPE)] * 30_000, "more than 105 MB come of it"),
    "a header of its own": (
        lambda: [entry("a", tarfile.REGTYPE, pax_headers={"comment": "x" * 2**21})],
        "a header of 2,0[0-9,]+ bytes",
    ),
    "a time of another age": (lambda: [entry("a", tarfile.REGTYPE, mtime=2**70)], ""),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_only_an_attacker_packs_is_refused(case: str, tmp_path: Path) -> None:
    entries, words = TOO_MUCH[case]
    (tmp_path / "out").mkdir()
    packed = archive(tmp_path / "a.tar.gz", *entries())
    with pytest.raises(JobError, match=rf"^the archive (is not|cannot be) unpacked: .*{words}"):
        unpack(packed, tmp_path / "out", name="model.tar.gz")


def test_a_bomb_stops_at_what_the_disk_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = archive(tmp_path / "a.tar.gz", ("zeros", bytes(3 * 2**20)))
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    monkeypatch.setattr("smkit.artifacts._SPARE_BYTES", free - 2**20)
    (tmp_path / "out").mkdir()
    with pytest.raises(JobError, match="more in it than the disk has room for"):
        unpack(packed, tmp_path / "out", name="model.tar.gz")


@given(seed=st.integers(0, 2**32))
def test_a_damaged_archive_is_a_clear_error_or_what_it_was(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("damaged")
    generator = random.Random(seed)
    data = bytearray(archive(place / "a.tar.gz", ("a", b"content" * 50), ("b/c", b"more")).read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    (place / "b.tar.gz").write_bytes(data[: generator.choice([len(data), generator.randrange(len(data))])])
    (place / "out").mkdir()
    with contextlib.suppress(JobError):
        unpack(place / "b.tar.gz", place / "out", name="model.tar.gz")
        files = {
            str(path.relative_to(place / "out")): path.read_bytes()
            for path in (place / "out").rglob("*")
            if path.is_file()
        }
        assert files == {"a": b"content" * 50, "b/c": b"more"}
