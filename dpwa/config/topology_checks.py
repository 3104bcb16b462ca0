"""What is wrong with a topology: options that do not go together or do not suit the nodes, and nodes that are cut off.

It also makes the topology, because checking takes the same steps.

Must not know: lines and columns of the file. Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from dpwa.config.topology import GivenMatrix, TopologyOptions
from dpwa.errors import ConfigError
from dpwa.methods.base import ExchangeKind
from dpwa.options import Problem
from dpwa.topology.connectivity import can_average, cut_off, one_way
from dpwa.topology.graphs import RANDOM, SYMMETRIC, GraphOptions, edges_of, is_strongly_connected
from dpwa.topology.matrix_files import matrix_problems, read_matrix, rows_as_matrix
from dpwa.topology.mixing import Matrix, SparseMixing, conservation_of
from dpwa.topology.schedule import (
    OWN_ROUNDS,
    RANDOM_WEIGHTS,
    Topology,
    TopologySpec,
    default_weights,
    make_topology,
    union_of,
)

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["file_problems", "topology_for", "topology_problems"]

_DEFAULT_REWIRING = 0.1
_REMEDY = "or write allow_disconnected: true"

_USED_KEYS: Mapping[str, tuple[str, ...]] = {
    "random_regular": ("degree",),
    "erdos_renyi": ("probability",),
    "small_world": ("degree", "rewiring"),
    "base_graph": ("k",),
    "edges": ("edges", "directed"),
    "matrix": ("matrix", "matrices"),
}
_NEEDED_KEYS = {
    "random_regular": "degree",
    "erdos_renyi": "probability",
    "small_world": "degree",
    "edges": "edges",
}
_ALL_USED_KEYS = sorted({key for keys in _USED_KEYS.values() for key in keys})


def topology_for(config: ClusterConfig) -> Topology:
    """The topology of a cluster.

    Raises:
        ConfigError: the options do not suit each other or the nodes, or a file of a matrix cannot be used.
    """
    made = _made(config)
    if not isinstance(made, Topology):
        raise ConfigError([f"topology: {problem.text}" for problem in made])
    return made


def topology_problems(config: ClusterConfig) -> list[Problem]:
    """What is wrong with the topology of a cluster, as far as the cluster file itself tells."""
    if _paths(config.topology):
        return list(_option_problems(config.topology, _names(config)))
    return _problems_of_rounds(config)


def file_problems(config: ClusterConfig) -> list[Problem]:
    """What is wrong with the files of matrices that a topology names, and with the topology that they make."""
    options, names = config.topology, _names(config)
    if not _paths(options) or any(_option_problems(options, names)):
        return []
    return _problems_of_rounds(config)


def _names(config: ClusterConfig) -> list[str]:
    return [node.name for node in config.nodes]


def _problems_of_rounds(config: ClusterConfig) -> list[Problem]:
    """What is wrong with a topology, and between it and the method."""
    names, method = _names(config), config.method_class
    if len(set(names)) < len(names):
        return []  # reported already; and a topology of fewer nodes would be another one
    made = _made(config)
    if not isinstance(made, Topology):
        return made
    problems = list(_one_way_problems(config, made))
    if method is None or not method.blends_by_rows or made.conservation != "column":
        return problems
    text = (
        f"method {config.method} blends by the rows of a matrix, and these sum up to other than 1; use weights that "
        "make rows sum up to 1 (metropolis, uniform, random_row, random_doubly), or a push method"
    )
    return [*problems, Problem(("topology",), text)]


def _one_way_problems(config: ClusterConfig, topology: Topology) -> Iterator[Problem]:
    """A problem for each node that cannot be asked, and that another one would hear in some round all the same."""
    silent = {index for index, node in enumerate(config.nodes) if not node.serve}
    method = config.method_class
    if not silent or (topology.is_complete and (method is None or method.kind is not ExchangeKind.GATHER)):
        return  # where everybody may hear everybody, nobody hears these
    receivers: dict[int, int] = {}
    for receiver, sender in topology.support.tolist():
        if sender in silent:
            receivers.setdefault(sender, receiver)
    for sender, receiver in sorted(receivers.items()):
        name, other = config.nodes[sender].name, config.nodes[receiver].name
        yield Problem(
            ("topology",),
            f"{other} would hear {name}, which cannot be asked (serve: false); use a graph with no edge out of "
            f"{name} (edges with directed: true, or a matrix, and allow_disconnected: true), or leave topology out",
        )


def _made(config: ClusterConfig) -> Topology | list[Problem]:
    """The topology of a cluster, or what is wrong with it."""
    options, names = config.topology, _names(config)
    problems = list(_option_problems(options, names))
    matrices, matrix_errors = _read_given(options, names)
    problems += matrix_errors
    if problems:
        return problems
    spec = _spec(options, names, config.seed, matrices)
    return _problems_of_spec(spec, options, names) or make_topology(spec, len(names))


def _option_problems(options: TopologyOptions, names: Sequence[str]) -> Iterator[Problem]:
    """Options that do not go together, or do not suit the nodes. Matrices are not looked at."""
    yield from _key_problems(options)
    yield from _size_problems(options, len(names))
    yield from _weights_problems(options)
    yield from _schedule_problems(options)
    for index, edge in enumerate(options.edges or ()):
        place = ("topology", "edges", index)
        for end, name in enumerate(edge):
            if name not in names:
                near = get_close_matches(name, names, n=1)
                hint = f'; did you mean "{near[0]}"?' if near else ""
                yield Problem((*place, end), f'expected the name of a node, got "{name}"{hint}')
        if edge[0] == edge[1]:
            yield Problem(place, f'expected two different nodes, got "{edge[0]}" twice; every node hears itself anyway')


def _key_problems(options: TopologyOptions) -> Iterator[Problem]:
    graph = options.graph
    for key in _ALL_USED_KEYS:
        if getattr(options, key) is not None and key not in _USED_KEYS.get(graph, ()):
            users = " and ".join(name for name, keys in _USED_KEYS.items() if key in keys)
            yield Problem(("topology", key), f"belongs to the graph {users}, got graph {graph}; remove it", at_key=True)
    needed = _NEEDED_KEYS.get(graph)
    if needed is not None and getattr(options, needed) is None:
        yield Problem(("topology",), f"the graph {graph} needs the key {needed}")
    if graph == "matrix":
        if options.matrix is not None and options.matrices is not None:
            yield Problem(("topology", "matrices"), "expected either matrix or matrices, got both", at_key=True)
        elif not options.given_matrices:
            yield Problem(("topology",), "the graph matrix needs the key matrix, or matrices with one or more")


def _size_problems(options: TopologyOptions, count: int) -> Iterator[Problem]:
    graph, degree = options.graph, options.degree
    if graph == "hypercube" and count & (count - 1):
        yield Problem(
            ("topology",),
            f"a hypercube needs 2, 4, 8, 16 … nodes, got {count}; base_graph and exponential take any number",
        )
    if graph not in ("random_regular", "small_world") or degree is None:
        return
    place = ("topology", "degree")
    if degree >= count:
        yield Problem(place, f"expected fewer neighbours than the {count} nodes, got {degree}")
    elif graph == "random_regular" and degree * count % 2:
        yield Problem(place, f"{count} nodes with {degree} neighbours each cannot be: {count} x {degree} is odd")
    elif graph == "small_world" and degree % 2:
        yield Problem(place, f"expected an even number, half of the neighbours on each side of the ring, got {degree}")


def _weights_problems(options: TopologyOptions) -> Iterator[Problem]:
    graph, weights = options.graph, options.weights
    if weights is None:
        return
    if graph == "matrix" or graph in OWN_ROUNDS:
        yield Problem(("topology", "weights"), f"the graph {graph} brings its own weights; remove this key")
    elif weights == "metropolis" and not _is_symmetric(options):
        yield Problem(
            ("topology", "weights"),
            "metropolis weights need edges in both directions; for a directed graph choose uniform, uniform_column, "
            "random_row, random_column or random_doubly",
        )


def _schedule_problems(options: TopologyOptions) -> Iterator[Problem]:
    graph, schedule = options.graph, options.schedule
    place = ("topology", "schedule")
    several = graph in OWN_ROUNDS or options.matrices is not None
    if schedule == "periodic" and not several:
        yield Problem(place, "periodic needs several matrices; write them under matrices, or choose another graph")
    elif schedule == "static" and several:
        what = f"the graph {graph} has" if graph in OWN_ROUNDS else "matrices are"
        yield Problem(place, f"{what} another matrix in each round, got static; choose periodic or random")
    elif schedule == "random" and not (several or graph in RANDOM or options.weights in RANDOM_WEIGHTS):
        yield Problem(
            place,
            "random needs something to draw: a random graph (random_regular, erdos_renyi, small_world), random "
            "weights, or several matrices",
        )


def _is_symmetric(options: TopologyOptions) -> bool:
    return options.graph in SYMMETRIC or (options.graph == "edges" and not options.directed)


def _paths(options: TopologyOptions) -> list[str]:
    return [given for given in options.given_matrices if isinstance(given, str)]


def _read_given(options: TopologyOptions, names: Sequence[str]) -> tuple[tuple[Matrix, ...], list[Problem]]:
    """The user's matrices, and what is wrong with them."""
    matrices: list[Matrix] = []
    problems: list[Problem] = []
    for index, given in enumerate(options.given_matrices):
        place = ("topology", "matrix") if options.matrices is None else ("topology", "matrices", index)
        matrix, texts = _read_one(given, names)
        problems += [Problem(place if row is None else (*place, row), text) for row, text in texts]
        if matrix is not None:
            matrices.append(matrix)
    if not problems and matrices and conservation_of(tuple(map(SparseMixing.of, matrices))) is None:
        kinds = [conservation_of((SparseMixing.of(matrix),)) for matrix in matrices]
        row, column = kinds.index("row"), kinds.index("column")
        text = f"in matrix {row + 1} only the rows sum to 1, in matrix {column + 1} only the columns do; choose one"
        problems.append(Problem(("topology", "matrices"), text))
    return tuple(matrices), problems


