"""Code that is not dpwa's: how a class that a file names is found, and what becomes of its exceptions.

Must not know: what the code is for. Runs in: any thread.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from types import TracebackType

from dpwa.errors import ConfigError, DpwaError

__all__ = ["blamed", "load_class"]


def load_class(name: str, what: str, base: type | None = None) -> type:
    """The class that a file names as "module:Class"; imports the module.

    Args:
        name: the two names, as they stand in the file.
        what: what messages call such a class, such as "method".
        base: what the class must inherit from; None: nothing.

    Raises:
        ConfigError: the module cannot be imported, has no such class, or the class cannot be used.
    """
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise ConfigError(f'{what} "{name}": expected "module:Class", the names of a module and of a class in it')
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError, ValueError) as error:
        raise ConfigError(
            f'{what} "{name}": the module {module_name} cannot be imported ({type(error).__name__}: {error}); '
            f"put it beside the config file or in the current folder, or install it"
        ) from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found) or not (base is None or issubclass(found, base)):
        classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
        fitting = [key for key, value in classes.items() if issubclass(value, base or object)]
        near = get_close_matches(class_name, fitting, n=1)
        hint = f', did you mean "{module_name}:{near[0]}"?' if near else ""
        if base is None:
            raise ConfigError(f'{what} "{name}": the module {module_name} has no class {class_name}{hint}')
        expected = f"expected a class that inherits from {base.__module__}.{base.__qualname__}"
        raise ConfigError(f'{what} "{name}": {expected}, found {found!r}{hint}')
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(f'{what} "{name}": the class does not define {missing}')
    return found


class blamed:  # noqa: N801  (used as a statement; a generator would cost every step of the training twice as much)
    """Whatever is raised inside becomes a `ConfigError` that names the class: it is no bug of dpwa.

    Args:
        owner: the class that is called. For dpwa's own classes the error stays as it is, for the sake of its traceback.
        problem: from the error to the words.

    Raises:
        ConfigError: the code raised something.
    """

    __slots__ = ("_owner", "_problem")

    def __init__(self, owner: type, problem: Callable[[str], str]) -> None:
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
