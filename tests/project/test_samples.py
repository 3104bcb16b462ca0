"""The files under samples/ and the page about the configuration say what the code does."""

import re

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.config.sections import FlowControlOptions, NodeConfig, OuterOptions
from dpwa.config.yaml_file import read
from dpwa.interpolation.registry import RULES
from dpwa.methods.registry import METHODS
from support import ROOT

SAMPLES = sorted((ROOT / "samples").glob("*.yaml"))
METHOD_SAMPLES = sorted((ROOT / "samples" / "methods").glob("*.yaml"))
METHOD_OPTIONS = {name: method.options for name, method in METHODS.items() if method.options is not None}
SECTIONS = (ClusterConfig, NodeConfig, FlowControlOptions, *(rule.options for rule in RULES.values()))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_loads(path):
    config = ClusterConfig.load(path)
    assert ClusterConfig.from_text(config.to_yaml()) == config


def test_the_samples_are_there():
    names = {path.stem for path in SAMPLES}
    assert {"minimal", "four-local", "two-hosts", "fashion-mnist", "legacy-2017"} <= names


def test_the_local_samples_use_ports_that_outgoing_connections_never_take():
    ports = [node.port for path in SAMPLES for node in ClusterConfig.load(path).nodes]
    assert min(ports) >= 21000
    assert max(ports) < 32768


def test_four_local_lists_every_key_with_its_default():
    path = ROOT / "samples" / "four-local.yaml"
    config = ClusterConfig.load(path)
    assert config == ClusterConfig(nodes=config.nodes)
    written = read(path).values
    assert set(written) == set(ClusterConfig.model_fields)
    for name, rule in RULES.items():
        assert set(written[name]) == set(rule.options.model_fields)
    for name, options in METHOD_OPTIONS.items():
        assert set(written[name]) == set(options.model_fields)
    assert set(written["outer"]) == set(OuterOptions.model_fields)
    assert set(written["flow_control"]) == set(FlowControlOptions.model_fields)


def test_minimal_has_nothing_but_nodes():
    assert set(read(ROOT / "samples" / "minimal.yaml").values) == {"nodes"}


def test_the_2017_sample_means_what_it_meant():
    config = ClusterConfig.load(ROOT / "samples" / "legacy-2017.yaml")
    assert config.pull_probability == 1
    assert config.timeout_ms == 2500
    assert config.divergence_threshold == 0.2
    assert [node.name for node in config.nodes] == ["w1", "w2", "w3", "w4"]


def test_the_page_about_the_configuration_has_every_key_with_its_default():
    page = (ROOT / "docs" / "configuration.md").read_text()
    for section in SECTIONS:
        for key, field in section.model_fields.items():
            rows = [line for line in page.splitlines() if line.startswith(f"| `{key}` |")]
            assert rows, f"docs/configuration.md has no row for {key}"
            if isinstance(field.default, (str, int, float)):
                shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
                assert any(f"| `{shown}` |" in row for row in rows), f"{key}: the page has another default than {shown}"


def test_the_example_of_a_custom_rule_loads():
    config = ClusterConfig.load(ROOT / "examples" / "custom_rule" / "cluster.yaml")
    assert type(config.interpolator().rule).__name__ == "BetterOnly"


@pytest.mark.parametrize("path", METHOD_SAMPLES, ids=lambda path: path.stem)
def test_every_sample_of_a_method_makes_its_method_for_each_of_six_nodes(path):
    config = ClusterConfig.load(path)
    assert [node.name for node in config.nodes] == ["f1", "f2", "f3", "f4", "f5", "f6"]
    assert all(21000 <= node.port < 32768 for node in config.nodes)
    assert config.run == path.stem
    word = "pull" if path.stem == "diloco" else path.stem
    assert {type(config.method_for(node.name)) for node in config.nodes} == {METHODS[word]}
    assert f"dpwa launch samples/methods/{path.name} --" in path.read_text(encoding="utf-8")


def test_every_method_and_the_outer_momentum_have_a_sample():
    assert {path.stem for path in METHOD_SAMPLES} == {*METHODS, "diloco"}
    assert ClusterConfig.load(ROOT / "samples" / "methods" / "diloco.yaml").outer.every == 20


def test_the_page_about_methods_has_a_row_and_a_section_for_each_and_names_every_option():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    sections = dict(zip(*[iter(re.split(r"^## (.+)$", page, flags=re.MULTILINE)[1:])] * 2, strict=True))
    for word in METHODS:
        assert f"\n| `{word}` |" in sections["Which one"]
        assert "http" in sections[word], f"the section about {word} has no source"
        assert "\n    " in sections[word], f"the section about {word} has no formula"
    for word, section in {**METHOD_OPTIONS, "outer momentum": OuterOptions}.items():
        text = sections[word]
        told = text[text.index("\nOptions:") :]
        assert [key for key in section.model_fields if f"`{key}`" not in told] == []


def test_the_method_that_the_page_shows_is_that_of_the_example():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (shown,) = [block for block in blocks if "class BestPeer" in block]
    assert shown in (ROOT / "examples" / "custom_method" / "best_peer.py").read_text(encoding="utf-8")
