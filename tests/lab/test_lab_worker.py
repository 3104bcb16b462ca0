"""One process of a trial that fails: what went wrong is told, and how far it came is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpwa.lab import worker
from dpwa.lab.study.settings import Settings
from dpwa.lab.study.trial import Trial, TrialFolder, write_json
from dpwa.lab.training.recording import Recorder
from dpwa.lab.training.strategy import Strategy

STEPS = 5


class Lost(Exception):
    """What goes wrong in a step."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialFolder:
    """A trial whose training fails after its fifth step."""
    made = 0

    def failing(_self: Strategy, _loss: object) -> None:
        nonlocal made
        made += 1
        if made > STEPS:
            raise Lost

    monkeypatch.setattr(Strategy, "after_step", failing)
    monkeypatch.setattr(worker, "rank_of_this_node", lambda: 0)
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda _: None)  # of this process, which is not the trial's
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: None)
    folder = TrialFolder(tmp_path)
    settings = Settings.model_validate({"strategy": "single", "data": "digits", "model": "mlp"})
    write_json(folder.trial_json, Trial("s", "single", 0, settings).to_json())
    return folder


def test_a_process_that_fails_writes_down_how_far_it_came(folder: TrialFolder) -> None:
    with pytest.raises(Lost):
        worker.main([str(folder.path)])
    assert json.loads(folder.last_word("w1").read_text())["step"] == STEPS


def test_on_a_full_disk_what_went_wrong_is_told_and_not_that_it_is_full(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def full(_self: Recorder) -> None:
        asked.append(True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Recorder, "write_last_word", full)
    with pytest.raises(Lost):
        worker.main([str(folder.path)])
    assert asked, "the fault happened"
