"""Everything that can be run on this project; each session installs what it needs into an environment of its own.

nox -s quickstart        train the digits example through the real sagemaker-training toolkit
nox                      lint; types and tests; the torch-free half on each Python; the oldest dependencies
nox -s types             the types alone
nox -s benchmarks        measure the loop and the start-up beside the peers (long; prints tables)
nox -s data_benchmarks   measure reading data beside the peers (long; prints tables)
nox -s interop           start one script by smkit and by both SageMaker SDKs, to the same model
nox -s torture           attack smkit and its peers, group by group, and count what was lost (hours; prints tables)
nox -s launch_benchmarks measure submitting and its weight beside both SDKs (long; prints tables)
nox -s lock              resolve anew what the sessions of CI install, with hashes, into tests/locks
nox -s audit             look for known vulnerabilities in what the locks name
"""

import os
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests", "portable", "minimums"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True
nox.needs_version = ">=2025.2"

CONSTRAINTS = "tests/constraints.txt"
# Three processes on the two cores of CI, for many tests wait for others; they share the tests file by file in their
# order. Torch's threads would only wait for each other's.
SHARED = ("-n", "3", "--dist", "loadfile", "--no-loadscope-reorder")
# A process that dies, of a test that hangs for example, is not replaced: the next one would begin with the same test.
PYTEST = ("python", "-m", "pytest", *SHARED, "--max-worker-restart", "0")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
OLDEST_PYTHON = "3.10"
PROJECT = nox.project.load_toml("pyproject.toml")

# pyenv hides all but one of its interpreters unless they are asked for.
_versions = sorted(path.name for path in Path("~/.pyenv/versions").expanduser().glob("3.1[0-9].*"))
if _versions:
    _default = os.environ.get("PYENV_VERSION", "").split(":")
    os.environ["PYENV_VERSION"] = ":".join(dict.fromkeys(filter(None, [*_default, *_versions])))


def install(session: nox.Session, *extras: str, groups: tuple[str, ...] = (), lock: str = "") -> None:
    """Install smkit with these extras and dependency groups; the constraints keep torch to its CPU build.

    With a lock, all comes as the lock has it, byte by byte, what builds it included; but torch, of which each machine
    has its own build.
    """
    packages = nox.project.dependency_groups(PROJECT, *groups) if groups else ()
    project = f".[{','.join(extras)}]" if extras else "."
    if not lock:
        session.install("-q", "-c", CONSTRAINTS, project, *packages)
        return
    # No build in an environment of its own, for pip would fill that with whatever is newest.
    for name in ("build", lock):
        session.install("-q", "--require-hashes", "--no-deps", "--no-build-isolation", "-r", f"tests/locks/{name}.txt")
    if "train" in extras:
        session.install("-q", "-c", CONSTRAINTS, "torch")
    session.install("-q", "--no-deps", "--no-build-isolation", ".")
    session.run("python", "-m", "pip", "check", silent=True)


LOCKS = {
    "build": (),
    "lint": ("lint",),
    "portable": ("test",),
    "portable-minimums": ("test",),
    "tests": ("test", "aws", "examples", "types"),
    "minimums": ("test", "aws", "examples"),
}
"""The groups of each lock; `tests` and `minimums` have all extras besides."""
BUILDING = ("hatchling>=1.25", "setuptools>=68", "wheel>=0.43")


@nox.session(python="3.11")
def lock(session: nox.Session) -> None:
    """Resolve anew; those with torch for CI's kind of machine, all others for every one."""
    session.install("-q", "uv")
    requirements = Path(session.create_tmp()) / "requirements.in"
    for name, groups in LOCKS.items():
        packages = nox.project.dependency_groups(PROJECT, *groups) if groups else BUILDING
        requirements.write_text("\n".join(packages))
        command = ["uv", "pip", "compile", "-q", "--generate-hashes", "--no-annotate", "--no-header", "-c", CONSTRAINTS]
        inputs = [str(requirements)]
        if name in ("tests", "minimums"):
            inputs += ["pyproject.toml", "--extra", "train", "--extra", "launch", "--extra", "local", "--extra"]
            inputs += ["tabular", "--python-platform", "x86_64-manylinux_2_28", "--no-emit-package", "torch"]
            inputs += ["--python-version", "3.11", "--no-emit-find-links"]
            # With a build of torch for CPUs there, CUDA's packages stay out of the lock.
            inputs += ["--find-links", os.environ["PIP_FIND_LINKS"]] if "PIP_FIND_LINKS" in os.environ else []
        else:
            inputs += ["--universal", "--python-version", OLDEST_PYTHON]
            inputs += ["pyproject.toml"] if name.startswith("portable") else []
        inputs += ["-c", "tests/minimums.txt"] if name.endswith("minimums") else []
        session.run(*command, *inputs, "-o", f"tests/locks/{name}.txt")


@nox.session(python="3.11")
def audit(session: nox.Session) -> None:
    """Ask PyPI for known vulnerabilities of all that the locks name."""
    session.install("-q", "pip-audit")
    for name in LOCKS:
        if not name.endswith("minimums"):
            session.run("pip-audit", "--disable-pip", "--require-hashes", "-r", f"tests/locks/{name}.txt")


