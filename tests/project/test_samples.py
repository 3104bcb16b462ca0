"""The files under samples/ and the page about the configuration say what the code does."""

import itertools
import re

import pytest
import yaml

from dpwa.config.cluster import ClusterConfig
from dpwa.config.sections import FlowControlOptions, NodeConfig, OuterOptions
from dpwa.config.yaml_file import read
from dpwa.interpolation.registry import RULES
from dpwa.methods.registry import METHODS
from dpwa.methods.sparta import SpartaOptions
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
    ports = [node.port for path in SAMPLES for node in ClusterConfig.load(path).nodes if node.serve]
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


def _rows(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of the table with this heading: the words in the first cell, and the other cells of each."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(f"| {heading} |")]
    rows = {}
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]):
        first, *cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        rows |= dict.fromkeys(re.findall(r"`([^`]+)`", first), cells)
    return rows


def _row(page: str, word: str) -> list[str]:
    """The cells beside the first cell with this word alone."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"| `{word}` |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")][1:]


@pytest.mark.parametrize("name", METHODS)
def test_the_tables_of_methods_say_what_each_method_declares(name):
    method = METHODS[name]
    assert name in _rows("README.md", "method")
    default, meaning = _row("docs/configuration.md", "method")
    assert default == "`pull`"
    assert f"`{name}`" in meaning
    promise = _rows("docs/methods.md", "`method:`")[name][2]
    has_variants = method.variant(SpartaOptions(base="adpsgd")) is not method.variant(None)
    assert method.conservation.value in promise or (has_variants and promise == "that of its base")


def test_no_table_of_methods_has_one_that_is_not_there():
    assert set(_rows("README.md", "method")) == set(METHODS)
    assert set(_rows("docs/methods.md", "`method:`")) == set(METHODS)


def test_the_comments_about_the_key_method_name_every_method():
    (in_readme,) = re.findall(r"^method: (.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    (in_sample,) = re.findall(
        r"^# (.+)\nmethod: pull$", (ROOT / "samples" / "four-local.yaml").read_text(), re.MULTILINE
    )
    for text in (in_readme, in_sample):
        assert set(METHODS) <= set(re.findall(r"\w+", text))


@pytest.mark.parametrize("name", METHOD_OPTIONS)
def test_the_page_about_the_configuration_has_the_options_of_each_method(name):
    default, _ = _row("docs/configuration.md", name)
    assert yaml.safe_load(default.strip("`")) == METHOD_OPTIONS[name]().model_dump()


def test_the_table_of_rules_says_what_each_rule_declares():
    rows = _rows("docs/interpolation.md", "`interpolation:`")
    assert list(rows) == list(RULES)
    for name, rule in RULES.items():
        factor, options = rows[name]
        assert factor.replace("`", "").startswith(rule.summary)
        defaults = rule.options().model_dump()
        assert ({name: defaults} if defaults else "none") == yaml.safe_load(options.strip("`"))
        (_, words), (default, _) = _row("docs/configuration.md", "interpolation"), _row("docs/configuration.md", name)
        assert f"`{name}`" in words
        assert yaml.safe_load(default.strip("`")) == defaults


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
