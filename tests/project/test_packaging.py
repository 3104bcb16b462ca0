"""The package as users get it: what is in the wheel and the source archive, and that the wheel works on its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from support import ROOT

pytestmark = pytest.mark.heavy

BUILT_ELSEWHERE = (".git", ".venv", "build", "dist", "data", "runs", "*.egg-info", "__pycache__", ".*_cache")
TIMEOUT_S = 100


def _run(*command: str | Path, cwd: Path) -> str:
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source archive, built from a copy so that nothing is left behind in the checkout."""
    folder = tmp_path_factory.mktemp("packaging")
    source, out = folder / "source", folder / "out"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*BUILT_ELSEWHERE))
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=folder)
    (wheel,) = out.glob("*.whl")
    (source_archive,) = out.glob("*.tar.gz")
    return wheel, source_archive


@pytest.fixture(scope="module")
def installed_python(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel, and everything that this environment has except its dpwa."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", archives[0], cwd=folder)
    site_packages = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A folder that is named in a .pth file is searched, but its own .pth files, such as dpwa's editable one, are not.
    Path(site_packages, "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def test_the_wheel_holds_the_package_with_its_adapters_and_examples(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[0]) as wheel:
        names = set(wheel.namelist())
    expected = {
        "dpwa/py.typed",
        "dpwa/cli.py",
        "dpwa/launch/demo.py",
        "dpwa/launch/local.py",
        "dpwa/adapters/pytorch.py",
        "dpwa/lab/training/loop.py",
        "dpwa/examples/digits/train.py",
        "dpwa/examples/fashion_mnist/train.py",
        "dpwa/examples/cifar10/train.py",
    }
    assert expected <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"dpwa"}


def test_every_module_of_the_checkout_is_in_the_wheel(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[0]) as wheel:
        names = set(wheel.namelist())
    packages = [path.parent for path in ROOT.glob("dpwa/**/__init__.py")]
    modules = {path.relative_to(ROOT).as_posix() for package in packages for path in package.glob("*.py")}
    assert modules <= names


def test_the_source_archive_holds_what_a_maintainer_needs(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {
        "LICENSE",
        "Makefile",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
        "setup.py",
        ".ci/run",
        "adapters/pytorch.py",
        "dpwa/py.typed",
        "examples/digits/train.py",
        "examples/existing_script/after.py",
        "samples/minimal.yaml",
        "tests/project/test_packaging.py",
    }
    assert expected <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_installed_command_answers_outside_the_checkout(installed_python: Path, tmp_path: Path) -> None:
    assert "launch" in _run(installed_python.parent / "dpwa", "--help", cwd=tmp_path)


@pytest.mark.parametrize("module", ["dpwa.adapters.pytorch", "dpwa.examples.digits.train", "dpwa.launch.demo"])
def test_an_installed_module_is_imported_from_the_wheel(installed_python: Path, tmp_path: Path, module: str) -> None:
    place = _run(installed_python, "-c", f"import {module}; print({module}.__file__)", cwd=tmp_path).strip()
    assert Path(place).is_relative_to(installed_python.parent.parent)


def test_an_installed_example_runs_outside_the_checkout(installed_python: Path, tmp_path: Path) -> None:
    output = _run(installed_python, "-m", "dpwa.examples.digits.train", "--epochs", "1", cwd=tmp_path)
    assert "test accuracy of alone" in output
