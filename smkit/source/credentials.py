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
_KEY_STORE = "a key store"
_NAMES = {
    "a file of environment variables": (".env*", "*.env"),
    _PRIVATE_KEY: ("*.pem", "*.key", "*.ppk", "*.p8", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"),
    _KEY_STORE: ("*.p12", "*.pfx", "*.jks", "*.jceks", "*.keystore", "*.kdbx", "*.kdb"),
    "a file of passwords": (
        *(".netrc", "_netrc", ".pgpass", ".htpasswd", "htpasswd", ".git-credentials", "*.secret", "*.secrets"),
        *(".my.cnf", ".mylogin.cnf", ".vault-token"),
    ),
    "a file of secrets": ("secrets.toml", "secrets.yaml", "secrets.yml", "secrets.json"),
    "a file of registry credentials": (".pypirc", ".dockercfg", ".dockerconfigjson"),
    "a file of cloud credentials": (
        *("credentials", "credentials.json", "application_default_credentials.json", "client_secret*.json"),
        *("*service-account*.json", "*service_account*.json", "accessKeys.csv", "*_accessKeys.csv"),
        *("*_credentials.csv", "kaggle.json", ".boto", ".s3cfg", ".databrickscfg", "rclone.conf", "azureProfile.json"),
        *(".terraformrc", "credentials.tfrc.json", "credentials.db", "access_tokens.db"),
    ),
    "a state of infrastructure with its passwords": ("*.tfstate", "*.tfstate.backup", "*.tfvars"),
    "a shell's history": (".bash_history", ".zsh_history", ".python_history", ".psql_history"),
}
_TEMPLATE = re.compile(r"\.env[.-](example|sample|template|dist|defaults)")
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
_BINARY = {
    # RFC 5208, 5958 and 8017: a version, then the algorithm of RSA or of elliptic curves, or RSA's own numbers.
    _PRIVATE_KEY: rb"0\x82..\x02\x01[\x00\x01](0.\x06.\x2a\x86\x48(\xce\x3d|\x86\xf7\x0d)|\x02\x82)",
    # Java's two, KeePass's, and PKCS #12 (RFC 7292).
    _KEY_STORE: rb"\xfe\xed\xfe\xed|\xce\xce\xce\xce|\x03\xd9\xa2\x9a|0\x82..\x02\x01\x030",
}
"""How files of bytes begin that are nothing else."""
_REACH = 8192
"""As far from its mark a secret begins or ends at most: the longest is a token of a service."""


@dataclass(frozen=True)
class _Kind:
    """A form of secret; the pattern is tried only around where one of `marks` stands in the bytes, for that is slow."""

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


def _decoded(text: bytes) -> bytes:
    """Return what stands behind base 64, as far as it is whole; nothing if it is none."""
    with contextlib.suppress(ValueError):
        return base64.b64decode(text[: len(text) // 4 * 4])
    return b""


def _is_pair(text: bytes) -> bool:
    """Tell `user:password` in base 64 from other words of its letters."""
    pair = _decoded(text + b"=" * (-len(text) % 4))
    return pair.isascii() and re.fullmatch(rb"[^:\s]*:\S{6,}", pair) is not None and _is_no_word(pair)


def _is_private_key(text: bytes) -> bool:
    return b"PRIVATE KEY" in _decoded(text)


def _is_bearer(token: bytes) -> bool:
    return _is_no_word(token) and _is_mixed(token)


def _is_token(user: bytes) -> bool:
    """Tell a token in a user's place from a user's name."""
    return _is_no_word(user) and len(re.findall(rb"[0-9]", user)) > 2


def _is_no_word(secret: bytes) -> bool:
    """Tell a password from what stands for one in texts: `password`, `PASSWORD`, `p4ssw0rd`, `12345678`."""
    words = (rb"[A-Za-z]", rb"[0-9]")
    is_placeholder = re.search(rb"(?i)passw|p4ss|secret|token|example|xxxx|changeme", secret) is not None
    return not is_placeholder and len(set(secret)) > 6 and all(re.search(each, secret) for each in words)


def _kind(name: str, marks: str, pattern: str, is_real: Callable[[bytes], bool] = _is_varied) -> _Kind:
    return _Kind(name, tuple(mark.encode() for mark in marks.split()), re.compile(pattern.encode()), is_real)


# What stands before a token may be a slash: https://ghp_...@github.com.
_START, _END = r"(?<![A-Za-z0-9_+-])", r"(?![A-Za-z0-9_+-])"
_IN_ADDRESS = r"[^\s/:@\"'`{}<>$%\[\]()]"
_ISSUED = {
    "dckr_pat_": r"[A-Za-z0-9_-]{27}",
    "dop_v1_": "[0-9a-f]{64}",
    "gsk_": "[A-Za-z0-9]{40,}",
    "hvs.": "[A-Za-z0-9_-]{24,}",
    "key-": "[0-9a-f]{32}",
    "lin_api_": "[A-Za-z0-9]{40}",
    "lsv2_pt_": "[0-9a-f]{32}_[0-9a-f]{10}",
    "lsv2_sk_": "[0-9a-f]{32}_[0-9a-f]{10}",
    "ntn_": "[A-Za-z0-9]{40,}",
    "nvapi-": "[A-Za-z0-9_-]{60,}",
    "pplx-": "[A-Za-z0-9]{40,}",
    "pul-": "[0-9a-f]{40}",
    "r8_": "[A-Za-z0-9]{37}",
    "shpat_": "[0-9a-fA-F]{32}",
    "sntrys_": "[A-Za-z0-9+/=_-]{50,}",
    "sntryu_": "[0-9a-f]{64}",
    "tk-": "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "xai-": "[A-Za-z0-9]{70,}",
    "AGE-SECRET-KEY-1": "[A-Z0-9]{58}",
    "NRAK-": "[A-Z0-9]{27}",
    "PMAK-": "[0-9a-f]{24}-[0-9a-f]{34}",
    "glsa_": "[A-Za-z0-9]{32}_[0-9a-fA-F]{8}",
    "rubygems_": "[0-9a-f]{48}",
}
"""Tokens of many more issuers, by the prefix that each gives its own."""
_KINDS = (
    _kind("an AWS access key", "AKIA ASIA", _START + r"((?:AKIA|ASIA)[A-Z2-7]{16})" + _END, _is_no_example),
    _kind(
        "an AWS secret access key",
        "secret Secret SECRET",
        r"(?i:secret[_-]?(?:access[_-]?)?key)\\?[\"']?\]?\s*(?:=>|[=:,])\s*\\?[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
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
        "npm_ _auth _password npmAuthToken",
        r"(npm_[A-Za-z0-9]{36})" + _END + r"|:_(?:authToken|auth|password)\s*=\s*\"?([A-Za-z0-9_+/=-]{16,})"
        r"|npmAuthToken:\s*[\"']?([A-Za-z0-9_+/=-]{16,})",
    ),
    _kind("a Databricks token", "dapi", _START + r"(dapi[0-9a-f]{32}(?:-[0-9])?)" + _END),
    _kind("a Stripe key", "k_live_", _START + r"([sr]k_live_[A-Za-z0-9]{24,})" + _END),
    _kind("a SendGrid key", "SG.", _START + r"(SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43})" + _END),
    _kind(
        "a password in an address",
        "://",
        r"://[^\s/:@\"'`{}<>$%]{0,100}:((?:" + _IN_ADDRESS + r"|%[0-9A-Fa-f]{2}){8,200})@[A-Za-z0-9]",
        _is_no_word,
    ),
    _kind(
        "a token in an address",
        "://",
        r"://([A-Za-z0-9_-]{16,200})(?::[a-z-]{0,20})?@[A-Za-z0-9]",
        _is_token,
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
    _kind(
        "an Azure key",
        "AccountKey= sig= 8Q~",
        r"AccountKey=([A-Za-z0-9+/]{86}==)|[?&]sig=([A-Za-z0-9%+/]{43,70})(?![A-Za-z0-9%+/])"
        r"|(?<![A-Za-z0-9_~.-])([A-Za-z0-9_~.-]{3}8Q~[A-Za-z0-9_~.-]{31,34})(?![A-Za-z0-9_~.-])",
    ),
    _kind(_PRIVATE_KEY, "Private-Lines:", r"Private-Lines: [0-9]+\s+([A-Za-z0-9+/=]{20,})"),
    _kind(_PRIVATE_KEY, "LS0tLS1CRUdJTi", r"(LS0tLS1CRUdJTi[A-Za-z0-9+/]{60,})", _is_private_key),
    _kind("an HTTP password", "Basic", r"\bBasic\s+([A-Za-z0-9+/]{12,}={0,2})", _is_pair),
    _kind("an HTTP token", "Bearer", r"\bBearer\s+([A-Za-z0-9._~+/-]{30,})", _is_bearer),
    _kind("a registry's password", "auth", r"\\?\"auth\\?\"\s*:\s*\\?\"([A-Za-z0-9+/]{12,}={0,2})", _is_pair),
    _kind(
        "a password of .netrc",
        "machine",
        r"\bmachine\s+\S+\s+login\s+\S+\s+password\s+(\S{8,200})",
        _is_no_word,
    ),
    _kind(
        "a Kaggle key",
        "username",
        r"\\?\"username\\?\"\s*:\s*\\?\"[^\"]{1,100}\"\s*,\s*\\?\"key\\?\"\s*:\s*\\?\"([0-9a-f]{32})",
    ),
    _kind("a Neptune token", "eyJhcGlfYWRkcmVzcy", r"(eyJhcGlfYWRkcmVzcy[A-Za-z0-9+/=_-]{40,})"),
    _kind("a Terraform token", ".atlasv1.", r"([A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_-]{60,})"),
    _kind("a Telegram token", ":AA", _START + r"([0-9]{8,10}:AA[A-Za-z0-9_-]{33})" + _END),
    *(
        _kind(f"a token ({mark}...)", mark, f"{_START}({re.escape(mark)}{rest}){_END}")
        for mark, rest in _ISSUED.items()
    ),
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
    found = next((_FOLDERS[folder] for folder in map(str.lower, folders) if folder in _FOLDERS), None)
    if found is None and not _TEMPLATE.fullmatch(name):
        low = name.lower()
        kinds = _NAMES.items()
        found = next((kind for kind, names in kinds if any(fnmatchcase(low, each.lower()) for each in names)), None)
    return Finding(found) if found else None


def in_content(content: bytes) -> Iterator[Finding]:
    """Yield the first secret of each kind in a text, or in other bytes: pickles and databases hold texts too."""
    for name, beginning in _BINARY.items():
        if re.match(beginning, content, re.DOTALL):
            yield Finding(name)
    encoding = _wide_encoding(content)
    if encoding:
        content = content.decode(encoding, errors="replace").encode("utf-8", errors="replace")
    for kind in _KINDS:
        found = [start for mark in kind.marks if (start := _first(kind, mark, content)) is not None]
        if found:
            yield Finding(kind.name, content.count(b"\n", 0, min(found)) + 1)


def _first(kind: _Kind, mark: bytes, content: bytes) -> int | None:
    for start, end in _around(mark, content):
        for match in kind.pattern.finditer(content, start, end):
            if kind.is_real(next(group for group in match.groups() if group)):
                return match.start()
    return None


def _around(mark: bytes, content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the parts of some bytes in which a mark stands, as far as a pattern may reach."""
    end = 0
    while (found := content.find(mark, end)) >= 0:
        start, end = max(found - _REACH, 0), found + _REACH
        while (last := content.rfind(mark, found + 1, end + len(mark) - 1)) >= 0:
            found, end = last, last + _REACH
        yield start, end


def _wide_encoding(content: bytes) -> str | None:
    """Return the encoding of a text of two bytes for each letter, with its mark at the beginning or without."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = content[:200:2], content[1:200:2]
    if len(odd) > 3 and not any(odd) and all(even):
        return "utf-16-le"
    return "utf-16-be" if len(odd) > 3 and not any(even) and all(odd) else None


def is_public_key(finding: Finding, content: bytes) -> bool:
    """Say whether a file that is named like a private key holds certificates or public keys only."""
    return finding.kind == _PRIVATE_KEY and _PUBLIC.search(content) is not None and b"PRIVATE KEY" not in content
