"""Settings of a row that are right each by itself and cannot go together.

Must not know: lines and columns; where in the file a setting stands. Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpwa.config.cluster import FIRST_PORT, cluster_problems
from dpwa.lab.study.kinds import Start, StrategyKind
from dpwa.lab.study.layers import mapping
from dpwa.lab.study.optimizer import optimizer_kind
from dpwa.lab.study.settings import (
    DATA_SETS,
    IMAGE_MODELS,
    MOST_IN_MEMORY,
    MOST_PROCESSES,
    TEXT_DATA_SETS,
    TEXT_MODELS,
    CommonSettings,
)
from dpwa.options import Problem

__all__ = ["contradictions"]

_GIVEN_BY_THE_LAB = ("run", "nodes", "method", "seed")


def contradictions(values: Mapping[str, Any], kind: StrategyKind, folder: Path | None) -> Iterator[Problem]:
    """Settings that contradict each other, and what dpwa would say of the row's cluster file.

    Args:
        values: of a row. Those that are wrong by themselves are passed over.
        kind: its strategy.
        folder: what paths of matrix files are relative to; None: these files are not checked.
    """
    yield from _row_problems(values, kind)
    yield from _cluster_problems(values, kind, folder)


def _row_problems(values: Mapping[str, Any], kind: StrategyKind) -> Iterator[Problem]:
    nodes = _nodes(values)
    for key in ("slow", "kill", "wrong_labels"):
        number = mapping(values.get(key)).get("node")
        if type(number) is int and number > nodes:
            yield Problem((key, "node"), f"expected one of the {nodes} nodes, got {number}")
    yield from _engine_problems(values, kind)
    yield from _data_problems(values)
    yield from _sampler_problems(values)
    if kind.start is Start.TENSORFLOW:
        yield from _twin_problems(values, kind)
    if not kind.splits_batch:
        return
    if not _is_iid(values):
        yield Problem(
            ("partition",),
            f"{kind.name} splits each batch of all data among its processes, so it has no partition; "
            f"write partition: iid for this row",
        )
    batch_size = values.get("batch_size")
    if type(batch_size) is int and 1 <= batch_size < nodes:
        yield Problem(("batch_size",), f"expected at least one sample for each of {nodes} nodes, got {batch_size}")


def _engine_problems(values: Mapping[str, Any], kind: StrategyKind) -> Iterator[Problem]:
    """What one process and virtual time cannot do."""
    if values.get("engine", "processes") != "in_memory":
        if "virtual" in values:
            yield Problem(("virtual",), "virtual is for engine: in_memory; remove it", at_key=True)
        if (nodes := _nodes(values)) > MOST_PROCESSES:
            yield Problem(("nodes",), f"expected at most {MOST_PROCESSES} with engine: processes, got {nodes}")
        return
    if not (kind.is_method or kind.name == "single"):
        text = f"{kind.name} needs processes of its own; engine: in_memory is for single and dpwa's methods"
        yield Problem(("engine",), text)
    faults = mapping(mapping(values.get("cluster")).get("faults"))
    for key, instead in _FAULTS_IN_REAL_TIME.items():
        if key in faults:
            text = f"faults.{key} happens in real time, which engine: in_memory does not have; use {instead}"
            yield Problem(("cluster", "faults", key), text, at_key=True)


def _sampler_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What contradicts samples that nodes share out while they train."""
    if values.get("sampler") is not True:
        return
    if values.get("engine", "processes") == "in_memory":
        yield Problem(("sampler",), "nodes share out samples by their real speed; it needs engine: processes")
    if not _is_iid(values):
        yield Problem(("sampler",), "expected partition: iid: with the sampler every node may train every sample")
    if mapping(values.get("cluster")).get("join"):
        yield Problem(("cluster", "join"), "with sampler: true nobody may join: all nodes are in the file; remove one")
    for key, inside in (("slow", "keeps_work"), ("wrong_labels", "share")):
        if mapping(values.get(key)).get(inside):
            yield Problem((key, inside), "with sampler: true no node has samples of its own; remove one of the two")


_FAULTS_IN_REAL_TIME = {
    "delay_ms": "virtual: {latency_ms: …}",
    "bandwidth": "virtual: {bandwidth: …}",
    "slow": "slow: {node: …, factor: …} of the study",
    "kill": "kill: {node: …, at: …} of the study",
}


def _data_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """A network of the lab that cannot use a data set of the lab."""
    data = values.get("data", CommonSettings.model_fields["data"].default)
    model = values.get("model", CommonSettings.model_fields["model"].default)
    fitting, others = (TEXT_MODELS, IMAGE_MODELS) if data in TEXT_DATA_SETS else (IMAGE_MODELS, TEXT_MODELS)
    if data in DATA_SETS and model in others:
        yield Problem(("model",), f"expected one of {', '.join(fitting)} for data: {data}, got {model}")


def _twin_problems(values: Mapping[str, Any], kind: StrategyKind) -> Iterator[Problem]:
    """What the lab has not built a second time in TensorFlow."""
    twins: Mapping[str, Sequence[object]] = {
        "data": tuple(name for name in DATA_SETS if name not in TEXT_DATA_SETS),
        "model": ("mcmahan_cnn", "light_cnn", "mlp"),
        "optimizer": ("sgd",),
        "schedule": ("constant", "cosine"),
        "warmup_steps": (0,),
        "clip_norm": (None,),
        "loss": ("cross_entropy",),
        "precision": ("float32",),
    }
    for key, known in twins.items():
        value = values.get(key, known[0])
        got = optimizer_kind(value) if key == "optimizer" else value
        extra = mapping(mapping(value).get(str(got))) if key == "optimizer" else {}
        if (isinstance(got, (str, int, float)) and got not in known) or extra:
            shown = f"{got} with {', '.join(extra)}" if extra else got
            expected = " or ".join("null" if one is None else str(one) for one in known)
            yield Problem((key,), f"{kind.name} knows only {expected}, got {shown}; leave the row out, or change it")


def _cluster_problems(values: Mapping[str, Any], kind: StrategyKind, folder: Path | None) -> Iterator[Problem]:
    """What dpwa would say about the cluster file of such a row."""
    cluster = mapping(values.get("cluster"))
    if not kind.is_method:
        return
    for key in cluster:
        if key in _GIVEN_BY_THE_LAB:
            text = f"the lab itself writes {', '.join(_GIVEN_BY_THE_LAB)} into the cluster file; remove this key"
            yield Problem(("cluster", key), text, at_key=True)
    given = {key: value for key, value in cluster.items() if key not in _GIVEN_BY_THE_LAB}
    nodes = [{"name": f"w{number}", "port": FIRST_PORT + number} for number in range(1, _nodes(values) + 1)]
    for found in cluster_problems({"method": kind.name, "nodes": nodes, **given}, folder):
        # What is wrong with the method is wrong with the row's strategy.
        yield replace(found, place=("strategy",) if found.place == ("method",) else ("cluster", *found.place))


def _is_iid(values: Mapping[str, Any]) -> bool:
    """Whether samples are divided at random, as they are if nothing is said."""
    partition = values.get("partition", "iid")
    return bool((partition.get("kind", "iid") if isinstance(partition, Mapping) else partition) == "iid")


def _nodes(values: Mapping[str, Any]) -> int:
    """The number of nodes; the default where it is wrong."""
    usual: int = CommonSettings.model_fields["nodes"].default
    given = values.get("nodes", usual)
    return given if type(given) is int and 1 <= given <= MOST_IN_MEMORY else usual
