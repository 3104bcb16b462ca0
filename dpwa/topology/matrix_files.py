"""Mixing matrices that a user gives: read from CSV and NPY files, and checked.

Must not know: the rest of the cluster file. Runs in: any thread.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dpwa.errors import ConfigError
from dpwa.topology.mixing import TOLERANCE, Matrix

__all__ = ["SUFFIXES", "matrix_problems", "read_matrix", "rows_as_matrix"]

SUFFIXES = (".csv", ".npy")

_MAX_CSV_BYTES = 512 << 20  # 4096 x 4096 numbers of up to 25 characters, and some more
_MAX_NAMED = 5


def read_matrix(path: Path, count: int) -> Matrix:
    """The matrix in a file.

    Args:
        path: of a CSV file of numbers without a heading, or of an NPY file.
        count: number of nodes; a matrix of another size is refused before it is read whole.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it does not hold a matrix of `count` x `count`.
    """
    try:
        if path.suffix.lower() == ".npy":
            return _read_npy(path, count)
        return _read_csv(path, count)
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read: {error.strerror or error}") from error


def _read_npy(path: Path, count: int) -> Matrix:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ConfigError(f"the file {path} is no NPY file of numbers: {error}") from error
    if not isinstance(mapped, np.ndarray) or mapped.dtype.kind not in "fiu":
        raise ConfigError(f"the file {path}: expected an NPY file of real numbers")
    if mapped.shape != (count, count):
        shape = " x ".join(map(str, mapped.shape)) or "a single number"
        raise ConfigError(f"the file {path}: expected {_size(count)}, got {shape}")
    return np.array(mapped, np.float64)


def _read_csv(path: Path, count: int) -> Matrix:
    size_bytes = path.stat().st_size
    if size_bytes > _MAX_CSV_BYTES:
        raise ConfigError(f"the file {path}: expected at most {_MAX_CSV_BYTES} bytes, got {size_bytes}")
    rows: list[list[float]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for number, cells in enumerate(csv.reader(stream), start=1):
                if any(cell.strip() for cell in cells):
                    rows.append(_numbers(cells, f"the file {path}, line {number}"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"the file {path} is no CSV file in UTF-8: {error}") from error
    problems = _shape_problems(rows, count)
    if problems:
        raise ConfigError([f"the file {path}: {text}" for _, text in problems])
    return rows_as_matrix(rows)


def _numbers(cells: Sequence[str], place: str) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except ValueError as error:
        hint = "; separate them by commas" if len(cells) == 1 else ""
        raise ConfigError(f"{place}: expected numbers{hint} ({error})") from error


def rows_as_matrix(rows: Sequence[Sequence[float]]) -> Matrix:
    """Rows of equal length as a matrix."""
    return np.array(rows, np.float64)


def matrix_problems(rows: Sequence[Sequence[float]] | Matrix, names: Sequence[str]) -> Iterator[tuple[int | None, str]]:
    """Why numbers are not a mixing matrix: each problem with its row, or with None for the whole matrix.

    Args:
        rows: the numbers, in rows of any length.
        names: of the nodes.
    """
    shape_problems = _shape_problems(rows, len(names))
    yield from shape_problems
    if shape_problems:
        return
    matrix = np.asarray(rows, np.float64)
    wrong = ~np.isfinite(matrix) | (matrix < 0)
    for row, column in np.argwhere(wrong)[:_MAX_NAMED].tolist():
        number = matrix[row, column]
        yield row, f"expected weights from 0, got {number:g} as the weight that {names[row]} gives {names[column]}"
    if not wrong.any():
        yield from _sum_problems(matrix, names)


def _shape_problems(rows: Sequence[Sequence[float]] | Matrix, count: int) -> list[tuple[int | None, str]]:
    if len(rows) != count:
        return [(None, f"expected {_size(count)}, got {len(rows)} rows")]
    wrong = [(index, len(row)) for index, row in enumerate(rows) if len(row) != count]
    return [
        (index, f"expected {_size(count)}, got {length} numbers in row {index + 1}")
        for index, length in wrong[:_MAX_NAMED]
    ]


def _size(count: int) -> str:
    return f"{count} rows of {count} numbers, one for each node"


def _sum_problems(matrix: Matrix, names: Sequence[str]) -> Iterator[tuple[int | None, str]]:
    off_by_axis = [np.flatnonzero(np.abs(matrix.sum(axis=axis) - 1) > TOLERANCE).tolist() for axis in (1, 0)]
    off_rows, off_columns = off_by_axis
    if not off_rows or not off_columns:
        return
    # Whichever of the two is nearer was probably meant.
    is_row = len(off_rows) <= len(off_columns)
    sums = matrix.sum(axis=1 if is_row else 0)
    off = off_rows if is_row else off_columns
    kind = "row" if is_row else "column"
    for index in off[:_MAX_NAMED]:
        hint = (
            "; write all its digits, such as 0.3333333333, or save it as float64" if abs(sums[index] - 1) < 0.01 else ""
        )
        text = f"{kind} {index + 1} ({names[index]}) sums to {sums[index]:.12g}; expected all rows, or all columns, to"
        yield index if is_row else None, f"{text} sum to 1{hint}"
    if len(off) > _MAX_NAMED:
        yield None, f"{len(off) - _MAX_NAMED} more {kind}s do not sum to 1 either"
