"""The names that a user imports from dpwa, and that importing them costs nothing before they are used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import dpwa
import dpwa.lab
from dpwa import errors
from support import ROOT

HEAVY_MODULES = {"click", "networkx", "numpy", "pydantic", "rich", "torch", "yaml", "zmq"}

PUBLIC_NAMES = {
    "training": {"DpwaPyTorchAdapter", "attach", "ClusterConfig", "NodeStatistics", "__version__"}
    | {"average_models", "local_rank", "mend_torchvision"},
    "rules": {"register", "Interpolation", "DistanceInterpolation", "State"},
    "methods": {
        "Method",
        "ExchangeKind",
        "Conservation",
        "Plan",
        "Neighbourhood",
        "Snapshot",
        "ExchangeResult",
        "Options",
    },
    "methods to begin with": {"ADPSGD", "DPSGD", "Elastic", "GoSGD", "NoLoCo", "Pull", "SGP", "Sparta"},
    "adapters": {"Node", "Model", "Inventory", "Layout", "TensorSpec", "Role", "Section", "ITEM_BYTES", "Buffer"}
    | {"Values", "MODEL_FILE", "node_folder", "older_generations"},
    "errors": {"ConfigError", "DpwaError", "InternalError", "ModelMismatch", "NodeClosed", "PeerTimeout"}
    | {"IslandError", "PeerUnreachable", "RemoteProtocolError", "TransportError"},
}

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]


def test_the_public_names_are_those_of_this_list():
    assert sorted(dpwa.__all__) == sorted(set().union(*PUBLIC_NAMES.values()))
    assert set(dpwa.__all__) <= set(dir(dpwa))


@pytest.mark.parametrize("name", dpwa.__all__)
def test_every_public_name_is_described_in_the_help(name):
    assert name == "__version__" or name in PUBLIC_NAMES["errors"] or f"`{name}`" in dpwa.__doc__


def test_every_error_is_public():
    assert PUBLIC_NAMES["errors"] == set(errors.__all__) - {"number_problems"}


def test_type_checkers_see_the_same_names_in_the_same_modules_as_the_interpreter():
    tree = ast.parse(Path(dpwa.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = {alias.name: node.module for node in block.body for alias in node.names}
    assert imports.keys() == set(dpwa.__all__) - {"__version__"}
    for name, module in imports.items():
        assert getattr(import_module(module), name) is getattr(dpwa, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'dpwa' has no attribute 'Nodes'"):
        dpwa.Nodes  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Nodes'"):
        from dpwa import Nodes  # noqa: F401, PLC0415


def _ended(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


def test_importing_dpwa_imports_nothing_heavy():
    code = f"import sys, dpwa; dir(dpwa); print(sorted({HEAVY_MODULES} & set(sys.modules)))"
    assert _ended(code) == "[]"


def test_a_custom_rule_and_a_custom_method_need_no_torch():
    code = "import sys; from dpwa import GoSGD, Method, State, register; print('torch' in sys.modules)"
    assert _ended(code) == "False"


def test_without_torch_the_adapter_says_what_to_install():
    code = """
import sys
sys.modules["torch"] = None  # the interpreter's own way to say that there is none
try:
    from dpwa import DpwaPyTorchAdapter
except ModuleNotFoundError as error:
    print(error.name, error)
"""
    assert _ended(code) == (
        "torch dpwa.DpwaPyTorchAdapter: the package torch is not installed; "
        f"install it with: {sys.executable} -m pip install 'dpwa[torch]'"
    )


def test_what_people_copy_uses_the_public_names():
    """Scripts in examples/ that belong to no package, which import-linter does not see, and the pages."""
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("examples/*/*.py")]
    for page in PAGES:
        sources += re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    imported = {
        (node.module, alias.name) if isinstance(node, ast.ImportFrom) else (alias.name, None)
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    of_dpwa = {(module, name) for module, name in imported if module.split(".")[0] == "dpwa"}
    assert ("dpwa", "DpwaPyTorchAdapter") in of_dpwa
    assert {name for module, name in of_dpwa if module == "dpwa"} <= {*dpwa.__all__, None}
    assert {name for module, name in of_dpwa if module == "dpwa.lab"} <= {*dpwa.lab.__all__}
    others = {module for module, _ in of_dpwa if module not in ("dpwa", "dpwa.lab")}
    assert not {module for module in others if not module.startswith("dpwa.examples")}