@nox.session(python="3.11")
def quickstart(session: nox.Session) -> None:
    install(session, "train", "local", groups=("examples",))
    session.run("python", "examples/digits/launch.py")


@nox.session(python="3.11")
def tests(session: nox.Session) -> None:
    install(session, "train", "launch", "local", "tabular", lock="tests")
    check_types(session)
    session.run(*PYTEST, "--cov", "--cov-report=term", "--durations=30", *session.posargs, env=ONE_THREAD)


@nox.session(python=[OLDEST_PYTHON, "3.12", "3.13"])
def portable(session: nox.Session) -> None:
    """Run what needs no torch: settings, context, launching; on the oldest Python with the oldest dependencies."""
    install(session, lock="portable-minimums" if session.python == OLDEST_PYTHON else "portable")
    session.run(*PYTEST, "-m", "not train and not toolkit and not aws", *session.posargs)


@nox.session(python="3.11")
def minimums(session: nox.Session) -> None:
    """Run what needs torch or AWS on the oldest version of each dependency that pyproject.toml promises."""
    install(session, "train", "launch", "local", "tabular", lock="minimums")
    session.run(*PYTEST, "-m", "(train or aws) and not toolkit and not endurance", *session.posargs, env=ONE_THREAD)


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    session.install("-q", "--require-hashes", "--no-deps", "-r", "tests/locks/lint.txt")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python="3.11")
def types(session: nox.Session) -> None:
    install(session, "train", "launch", "local", "tabular", lock="tests")
    check_types(session)


def check_types(session: nox.Session) -> None:
    session.run("mypy")
    session.run("mypy", "tests/typing")
    for settings in sorted(Path("examples").glob("*/settings.py")):
        # Each example is a program of its own; their modules bear the same names.
        session.run("mypy", str(settings.parent), env={"MYPYPATH": str(settings.parent)})


@nox.session(python="3.11")
def benchmarks(session: nox.Session) -> None:
    install(session, "train", groups=("examples", "benchmarks"))
    session.run("python", "tests/benchmarks/step_overhead.py", *session.posargs)
    session.run("python", "tests/benchmarks/step_overhead.py", "--distributed")
    session.run("python", "tests/benchmarks/startup.py")
    session.run("python", "tests/benchmarks/checkpoint_stall.py")
    session.run("python", "tests/benchmarks/correctness.py")


@nox.session(python="3.11")
def data_benchmarks(session: nox.Session) -> None:
    """Measure reading beside pandas, tensordict, torchdata, webdataset, litdata and Hugging Face datasets."""
    install(session, "train", "tabular", groups=("examples", "data-benchmarks"))
    for name in ("loader", "loader_start", "tables", "images", "shards"):
        session.run("python", f"tests/benchmarks/{name}.py", *session.posargs)


@nox.session(python="3.11")
def torture(session: nox.Session) -> None:
    """Attack smkit and its peers; `nox -s torture -- killing damage --rounds 50` chooses what, and for how long."""
    install(session, "train", "launch", "local", "tabular", groups=("test", "aws", "examples", "benchmarks", "torture"))
    session.run("python", "-m", "torture", *session.posargs, env=ONE_THREAD | {"PYTHONPATH": "tests"})


@nox.session(python="3.11")
def interop(session: nox.Session) -> None:
    """Start one script by smkit.launch and by both SDKs, on a SageMaker that runs the jobs with this environment."""
    install(session, "train", "launch", "local", groups=("test", "aws", "examples"))
    sdks = {f"SMKIT_SDK_V{version}": sdk(session, version) for version in (2, 3)}
    session.run("python", "-m", "pytest", "tests/interop", *session.posargs, env=ONE_THREAD | sdks)


@nox.session(python="3.11")
def launch_benchmarks(session: nox.Session) -> None:
    """Measure what a launch costs, and what it needs to be installed, beside both SDKs."""
    install(session, "launch", groups=("test", "aws"))
    sdks = [word for version in (2, 3) for word in (f"--sdk-v{version}", sdk(session, version))]
    for name in ("launch_weight", "submit_cost"):
        session.run("python", f"tests/benchmarks/{name}.py", *sdks, *session.posargs)


def sdk(session: nox.Session, version: int) -> str:
    """Return the interpreter of an environment with a SageMaker SDK alone: no two of them can share one.

    The variables SMKIT_SDK_V2 and SMKIT_SDK_V3 may name environments that are there already.
    """
    given = os.environ.get(f"SMKIT_SDK_V{version}")
    if given:
        return given
    folder = Path(session.virtualenv.location).parent / f"sdk-v{version}"
    python = str(folder / "bin/python")
    if not folder.exists():
        session.run("python", "-m", "venv", str(folder))
    packages = nox.project.dependency_groups(PROJECT, f"sdk-v{version}")
    session.run(python, "-m", "pip", "install", "-q", *packages, external=True)
    return python
