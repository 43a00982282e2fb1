"""What a source folder sends to a job: git's rules and our own, links, secrets, sizes, each mistake in clear words."""

from __future__ import annotations

import base64
import gzip
import json
import os
import pickle
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smkit.source import credentials
from smkit.source.survey import Source, survey

pytest.importorskip("pathspec")

GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}


def git(folder: Path, *arguments: str, text: str = "") -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env=GIT, input=text, capture_output=True, text=True, check=False).stdout


def write(root: Path, files: Mapping[str, str | bytes]) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def travelling(source: Source) -> list[str]:
    return [file.path for file in source.files]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a script."""
    root = tmp_path / "project"
    write(root, {"train.py": "print()\n"})
    return root


# --- rules ----------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "ab", "a.b", "#a", "!b", " a", "d"])
PARTS = st.sampled_from(["a", "b", "ab", "*", "a*", "?", "**", "[ab]", "[!a]", "a.b", "*.b", "d", "\\#a", "\\!b"])


@st.composite
def rules(draw: st.DrawFn) -> str:
    """A line of a .gitignore."""
    body = "/".join(draw(st.lists(PARTS, min_size=1, max_size=3)))
    # git itself reads ` **/a` as a rule for the file ` a`; nobody writes that.
    begin = draw(st.sampled_from(["", "", "", "!", "/", "!/", "#", *([] if "**" in body else [" "])]))
    return begin + body + draw(st.sampled_from(["", "", "/", " ", "\r", "\\ ", "/*", "/**"]))


TREES = st.sets(st.lists(NAMES, min_size=1, max_size=4).map("/".join), min_size=1, max_size=12)
LINES = st.lists(rules(), max_size=6).map("\n".join)


@example(paths={"a/b/a"}, top="", nested="", excluded="**/a/*\n!a/*", below=False)
@settings(max_examples=60, deadline=None)
@given(paths=TREES, top=LINES, nested=LINES, excluded=LINES, below=st.booleans())
def test_rules_mean_what_they_mean_to_git(paths: set[str], top: str, nested: str, excluded: str, below: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder).resolve()
        # As much of a repository as git asks for; `git init` would take longer than all else.
        write(repository, {".git/HEAD": "ref: refs/heads/main\n", ".git/info/exclude": excluded})
        for name in ("objects", "refs"):
            (repository / ".git" / name).mkdir()
        root = repository / "d" if below else repository
        for path in sorted(paths, reverse=True):
            if not (root / path).exists() and not any(part.is_file() for part in (root / path).parents):
                write(root, {path: ""})
        write(repository, {".gitignore": top})
        if (repository / "d").is_dir():
            write(repository, {"d/.gitignore": nested})
        everything = [file for file in root.rglob("*") if file.is_file() and ".git" not in file.parts]
        names = "\0".join(["d", *(str(file.relative_to(repository)) for file in everything)])
        ignored = set(git(repository, "check-ignore", "--no-index", "-z", "--stdin", text=names).split("\0"))
        expected = {
            str(file.relative_to(root)) for file in everything if str(file.relative_to(repository)) not in ignored
        }
        if below and "d" in ignored:
            # A folder that git ignores as a whole travels when it is given as the source.
            return
        assert set(travelling(survey(root, entry="train.py"))) == expected, (top, nested, excluded)


@pytest.mark.parametrize(
    ("git_rules", "own_rules", "stays"),
    [
        ("*.csv", "!words.csv", ["a.csv", "data/a.csv"]),
        ("data/", "!data/words.csv", ["data/a.csv"]),
        ("data/", "!/data/", []),
        ("data/**\n!data/words.csv", "", ["data/a.csv"]),
        ("", "# all of it\n*.csv\n!data/w*.csv", ["a.csv", "data/a.csv", "words.csv"]),
        ("", "data", ["data/a.csv", "data/words.csv"]),
    ],
)
def test_our_own_rules_win_and_may_take_back_below_a_folder_that_stays(
    project: Path, git_rules: str, own_rules: str, stays: list[str]
) -> None:
    every = ["a.csv", "data/a.csv", "data/words.csv", "train.py", "words.csv"]
    write(project, {**dict.fromkeys(every, ""), ".gitignore": git_rules, ".smkitignore": own_rules})
    source = survey(project, entry="train.py")
    assert [path for path in travelling(source) if not path.startswith(".")] == [p for p in every if p not in stays]
    assert not source.problems


def test_what_is_never_source_stays_behind_whatever_the_rules_say(project: Path) -> None:
    job, checkpoint = "runs/train-1/algo-1/input/config/resourceconfig.json", "out/step-000000150-9f3a1c/state.json"
    stay = [".git/config", ".venv/pyvenv.cfg", "x/env/conda-meta/history", "x/__pycache__/a.pyc", "node_modules/a.js"]
    stay += ["x/a.pyc", "lightning_logs/a", job, checkpoint, "data/a.csv", ".nox/a", "x/.ipynb_checkpoints/a.ipynb"]
    travel = ["checkpoints/__init__.py", "runs/baseline.yaml", "train.py", "x/a.py"]
    write(project, dict.fromkeys([*stay, *travel], "") | {".smkitignore": "!.git\n!.venv/\n!node_modules\n"})
    source = survey(project, entry="train.py", own_folders=[project / "data", project.parent])
    assert travelling(source) == [".smkitignore", *travel]
    assert not source.problems
    assert project / "data" in source.left_out
    assert project / "runs/train-1" in source.left_out
    assert not any(
        path.is_relative_to(folder) and path != folder for folder in source.left_out for path in source.left_out
    )


def test_a_rule_of_tools_is_the_weakest(project: Path) -> None:
    write(project, {"wandb/settings": "", ".smkitignore": "!wandb/"})
    assert "wandb/settings" in travelling(survey(project, entry="train.py"))


@pytest.mark.parametrize(
    ("rules", "entry", "problem"),
    [
        (
            "*.py",
            "train.py",
            "entry 'train.py': would stay behind, for the rule '*.py' in .smkitignore leaves it out; ",
        ),
        ("src/", "src/run.py", "entry 'src/run.py': would stay behind, for the rule 'src/' in .smkitignore leaves it "),
        ("", ".venv/run.py", "entry '.venv/run.py': would stay behind, for '.venv' is a virtual environment; "),
    ],
)
def test_a_script_that_would_stay_behind_is_a_problem(project: Path, rules: str, entry: str, problem: str) -> None:
    write(project, {"src/run.py": "", ".venv/run.py": "", ".venv/pyvenv.cfg": "", ".smkitignore": rules})
    source = survey(project, entry=entry, own_folders=[project / "src"] if entry == "src/run.py" else [])
    (found,) = source.problems
    assert found.startswith(problem)
    assert entry in travelling(source)


def test_a_folder_or_script_that_is_not_there_is_named_with_the_nearest(project: Path) -> None:
    write(project, {"src/fit.py": "", "LICENSE": ""})
    found = {
        entry: [problem.replace(str(project), "<project>") for problem in survey(root, entry=entry).problems]
        for entry, root in {
            "trian.py": project,
            "fit.py": project,
            "../train.py": project,
            "a.py": project.with_name("projekt"),
            "b.py": project / "LICENSE",
        }.items()
    }
    assert found == {
        "trian.py": ["entry 'trian.py': not in <project>; did you mean 'train.py'?"],
        "fit.py": ["entry 'fit.py': not in <project>; did you mean 'src/fit.py'?"],
        "../train.py": [
            "entry '../train.py': a path relative to source_dir, ending in .py or .sh, "
            "of letters, digits, '.', '_', '+', '-' and '/'"
        ],
        "a.py": [f"source_dir '{project.parent}/projekt': there is no such folder; did you mean 'project'?"],
        "b.py": ["source_dir '<project>/LICENSE': a file, not a folder"],
    }


# --- links and other things -----------------------------------------------------------------------------------------


def test_links_travel_if_they_stay_inside_at_every_step(project: Path) -> None:
    write(project, {"sub/a": "", "kept/b": "", ".smkitignore": "kept/"})
    targets = {
        "absolute": str(project / "train.py"),
        "around": "../project/train.py",
        "broken": "nothing",
        "chain": "sub/up",
        "circle": "circle",
        "folder": "sub",
        "out": "../secret",
        "stays": "kept/b",
        "sub/up": "../train.py",
        "via": "away/passwd",
    }
    (project.parent / "secret").write_text("")
    (project / "away").symlink_to("/etc")
    for name, target in targets.items():
        (project / name).symlink_to(target)
    source = survey(project, entry="train.py")
    links = {file.path: file.target for file in source.files if file.is_link}
    assert links == {name: targets[name] for name in ("chain", "folder", "stays", "sub/up")}
    said = [problem.replace(str(project), "<project>").partition(";")[0] for problem in source.problems]
    assert said == [
        "source_dir: the link 'absolute' leads out of the folder, to <project>/train.py",
        "source_dir: the link 'around' leads out of the folder, to ../project/train.py",
        "source_dir: the link 'away' leads out of the folder, to /etc",
        "source_dir: the link 'broken' leads nowhere, to nothing",
        "source_dir: the link 'circle' leads in a circle, to circle",
        "source_dir: the link 'out' leads out of the folder, to ../secret",
        "source_dir: the link 'via' leads out of the folder, to away/passwd",
    ]
    assert source.warnings == ("source_dir: the link 'stays' leads to 'kept/b', which stays behind",)


def test_a_chain_of_links_without_an_end_in_sight_is_refused(project: Path) -> None:
    # Only its beginning travels; to follow each of its links would take a while.
    write(project, {".smkitignore": "chain/\n", "chain/end": ""})
    for number in range(1200):
        (project / f"chain/{number:04d}").symlink_to(f"{number + 1:04d}" if number < 1199 else "end")
    (project / "link").symlink_to("chain/0000")
    (said,) = survey(project, entry="train.py").problems
    assert said == "source_dir: the link 'link' leads in a circle, to chain/0000; remove it, or name it in .smkitignore"


def test_a_folder_that_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    (problem,) = survey(tmp_path / ("x" * 300), entry="train.py").problems
    assert problem.endswith("it cannot be looked at: File name too long")


def test_what_an_archive_cannot_hold_is_refused_or_stays_behind(project: Path) -> None:
    os.mkfifo(project / "pipe")
    write(project, {"a\\b": ""})
    Path(os.fsdecode(os.fsencode(project) + b"/caf\xe9.txt")).touch()
    source = survey(project, entry="train.py")
    assert travelling(source) == ["train.py"]
    assert source.problems == (
        "source_dir: the name 'a\\b' holds a backslash, which the toolkit takes for a slash; rename it",
        "source_dir: the name 'caf\\xe9.txt' is not UTF-8; rename it, or name its folder in .smkitignore",
    )
    assert source.warnings == ("source_dir: 'pipe' stays behind: it is neither a file nor a folder",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody, who may not read")
def test_what_cannot_be_read_is_refused() -> None:
    # Outside of pytest's folder, into which nobody but root may look.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        write(root, {"train.py": "", "mine.txt": "", "private/a": "", "b/.gitignore": ""})
        for path in ("mine.txt", "private", "b/.gitignore"):
            (root / path).chmod(0)
        survey(root, entry="train.py")  # what it imports, only root may read
        os.seteuid(65534)
        try:
            problems = sorted(survey(root, entry="train.py").problems)
        finally:
            os.seteuid(0)
    assert problems == [
        "source_dir: 'b/' cannot be read: Permission denied",
        "source_dir: 'mine.txt' cannot be read: Permission denied",
        "source_dir: 'private/' cannot be read: Permission denied",
    ]


def test_sizes_are_said_with_the_largest(project: Path) -> None:
    for path, megabytes in {"data/big.bin": 21, "data/more.bin": 19, "model.bin": 11, "notes.txt": 0}.items():
        write(project, {path: ""})
        os.truncate(project / path, megabytes * 1_000_000)
    (warning,) = survey(project, entry="train.py").warnings
    largest = "'data/' 40 MB, 'data/big.bin' 21 MB, 'data/more.bin' 19 MB, 'model.bin' 11 MB"
    assert warning == (
        f"source_dir: 51 MB travel whenever a file of them has changed; largest: {largest}; "
        ".smkitignore leaves out what is no source"
    )
    os.truncate(project / "model.bin", 600_000_000)
    (problem,) = survey(project, entry="train.py").problems
    assert problem.startswith(
        f"source_dir '{project}': 640 MB, and at most 500 MB travel as source; largest: 'model.bin' 600 MB, 'data/' 40"
    )


def test_many_files_are_warned_of_and_a_home_folder_is_not_walked_to_its_end(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smkit.source.survey.WARN_FILES", 3)
    monkeypatch.setattr("smkit.source.walk.MAX_FILES", 5)
    write(project, dict.fromkeys("abc", ""))
    source = survey(project, entry="train.py")
    assert source.warnings == ("source_dir: 4 files travel; .smkitignore leaves out what is no source",)
    write(project, dict.fromkeys("def", ""))
    source = survey(project, entry="train.py")
    assert source.problems == ("source_dir: more than 5 files; name in .smkitignore what is no source",)


def test_a_work_tree_has_the_rules_of_its_repository(project: Path) -> None:
    git(project, "init", "-q")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    git(project, *who, "commit", "-q", "--allow-empty", "-m", "first")
    write(project, {".git/info/exclude": "*.csv\n"})
    tree = project.with_name("tree")
    git(project, "worktree", "add", "-q", str(tree))
    write(tree, {"train.py": "", "a.csv": ""})
    assert travelling(survey(tree, entry="train.py")) == ["train.py"]


def test_a_python_package_in_the_root_is_told(project: Path) -> None:
    assert not survey(project, entry="train.py").has_setup_py
    write(project, {"setup.py": ""})
    assert survey(project, entry="train.py").has_setup_py


# --- secrets --------------------------------------------------------------------------------------------------------

# Put together here, so that no guard takes this file for a leak.
LETTERS = "aB3dE5gH7jK9mN1pQrS2tUvW4xYz6AbC8eFgHiJ0kLmNoP"
HEX = "0123456789abcdef9876543210fedcba01a2b3c4"
PEM = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
SERVICE = base64.urlsafe_b64encode(b'{"iss":"supabase","role":"service_role"}').decode().strip("=")
ANYBODY = base64.urlsafe_b64encode(b'{"iss":"supabase","role":"anon"}').decode().strip("=")
CONTENTS = {
    "AWS access key": "AKIA" + "Q3ZX7JKLMNBV2WER",
    "AWS secret access key": 'aws_secret_access_key = "' + LETTERS[:39] + '/"',
    "SecretAccessKey": '{"SecretAccessKey": "' + LETTERS[:40] + '"}',
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\n" + PEM,
    "service account": '{"type": "service_account", "private_key": "-----BEGIN ' + f'PRIVATE KEY-----\\n{PEM}"}}',
    "GitHub": "ghp" + "_" + LETTERS[:36],
    "GitHub fine-grained": "github" + "_pat_" + LETTERS[:22] + "_" + (LETTERS * 2)[:59],
    "GitLab": "glpat" + "-" + LETTERS[:20],
    "Hugging Face": "hf" + "_" + LETTERS[:34],
    "Slack": "xoxb" + "-123456789012-123456789012-" + LETTERS[:24],
    "OpenAI": "sk" + "-proj-" + LETTERS[:20] + "T3Blbk" + "FJ" + LETTERS[:20],
    "Anthropic": "sk" + "-ant-api03-" + LETTERS * 2,
    "wandb": "WANDB_API_KEY=" + HEX,
    "wandb.login": "wandb.login(key='" + HEX + "')",
    "Google": "AIza" + "Sy" + LETTERS[:33],
    "PyPI": "pypi" + "-AgEIcHlwaS5vcmc" + LETTERS * 2,
    "npm": "npm" + "_" + LETTERS[:36],
    "npmrc": "//registry.npmjs.org/:_auth" + "Token=" + LETTERS,
    "Databricks": "dapi" + HEX[:32],
    "Stripe": "sk" + "_live_" + LETTERS[:24],
    "SendGrid": "SG" + "." + LETTERS[:22] + "." + LETTERS[:43],
    "Azure": "AccountKey" + "=" + (LETTERS * 2)[:86] + "==",
    "index": "--index-url https://bob" + ":" + LETTERS[:20] + "@pypi.example.org/simple",
    "requirement": "git+https://x-access-token" + ":" + LETTERS[:20] + "@git.example.org/team/code.git",
    "token.json": '"refresh' + '_token": "1//0' + LETTERS + '"',
    "Supabase": "eyJ" + "hbGciOiJIUzI1NiJ9." + SERVICE + "." + LETTERS[:43],
    "database": "postgresql+psycopg://" + ":" + LETTERS[:12] + "@10.0.0.1/db",
}
NAMED = [".env", "prod.env", "a/.env.production", ".aws/credentials", ".ssh/id_rsa", "deploy/key.pem", ".netrc"]
NAMED += ["kaggle.json", "my/service-account.json", ".git-credentials", "cert.p12", "a.kdbx", "terraform.tfstate"]
NAMED += [
    "id_ed25519",
    "team-service-account-1.json",
    ".pypirc",
    "credentials",
    "SERVER.KEY",
    "bob_accessKeys.csv",
    ".kube/config",
    ".envrc",
]


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("form", ["{}", "token = '{}'  # mine", '{{"source": ["x = \\"{}\\"\\n"]}}', "export X={}\n"])
def test_a_secret_is_found_by_its_form_and_never_shown(project: Path, kind: str, form: str) -> None:
    write(project, {"sub/notes.txt": "\n\n" + form.replace("{{", "{").replace("}}", "}").replace("{}", CONTENTS[kind])})
    (problem,) = survey(project, entry="train.py").problems
    assert problem.startswith("source_dir: 'sub/notes.txt' holds a")
    assert " in line 3" in problem
    assert problem.endswith("name it in .smkitignore, or let it travel with allow_secrets=['sub/notes.txt']")
    assert not any(secret in problem for secret in (LETTERS[:8], HEX[:8], PEM[:8], "Q3ZX7JKL"))


PACKED = "hf" + "_" + LETTERS[:34]


def test_a_token_that_stands_in_an_address_is_found(project: Path) -> None:
    # A slash before a token is no part of it.
    write(project, {"requirements.txt": "a @ git+https://gh" + "p_" + LETTERS[:36] + "@github.com/a/a\n"})
    (problem,) = survey(project, entry="train.py").problems
    assert "holds a GitHub token in line 1" in problem


def test_a_key_in_the_environment_of_a_notebook_is_found(project: Path) -> None:
    source = json.dumps({"cells": [{"source": [f"os.environ['AWS_SECRET_ACCESS_KEY'] = '{LETTERS[:38]}/+'"]}]})
    write(project, {"explore.ipynb": source})
    (problem,) = survey(project, entry="train.py").problems
    assert "holds an AWS secret access key" in problem


@settings(max_examples=200, deadline=None)
@given(
    before=st.lists(st.sampled_from([*b"\n -_g:/", b"ghp_", b"://", b"\0" * 8180, b"hf_" * 3000]), max_size=8),
    after=st.sampled_from([b"", b" ", b"\n" + b"ghp_" * 3000, b"\0" * 9000]),
)
def test_a_secret_is_found_wherever_it_stands(before: list[int | bytes], after: bytes) -> None:
    head = b"".join(bytes([part]) if isinstance(part, int) else part for part in before) + b" "
    (found,) = credentials.in_content(head + b"ghp_" + b"a1B2c3D4e5F6" * 3 + after)
    assert str(found) == f"holds a GitHub token in line {1 + head.count(10)}"


def test_a_secret_is_found_in_bytes_and_behind_many_pictures(project: Path) -> None:
    write(
        project,
        {
            "state.pkl": pickle.dumps({"token": PACKED}),
            "explore.ipynb": b'"image/png": "' + b"iVBORw0KGgo" * 800_000 + b'"\n' + PACKED.encode(),
            "store.bin": bytes.fromhex("feedfeed00000002"),
            "key.bin": bytes.fromhex("308204be020100300d06092a864886f70d0101010500"),
        },
    )
    assert [re.sub("; name it.*", "", problem) for problem in survey(project, entry="train.py").problems] == [
        "source_dir: 'explore.ipynb' holds a Hugging Face token in line 2",
        "source_dir: 'key.bin' looks like a private key",
        "source_dir: 'state.pkl' holds a Hugging Face token in line 1",
        "source_dir: 'store.bin' looks like a key store",
    ]


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "gz"])
def test_a_secret_is_found_in_what_is_packed(project: Path, tmp_path: Path, kind: str) -> None:
    write(tmp_path / "packed", {"a/.env": "A=1", "a/b.txt": f"x\n{PACKED}\n"})
    if kind == "gz":
        write(project, {"more.gz": gzip.compress(f"x\n{PACKED}\n".encode())})
        expected = ["holds 'more', which holds a Hugging Face token in line 2"]
    else:
        shutil.make_archive(str(project / "more"), kind, tmp_path / "packed")
        expected = ["a/.env', which looks like a file of environment variables", "a/b.txt', which holds"]
    (problem,) = survey(project, entry="train.py").problems
    assert all(words in problem for words in expected)
    assert PACKED not in problem


def test_an_archive_that_is_none_or_a_bomb_is_looked_at_and_left(project: Path) -> None:
    write(
        project, {"a.zip": b"PK\x03\x04 and no more", "b.gz": b"\x1f\x8b", "c.gz": gzip.compress(bytes(300_000_000), 1)}
    )
    assert survey(project, entry="train.py").problems == ()


@pytest.mark.parametrize("name", [".streamlit/secrets.toml", "secrets.yaml", "conf/Secrets.yml", "secrets.json"])
def test_a_file_of_secrets_is_found_by_its_name(project: Path, name: str) -> None:
    write(project, {name: "x"})
    (problem,) = survey(project, entry="train.py").problems
    assert problem.startswith(f"source_dir: '{name}' looks like a file of secrets; ")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_secret_is_found_in_texts_of_windows(project: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    write(project, {"notes.txt": (mark + "\n" + CONTENTS["AWS access key"]).encode(encoding) + b"\n"})
    (problem,) = survey(project, entry="train.py").problems
    assert problem.startswith("source_dir: 'notes.txt' holds an AWS access key in line 2")


def test_a_secret_is_found_by_its_name_unless_it_is_allowed_or_stays_behind(project: Path) -> None:
    write(project, dict.fromkeys(NAMED, "x"))
    problems = survey(project, entry="train.py").problems
    assert [problem.split("'")[1] for problem in problems[:20]] == sorted(NAMED)[:20]
    assert problems[20:] == (f"source_dir: {len(NAMED) - 20} more files look like secrets",)
    assert problems[0] == (
        "source_dir: '.aws/credentials' looks like AWS's folder of credentials; "
        "name it in .smkitignore, or let it travel with allow_secrets=['.aws/credentials']"
    )
    allowed = survey(project, entry="train.py", allow_secrets=[".env*", "deploy/key.pem", "./my/**", ".ssh/"])
    left = {problem.split("'")[1] for problem in allowed.problems}
    assert set(NAMED) - left == {
        *(
            ".env",
            "a/.env.production",
            ".envrc",
            "deploy/key.pem",
            "my/service-account.json",
            ".ssh/id_rsa",
        )
    }
    assert not survey(project, entry="train.py", allow_secrets=["**"]).problems
    write(project, {".gitignore": "\n".join(NAMED)})
    git(project, "init", "-q")
    source = survey(project, entry="train.py")
    assert (source.problems, travelling(source)) == ((), [".gitignore", "train.py"])
    for number in range(30):
        write(project, {f"{number}.pfx": ""})
    *_, last = survey(project, entry="train.py").problems
    assert last == "source_dir: 10 more files look like secrets"


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (".env.example", "WANDB_API_KEY=\n"),
        ("ca-bundle.pem", "-----BEGIN CERTIFICATE-----\nMIID\n"),
        ("a.py", "AKIA" + "IOSFODNN7EXAMPLE"),
        ("a.py", 'f"https://{user}:{password}@host/x", "redis://:password123@host", "https://user:$TOKEN_1@host"'),
        ("a.py", '"http://localhost:8080/a@b", "https://user:<your-pass-1>@host", "https://a.b:8443/users/x@1.2"'),
        ("a.py", "aws_secret_access_key='wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY'"),
        ("a.py", "token = 'hf_" + "x" * 34 + "'; other = 'ghp_" + "0" * 36 + "'"),
        ("a.py", "if text.startswith('-----BEGIN RSA " + "PRIVATE KEY-----'): pass"),
        ("a.py", "secret_key = os.environ['AWS_SECRET_ACCESS_KEY']; password = 'hunter2'"),
        ("a.txt", f"commit {HEX}\nsk-learn-is-not-a-key-of-anybody\nTASK-ASIA-PACIFIC"),
        ("a.bin", b"\0" * 10 + b"AKIA" + b"Q3ZX7JKL"),
        ("a.der", bytes.fromhex("308204be30820366a003020102")),
        ("a.sh", "curl -H 'Authorization: Bearer $TOKEN' -u user:password https://john.smith1985@bitbucket.example/x"),
        ("credentials.py", "import os\n"),
        ("secrets.py", "data = {'grant_type': 'refresh_token', 'refresh_token': 'your-refresh-token-which-is-secret'}"),
        ("page.js", "eyJ" + "hbGciOiJIUzI1NiJ9." + ANYBODY + "." + LETTERS[:43]),
    ],
)
def test_examples_placeholders_and_public_keys_are_no_secrets(project: Path, path: str, content: str | bytes) -> None:
    write(project, {path: content})
    assert survey(project, entry="train.py").problems == ()
