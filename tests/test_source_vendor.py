"""smkit travels with the source that imports it, with requirements for pip; a job without a network gets wheels."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smkit.errors import ConfigurationError
from smkit.source.requirements import is_below, read_lines
from smkit.source.survey import survey
from smkit.source.vendor import PACKAGE, Vendored, imports_smkit, vendored

pytest.importorskip("pathspec")

OWN = "# What smkit requires, which travels beside this file; torch is the image's.\n"


def travel(root: Path, files: Mapping[str, str], *, entry: str = "train.py", **arguments: Any) -> Vendored:
    for path, text in ({entry: "import smkit\n"} | dict(files)).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    source = survey(root, entry=entry)
    assert not source.problems
    return vendored(source, **({"vendor": "source", "python_version": "3.12"} | arguments))


def text(result: Vendored, path: str = "requirements.txt") -> str:
    content = result.files[path]
    assert isinstance(content, bytes)
    return content.decode()


@pytest.mark.parametrize(
    ("code", "imports"),
    [
        ("import smkit", True),
        ("import os, smkit.data as data", True),
        ("def f():\n    from smkit import Trainer", True),
        ("from smkit.errors import SmkitError\nprint 'Python 2'", True),
        ("import smkit_extra", False),
        ("from .smkit import a", False),
        ("'''import smkit'''", False),
        ("smkit = '\\d'", False),
        ("from smkitten import a\nprint 'Python 2'", False),
    ],
)
def test_only_a_source_that_imports_smkit_takes_it_along(tmp_path: Path, code: str, imports: bool) -> None:
    (tmp_path / "train.py").write_text(code)
    source = survey(tmp_path, entry="train.py")
    assert imports_smkit(source) == imports
    assert bool(vendored(source, vendor="source", python_version="3.12").files) == imports
    assert vendored(source, vendor="none", python_version="3.12") == Vendored()


def test_smkit_works_where_it_was_unpacked(tmp_path: Path) -> None:
    result = travel(tmp_path / "source", {})
    code = tmp_path / "code"
    for path, content in result.files.items():
        (code / path).parent.mkdir(parents=True, exist_ok=True)
        (code / path).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    assert {path.name for path in PACKAGE.glob("*.py")} == {path.name for path in (code / "smkit").glob("*.py")}
    assert (code / "smkit/py.typed").exists()
    assert not list(code.rglob("__pycache__"))
    program = "import sys; sys.path.insert(0, '.'); import smkit; print(smkit.__file__, smkit.__version__)"
    run = subprocess.run([sys.executable, "-S", "-c", program], cwd=code, capture_output=True, text=True, check=True)
    file, version = run.stdout.split()
    assert Path(file).resolve().parent == code / "smkit"
    assert f"smkit-{version}.dist-info/METADATA" in result.files


def test_the_users_lines_stay_and_those_of_smkit_follow(tmp_path: Path) -> None:
    given = """\
# mine
--extra-index-url https://example.org/simple
torchvision
numpy<2.5          # no newer one
Pillow==11.0 ; \\
    python_version >= "3.10"
