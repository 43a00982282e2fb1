"""What looks like a secret, by the name of a file and by what stands in it; said by its kind and line, never itself.

A kind is here if its issuer gives it a form that nothing else has: a prefix, a length, an alphabet. Words alone
("password = ...") are not asked for: a guard that cries wolf is switched off. AWS's documented examples are no secrets.
This room knows names and bytes; it opens no file.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

_PRIVATE_KEY = "a private key"
_NAMES = {
    "a file of environment variables": (".env", ".env.*", "*.env", ".envrc"),
    _PRIVATE_KEY: ("*.pem", "*.key", "*.ppk", "*.p8", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"),
    "a key store": ("*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.kdb"),
    "a file of passwords": (".netrc", "_netrc", ".pgpass", ".htpasswd", ".git-credentials", "*.secret", "*.secrets"),
    "a file of secrets": ("secrets.toml", "secrets.yaml", "secrets.yml", "secrets.json"),
    "a file of registry credentials": (".pypirc", ".dockercfg", ".dockerconfigjson"),
    "a file of cloud credentials": (
        *("credentials", "credentials.json", "application_default_credentials.json", "client_secret*.json"),
        *("service-account*.json", "service_account*.json", "accessKeys.csv", "*_accessKeys.csv", "*_credentials.csv"),
        *("kaggle.json", ".boto", ".s3cfg", ".databrickscfg", "rclone.conf", "azureProfile.json"),
    ),
    "a state of infrastructure with its passwords": ("*.tfstate", "*.tfstate.backup", "*.tfvars"),
    "a shell's history": (".bash_history", ".zsh_history", ".python_history", ".psql_history"),
}
_TEMPLATES = (".env.example", ".env.sample", ".env.template", ".env.dist", ".env.defaults")
_FOLDERS = {
    ".aws": "AWS's folder of credentials",
    ".ssh": "a folder of SSH keys",
    ".gnupg": "a folder of GPG keys",
    ".azure": "Azure's folder of credentials",
    ".kube": "Kubernetes' folder of credentials",
    ".docker": "Docker's folder of credentials",
    ".kaggle": "Kaggle's folder of credentials",
}
_PUBLIC = re.compile(rb"-----BEGIN (?:(?:TRUSTED )?CERTIFICATE|(?:RSA )?PUBLIC KEY)-----")


@dataclass(frozen=True)
class _Kind:
    """A form of secret; only where one of `marks` stands in the bytes is the pattern tried, for that is slow."""

    name: str
    marks: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    is_real: Callable[[bytes], bool] = lambda _: True


def _is_mixed(secret: bytes) -> bool:
    """Tell a random text from a placeholder, a word and a hash: all 40 characters of base 64 are of all kinds."""
    kinds = (rb"[a-z]", rb"[A-Z]", rb"[0-9]")
    return b"EXAMPLE" not in secret and len(set(secret)) > 12 and all(re.search(kind, secret) for kind in kinds)


def _is_no_example(secret: bytes) -> bool:
    return not secret.endswith(b"EXAMPLE") and len(set(secret[4:])) > 4


def _is_varied(secret: bytes) -> bool:
    """Tell a token from a placeholder such as `hf_xxxxxxxx` or `ghp_0000000000`."""
    return len(set(secret[-20:])) > 6


def _is_for_a_service(token: bytes) -> bool:
    """Tell a token of a service, which holds for years, from those that examples, tests and web pages are full of."""
    payload = token.split(b".")[1]
    with contextlib.suppress(ValueError):
        claims = base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4))
        return _is_varied(token) and re.search(rb"service_role|kubernetes[./]+serviceaccount", claims) is not None
    return False


def _is_no_word(secret: bytes) -> bool:
    """Tell a password from what stands for one in texts: `password`, `PASSWORD`, `p4ssw0rd`, `12345678`."""
    words = (rb"[A-Za-z]", rb"[0-9]")
    is_placeholder = re.search(rb"(?i)passw|p4ss|secret|token|example|xxxx|changeme", secret) is not None
    return not is_placeholder and len(set(secret)) > 6 and all(re.search(each, secret) for each in words)


def _kind(name: str, marks: str, pattern: str, is_real: Callable[[bytes], bool] = _is_varied) -> _Kind:
    return _Kind(name, tuple(mark.encode() for mark in marks.split()), re.compile(pattern.encode()), is_real)


_START, _END = r"(?<![A-Za-z0-9_/+-])", r"(?![A-Za-z0-9_/+-])"
_KINDS = (
    _kind("an AWS access key", "AKIA ASIA", _START + r"((?:AKIA|ASIA)[A-Z2-7]{16})" + _END, _is_no_example),
    _kind(
        "an AWS secret access key",
        "secret Secret SECRET",
        r"(?i:secret[_-]?(?:access[_-]?)?key)\\?[\"']?\s*(?:=>|[=:,])\s*\\?[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
        _is_mixed,
    ),
    _kind(
        _PRIVATE_KEY,
        "PRIVATE",
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?s:.{0,400}?)([A-Za-z0-9+/]{40})",
    ),
    _kind(
        "a GitHub token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        _START + r"((?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}))" + _END,
    ),
    _kind("a GitLab token", "glpat-", _START + r"(glpat-[A-Za-z0-9_-]{20,})"),
    _kind("a Hugging Face token", "hf_ api_org_", _START + r"((?:hf|api_org)_[A-Za-z0-9]{34,})" + _END),
    _kind(
        "a Slack token",
        "xox xapp- hooks.slack.com",
        r"(xox[abeoprs]-(?:[0-9]+-)+[A-Za-z0-9]{16,}|xapp-[0-9]-[A-Z0-9]+-[0-9]+-[A-Za-z0-9]{32,}"
        r"|hooks\.slack\.com/services/T[A-Z0-9]{7,}/B[A-Z0-9]{7,}/[A-Za-z0-9]{20,})",
    ),
    _kind("an OpenAI key", "T3BlbkFJ", _START + r"(sk-[A-Za-z0-9_-]{16,}T3BlbkFJ[A-Za-z0-9_-]{16,})"),
    _kind("an Anthropic key", "sk-ant-", _START + r"(sk-ant-[a-z]+[0-9]{2}-[A-Za-z0-9_-]{60,})"),
    _kind(
        "a Weights & Biases key",
        "wandb WANDB",
        r"(?:WANDB_API_KEY\\?[\"']?\s*[\],=:]+\s*\\?[\"']?|wandb\.login\([^)\n]{0,80}?key\s*=\s*[\"'])([0-9a-f]{40})(?![0-9a-f])"
        r"|(wandb_v[0-9]_[A-Za-z0-9_]{40,})",
    ),
    _kind(
        "a Google key",
        "AIza ya29. GOCSPX-",
        _START + r"(AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"
        r"|ya29\.[A-Za-z0-9_-]{30,}|GOCSPX-[A-Za-z0-9_-]{28}(?![A-Za-z0-9_-]))",
    ),
    _kind("a PyPI token", "pypi-AgE", r"(pypi-AgE[A-Za-z0-9_-]{60,})"),
    _kind(
        "an npm token",
        "npm_ _authToken",
        r"(npm_[A-Za-z0-9]{36})" + _END + r"|_authToken\s*=\s*([A-Za-z0-9_+/=-]{16,})",
    ),
    _kind("a Databricks token", "dapi", _START + r"(dapi[0-9a-f]{32}(?:-[0-9])?)" + _END),
    _kind("a Stripe key", "k_live_", _START + r"([sr]k_live_[A-Za-z0-9]{24,})" + _END),
    _kind("a SendGrid key", "SG.", _START + r"(SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43})" + _END),
    _kind(
        "a password in an address",
        "://",
        r"[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'`{}<>$%]{0,100}:([^\s/:@\"'`{}<>$%\[\]()]{8,200})@[A-Za-z0-9]",
        _is_no_word,
    ),
    _kind(
        "a token that renews itself",
        "refresh_token",
        r"\\?[\"']refresh_token\\?[\"']\s*:\s*\\?[\"']([A-Za-z0-9_./+-]{30,})\\?[\"']",
        _is_mixed,
    ),
    _kind(
        "a token of a service",
        "eyJ",
        _START + r"(eyJ[A-Za-z0-9_-]{16,}\.eyJ[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{20,})",
        _is_for_a_service,
    ),
    _kind("an Azure storage key", "AccountKey=", r"AccountKey=([A-Za-z0-9+/]{86}==)"),
)


@dataclass(frozen=True)
class Finding:
    """A secret: what kind of one, and the line of the file that it stands in; no line if the name tells it."""

    kind: str
    line: int | None = None

    def __str__(self) -> str:
        return f"looks like {self.kind}" if self.line is None else f"holds {self.kind} in line {self.line}"


def by_name(path: str) -> Finding | None:
    """Return what the name of a file, or of a folder above it, tells about it.

    Args:
        path: Relative, with slashes.
    """
    *folders, name = path.split("/")
    found = next((kind for folder, kind in _FOLDERS.items() if folder in folders), None)
    if found is None and name not in _TEMPLATES:
        low = name.lower()
        kinds = _NAMES.items()
        found = next((kind for kind, names in kinds if any(fnmatchcase(low, each.lower()) for each in names)), None)
    return Finding(found) if found else None


def in_content(content: bytes) -> Iterator[Finding]:
    """Yield the first secret of each kind in a text; a file of bytes that are no text has none that is looked for."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", errors="replace").encode("utf-8", errors="replace")
    if b"\0" in content[:8192]:
        return
    for kind in _KINDS:
        if any(mark in content for mark in kind.marks):
            for match in kind.pattern.finditer(content):
                if kind.is_real(next(group for group in match.groups() if group)):
                    yield Finding(kind.name, content.count(b"\n", 0, match.start()) + 1)
                    break


def is_public_key(finding: Finding, content: bytes) -> bool:
    """Say whether a file that is named like a private key holds certificates or public keys only."""
    return finding.kind == _PRIVATE_KEY and _PUBLIC.search(content) is not None and b"PRIVATE KEY" not in content