def _read_one(given: GivenMatrix, names: Sequence[str]) -> tuple[Matrix | None, list[tuple[int | None, str]]]:
    if not isinstance(given, str):
        texts = list(matrix_problems(given, names))
        return (None if texts else rows_as_matrix(given)), texts
    try:
        matrix = read_matrix(Path(given), len(names))
    except ConfigError as error:
        return None, [(None, problem) for problem in error.problems]
    texts = [(None, f"the file {given}: {text}") for _, text in matrix_problems(matrix, names)]
    return (None if texts else matrix), texts


def _spec(options: TopologyOptions, names: Sequence[str], seed: int, matrices: tuple[Matrix, ...]) -> TopologySpec:
    number = {name: index for index, name in enumerate(names)}
    return TopologySpec(
        graph=options.graph,
        weights=options.weights or default_weights(options.graph, directed=bool(options.directed)),
        is_random=options.schedule == "random",
        options=GraphOptions(
            degree=options.degree or 0,
            probability=options.probability or 0.0,
            rewiring=_DEFAULT_REWIRING if options.rewiring is None else options.rewiring,
            edges=tuple((number[first], number[second]) for first, second in options.edges or ()),
            directed=bool(options.directed),
        ),
        most_partners=options.k or 1,
        matrices=matrices,
        seed=seed if options.seed is None else options.seed,
    )