typing_extensions==4.15
smkit
-r more/requirements.txt
PyYAML @ https://example.org/PyYAML.whl
"""
    result = travel(tmp_path, {"requirements.txt": given, "more/requirements.txt": "smkit[local]>=0.1\nxxhash~=3.5\n"})
    assert result.problems == ()
    own = text(result).removeprefix(given.replace("smkit\n", "")).removeprefix(OWN).splitlines()
    names = {line.partition(">")[0] for line in own}
    assert {"numpy", "pillow", "pydantic", "safetensors", "sagemaker-training", "tomli"} <= names
    assert not {"torch", "typing-extensions", "pyyaml", "xxhash", "smkit", "boto3"} & names
    assert "sagemaker-training>=5.1; (platform_system == 'Linux')" in own
    assert "tomli>=2.0; python_version < '3.11'" in own
    assert text(result, "more/requirements.txt") == "xxhash~=3.5\n"


def test_what_pip_could_not_do_in_the_job_is_a_problem(tmp_path: Path) -> None:
    files = {
        "requirements.txt": "-r ../base.txt\n-c bonds.txt\n-r mroe.txt\nnumpy==1.20\n./libs/a\n-e ../b\nsmkit[trian]\n"
        "pydantic<2\nxxhash==3.*\npillow~=10.0\ntensorboard<=2.17.1\nsafetensors==0.6; python_version < '3'\n",
        "bonds.txt": "numpy<2\n",
        "more.txt": "",
    }
    assert list(travel(tmp_path, files).problems) == [
        "requirements.txt, line 1: '../base.txt' leads out of the folder; put a copy into it",
        "requirements.txt, line 3: no file 'mroe.txt' travels; did you mean 'more.txt'?",
        "requirements.txt, line 6: '../b' leads out of the folder; put a copy into it",
        "requirements.txt, line 7: smkit has no extra 'trian'; did you mean 'train'?",
        "requirements.txt, line 8: 'pydantic<2' is too old for smkit, which requires 'pydantic>=2.11'",
        "requirements.txt, line 4: 'numpy==1.20' is too old for smkit, which requires 'numpy>=1.26'",
        "requirements.txt, line 11: 'tensorboard<=2.17.1' is too old for smkit, which requires 'tensorboard>=2.18'",
    ]


def test_hashes_bind_what_smkit_requires_too(tmp_path: Path) -> None:
    hashed = "numpy==2.0.0 \\\n    --hash=sha256:0123\n"
    (problem,) = travel(tmp_path, {"requirements.txt": hashed}).problems
    assert problem.startswith(
        "requirements.txt: has hashes, so that pip wants a pinned version and a hash of everything"
    )
    assert "'pydantic>=2.11'" in problem
    assert "numpy" not in problem


def test_names_that_would_hide_smkit_are_refused(tmp_path: Path) -> None:
    files = {"smkit/__init__.py": "", "src/smkit.py": ""}
    assert travel(tmp_path, files, entry="src/train.py").problems == (
        "source_dir: 'smkit' would hide smkit, which travels with the source; rename it",
        "source_dir: 'src/smkit.py' would hide smkit, which travels with the source; rename it",
    )


def test_the_repository_of_smkit_itself_may_be_the_source() -> None:
    source = survey(PACKAGE.parent, entry="noxfile.py")
    result = vendored(source, vendor="source", python_version="3.12")
    assert result.problems == ()
    assert result.files["smkit/errors.py"] == PACKAGE / "errors.py"


@given(st.text(st.sampled_from("ab-_.[]=<>!~@;#\\ \n\t1,(){}'\"/:é"), max_size=60))
def test_every_text_is_read_and_kept_to_the_letter(given: str) -> None:
    lines = read_lines(given)
    assert "\n".join(line.text for line in lines) == "\n".join(given.splitlines())


VERSIONS = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))


@given(version=VERSIONS, floor=VERSIONS, operator=st.sampled_from(["==", "<", "<=", "~=", ">=", "!=", "==*"]))
def test_a_line_is_too_old_exactly_if_no_version_is_left(version: str, floor: str, operator: str) -> None:
    specifiers = pytest.importorskip("packaging.specifiers")
    if operator == "~=" and "." not in version:
        version += ".0"
    asked = f"=={version}.*" if operator == "==*" else operator + version
    (line,), (least,) = read_lines(f"a{asked}"), read_lines(f"a>={floor}")
    every = [f"{a}.{b}.{c}.{d}" for a in range(5) for b in range(5) for c in range(5) for d in range(3)]
    allowed = specifiers.SpecifierSet(f"{asked},>={floor}")
    assert is_below(line, least) == (not any(allowed.contains(each) for each in every))


# --- wheels ---------------------------------------------------------------------------------------------------------


def write_wheel(folder: Path, name: str, requires: str = "", tag: str = "py3-none-any", version: str = "1.0") -> None:
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {each}\n" for each in requires.split(",") if each
    )
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr(f"{name}.py", "")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder of wheels, as pip's only index."""
    folder = tmp_path / "index"
    write_wheel(folder, "vision", "torch==2.6.0,old; python_version < '3.12',new; python_version >= '3.12'")
    write_wheel(folder, "new", "native; sys_platform == 'linux'")
    write_wheel(folder, "old")
    write_wheel(folder, "native", tag="cp312-cp312-manylinux_2_28_x86_64")
    write_wheel(folder, "native", tag="cp311-cp311-manylinux_2_28_x86_64", version="2.0")
    write_wheel(folder, "torch", tag="cp312-cp312-manylinux_2_28_x86_64", version="2.6.0")
    return folder


def test_wheels_are_the_images_and_torch_is_not_among_them(index: Path, tmp_path: Path) -> None:
    files = {
        "train.py": "import json\n",
        "random.py": "raise SystemExit('taken for a module of the standard library')",
        "requirements.txt": f"--no-index\n--find-links {index}\n-c bonds.txt\nvision\n",
        "bonds.txt": "vision<2\n",
    }
    result = travel(tmp_path / "a", files, vendor="wheels", python_version="py312", torch_version="2.6.0+cu126")
    assert result.problems == ()
    assert sorted(path for path in result.files if path.startswith("wheels/")) == [
        "wheels/native-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        "wheels/new-1.0-py3-none-any.whl",
        "wheels/vision-1.0-py3-none-any.whl",
    ]
    assert text(result) == "--no-index\n--find-links wheels\n-c bonds.txt\nvision\n"
    assert "smkit/errors.py" not in result.files


def test_pip_installs_from_the_wheels_beside_the_requirements(index: Path, tmp_path: Path) -> None:
    files = {"train.py": "", "requirements.txt": f"--no-index\n--find-links {index}\nold\n"}
    result = travel(tmp_path / "a", files, vendor="wheels")
    code = tmp_path / "code"
    for path, content in result.files.items():
        (code / path).parent.mkdir(parents=True, exist_ok=True)
        (code / path).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    index.rename(tmp_path / "gone")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--target",
        str(tmp_path / "to"),
    ]
    subprocess.run([*pip, "-r", "requirements.txt"], cwd=code, check=True)
    assert (tmp_path / "to/old.py").exists()


@pytest.mark.parametrize(
    ("line", "torch_version", "what", "fix"),
    [
        (
            "nothing-of-this-name",
            "2.6.0",
            "No matching distribution found for nothing-of-this-name",
            "mend requirements",
        ),
        ("vision", None, "torch<0", "give a framework_version: a requirement needs torch"),
    ],
)
def test_what_pip_says_is_said(
    index: Path, tmp_path: Path, line: str, torch_version: str | None, what: str, fix: str
) -> None:
    files = {"train.py": "", "requirements.txt": f"--no-index\n--find-links {index}\n{line}\n"}
    with pytest.raises(ConfigurationError) as caught:
        travel(tmp_path / "a", files, vendor="wheels", torch_version=torch_version)
    assert caught.value.what.startswith("pip cannot download the wheels:\n    ")
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_a_folder_of_the_users_does_not_mix_with_the_wheels(tmp_path: Path) -> None:
    files = {"train.py": "", "requirements.txt": "six\n", "wheels/six.whl": ""}
    (problem,) = travel(tmp_path, files, vendor="wheels").problems
    assert problem == "source_dir: 'wheels/six.whl' lies where the wheels of smkit go; rename the folder"
