"""The model at the end: in its place, or where there is room, and a word on it; never lost without one."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpwa.adapters import saving
from dpwa.adapters.pytorch import DpwaPyTorchAdapter
from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's folder; temporary files have one of their own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("DPWA_RUN_DIR", str(tmp_path / "run"))
    return tmp_path / "run" / "nodes" / "w1"


class FullDisk:
    """Lets no model come to its place while it is full."""

    def __init__(self, until_gone: Path | None = None) -> None:
        self.refused = 0
        self._until_gone = until_gone
        self._replace = os.replace

    def replace(self, source: Path, target: Path) -> None:
        if self._until_gone is None or self._until_gone.exists():
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self._replace(source, target)


def trained(value: float) -> DpwaPyTorchAdapter:
    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, value)
    adapter = DpwaPyTorchAdapter(model, config=ClusterConfig.for_localhost(1, ports=free_ports(1)))
    adapter.step(1.0)
    return adapter


def weight(path: Path) -> float:
    values = load_file(path)["weight"].unique()
    return values.item()


def test_a_model_that_has_no_room_takes_that_of_the_journals_older_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained(2.0)
    older = folder / "events.1.jsonl"
    older.write_text("{}\n")
    disk = FullDisk(until_gone=older)
    monkeypatch.setattr(saving.os, "replace", disk.replace)
    adapter.close()
    assert disk.refused == 1, "the fault happened"
    assert weight(folder / "model.safetensors") == 2.0
    assert sorted(file.name for file in folder.iterdir()) == [
        "events.jsonl",
        "metrics.jsonl",
        "model.safetensors",
        "process",
    ]


def test_older_files_of_the_journal_stay_where_they_would_not_make_room_enough(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained(2.0)
    older = folder / "events.1.jsonl"
    older.write_text("{}\n")
    monkeypatch.setattr(saving.os, "replace", FullDisk().replace)
    usage = saving.shutil.disk_usage(folder)._replace(free=0)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _folder: usage)
    with pytest.raises(OSError, match="it is lost"):
        adapter.close()
    assert older.exists()


def test_a_model_without_room_in_its_place_is_kept_elsewhere_and_the_error_says_where(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained(3.0)
    monkeypatch.setattr(saving.os, "replace", FullDisk().replace)
    with pytest.raises(OSError, match="No space left on device") as caught:
        adapter.close()
    (place,) = Path(tempfile.gettempdir()).iterdir()
    assert weight(place) == 3.0
    assert f"it is in {place} instead" in str(caught.value)
    assert f"{place.stat().st_size} bytes are needed" in str(caught.value)
    assert str(folder / "model.safetensors") in str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    assert not list(folder.glob("*.partial"))


def test_a_place_that_is_no_file_keeps_the_model_elsewhere(folder: Path) -> None:
    adapter = trained(4.0)
    (folder / "model.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match="instead"):
        adapter.close()
    (place,) = Path(tempfile.gettempdir()).iterdir()
    assert weight(place) == 4.0


def test_a_model_that_fits_nowhere_is_told_to_be_lost_and_an_earlier_one_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(1.0).close()
    adapter = trained(5.0)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="it is lost; the model of an earlier end is still there"):
            adapter.close()
    assert weight(folder / "model.safetensors") == 1.0
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


def test_a_run_folder_that_is_gone_is_made_anew_for_the_model(folder: Path) -> None:
    adapter = trained(6.0)
    folder.parent.parent.rename(folder.parent.parent.with_name("away"))
    adapter.close()
    assert weight(folder / "model.safetensors") == 6.0


def test_a_life_that_only_loaded_a_checkpoint_saves_its_model_and_one_that_did_nothing_saves_none(folder: Path) -> None:
    with trained(1.0) as adapter:
        kept = adapter.state_dict()
    (folder / "model.safetensors").unlink()
    config = ClusterConfig.for_localhost(1, ports=free_ports(1))
    with DpwaPyTorchAdapter(torch.nn.Linear(2, 1), config=config):
        pass
    assert not (folder / "model.safetensors").exists()
    with DpwaPyTorchAdapter(torch.nn.Linear(2, 1), config=config) as adapter:
        adapter.load_state_dict(kept)
    assert (folder / "model.safetensors").exists()
