"""A torchvision that does not fit torch: mended for the import, and left alone where that would hide something."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpwa import mend_torchvision

# Fails as torchvision's own modules do: in a submodule, when it registers something for an operator that is not there.
UNFIT = {
    "__init__": "from torchvision import _meta_registrations\n\nVALUE = 42\n",
    "_meta_registrations": """
import torch

@torch.library.register_fake("torchvision::nms")
def fake_nms(boxes, scores, iou_threshold):
    return scores
""",
}


def package(folder: Path, **modules: str) -> Path:
    """A folder with a package torchvision."""
    (folder / "torchvision").mkdir(parents=True)
    for name, text in modules.items():
        (folder / "torchvision" / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def no_torchvision() -> Iterator[None]:
    """The test imports a torchvision of its own; the next tests find the one that was there."""
    there = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "torchvision"}
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules.update(there)


@pytest.mark.seconds
def test_a_torchvision_that_does_not_fit_torch_can_be_imported_once_it_is_mended(tmp_path: Path) -> None:
    script = "import torchvision; print(torchvision.VALUE)"
    mended = f"import dpwa; dpwa.mend_torchvision(); dpwa.mend_torchvision(); {script}"
    folder = package(tmp_path, **UNFIT)
    unmended, done = (
        subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
        for code in (script, mended)
    )
    assert unmended.stderr.endswith("RuntimeError: operator torchvision::nms does not exist\n")
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr


def test_the_torchvision_of_this_environment_has_data_sets_and_models() -> None:
    mend_torchvision()
    torchvision = importlib.import_module("torchvision")
    assert torchvision.datasets.FashionMNIST
    assert torchvision.models.resnet18


@pytest.mark.usefixtures("no_torchvision")
def test_a_torchvision_that_can_be_imported_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package(tmp_path, __init__="COUNT = 1\n"))
    mend_torchvision()
    first = importlib.import_module("torchvision")
    mend_torchvision()
    assert importlib.import_module("torchvision") is first


@pytest.mark.usefixtures("no_torchvision")
@pytest.mark.parametrize("error", ["RuntimeError('broken')", "ImportError('no PIL')"])
def test_another_failure_of_the_import_is_not_hidden(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(package(tmp_path, __init__=f"raise {error}\n"))
    with pytest.raises((RuntimeError, ImportError), match=r"broken|no PIL"):
        mend_torchvision()
