"""What `dpwa check` says of the averaging method.

Must not know: the command line, the terminal. Runs in: any thread; pure functions from a config to text.
"""

from __future__ import annotations

from collections.abc import Iterator

from dpwa.config.cluster import ClusterConfig

__all__ = ["describe_method", "method_warnings", "pulls"]

_MEAN_KEEPING = ("adpsgd", "elastic", "dpsgd", "gosgd", "sgp")


def pulls(config: ClusterConfig) -> bool:
    """Whether the method is the one whose factor an interpolation rules."""
    return config.method == "pull" or (config.method == "sparta" and config.sparta.base == "pull")


def describe_method(config: ClusterConfig) -> str:
    """What a step does, and what that conserves."""
    wait = f"waits up to {config.wait_ms} ms for the answer" if config.wait_ms > 0 else "never waits for the answer"
    often = f"with probability {config.pull_probability:g}"
    noloco, dpsgd, sparta = config.noloco, config.dpsgd, config.sparta
    meets = f"Each step meets one random neighbour {often}, and both go"
    rounds = "each step is a round" if dpsgd.every == 1 else f"every {dpsgd.every} steps are a round"
    words = {
        "pull": f"Method pull: each step asks one random neighbour {often}, and {wait}. Row-stochastic: models agree, "
        "at an average that is not exactly the mean",
        "gosgd": f"Method gosgd: each step gives model and half of the mass to one random neighbour {often}. "
        "Column-stochastic: the mean by mass is conserved, whatever is lost or late",
        "sgp": f"Method sgp: each step gives model and half of the weight to an out-neighbour {often}, and counts by "
        "1 / weight. Column-stochastic: the mean by weight is conserved, whatever is lost or late",
        "adpsgd": f"Method adpsgd: {meets} to the middle. Doubly stochastic: the mean is conserved",
        "elastic": f"Method elastic: {meets} {config.elastic.alpha:g} of the way to the other. Doubly stochastic: the "
        "mean is conserved",
        "dpsgd": f"Method dpsgd: {rounds}; a node blends all neighbours' models of the round by the topology's "
        f"weights, waiting up to {dpsgd.deadline_ms} ms. The mean is conserved by rounds that miss nobody, "
        "if the matrix is doubly stochastic",
        "noloco": f"Method noloco: after {noloco.every} local steps two nodes within {noloco.window} outer steps of "
        "each other make one together. Doubly stochastic: the anchors move as their mean would",
        "sparta": f"Method sparta: like {sparta.base} {often}, with {sparta.fraction:g} of the parameters at a time",
    }
    text = words.get(config.method, f"Method {config.method}, a custom one; a step begins an exchange {often}")
    if config.outer.every is not None:
        text += f". Every {config.outer.every} steps an outer step with momentum {config.outer.momentum:g}"
    return text


def method_warnings(config: ClusterConfig) -> Iterator[str]:
    """What about the method deserves a second look."""
    if not pulls(config) and config.interpolation != "constant":
        yield f"interpolation {config.interpolation} has no effect: it rules the factor of method pull"
    if config.method in _MEAN_KEEPING and config.codec in ("fp16", "bf16", "int8"):
        yield f"codec {config.codec} rounds what travels, so that method {config.method} conserves only so many digits"
