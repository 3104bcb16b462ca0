"""Checkpoints as files: each is one safetensors file, complete or not there at all.

    nodes/NAME/checkpoints/checkpoint-17.safetensors    tensors; the rest as JSON in its metadata
    nodes/NAME/checkpoints/checkpoint.partial           the next one while it is written

A file gets its name when all of it is on the disk: temporary file, fsync, rename, fsync of the folder. What a kill
leaves is the one before, and a part that the next one replaces. Two checksums in the metadata, of the JSON and of the
tensors with their names, notice what has been damaged since. Files are written here and not by safetensors' own
function, which would need a second copy of everything in memory; they are read by safetensors.

Must not know: models, optimizers, nodes. Runs in: the thread that writes checkpoints; `read_newest` in the trainer's.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .plain_state import Plain

__all__ = ["Found", "read_newest", "write_checkpoint"]

_NAME = re.compile(r"checkpoint-(\d{1,15})\.safetensors")
_PARTIAL = "checkpoint.partial"  # the launcher gives a process that is writing such a file time to end it

_FORMAT = 1
_MOST_HEADER_BYTES = 100_000_000  # safetensors' own limit

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What every reader of such files knows; others are kept as their bytes."""


class Found(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        path: of the file.
        plain: its JSON.
        tensors: by name, in memory of their own.
    """

    path: Path
    plain: Plain
    tensors: dict[str, Tensor]


class _Damaged(Exception):
    """A file is not what was written."""


def write_checkpoint(folder: Path, plain: Plain, tensors: Mapping[str, Tensor], *, keep: int) -> tuple[Path, int]:
    """Write the next checkpoint, and remove those that are too old.

    Args:
        folder: of the node's checkpoints; made if it is not there.
        plain: JSON.
        tensors: contiguous, on the CPU.
        keep: how many stay, at least 1.

    Returns:
        The file, and its bytes.

    Raises:
        OSError: it cannot be written; those before are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = sorted(_numbers(folder))
    path = folder / f"checkpoint-{numbers[-1] + 1 if numbers else 1}.safetensors"
    partial = folder / _PARTIAL
    try:
        with open(partial, "wb") as file:
            _write(file, plain, tensors)
            size_bytes = file.tell()
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    _sync_folder(folder)
    for number in numbers[: max(0, len(numbers) + 1 - keep)]:
        with suppress(OSError):  # it is in nobody's way
            (folder / f"checkpoint-{number}.safetensors").unlink()
    return path, size_bytes


def read_newest(folder: Path) -> tuple[Found | None, list[str]]:
    """The newest checkpoint that is undamaged, if there is one, and what is wrong with those that are newer."""
    problems: list[str] = []
    for number in sorted(_numbers(folder), reverse=True):
        path = folder / f"checkpoint-{number}.safetensors"
        try:
            return Found(path, *_read(path)), problems
        except (OSError, ValueError, KeyError, SafetensorError, _Damaged) as error:
            problems.append(f"{path}: {error}")
    return None, problems


def _numbers(folder: Path) -> list[int]:
    with suppress(OSError):
        return [int(found[1]) for name in os.listdir(folder) if (found := _NAME.fullmatch(name))]
    return []


def _write(file: BinaryIO, plain: Plain, tensors: Mapping[str, Tensor]) -> None:
    # Large elements first, so that each begins at a multiple of its size.
    ordered = sorted(tensors.items(), key=lambda named: -named[1].element_size())
    places: dict[str, object] = {}
    first = 0
    for name, tensor in ordered:
        view = _bytes_of(tensor)
        dtype = _DTYPES.get(tensor.dtype)
        shape = list(tensor.shape) if dtype else [view.nbytes]
        places[name] = {"dtype": dtype or "U8", "shape": shape, "data_offsets": [first, first + view.nbytes]}
        first += view.nbytes
    crc = _crc_of_places(places)
    for _, tensor in ordered:
        crc = zlib.crc32(_bytes_of(tensor), crc)
    text = json.dumps({"format": _FORMAT, "state": plain}, allow_nan=False)
    metadata = {"format": "pt", "dpwa": text, "crc32": str(crc), "dpwa_crc32": str(zlib.crc32(text.encode()))}
    header = json.dumps({"__metadata__": metadata, **places}).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little"))
    file.write(header)
    for _, tensor in ordered:
        file.write(_bytes_of(tensor))


def _bytes_of(tensor: Tensor) -> memoryview:
    if not tensor.numel():
        return memoryview(b"")
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _read(path: Path) -> tuple[Plain, dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        text = metadata.get("dpwa", "")
        if str(zlib.crc32(text.encode())) != metadata.get("dpwa_crc32"):
            raise _Damaged("its JSON is damaged")
        if str(_crc_of_tensors(path)) != metadata.get("crc32"):
            raise _Damaged("its tensors are damaged")
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
    content = json.loads(text)
    if content["format"] != _FORMAT:
        raise _Damaged(f"it has the format {content['format']}, this dpwa reads {_FORMAT}")
    return content["state"], tensors


def _crc_of_places(places: Mapping[str, object]) -> int:
    return zlib.crc32(json.dumps(places, sort_keys=True).encode())


def _crc_of_tensors(path: Path) -> int:
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        places = json.loads(file.read(min(header_bytes, _MOST_HEADER_BYTES)))
        places.pop("__metadata__")
        crc = _crc_of_places(places)
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk, too; not all file systems know how."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
