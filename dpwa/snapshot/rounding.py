"""What rounding has taken from a snapshot on its way, so that its node can keep it.

A codec gives the peer `rounded(s)` in place of a snapshot s. Whatever conserves a sum or a mean must count what was
given, not what was meant: the giver keeps the rest, `s - rounded(s)`. Both nodes compute with the same rounded values
then, because encoding and decoding are functions of the bytes alone.

Must not know: sockets, threads, methods. Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dpwa.snapshot.codecs import decode, encoded_bytes
from dpwa.snapshot.dtypes import widened
from dpwa.snapshot.layout import Layout
from dpwa.snapshot.staging import Values, codec_of, encode_chunk, pieces_of, typed
from dpwa.snapshot.state import Codec

__all__ = ["SentAs", "add_rest"]


class SentAs(NamedTuple):
    """How a peer was given a snapshot. Blocks of values share a scale, and end with a chunk: so both count.

    Attributes:
        codec: in which its chunks were encoded, wherever it can hold them.
        chunk_bytes: of the snapshot, per chunk.
    """

    codec: Codec
    chunk_bytes: int


def add_rest(
    layout: Layout,
    values: Sequence[Values],
    memory: memoryview,
    sent_as: SentAs,
    chunks: Iterable[int],
    *,
    is_whole: bool = True,
) -> None:
    """Add what rounding has taken from a snapshot to differences: snapshot minus what was given, value by value.

    What travels as it is gets nothing added: running statistics, Adam's moments, and chunks that the codec cannot hold.

    Args:
        layout: of the snapshot.
        values: changed in place, where they are differences.
        memory: the snapshot.
        sent_as: how it was given.
        chunks: numbers of those that were given.
        is_whole: these are all. A part brings nothing of an optimizer's state, even where it lies in one of its chunks.
    """
    if sent_as.codec is Codec.RAW:
        return
    for index in chunks:
        first_byte = index * sent_as.chunk_bytes
        stop_byte = min(first_byte + sent_as.chunk_bytes, layout.total_bytes)
        used, body = encode_chunk(layout, memory, first_byte, stop_byte, sent_as.codec)
        if used is not Codec.RAW:
            wanted = [each.is_difference and (is_whole or not each.section.role.is_of_optimizer) for each in values]
            _add_rest_of_chunk(layout, values, wanted, memory, (first_byte, stop_byte), used, memoryview(body))


def _add_rest_of_chunk(
    layout: Layout,
    values: Sequence[Values],
    wanted: Sequence[bool],
    memory: memoryview,
    byte_range: tuple[int, int],
    codec: Codec,
    body: memoryview,
) -> None:
    taken = 0
    # What is not finite was refused by whoever got it, and the check of the values decides here, not a warning.
    with np.errstate(all="ignore"):
        for index, first, count in pieces_of(layout, *byte_range):
            section = layout.sections[index]
            used = codec_of(codec, section)
            size = encoded_bytes(used, section.dtype, count)
            taken += size
            if used is Codec.RAW or not wanted[index]:
                continue
            given = np.empty(count, section.value_type)
            decode(used, section.dtype, body[taken - size : taken], given)
            start = section.start_byte + first * section.item_bytes
            own = widened(typed(memory[start : start + count * section.item_bytes], section))
            rest = np.subtract(own, given, out=given)
            out = values[index].array[first : first + count]
            np.add(out, rest, out=out)
