"""docs/api.md against the code: names, arguments, attributes and defaults, and its blocks, run as they stand."""

from __future__ import annotations

import dataclasses
import inspect
import re

import numpy as np
import pytest
from torch import nn

import dpwa
from dpwa import ClusterConfig, DpwaPyTorchAdapter, Node, NodeStatistics, attach, average_models
from dpwa.adapters import averaging, pytorch
from dpwa.launch.ports import free_ports
from dpwa.node import farewell
from pages import python_blocks
from support import ROOT

PAGE = "api.md"
TEXT = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
WORDS = {word for code in re.findall(r"`([^`\n]+)`", TEXT) for word in re.findall(r"\w+", code)}


def _section(heading: str) -> str:
    (body,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    return body


def _public(of: type) -> set[str]:
    """Methods and properties of a class, without those that every object has."""
    return {name for name in vars(of) if not name.startswith("_")}


@pytest.mark.parametrize("name", dpwa.__all__)
def test_every_public_name_is_on_the_page(name):
    assert name in WORDS


def test_what_the_adapters_define_for_users_is_public():
    for name in (*pytorch.__all__, "average_models"):
        assert name in dpwa.__all__
        assert name in WORDS
    assert averaging.average_models is average_models


@pytest.mark.parametrize(
    ("called", "heading"),
    [(DpwaPyTorchAdapter, "DpwaPyTorchAdapter"), (attach, "attach"), (average_models, "average_models")],
)
def test_the_page_has_each_signature_as_it_is(called, heading):
    parameters = inspect.signature(called).parameters.values()
    assert f"`{heading}({_as_written(parameters, required={'model'})})`" in _section(heading)


def test_the_page_has_the_signature_of_node():
    parameters = inspect.signature(Node).parameters.values()
    assert f"`Node({_as_written(parameters)})`" in _section("Node: other frameworks")


def _as_written(parameters, required=frozenset()) -> str:
    """The parameters as a page writes them; without the default of one that must be given all the same."""
    words = []
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        default = getattr(one.default, "__qualname__", None)
        default = f"time.{default}" if default else repr(one.default)
        has_none = one.default is one.empty or one.name in required
        words.append(one.name if has_none else f"{one.name}={default}")
    return ", ".join(words)


@pytest.mark.parametrize("name", sorted(_public(DpwaPyTorchAdapter)))
def test_every_method_and_attribute_of_the_adapter_is_in_its_section(name):
    found = getattr(DpwaPyTorchAdapter, name)
    section = _section("DpwaPyTorchAdapter")
    if isinstance(found, property):
        assert f"`{name}`" in section
    else:
        parameters = list(inspect.signature(found).parameters.values())[1:]
        written = ", ".join(f"**{one.name}" if one.kind is one.VAR_KEYWORD else str(_bare(one)) for one in parameters)
        assert f"`{name}({written})`" in section


def _bare(parameter: inspect.Parameter) -> inspect.Parameter | str:
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"


@pytest.mark.parametrize("name", ["name", "config", "run_dir"])
def test_plain_attributes_of_the_adapter_are_in_its_section(name):
    with DpwaPyTorchAdapter(nn.Linear(2, 1)) as node:
        assert hasattr(node, name)
    assert f"`{name}`" in _section("DpwaPyTorchAdapter")


@pytest.mark.parametrize("name", sorted(_public(Node)))
def test_every_method_of_node_is_in_its_section(name):
    assert f"`{name}`" in _section("Node: other frameworks")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(NodeStatistics)])
def test_every_field_of_the_statistics_is_in_their_section(field):
    assert f"`{field}`" in _section("NodeStatistics")


@pytest.mark.parametrize("name", ["load", "from_text", "from_mapping", "for_localhost"])
def test_the_page_names_the_arguments_of_each_way_to_a_config(name):
    (written,) = re.findall(rf"`ClusterConfig\.{name}\((.*?)\)`", _section("ClusterConfig"))
    parameters = inspect.signature(getattr(ClusterConfig, name)).parameters
    assert re.findall(r"(\w+)(?:=[^,]+)?", written) == list(parameters)


def test_the_first_block_runs_alone():
    (block,) = python_blocks(PAGE, "In short")
    names: dict[str, object] = {}
    exec(block, names)  # noqa: S102 - what the page says, as a reader would run it
    node = names["node"]
    assert (node.closed, node.name, node.folder, node.statistics().step) == (True, "alone", None, 3)


def test_a_model_of_numpy_trains_with_node_alone(monkeypatch, tmp_path):
    ports = free_ports(2)
    config = ClusterConfig.for_localhost(2, ports=ports, connect_timeout_ms=20)
    monkeypatch.setattr(farewell, "SILENT_S", 0.2)  # the other node never comes
    (tmp_path / "cluster.yaml").write_text(config.to_yaml(), encoding="utf-8")
    for name, value in {"CONFIG": "cluster.yaml", "NODE": "w1", "RUN_DIR": "run"}.items():
        monkeypatch.setenv(f"DPWA_{name}", value)
    (block,) = python_blocks(PAGE, "Node: other frameworks")
    names: dict[str, object] = {}
    exec(block, names)  # noqa: S102 - see above
    assert names["node"].statistics().step == 100


def test_the_model_of_numpy_goes_the_share_of_the_way_that_it_is_told():
    (block,) = python_blocks(PAGE, "Node: other frameworks")
    names: dict[str, object] = {}
    exec(block[: block.index("weights = ")], names)  # noqa: S102 - see above
    weights = names["Weights"](4)
    (section,) = weights.layout.sections
    weights.blend([dpwa.Values(section, np.full(4, 8.0, np.float32), is_difference=True)], 0.5)
    assert weights.values.tolist() == [4.0] * 4
    weights.blend([dpwa.Values(section, np.full(4, 8.0, np.float32), is_difference=False)], 0.5)
    assert weights.values.tolist() == [6.0] * 4
    buffer = np.zeros(weights.layout.total_bytes, np.uint8)
    weights.copy_into(buffer)
    assert buffer.view(np.float32).tolist() == [6.0] * 4
