"""The model of a node as a file at its end, and what is tried before a training's result is lost.

A disk is often full at the end, because nobody was there when it filled up. So these are tried in turn:
1. the run folder, made anew if it is gone;
2. the run folder without the older generations of the node's journal, if that makes enough room;
3. the folder for temporary files.
After 3 the model is kept, but not where everybody looks for it. That is still an error, which says where the model is.

Runs in: the thread that closes the adapter.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from dpwa import older_generations

from .selection import plain_name
from .shards import held_here

__all__ = ["save_model"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def save_model(state: Mapping[str, object], path: Path) -> None:
    """Write the whole state of a model; an existing file is replaced only by a complete one.

    Tied tensors are written once; the metadata names the others: {"tied": "decoder.weight=encoder.weight"}.

    Args:
        state: its state dict.
        path: the file, in the folder of the node.

    Raises:
        OSError: it cannot be written there; the message says where the model is, or that it is lost.
    """
    data = _serialized(state)
    try:
        _write(data, path)
    except OSError as error:
        if error.errno in _NO_ROOM and _has_made_room(path.parent, len(data)):
            with suppress(OSError):
                _write(data, path)
                return
        raise _failed(error, data, path, _saved_elsewhere(data, path.parent.name)) from error


def _write(data: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _has_made_room(folder: Path, needed_bytes: int) -> bool:
    """Whether there is room now, because older generations of the journal are gone."""
    older = older_generations(folder)
    with suppress(OSError):
        if older and shutil.disk_usage(folder).free + sum(file.stat().st_size for file in older) >= needed_bytes:
            for file in older:
                file.unlink()
            return True
    return False


def _saved_elsewhere(data: bytes, node: str) -> Path | None:
    """The temporary file that holds the model now; None if it could not be written."""
    try:
        folder = tempfile.gettempdir()
        if shutil.disk_usage(folder).free < len(data):
            return None
        descriptor, name = tempfile.mkstemp(prefix=f"dpwa-{node}-", suffix=".safetensors", dir=folder)
    except OSError:
        return None
    place = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        place.unlink(missing_ok=True)
        return None
    return place


def _failed(error: OSError, data: bytes, path: Path, place: Path | None) -> OSError:
    if place is not None:
        fate = f"it is in {place} instead: move it from there, because such files are removed sooner or later"
    elif path.exists():
        fate = "it is lost; the model of an earlier end is still there"
    else:
        fate = "it is lost"
    reason = f"{error.strerror or error}; {len(data)} bytes are needed, {_free_bytes(path)} are free"
    return OSError(error.errno, f"node {path.parent.name}: the model cannot be saved as {path} ({reason}): {fate}")


def _free_bytes(path: Path) -> int | str:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return "it is unknown how many"


def _serialized(state: Mapping[str, object]) -> bytes:
    kept: dict[tuple[object, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: list[str] = []
    for name, tensor in _plain_state(state).items():
        memory = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and memory in kept:
            tied.append(f"{name}={kept[memory]}")
            continue
        kept[memory] = name
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    metadata = {"format": "pt", **({"tied": " ".join(tied)} if tied else {})}
    data: bytes = save(tensors, metadata)
    return data


def _plain_state(state: Mapping[str, object]) -> Mapping[str, Tensor]:
    """The state dict's tensors; extra state of other kinds has no place in a file of tensors."""
    return {plain_name(name): held_here(value) for name, value in state.items() if isinstance(value, Tensor)}
