"""The data of torchvision: one node of a host downloads it, the others wait, and a failure is one line."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from dpwa.examples import torchvision_data
from dpwa.examples.torchvision_data import MissingDataError, open_data_set


class Torchvision(ModuleType):
    """A torchvision with one data set, which is there when the file is, and cannot be downloaded."""

    def __init__(self) -> None:
        super().__init__("torchvision")
        self.datasets = SimpleNamespace(Digits=self.open)
        self.downloads = 0

    def open(self, root: Path, *, train: bool, download: bool) -> str:
        if (root / "digits").exists():
            return "training" if train else "test"
        if not download:
            raise RuntimeError("Dataset not found or corrupted.")
        self.downloads += 1
        raise OSError("<urlopen error\n no route to host>")


@pytest.fixture
def torchvision(monkeypatch) -> Torchvision:
    fake = Torchvision()
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    return fake


def other_node_ends(monkeypatch, root: Path, *, brings_it: bool) -> None:
    """Another node holds the lock, and lets go of it when this one waits."""
    held = (root / ".Digits.lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    flock = fcntl.flock

    def wait(file, operation):
        if operation == fcntl.LOCK_EX:
            if brings_it:
                (root / "digits").touch()
            held.close()
        flock(file, operation)

    monkeypatch.setattr(torchvision_data.fcntl, "flock", wait)


def test_data_that_cannot_be_downloaded_ends_a_script_with_one_line(torchvision, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        open_data_set("Digits", tmp_path / "data", train=True)
    assert str(caught.value) == (
        f"Digits: not in {tmp_path}/data, and it cannot be downloaded (<urlopen error no route to host>); "
        "put it there, or name its folder with --data-dir"
    )
    assert torchvision.downloads == 1
    assert capsys.readouterr().out == f"Digits: not in {tmp_path}/data: downloading\n"


def test_a_node_that_waited_finds_what_another_has_downloaded(torchvision, tmp_path, monkeypatch, capsys):
    other_node_ends(monkeypatch, tmp_path, brings_it=True)
    assert open_data_set("Digits", tmp_path, train=False) == "test"
    assert torchvision.downloads == 0
    assert capsys.readouterr().out == ""


def test_a_node_that_waited_in_vain_does_not_begin_the_same_download(torchvision, tmp_path, monkeypatch):
    other_node_ends(monkeypatch, tmp_path, brings_it=False)
    with pytest.raises(MissingDataError, match="another node has tried"):
        open_data_set("Digits", tmp_path, train=True)
    assert torchvision.downloads == 0


def test_a_folder_that_cannot_be_made_is_the_same_line(torchvision, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MissingDataError, match="Not a directory"):
        open_data_set("Digits", tmp_path / "file" / "data", train=True)
    assert torchvision.downloads == 0
