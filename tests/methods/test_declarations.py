"""A method or rule declares itself: one file and its place in the registry are all that a new one takes."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.config.describe import describe
from dpwa.interpolation.registry import RULES
from dpwa.lab.study.kinds import STRATEGIES
from dpwa.methods.base import Conservation, ExchangeKind
from dpwa.methods.registry import METHODS
from dpwa.methods.sparta import SpartaInPairs, SpartaOptions
from support import ROOT

TOY_METHOD = '''
from typing import Any

from pydantic import Field

from dpwa.methods.pull import Pull
from dpwa.options import Options


class ToyOptions(Options):
    """Options of the method toy."""

    share: float = Field(0.5, gt=0, le=1, description="A share.")


class Toy(Pull):
    """A toy."""

    name = "toy"
    summary = "play"
    description = "plays {often} for {options.share:g}"
    options = ToyOptions

    def __init__(self, links: Any, count: int, probability: float, *, share: float = 0.5) -> None:
        super().__init__(links, count, probability)
        self.share = share
'''

TOY_RULE = '''
from pydantic import Field

from dpwa.interpolation.rules import BuiltInRule
from dpwa.options import Options


class ThirdOptions(Options):
    """Options of the rule third."""

    times: float = Field(1.0, ge=0, le=3, description="How often.")


class Third(BuiltInRule):
    """A third."""

    name = "third"
    summary = "times / 3"
    description = "{options.times:g} thirds"
    options = ThirdOptions

    def __init__(self, times: float = 1.0) -> None:
        self.times = times

    def factor(self, own, peer):
        return self.times / 3
'''

USE = """
import dpwa
from dpwa.config.cluster import ClusterConfig, json_schema
from dpwa.config.describe import describe
from dpwa.errors import ConfigError
from dpwa.lab.study.kinds import STRATEGIES
from dpwa.snapshot.state import State

print(dpwa.__file__)
config = ClusterConfig.for_localhost(
    2, method="toy", toy={"share": 0.25}, interpolation="third", third={"times": 2}
)
print(config.method_for("w1").share)
print(round(config.interpolator().factor(State(1.0, 1.0), State(1.0, 1.0)), 3))
print(describe(config, ["w1"]).splitlines()[7:10])
print("toy" in json_schema()["properties"], STRATEGIES["toy"].text)
try:
    ClusterConfig.for_localhost(2, toy={"share": 2}, third={"tims": 1})
except ConfigError as error:
    print(*error.problems, sep="\\n")
"""


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """A copy of dpwa with one more method and one more rule, each a file and its place in a registry."""
    package = tmp_path / "dpwa"
    shutil.copytree(ROOT / "dpwa", package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder, file, text, last, name in (
        ("methods", "toy.py", TOY_METHOD, "Sparta", "Toy"),
        ("interpolation", "third.py", TOY_RULE, "Consensus", "Third"),
    ):
        (package / folder / file).write_text(text)
        registry = package / folder / "registry.py"
        code = registry.read_text()
        assert code.count(f" {last})") == 1
        import_line = f"from dpwa.{folder}.{Path(file).stem} import {name}\n"
        registry.write_text(
            code.replace(f" {last})", f" {last}, {name})").replace(
                "from dpwa.errors", f"{import_line}from dpwa.errors", 1
            )
        )
    return package


def test_a_new_method_and_a_new_rule_are_one_file_and_one_place_in_a_registry(copied_package: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=copied_package.parent,
        env={**os.environ, "PYTHONPATH": str(copied_package.parent)},
    )
    lines = done.stdout.splitlines()
    assert lines[0] == str(copied_package / "__init__.py")
    assert lines[1:3] == ["0.25", "0.667"]
    assert "Method toy: plays with probability 1 for 0.25." in lines[3]
    assert "The factor: 2 thirds." in lines[3]
    assert lines[4] == "True play"
    assert lines[5:] == [
        "toy.share: expected a number above 0 and up to 1, got 2",
        'third.tims: unknown key, did you mean "times"?',
    ]


@pytest.mark.seconds
def test_nothing_but_its_own_file_knows_the_name_of_a_method() -> None:
    names = {*METHODS} - {"pull"}  # which is the default of the key, and the name of a kind of exchange
    for path in sorted((ROOT / "dpwa").rglob("*.py")):
        constants = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        found = constants & names
        assert found <= ({path.stem} if path.parent.name == "methods" else set()) | _bases(path), path


def _bases(path: Path) -> set[str]:
    """Sparta's option `base` names the methods that it builds on."""
    return {"adpsgd"} if path.name == "sparta.py" else set()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_declares_all_that_others_read(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.summary
    assert isinstance(method.conservation, Conservation)
    assert isinstance(method.kind, ExchangeKind)
    assert STRATEGIES[name].text == method.summary
    text = describe(ClusterConfig.for_localhost(3, method=name), ["w1"])
    assert f"Method {name}: " in text
    assert "{" not in text


@pytest.mark.parametrize("name", METHODS)
def test_a_constructor_has_the_defaults_of_the_options(name: str) -> None:
    method = METHODS[name]
    parameters = inspect.signature(method).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert defaults == ({} if method.options is None else method.options().arguments())


@pytest.mark.parametrize("name", RULES)
def test_a_rule_declares_all_that_others_read(name: str) -> None:
    rule = RULES[name]
    assert rule.name == name
    assert rule.summary
    assert {one.name: one.default for one in inspect.signature(rule).parameters.values()} == rule.options().arguments()
    config = ClusterConfig.for_localhost(3, interpolation=name)
    assert isinstance(config.interpolator().rule, rule)
    assert "The factor: " in describe(config, ["w1"])


def test_sparta_is_a_method_of_either_base() -> None:
    pairs = ClusterConfig.for_localhost(2, method="sparta", sparta={"base": "adpsgd", "fraction": 0.25})
    made = pairs.method_for("w1")
    assert type(made) is SpartaInPairs
    assert (made.fraction, made.kind, made.conservation) == (0.25, ExchangeKind.PAIR, Conservation.DOUBLY)
    smaller = ClusterConfig.for_localhost(2, method="sparta", pull_fraction=0.001).method_for("w1")
    assert (smaller.fraction, smaller.kind, smaller.conservation) == (0.001, ExchangeKind.PULL, Conservation.ROW)
    assert SpartaOptions().arguments() == {"fraction": 0.005}


@pytest.mark.seconds
def test_reading_the_options_of_all_methods_and_rules_imports_no_numpy() -> None:
    code = """
import sys
from dpwa.config.cluster import ClusterConfig
from dpwa.config.describe import describe
from dpwa.interpolation.registry import RULES
from dpwa.methods.registry import METHODS
for method in METHODS:
    for rule in RULES:
        config = ClusterConfig.from_text(f"nodes: [{{name: a, port: 1}}]\\nmethod: {method}\\ninterpolation: {rule}\\n")
        config.to_yaml(), describe(config, ["a"]), config.run_id
print("numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
