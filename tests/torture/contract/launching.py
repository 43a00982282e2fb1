"""The arguments of `launch`, of any type and value: every problem in one error, and nothing done before."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

import smkit
from torture.contract.examples import Verdict, judged


class Odd:
    """What launch has never heard of."""

    def __repr__(self) -> str:
        return "an odd thing"


HOLDS_ITSELF: list[Any] = []
HOLDS_ITSELF.append(HOLDS_ITSELF)
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\0",
    "\ud800",
    "x" * 70_000,
    b"x",
    [],
    [1],
    ["a", 2],
]
ODD += [
    {},
    {1: 2},
    {"a": None},
    {"a": {"b": HOLDS_ITSELF}},
    HOLDS_ITSELF,
    Odd(),
    Odd,
    object(),
    Path("gone"),
    "s3://",
    "s3://b",
    "s3://b/../x",
]
ODD += [
    "file:///gone",
    "../..",
    "/",
    "local",
    "ml.p3.2xlarge",
    ["local", "ml.g5.xlarge"],
    {"train": "gone"},
    {"": "."},
    {"a b": "."},
    "\n",
    "--help",
]
ODD += [
    {"lr": float("nan")},
    {"lr": object()},
    {"x" * 300: 1},
    {"a": "x" * 3000},
    {"a-b": 1, "a_b": 2},
    {f"p{number}": 1 for number in range(150)},
]

PARAMETERS = [
    name for name in inspect.signature(smkit.launch).parameters if name not in ("dry_run", "session", "wait", "logs")
]


def launch_arguments(data: st.DataObject, folder: Path) -> Verdict:
    """One to four odd arguments beside a right script; only planned (`dry_run`), local and on SageMaker."""
    (folder / "source").mkdir()
    (folder / "source" / "train.py").write_text("print(1)\n")
    right: dict[str, Any] = {
        "entry": "train.py",
        "source_dir": folder / "source",
        "instance_type": data.draw(st.sampled_from(["local", "local", "ml.g5.xlarge"])),
        "output_dir": folder / "runs",
        "role": "arn:aws:iam::123456789012:role/Training",
        "region": "eu-west-1",
    }
    odd = data.draw(st.dictionaries(st.sampled_from(PARAMETERS), st.sampled_from(ODD), max_size=4))
    given = {**right, **odd}
    before = sorted(folder.rglob("*"))

    def launch() -> Any:
        return smkit.launch(given.pop("entry"), **given, dry_run=True)

    def is_right(plan: Any) -> str | None:
        str(plan)
        made = [path for path in sorted(folder.rglob("*")) if path not in before]
        return f"a plan has made {made}" if made else None

    # A local job needs the toolkit, which may not be installed here.
    is_sure = not odd and right["instance_type"] != "local"
    return judged(launch, folder, is_right=is_right, must="accept" if is_sure else "")
