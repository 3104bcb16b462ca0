"""The Python of docs/lab.md: code of one's own for a study, and the lab in a notebook."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from documentation import of_language

from dpwa.lab.study.study import Study
from dpwa.lab.training.data import load
from dpwa.lab.training.models import build

OWN_CODE, NOTEBOOK = (block.text for block in of_language("python") if block.page == "lab.md")


def test_a_model_and_data_of_ones_own_are_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lab.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_lab", raising=False)
    assert Study.from_text("{study: mine, model: my_lab:small, data: my_lab:table, strategies: [pull]}").trials()
    data = load("my_lab:table", None)
    model = build("my_lab:small", data.shape, data.classes, seed=0)
    assert (len(data.train), len(data.held_out), data.classes, data.shape) == (75, 75, 3, (4,))
    assert model(data.prepare(data.held_out.images)).shape == torch.Size([75, 3])


@pytest.mark.slow
@pytest.mark.timeout(600)  # six trials of four processes each
def test_the_study_of_a_notebook_has_an_accuracy_for_each_seed() -> None:
    names: dict[str, Any] = {}
    exec(NOTEBOOK, names)  # noqa: S102 - the project's own page
    assert set(names["table"].rows[1]["accuracies"]) == {0, 1, 2}
    assert min(names["table"].rows[1]["accuracies"].values()) > 15  # a tenth is chance
