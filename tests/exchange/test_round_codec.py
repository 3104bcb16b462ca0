"""One codec for all who ask for a round."""

from __future__ import annotations

from dpwa.exchange.round_codec import RoundCodec
from dpwa.snapshot.state import Codec


def test_the_smallest_that_anybody_has_wished_for_lately_holds_for_all():
    made = RoundCodec(None)
    assert made.of_round(0) is Codec.RAW
    made.wish("w2", 5, Codec.FP16)
    made.wish("w3", 5, Codec.INT8)
    made.wish("w4", 5, Codec.RAW)
    assert made.of_round(6) is Codec.INT8
    made.wish("w3", 6, Codec.RAW)
    assert made.of_round(7) is Codec.FP16
    made.wish("w2", 7, Codec.RAW)
    assert made.of_round(8) is Codec.RAW


def test_what_is_gone_wishes_for_nothing_any_more():
    made = RoundCodec(None)
    made.wish("w2", 5, Codec.INT8)
    assert made.of_round(13) is Codec.INT8
    assert made.of_round(14) is Codec.RAW
    made.wish("w3", 2**53, Codec.INT8)  # anybody may claim a round
    assert made.of_round(14) is Codec.RAW


def test_a_codec_of_the_config_is_that_of_every_round_and_an_unknown_one_is_none():
    made = RoundCodec(Codec.BF16)
    made.wish("w2", 5, Codec.INT8)
    assert made.of_round(6) is Codec.BF16
    made = RoundCodec(None)
    made.wish("w2", 5, 200)
    assert made.of_round(6) is Codec.RAW
