"""The file that `dpwa init` prints."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from dpwa.cli import main
from dpwa.config.cluster import MAX_NODES, ClusterConfig
from dpwa.interpolation.registry import RULES
from dpwa.methods.registry import METHODS


@pytest.mark.parametrize("count", [1, 4, MAX_NODES])
def test_the_first_cluster_file_is_that_of_a_local_cluster(count):
    done = CliRunner().invoke(main, ["init", str(count)])
    assert done.exit_code == 0
    assert ClusterConfig.from_text(done.output) == ClusterConfig.for_localhost(count)


def test_its_commented_keys_are_defaults():
    text = CliRunner().invoke(main, ["init"]).output
    written = re.sub(r"^# (?=[a-z_]+: )", "", text, flags=re.MULTILINE)
    assert "\nmethod: pull" in written
    assert ClusterConfig.from_text(written) == ClusterConfig.for_localhost(4)


def test_it_names_every_method_and_every_rule():
    text = CliRunner().invoke(main, ["init"]).output
    for key, registry in (("method", METHODS), ("interpolation", RULES)):
        (comment,) = re.findall(rf"^# {key}: \w+ +# .+: (.+)$", text, flags=re.MULTILINE)
        assert comment.split(", ") == list(registry)


def test_a_count_that_cannot_be_is_refused():
    done = CliRunner().invoke(main, ["init", "0"])
    assert done.exit_code == 2
    assert "0 is not in the range" in done.output
