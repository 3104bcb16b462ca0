"""What `dpwa check` says of the averaging method.

Must not know: the command line, the terminal. Runs in: any thread; pure functions from a config to text.
"""

from __future__ import annotations

from collections.abc import Iterator

from dpwa.config.cluster import ClusterConfig
from dpwa.methods.base import Conservation, Method

__all__ = ["describe_method", "method_warnings", "uses_interpolation"]


def uses_interpolation(config: ClusterConfig) -> bool:
    """Whether the configured rule is known to decide the factor; a custom method is not asked."""
    return config.method_class is not None and config.method_class.uses_interpolation


def describe_method(config: ClusterConfig) -> str:
    """What a step does, and what that conserves."""
    wait = f"waits up to {config.wait_ms} ms for the answer" if config.wait_ms > 0 else "never waits for the answer"
    often = f"with probability {config.pull_probability:g}"
    method = config.method_class or Method
    text = method.description.format(options=config.method_options, often=often, wait=wait)
    text = f"Method {config.method}{': ' if config.method_class else ', '}{text}"
    if config.outer.every is not None:
        text += f". Every {config.outer.every} steps an outer step with momentum {config.outer.momentum:g}"
    return text


def method_warnings(config: ClusterConfig) -> Iterator[str]:
    """What about the method deserves a second look."""
    method = config.method_class
    if method is None:
        return
    if not method.uses_interpolation and config.interpolation != "constant":
        yield f"interpolation {config.interpolation} has no effect: it rules the factor of method pull"
    if method.conservation is not Conservation.ROW and config.codec in ("fp16", "bf16", "int8"):
        yield f"codec {config.codec} rounds what travels, so that method {config.method} conserves only so many digits"
