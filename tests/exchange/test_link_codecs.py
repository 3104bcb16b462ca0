"""What a slow link bears: codecs and shares by its measured speed."""

from __future__ import annotations

import math

import pytest

from dpwa.exchange.link_codecs import LinkCodecs, in_words
from dpwa.snapshot.state import Codec

RAW = 40_000_000
SIZES = {Codec.RAW: RAW, Codec.FP16: RAW // 2, Codec.BF16: RAW // 2, Codec.INT8: RAW // 4}


def links(codec: str = "auto", timeout_s: float = 2.5) -> LinkCodecs:
    return LinkCodecs(codec, sizes=SIZES, timeout_s=timeout_s, longest_s=timeout_s)


@pytest.mark.parametrize(("megabytes_per_s", "codec"), [(1000, Codec.RAW), (100, Codec.FP16), (10, Codec.INT8)])
def test_the_slower_the_link_the_smaller_the_codec(megabytes_per_s, codec):
    made = links()
    assert made.choose("w2", 1.0) is Codec.RAW
    made.measured("w2", megabytes_per_s * 1_000_000, 1.0)
    assert made.choose("w2", 1.0) is codec
    assert made.choose("w3", 1.0) is Codec.RAW
    assert links("bf16").choose("w2", 1.0) is Codec.BF16


def test_where_transfers_take_longer_than_the_pauses_between_them_less_is_sent_more_often():
    made = links()
    made.measured("w2", 80_000_000, 1.0)
    tenth = 0.1  # 0.05 s as it is
    assert made.choose("w2", tenth) is Codec.RAW
    made.paused(0.06)
    assert made.choose("w2", tenth) is Codec.RAW
    for _ in range(20):
        made.paused(0.03)
    assert made.choose("w2", tenth) is Codec.FP16
    for _ in range(20):
        made.paused(0.001)
    assert made.choose("w2", tenth) is Codec.INT8
    assert made.choose("w2", 0.01) is Codec.RAW, "which takes 5 ms"
    for _ in range(20):
        made.paused(5.0)
    assert made.choose("w2", tenth) is Codec.RAW
    made.measured("w3", 80_000_000, 1.0)  # 0.5 s as it is
    assert made.choose("w3", 1.0) is Codec.FP16


def test_over_a_link_that_is_as_fast_as_rounding_nothing_is_rounded_for_pauses_that_are_short_or_a_trainer_that_waits():
    made = links()
    for _ in range(20):
        made.paused(0.001)
    made.measured("w2", 1_000_000_000, 1.0)  # 0.04 s as it is
    assert made.choose("w2", 1.0) is Codec.RAW
    assert made.choose("w2", 1.0, planned_s=1.0) is Codec.RAW


@pytest.mark.parametrize("planned_s", [math.inf, 2.0])
def test_what_a_transfer_takes_for_its_beginning_does_not_keep_small_models_rounded(planned_s):
    made, part = links(), 0.01  # 400 kB as it is, 100 kB rounded
    for _ in range(20):
        made.paused(0.001)
    begins_s, speed = 0.012, 80e6

    def exchange() -> Codec:
        codec = made.choose("w2", part, planned_s)
        size = made.wanted_bytes(codec, part)
        made.measured("w2", int(size), begins_s + size / speed, codec)
        return codec

    made.broke_off("w2", 2_000, 0.02)  # the link was slow once
    codecs = [exchange() for _ in range(200)]
    assert codecs[0] is Codec.INT8
    assert codecs[-1] is Codec.RAW, "17 ms"
    assert Codec.RAW not in codecs[:10]
    speed = 0.5e6
    codecs = [exchange() for _ in range(200)]
    assert codecs[-1] is Codec.INT8
    assert codecs[50:].count(Codec.RAW) == 0, "one would take 0.8 s"


def test_a_transfer_that_broke_off_makes_the_next_one_small_enough_for_the_timeout():
    made = links()
    made.measured("w2", RAW, 0.01)  # the link was fast once
    made.broke_off("w2", 2_500_000, 2.5)  # and is not any more: 1 MB/s
    share = made.fitting_share("w2")
    assert made.choose("w2", share) is Codec.INT8
    assert made.wanted_bytes(Codec.INT8, share) == pytest.approx(0.6 * 2.5 * 1e6)
    assert made.fitting_share("w3") == 1.0


def test_a_fixed_codec_is_kept_and_the_share_is_smaller_for_it():
    made = links("raw")
    made.broke_off("w2", 2_500_000, 2.5)
    assert made.choose("w2", 0.1) is Codec.RAW
    assert made.fitting_share("w2") == pytest.approx(0.6 * 2.5 * 1e6 / RAW)


def test_a_link_that_has_become_faster_gets_whole_models_without_a_codec_again():
    made = links()
    made.broke_off("w2", 1000, 2.5)  # a peer that stood still for a moment
    assert made.fitting_share("w2") == 1 / 64
    transfers = 0
    while made.choose("w2", 1.0) is not Codec.RAW or made.fitting_share("w2") < 1.0:
        share = made.fitting_share("w2")
        size = made.wanted_bytes(made.choose("w2", share), share)
        made.measured("w2", int(size), size / 1e9)
        transfers += 1
    assert 10 < transfers < 30


def test_one_transfer_that_lay_ready_does_not_make_a_slow_link_a_fast_one():
    made = links()
    made.broke_off("w2", 2_500_000, 2.5)
    before = made.fitting_share("w2")
    made.measured("w2", 1_000_000, 1e-6)
    assert before < made.fitting_share("w2") < 2 * before


def test_what_cannot_fit_is_told_with_what_to_set():
    made = links()
    made.broke_off("w2", 10_000_000, 2.5)  # 4 MB/s: 10 s raw, 2.5 s as int8
    advice, is_final = made.advice("w2", 1.0, exact=True, shrinks=False)
    assert advice == (
        "it does not fit into 2.5 s over this link: set timeout_ms to at least 12500, "
        "or codec: int8 with timeout_ms 3200"
    )
    assert is_final
    made.broke_off("w3", 40_000_000, 3.9)  # 1.0 s as int8
    assert made.advice("w3", 1.0, exact=True, shrinks=False)[0].endswith("at least 4900, or codec: int8")
    fixed = links("int8")
    fixed.broke_off("w2", 1_000_000, 2.5)
    assert fixed.advice("w2", 1.0, exact=False, shrinks=False) == (
        "it does not fit into 2.5 s over this link: set timeout_ms to at least 31300",
        True,
    )


def test_what_will_fit_is_told_with_what_is_done():
    made = links()
    made.broke_off("w2", 2_500_000, 2.5)
    assert made.advice("w2", 1.0, exact=False, shrinks=True) == (
        "further ones use codec int8 and about 15% of the parameters at a time, as long as the link is that slow",
        False,
    )
    made.broke_off("w3", 20_000_000, 2.5)
    text = "further ones use codec int8, as long as the link is that slow"
    assert made.advice("w3", 1.0, exact=False, shrinks=False) == (text, False)


def test_bytes_are_readable():
    assert [in_words(number) for number in (12, 4321, 44_700_000)] == ["12 B", "4.3 kB", "44.7 MB"]


def test_of_a_round_each_neighbour_has_its_share_of_the_time():
    made = links()
    made.measured("w2", 80_000_000, 1.0)  # 0.5 s as it is, 0.25 s as fp16
    assert made.choose("w2", 1.0) is Codec.FP16
    assert made.choose("w2", 1.0, 0.4) is Codec.INT8
    assert made.expected_s("w2", 0.4) == pytest.approx(RAW / 4 / 80e6)
    assert made.expected_s("w3", 0.4) == 0.0
    tenth = 0.1
    made.measured("w4", 80_000_000, 1.0)  # 0.05 s as it is
    assert made.choose("w4", tenth, 5.0) is Codec.FP16, "for 50 ms no trainer waits"
    assert made.choose("w4", tenth, 0.03) is Codec.INT8
    made.measured("w5", 195_000_000, 1.0)  # 0.02 s as it is
    assert made.choose("w5", tenth, 5.0) is Codec.RAW


def test_what_does_not_fit_into_a_round_is_told_with_how_long_rounds_should_wait():
    made = links()
    made.broke_off("w2", 10_000_000, 1.0)  # as int8 1 s
    text = "it does not fit into the 0.25 s that a round has for it: let rounds wait 5 times as long"
    assert made.advice("w2", 1.0, exact=False, shrinks=False, planned_s=0.25) == (text, True)
