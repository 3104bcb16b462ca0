"""How much of the model the next exchange may pull, so that what a node receives stays within its bandwidth limit.

Must not know: the clock; time is passed in, so that a simulation runs the same code. Runs in: the thread that asks for
exchanges.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["WINDOW_S", "Budget"]

WINDOW_S = 10.0
"""The limit holds, give or take a tenth, over any time of this length."""

# Of the tenth by which a window may be above the limit, a fifth is left to what nobody counts, such as headers.
_OVER = 0.08

# A merged entry of the history counts as if all of it were as young as its youngest part.
_MERGED_S = 0.1

_REMEMBERED_PRICES = 16


@dataclass
class _Spent:
    first_s: float
    last_s: float
    received_bytes: int


class Budget:
    """A token bucket, and beside it a rule for the window.

    The bucket makes the mean right. It fills at the limit; an exchange takes out what it received, and the next one
    may pull as much as lies in the bucket. So parts come out as small as lets each call have one, without knowing how
    often calls come; what a failed exchange did not receive stays for the next. When less lies in it than
    `least_fraction` of the model costs, exchanges come less often.

    Depth: whatever a full bucket holds comes on top of the limit in the first window after a pause, so it holds 0.8 s
    of the limit: 8 % of ten seconds. It must not overflow between two exchanges, though, or the limit would never be
    used in full; where steps are long or the least part is large, it is as deep as one step brings beside one least
    part. The window's rule keeps that safe: an exchange never pulls more than what is missing, of 108 % of the limit,
    in the 10 s before it. Steps or least parts of more than about a second may therefore use less than the limit,
    since the next one in full would be too much for the window; just above half of a window it is half of the limit.

    One part can break the 10 s: a least part that costs more than 108 % of them by itself. It is pulled alone in its
    window, and so seldom that the mean is right. Choose a smaller `least_fraction` where that is too much at once.

    The price of the whole model is the dearest of the last 16 complete exchanges (before the first: `model_bytes`),
    since peers may send with different codecs and a guess too low would break the limit, while one too high only
    leaves tokens for the next exchange. Where a price rises after all, the bucket goes into debt, and the next exchange
    waits until it is paid.

    Args:
        limit_bytes_per_s: most that the node may receive; None: no limit.
        model_bytes: what the whole model costs without a codec.
        least_fraction: smallest part worth an exchange.
        most_fraction: largest part, the config's pull_fraction; where it is below `least_fraction` it is both.

    Raises:
        ValueError: a limit, size or fraction that cannot be.
    """

    def __init__(
        self,
        limit_bytes_per_s: float | None,
        *,
        model_bytes: int,
        least_fraction: float = 1 / 16,
        most_fraction: float = 1.0,
    ) -> None:
        if limit_bytes_per_s is not None and limit_bytes_per_s <= 0:
            raise ValueError(f"bandwidth limit: expected more than 0 bytes/s, got {limit_bytes_per_s}")
        if model_bytes <= 0:
            raise ValueError(f"size of the model: expected more than 0 bytes, got {model_bytes}")
        if not (0 < least_fraction <= 1 and 0 < most_fraction <= 1):
            raise ValueError(f"fractions: expected above 0 to 1, got {least_fraction} and {most_fraction}")
        self._limit = limit_bytes_per_s
        self._least = min(least_fraction, most_fraction)
        self._most = most_fraction
        self._first_price = float(model_bytes)
        self._prices: deque[float] = deque(maxlen=_REMEMBERED_PRICES)
        self._tokens = 0.0
        self._filled_s: float | None = None
        self._history: deque[_Spent] = deque()
        self._in_window = 0
        self._planned = self._most

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self._limit is not None

    @property
    def least_s(self) -> float:
        """Seconds of the limit that the smallest part worth an exchange costs."""
        price = max(self._prices, default=self._first_price)
        return 0.0 if self._limit is None else self._least * price / self._limit

    def next_fraction(self, now_s: float, step_interval_s: float) -> float | None:
        """The share of the model to pull now, or None if nothing is to be pulled in this step.

        Asking costs nothing, only `spent` does. Not to be called between an exchange and its `spent`.

        Args:
            now_s: monotonic time.
            step_interval_s: usual seconds between two calls: those of a step, or more where steps are left out or
                exchanges last longer.
        """
        if self._limit is None:
            return self._most
        price = max(self._prices, default=self._first_price)
        self._fill(self._limit, now_s, max(0.0, min(step_interval_s, WINDOW_S)), self._least * price)
        self._forget(now_s)
        most_in_window = max((1 + _OVER) * WINDOW_S * self._limit, self._least * price)
        affordable = min(self._tokens, most_in_window - self._in_window) / price
        if affordable < self._least * (1 - 1e-9):  # a bucket filled to the brim may miss the price by a rounding
            return None
        self._planned = max(self._least, min(affordable, self._most))
        return self._planned

    def spent(self, received_bytes: int, now_s: float, *, complete: bool = True, share: float | None = None) -> None:
        """An exchange over the network has ended.

        Args:
            received_bytes: what came, whether or not it was of use.
            now_s: monotonic time.
            complete: the whole of the part came that `next_fraction` named last. Otherwise the bytes tell nothing of
                the price, and are only counted.
            share: of the model that came, if it was not that part; 0: it was not complete.
        """
        if self._limit is None or received_bytes <= 0:
            return
        part = share if share is not None else self._planned if complete else 0.0
        if part > 0:
            self._prices.append(received_bytes / part)
        self._tokens -= received_bytes
        self._in_window += received_bytes
        if self._history and now_s - self._history[-1].first_s < _MERGED_S:
            self._history[-1].last_s = now_s
            self._history[-1].received_bytes += received_bytes
        else:
            self._history.append(_Spent(now_s, now_s, received_bytes))

    def _fill(self, limit: float, now_s: float, step_interval_s: float, least_bytes: float) -> None:
        depth = max(_OVER * WINDOW_S * limit, least_bytes + limit * step_interval_s)
        if self._filled_s is None:
            self._tokens = depth  # a new node need not wait for its first exchange
        else:
            self._tokens = min(self._tokens + limit * max(0.0, now_s - self._filled_s), depth)
        self._filled_s = now_s

    def _forget(self, now_s: float) -> None:
        while self._history and self._history[0].last_s <= now_s - WINDOW_S:
            self._in_window -= self._history.popleft().received_bytes
