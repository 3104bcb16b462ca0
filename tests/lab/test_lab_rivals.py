"""Rows that need hivemind or Decent-DP, without them: what is said, and which Python runs; rivals.py trains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dpwa.errors import ConfigError
from dpwa.lab.run.starting import command_of, missing_for
from dpwa.lab.strategies import decentralized_data_parallel, environments
from dpwa.lab.study.settings import Settings
from dpwa.lab.study.trial import Trial, TrialFolder

RIVALS = ["hivemind", "decent_dp"]


def trial_of(strategy: str, **settings: object) -> Trial:
    values = {"strategy": strategy, "data": "digits", "model": "mlp", "nodes": 2, "n_epochs": 1, **settings}
    return Trial("s", strategy, 0, Settings.model_validate(values))


@pytest.mark.parametrize("rival", RIVALS)
def test_without_the_package_one_line_says_what_to_do(monkeypatch, rival):
    monkeypatch.setattr(environments, "find_spec", lambda _name: None)
    line = missing_for(trial_of(rival))
    assert line.startswith("make rivals, or name a Python")
    assert line.endswith(f"(DPWA_{rival.upper()}_PYTHON)")
    assert "\n" not in line


@pytest.mark.parametrize("rival", RIVALS)
def test_the_workers_run_by_the_python_that_is_named_and_the_launcher_by_dpwas_own(monkeypatch, tmp_path, rival):
    named = tmp_path / "python"
    named.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    named.chmod(0o755)
    monkeypatch.setenv(f"DPWA_{rival.upper()}_PYTHON", str(named))
    trial = trial_of(rival)
    assert missing_for(trial) is None
    command = command_of(trial, TrialFolder(tmp_path))
    assert command[0] == sys.executable
    assert command[command.index("--") + 1 :] == [str(named), "-m", "dpwa.lab.worker", str(tmp_path)]


def test_a_python_without_the_package_is_named(monkeypatch):
    monkeypatch.setenv("DPWA_HIVEMIND_PYTHON", "false")
    assert "has no hivemind; install hivemind and dpwa[torch,lab] there" in missing_for(trial_of("hivemind"))


def test_gradients_that_are_to_be_shortened_are_refused_where_they_are_applied_one_by_one(tmp_path):
    with pytest.raises(ConfigError, match="decent_dp: expected no clip_norm"):
        decentralized_data_parallel.make(trial_of("decent_dp", clip_norm=1.0), 0, 2, TrialFolder(Path(tmp_path)))
