"""Code that is not dpwa's: how a class or a function that a file names is found, and what becomes of its exceptions.

Must not know: what the code is for. Runs in: any thread.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from dpwa.errors import ConfigError, DpwaError

__all__ = ["blamed", "importable", "is_own", "load_class", "load_function"]


def is_own(word: str) -> bool:
    """Whether a word names a user's own code, as "module:name"."""
    return ":" in word


def load_class(name: str, what: str, base: type | None = None) -> type:
    """The class that a file names as "module:Class"; imports the module.

    Args:
        name: the two names, as they stand in the file.
        what: what messages call such a class, such as "method".
        base: what the class must inherit from; None: nothing.

    Raises:
        ConfigError: the module cannot be imported, has no such class, or the class cannot be used.
    """
    module, class_name = _module_of(name, what, "Class", "a class")
    found = getattr(module, class_name, None)
    if not inspect.isclass(found) or not (base is None or issubclass(found, base)):
        classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
        fitting = [key for key, value in classes.items() if issubclass(value, base or object)]
        hint = _hint(module, class_name, fitting)
        if base is None:
            raise ConfigError(f'{what} "{name}": the module {module.__name__} has no class {class_name}{hint}')
        expected = f"expected a class that inherits from {base.__module__}.{base.__qualname__}"
        raise ConfigError(f'{what} "{name}": {expected}, found {found!r}{hint}')
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(f'{what} "{name}": the class does not define {missing}')
    return found


def load_function(name: str, what: str) -> Callable[..., Any]:
    """The function that a file names as "module:function"; imports the module.

    Args:
        name: the two names, as they stand in the file.
        what: what messages call such a function, such as "model".

    Raises:
        ConfigError: the module cannot be imported, or has no such function.
    """
    module, function_name = _module_of(name, what, "function", "a function")
    found = getattr(module, function_name, None)
    if not callable(found):
        hint = _hint(module, function_name, [key for key, value in vars(module).items() if callable(value)])
        raise ConfigError(f'{what} "{name}": the module {module.__name__} has no function {function_name}{hint}')
    return found  # type: ignore[no-any-return]


def _module_of(name: str, what: str, kind: str, article: str) -> tuple[ModuleType, str]:
    """The module of "module:name", imported, and the name."""
    module_name, _, inside = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), inside]):
        raise ConfigError(f'{what} "{name}": expected "module:{kind}", the names of a module and of {article} in it')
    try:
        return importlib.import_module(module_name), inside
    except (ImportError, SyntaxError, ValueError) as error:
        raise ConfigError(
            f'{what} "{name}": the module {module_name} cannot be imported ({type(error).__name__}: {error}); '
            f"put it beside the config file or in the current folder, or install it"
        ) from error


def _hint(module: ModuleType, wanted: str, known: Sequence[str]) -> str:
    near = get_close_matches(wanted, known, n=1)
    return f', did you mean "{module.__name__}:{near[0]}"?' if near else ""


@contextmanager
def importable(folders: Sequence[Path]) -> Iterator[None]:
    """Modules in the folders can be imported meanwhile.

    The folders come last, so that a file in them cannot take the place of an installed module.
    """
    added = [str(folder.resolve()) for folder in folders]
    sys.path += added
    importlib.invalidate_caches()  # a module written a moment ago is seen too
    try:
        yield
    finally:
        for folder in added:
            # From the end, where ours are: the same folder may stand further up in its own right.
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


class blamed:  # noqa: N801  (used as a statement; a generator would cost every step of the training twice as much)
    """Whatever is raised inside becomes a `ConfigError` that names the code: it is no bug of dpwa.

    Args:
        owner: the class or function that is called. For dpwa's own the error stays as it is, for the sake of its
            traceback.
        problem: from the error to the words.

    Raises:
        ConfigError: the code raised something.
    """

    __slots__ = ("_owner", "_problem")

    def __init__(self, owner: Callable[..., Any], problem: Callable[[str], str]) -> None:
        self._owner = owner
        self._problem = problem

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, DpwaError):
            return
        if not self._owner.__module__.startswith("dpwa."):
            raise ConfigError(self._problem(repr(error))) from error
