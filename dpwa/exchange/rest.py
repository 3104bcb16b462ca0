"""What a node keeps of a snapshot that a peer was given in a pair or by a push: what rounding has taken from it.

So what one of two nodes gives and what the other gets are the same numbers, whatever codec they travelled in, and sums
and means are conserved as if nothing had been rounded.

Runs in: the thread that makes the exchanges.
"""

from __future__ import annotations

from dpwa.exchange.context import ExchangeContext
from dpwa.exchange.slices import Slice
from dpwa.methods.exchange import ExchangeResult
from dpwa.snapshot.layout import Snapshot
from dpwa.snapshot.rounding import add_rest
from dpwa.snapshot.staging import Staging
from dpwa.snapshot.state import Codec

__all__ = ["keep_rest", "rest_of_push"]


def keep_rest(context: ExchangeContext, result: ExchangeResult, given: Snapshot | None, part: Slice) -> None:
    """Compare what came in a pair with what the peer was given, and not with what this node had.

    Args:
        context: of the node's exchanges.
        result: of the pair, with the differences from what this node had; changed in place.
        given: this node's snapshot of the pair.
        part: what the pair is about.
    """
    sent_as = context.proposals.sent_as(result.exchange_id)
    if sent_as is not None and given is not None and result.staging is not None:
        add_rest(
            result.staging.layout, result.staging.values, given.memory, sent_as, part.chunks(), is_whole=part.is_whole
        )


def rest_of_push(context: ExchangeContext, exchange_id: bytes, given: Snapshot, staging: Staging) -> Codec:
    """Put what rounding has taken from a pushed snapshot into a staging; the codec, `RAW` if there is nothing.

    Args:
        context: of the node's exchanges.
        exchange_id: of the push, which the peer has taken.
        given: what was pushed.
        staging: a free one.
    """
    sent_as = context.proposals.sent_as(exchange_id)
    if sent_as is None or sent_as.codec is Codec.RAW:
        return Codec.RAW
    staging.clear()
    chunks = range(-(-staging.layout.total_bytes // sent_as.chunk_bytes))
    add_rest(staging.layout, staging.values, given.memory, sent_as, chunks)
    return sent_as.codec
