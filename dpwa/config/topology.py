"""What a cluster file may say under `topology:`.

A word alone is the name of a graph. Values are checked one by one here, and together in `topology_checks`.

Must not know: the nodes, matrices. Runs in: any thread; options never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from dpwa.config.problems import OWN_TEXT
from dpwa.options import OTHER_VALUES, Options

__all__ = ["GivenMatrix", "TopologyOptions", "with_folder"]

GivenMatrix: TypeAlias = "tuple[tuple[float, ...], ...] | str"
"""Rows of numbers, or the path of a file."""

_MATRIX_SCHEMA = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}]
}
_EDGE_SCHEMA = {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}


def _checked_edge(value: object) -> tuple[str, str]:
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(name, str) for name in value):
        return value[0], value[1]
    raise PydanticCustomError(OWN_TEXT, "expected the names of two nodes, such as [w1, w2]")


def _checked_matrix(value: object) -> GivenMatrix | None:
    if isinstance(value, str) and value.lower().endswith((".csv", ".npy")):
        return value
    if value is None or (isinstance(value, (list, tuple)) and value and all(map(_is_row, value))):
        return None if value is None else tuple(tuple(map(float, row)) for row in value)
    raise PydanticCustomError(
        OWN_TEXT, "expected rows of numbers, such as [[0.5, 0.5], [0.5, 0.5]], or the path of a .csv or .npy file"
    )


def _is_row(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(type(number) in (int, float) for number in value)


_EdgeValue = Annotated[Any, PlainValidator(_checked_edge), WithJsonSchema(_EDGE_SCHEMA)]
_MatrixValue = Annotated[Any, PlainValidator(_checked_matrix), WithJsonSchema(_MATRIX_SCHEMA)]


class TopologyOptions(Options):
    """The topology: who exchanges with whom, and with which weights."""

    graph: Literal[
        "complete",
        "ring",
        "directed_ring",
        "grid",
        "torus",
        "star",
        "hypercube",
        "exponential",
        "one_peer_exponential",
        "base_graph",
        "random_regular",
        "erdos_renyi",
        "small_world",
        "edges",
        "matrix",
    ] = Field(
        "complete",
        description="Who hears whom.",
        json_schema_extra={
            OTHER_VALUES: {
                "fully_connected": "complete",
                "full": "complete",
                "all_to_all": "complete",
                "clique": "complete",
                "cycle": "ring",
                "circle": "ring",
            }
        },
    )
    weights: (
        Literal["uniform", "uniform_column", "metropolis", "random_row", "random_column", "random_doubly"] | None
    ) = Field(None, description="The weights of the edges; metropolis for symmetric graphs, uniform for the others.")
    schedule: Literal["static", "periodic", "random"] | None = Field(
        None, description="Whether the matrices stay, are used in turn, or are drawn in each round."
    )
    degree: int | None = Field(None, ge=1, le=4095, description="Neighbours of a node in random_regular, small_world.")
    probability: float | None = Field(None, gt=0, le=1, description="Probability of an edge in erdos_renyi.")
    rewiring: float | None = Field(None, ge=0, le=1, description="Probability of a new end of an edge in small_world.")
    k: int | None = Field(None, ge=1, le=4095, description="Most partners of a node in a round of base_graph.")
    edges: Annotated[tuple[_EdgeValue, ...] | None, Field(strict=False)] = Field(
        None, description="Pairs of nodes of the graph edges."
    )
    directed: bool | None = Field(
        None, description="Whether of each pair in edges only the first sends to the second; false if left out."
    )
    matrix: _MatrixValue = Field(None, description="The mixing matrix, or the path of a file with it.")
    matrices: Annotated[tuple[_MatrixValue, ...] | None, Field(strict=False)] = Field(
        None, description="Several mixing matrices, or paths of files."
    )
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="Seed of what is drawn; the cluster's if left out.")
    allow_disconnected: bool = Field(
        False,  # noqa: FBT003 - the default of a field
        description="Whether a disconnected graph is allowed.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_word(cls, value: object) -> object:
        """A word stands for a graph, and the matrices or edges that are given imply theirs."""
        if isinstance(value, str):
            return {"graph": value}
        if isinstance(value, Mapping) and "graph" not in value:
            for key, graph in (("edges", "edges"), ("matrix", "matrix"), ("matrices", "matrix")):
                if value.get(key) is not None:
                    return {**value, "graph": graph}
        return value

    @property
    def given_matrices(self) -> tuple[GivenMatrix, ...]:
        """The user's matrices, inline or as paths."""
        if self.matrices is not None:
            return tuple(self.matrices)
        return () if self.matrix is None else (self.matrix,)


def with_folder(values: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Values of a cluster file in which the paths of matrices and keys no longer depend on the current folder.

    Args:
        values: keys and values of a cluster file, which may be wrong.
        folder: where the file lies.
    """
    if "keys" in values:
        values = {**values, "keys": _absolute(values["keys"], folder)}
    topology = values.get("topology")
    if not isinstance(topology, Mapping):
        return values
    found = dict(topology)
    if isinstance(found.get("matrix"), str):
        found["matrix"] = _absolute(found["matrix"], folder)
    if isinstance(found.get("matrices"), list):
        found["matrices"] = [_absolute(item, folder) for item in found["matrices"]]
    return {**values, "topology": found}


def _absolute(value: object, folder: Path) -> object:
    # An empty text is no path: it stays what it is, so that it is refused.
    return str((folder / value).resolve()) if isinstance(value, str) and value else value
