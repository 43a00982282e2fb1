"""Forty kinds of secrets in a source folder: what `launch` would send of them.

A round is one of them, in a folder with a script. It is silent if the plan of the launch has the file; refused if the
launch is, by a message that names the file and does not show the secret; survived if the file stays behind. The secrets
are made of letters that no issuer has given out, each in its issuer's form.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import pickle
import random
import string
import subprocess
import tarfile
import zipfile
from pathlib import Path

import smkit
from torture.tally import Campaign, Outcome

_REQUEST = {
    "instance_type": "ml.m5.large",
    "role": "arn:aws:iam::123456789012:role/Training",
    "bucket": "a-bucket",
    "region": "us-east-1",
    "vendor": "none",
    "dry_run": True,
}


class Letters:
    """Random letters, in the forms of issuers."""

    def __init__(self, draws: random.Random) -> None:
        self._draws = draws
        self.given: list[str] = []

    def some(self, count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
        text = "aZ0" + "".join(self._draws.choices(alphabet, k=count - 3))
        self.given.append(text)
        return text

    def hexadecimal(self, count: int) -> str:
        text = "0a" + "".join(self._draws.choices("0123456789abcdef", k=count - 2))
        self.given.append(text)
        return text

    def key(self, kind: str) -> str:
        body = "\n".join(self.some(64) for _ in range(4))
        return f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n"


def _packed(kind: str, name: str, content: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr(name, content)
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as packed:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content.encode()))
    return file.getvalue()


def planted(letters: Letters) -> dict[str, tuple[str, str | bytes]]:
    """Return path and content of each kind."""
    some, hexadecimal = letters.some, letters.hexadecimal
    aws = f"aws_access_key_id = AKIA{some(16, 'ABCDEFGHJKLM234567').upper().replace('0', '2')}"
    aws_secret = f"aws_secret_access_key = {some(40)}"
    github, hub = f"ghp_{some(36)}", f"hf_{some(34)}"
    basic = base64.b64encode(f"bob:{some(14)}".encode()).decode()
    encoded_key = base64.b64encode(letters.key("RSA PRIVATE KEY").encode()).decode()
    return {
        ".env": (".env", "A=1\n"),
        ".env of production": ("conf/.env.production", "A=1\n"),
        ".env with a dash": (".env-staging", "A=1\n"),
        ".env renamed": ("settings.txt", f"AWS_SECRET_ACCESS_KEY={some(40)}\n"),
        "AWS credentials": (".aws/credentials", f"[default]\n{aws}\n{aws_secret}\n"),
        "AWS credentials renamed": ("notes/profile.txt", f"[default]\n{aws}\n{aws_secret}\n"),
        "AWS keys of the console": ("bob_accessKeys.csv", "Access key ID,Secret access key\n"),
        "AWS key in a notebook": (
            "a.ipynb",
            json.dumps({"cells": [{"source": [f"os.environ['AWS_SECRET_ACCESS_KEY'] = '{some(40)}'\n"]}]}),
        ),
        "token in a notebook's output": ("b.ipynb", json.dumps({"cells": [{"outputs": [{"text": [hub]}]}]})),
        "token behind pictures": ("c.ipynb", '"image/png": "' + "iVBORw0KGgo" * 600_000 + f'"\n{hub}'),
        "SSH key": (".ssh/id_ed25519", letters.key("OPENSSH PRIVATE KEY")),
        "SSH key renamed": ("deploy", letters.key("OPENSSH PRIVATE KEY")),
        "PuTTY key renamed": ("deploy.txt", f"PuTTY-User-Key-File-3: ssh-rsa\nPrivate-Lines: 1\n{some(64)}\n"),
        "key of a certificate": ("server.pem", letters.key("PRIVATE KEY")),
        "key in base 64": ("k8s.yaml", f"client-key-data: {encoded_key}\n"),
        "key in bytes, renamed": ("store.bin", bytes.fromhex("308204be020100300d06092a864886f70d0101010500")),
        "Java key store renamed": ("store.dat", bytes.fromhex("feedfeed00000002") + b"\0" * 40),
        "KeePass renamed": ("notes.bin", bytes.fromhex("03d9a29a67fb4bb5") + b"\0" * 40),
        "netrc": (".netrc", "machine a login b password c\n"),
        "netrc renamed": ("login.txt", f"machine api.wandb.ai\n  login user\n  password {hexadecimal(40)}\n"),
        "git credentials": ("home/.git-credentials", f"https://bob:{some(20)}@github.com\n"),
        "git's configuration": (".git/config", f'[remote "origin"]\n\turl = https://x:{github}@github.com/a/b\n'),
        "token in a requirement": ("requirements.txt", f"a @ git+https://{github}@github.com/a/a\n"),
        "password of an index": ("requirements.txt", f"--index-url https://bob:{some(16)}@pypi.corp/simple\n"),
        "token of an index": ("requirements.txt", f"--extra-index-url https://{some(32)}@pypi.corp/simple\n"),
        "pip's configuration": ("pip.conf", f"[global]\nindex-url = https://bob:{some(12)}%40{some(6)}@pypi.corp/x\n"),
        "registry": (".docker/config.json", "{}"),
        "registry renamed": ("registry.json", json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": basic}}})),
        "npm": (".npmrc", f"//registry.npmjs.org/:_authToken={some(36)}\n"),
        "Kaggle": ("kaggle.json", "{}"),
        "Kaggle renamed": ("data.json", json.dumps({"username": "bob", "key": hexadecimal(32)})),
        "service account": ("my-service-account.json", "{}"),
        "service account renamed": ("google.json", json.dumps({"private_key": letters.key("PRIVATE KEY")})),
        "Google's token": ("g.json", json.dumps({"refresh_token": f"1//{some(60)}"})),
        "W&B": ("login.py", f"import wandb\nwandb.login(key='{hexadecimal(40)}')\n"),
        "header of HTTP": ("client.py", f"headers = {{'Authorization': 'Bearer {some(40)}'}}\n"),
        "database": ("db.py", f"url = 'postgresql://bob:{some(14)}@db.corp/train'\n"),
        "Azure": ("az.py", f"url = 'https://a.blob.core.windows.net/c?sv=2024&sig={some(43)}%3D'\n"),
        "Vault": ("v.sh", f"export VAULT_TOKEN=hvs.{some(90)}\n"),
        "pickle": ("state.pkl", pickle.dumps({"token": hub})),
        "zip": ("bundle.zip", _packed("zip", "deep/.env", "A=1")),
        "tar.gz": ("bundle.tar.gz", _packed("tar", "deep/conf.txt", github)),
        "gzip": ("log.gz", gzip.compress(f"token {github}\n".encode())),
        "text of Windows": ("windows.txt", f"token {hub}\n".encode("utf-16")),
        "state of infrastructure": ("terraform.tfstate", "{}"),
        "shell's history": (".bash_history", "ls\n"),
        "file that git ignores": ("local/passwords.txt", "hunter2-and-more\n"),
    }


def attack(campaign: Campaign) -> None:
    letters = Letters(campaign.draws("secrets of a source"))
    before = dict(os.environ)
    os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="y", AWS_EC2_METADATA_DISABLED="true")
    try:
        kinds = list(planted(letters).items())
        chosen = sorted(campaign.draws("kinds").sample(range(len(kinds)), min(len(kinds), 6 * campaign.rounds)))
        for number in chosen:
            kind, (path, content) = kinds[number]
            folder = _folder(campaign.folder / "bundles" / str(number))
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())
            outcome, note = _outcome(folder, path, letters)
            campaign.tally.count("secrets in a source", "smkit", outcome, f"{kind} ({path}): {note}")
        for kind, outcome, note in _links(campaign.folder / "links"):
            campaign.tally.count("secrets in a source", "smkit", outcome, f"{kind}: {note}")
    finally:
        os.environ.clear()
        os.environ.update(before)


def _folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "train.py").write_text("print('training')\n")
    (folder / ".gitignore").write_text("local/\n")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True, capture_output=True)
    return folder


def _outcome(folder: Path, path: str, letters: Letters) -> tuple[Outcome, str]:
    try:
        plan = smkit.launch("train.py", source_dir=folder, **_REQUEST)  # type: ignore[arg-type]
    except smkit.ConfigurationError as error:
        text = str(error)
        if any(secret[:12] in text for secret in letters.given):
            return Outcome.SILENT, f"the message shows it: {text}"
        return (Outcome.REFUSED if f"'{path}'" in text else Outcome.LOST), text
    is_sent = any(sent == path for sent, _ in plan.files)
    return (Outcome.SILENT if is_sent else Outcome.SURVIVED), "it is among the files of the plan" if is_sent else ""


def _links(place: Path) -> list[tuple[str, Outcome, str]]:
    """Return what becomes of links: to a secret outside, by a way through a folder, and to one that stays behind."""
    outside = place / "outside"
    outside.mkdir(parents=True)
    (outside / "id_rsa").write_text("a key\n")
    found = []
    for name, target in {
        "link out": str(outside / "id_rsa"),
        "relative link out": "../outside/id_rsa",
        "link to a folder outside": "../outside",
        "link to the system": "/etc/passwd",
        "link out by a way back in": "../link out by a way back in/../outside/id_rsa",
    }.items():
        folder = _folder(place / name)
        (folder / "innocent.txt").symlink_to(target)
        found.append((name, *_outcome(folder, "innocent.txt", Letters(random.Random(0)))))
    folder = _folder(place / "hard link")
    os.link(outside / "id_rsa", folder / "innocent.pem")
    found.append(("hard link", *_outcome(folder, "innocent.pem", Letters(random.Random(0)))))
    return found
