"""Runs that cannot be: each ends with one text that says what, where and how to mend it, as it stands in golden/."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import smkit
from smkit import contract, report

pytestmark = pytest.mark.train

HERE = Path(__file__).parent


class Classifier(smkit.Trainer[smkit.Hyperparameters]):
    """Tells two classes of images apart; a test changes one thing of it."""

    classes = 2
    factor = 1.0

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, self.classes))

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0].float()), batch[1]) * self.factor


class Wide(Classifier):
    classes = 3


class Broken(Classifier):
    factor = float("nan")


def picture(size: int = 2) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size)).save(file, "PNG")
    return file.getvalue()


def images(*labels: str) -> dict[str, bytes]:
    rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    pictures = {f"{number}.png": picture() for number in range(len(labels))}
    return pictures | {"labels.csv": f"file,label\n{rows}".encode()}


GOOD = images("0", "1")
CASES: dict[str, tuple[dict[str, bytes] | None, type[Classifier], tuple[str, ...]]] = {
    "channel-missing": (None, Classifier, ()),
    "channel-empty": ({}, Classifier, ()),
    "channel-unknown-layout": ({"notes.docx": b"x"}, Classifier, ()),
    "loss-not-a-number": (GOOD, Broken, ()),
    "image-corrupt": (GOOD | {"1.png": b"\x89PNG\r\n\x1a\nxx"}, Classifier, ()),
    "image-of-another-size": (GOOD | {"1.png": picture(3)}, Classifier, ()),
    "label-out-of-range": (images("0", "7"), Classifier, ()),
    "label-missing": (images("0", ""), Classifier, ()),
    "label-stray": (images("0", "1", "2", "cat"), Classifier, ()),
    "precision-without-gpu": (GOOD, Classifier, ("--precision", "fp16")),
}


def golden(name: str, text: str, folder: Path) -> None:
    """Compare with the text on file; a missing file is written, to be read and kept."""
    file = HERE / "golden" / f"run-{name}.txt"
    shown = text.replace(str(folder), "FOLDER").replace(str(HERE), "TESTS").rstrip() + "\n"
    shown = re.sub(r"(?<=\.py):\d+", ":LINE", shown)
    if not file.exists():
        file.write_text(shown, encoding="utf-8")
        pytest.fail(f"{file} was written; read it and run again")
    assert shown == file.read_text(encoding="utf-8")
    assert len(text) <= contract.MAX_FAILURE_CHARACTERS
    assert "\n  where: " in text
    assert "\n  fix:   " in text


def failure(run: Callable[[], Any]) -> str:
    with pytest.raises(smkit.SmkitError) as caught:
        run()
    return report.failure_text(caught.value)


def trainer(kind: type[Classifier], folder: Path, *arguments: str) -> Classifier:
    argv = ["--run-dir", str(folder / "run"), *arguments]
    return kind(smkit.TrainingContext.load(smkit.Hyperparameters, argv, {}))


def write(folder: Path, files: dict[str, bytes]) -> tuple[str, str]:
    (folder / "data").mkdir()
    for name, content in files.items():
        (folder / "data" / name).write_bytes(content)
    return "--channel", f"train={folder / 'data'}"


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_cannot_be_says_why(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    files, kind, arguments = CASES[name]
    places = () if files is None else write(tmp_path, files)
    golden(name, failure(lambda: trainer(kind, tmp_path, *arguments, *places).fit()), tmp_path)
    assert not list(tmp_path.glob("run/model/*")), "no model of a failed run"


def test_a_model_of_other_shapes_than_the_checkpoints_is_named(tmp_path: Path) -> None:
    places = write(tmp_path, GOOD)
    trainer(Classifier, tmp_path, *places).fit()
    text = failure(lambda: trainer(Wide, tmp_path, "--epochs", "2", *places).fit())
    (checkpoint,) = tmp_path.glob("run/checkpoints/step-*")
    golden("shapes", text.replace(checkpoint.name, "CHECKPOINT"), tmp_path)
