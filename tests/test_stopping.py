"""A request to stop is heard, and its deadline kept, whatever the process is doing."""

import signal
import subprocess
import sys
import textwrap

import pytest
from patience import SECONDS, patient_with

BEGINNING = """
    import ctypes, multiprocessing, os, signal, sys, time
    from smkit import contract
    from smkit.stopping import StopRequest

    contract.STOP_DEADLINE_SECONDS = 0.2
    request = StopRequest()

    def last_words():
        print("not done", flush=True)

    def ready():
        print("ready", flush=True)

    signal.signal(signal.SIGUSR1, lambda *_: print("heard", flush=True))
    with request.listening(on_deadline=last_words):
"""
STUCK = """
        mutex = (ctypes.c_char * 64)()
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        ready()
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
LOOKING = """
        ready()
        while not request:
            time.sleep(0.01)
    print("let go", flush=True)
    time.sleep(0.5)
    sys.exit(request.exit_status)
"""
FORKING = """
        statuses = set()
        for _ in range(100):
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
            child.start()
            child.terminate()
            child.join(30)
            statuses.add(child.exitcode)
        print(statuses, bool(request), flush=True)
        time.sleep(0.5)
    print("let go", flush=True)
    before = signal.getsignal(signal.SIGTERM)
    sys.exit(0 if before is signal.SIG_DFL and signal.set_wakeup_fd(-1) == -1 else 1)
"""


def started(body: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(BEGINNING + body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_deadline_falls_though_the_main_thread_never_returns_to_python(number: int, status: int) -> None:
    with started(STUCK) as process, patient_with(process):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        process.send_signal(number)
        assert process.stdout.read().splitlines()[-1] == "not done"
        assert process.wait(SECONDS) == status


def test_one_that_lets_go_in_time_is_left_alone(unmeasured: None) -> None:
    with started(LOOKING) as process, patient_with(process):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "heard\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "let go\n"
        assert process.wait(SECONDS) == 143


def test_a_process_that_is_forked_meanwhile_can_be_ended_and_its_end_is_not_that_of_its_parent(
    unmeasured: None,
) -> None:
    # Measured, it would have had coverage's handler of SIGTERM before.
    with started(FORKING) as process, patient_with(process):
        assert process.stdout is not None
        assert process.stdout.read() == "{-15} False\nlet go\n"
        assert process.wait(SECONDS) == 0