def _problems_of_spec(spec: TopologySpec, options: TopologyOptions, names: Sequence[str]) -> list[Problem]:
    """Nodes that are cut off, and weights that do not exist. Graphs without such problems are not even made."""
    problems: dict[str, Callable[[], Iterator[str]]] = {
        "edges": lambda: _edges_problems(spec, options, names),
        "matrix": lambda: _matrices_problems(spec, options, names),
    }
    if spec.graph in RANDOM and not spec.is_random and not options.allow_disconnected:
        return [Problem(("topology",), text) for text in _draw_problems(spec, len(names))]
    find = problems.get(spec.graph)
    if find is None:
        return []
    key = "edges" if spec.graph == "edges" else "matrix" if options.matrices is None else "matrices"
    return [Problem(("topology", key), text) for text in find()]


def _edges_problems(spec: TopologySpec, options: TopologyOptions, names: Sequence[str]) -> Iterator[str]:
    edges = edges_of("edges", len(names), spec.options)
    if not options.allow_disconnected:
        yield from (f"{text}; add edges, {_REMEDY}" for text in cut_off(edges, names))
    elif spec.weights == "random_doubly" and (found := one_way(edges, len(names))) is not None:
        receiver, sender = found
        yield (
            f"random_doubly weights need a way back for every edge, but none leads from {names[receiver]} to "
            f"{names[sender]}; add one, or choose other weights"
        )


def _matrices_problems(spec: TopologySpec, options: TopologyOptions, names: Sequence[str]) -> Iterator[str]:
    rounds = [SparseMixing.of(matrix) for matrix in spec.matrices]
    if options.allow_disconnected:
        return
    texts = list(cut_off(union_of(rounds), names))
    yield from (f"{text}; add weights above 0, {_REMEDY}" for text in texts)
    if not texts and not can_average(rounds, in_turn=not spec.is_random):
        yield f"models are only passed on and never come together; put weights above 0 on the diagonal, {_REMEDY}"


def _draw_problems(spec: TopologySpec, count: int) -> Iterator[str]:
    if not is_strongly_connected(edges_of(spec.graph, count, spec.options, (spec.seed, 0)), count):
        key = "probability" if spec.graph == "erdos_renyi" else "degree"
        yield (
            f"{spec.graph} left some of the {count} nodes cut off in every draw; raise {key}, write schedule: random "
            f"for a new graph in each round, {_REMEDY}"
        )
