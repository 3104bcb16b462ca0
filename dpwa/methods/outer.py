"""The outer optimizer: momentum over the progress of many local steps, for one node alone or for a pair.

A node trains for H steps from an anchor phi to theta. The outer optimizer takes the way between them for one large
gradient and moves the anchor with momentum; training goes on from the new anchor. What a caller gets is the increment
from the theta that it handed over to the new anchor. Added to the model, it keeps the steps that were made meanwhile.

Two forms, with the same anchor and momentum:

- `step`, of DiLoCo (Douillard et al., arXiv 2311.08105, algorithm 1), on top of any way of averaging.
- `pair_step`, of NoLoCo (Kolehmainen et al., arXiv 2506.10911, section 3.2), for two nodes that know each other's theta
  and phi.

Only parameters belong in here, never buffers: momentum carries a number beyond all values that it ever had, and a
running variance could so become negative.

Must not know: snapshots, layouts, peers, threads, torch, the config. Runs in: any thread, one call at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpwa.errors import ConfigError, number_problems
from dpwa.snapshot.dtypes import widened

__all__ = ["OuterOptimizer"]

FloatArray = npt.NDArray[Any]

# The type that anchor and momentum have for each type of theta. A snapshot holds bfloat16 as the bits in uint16.
_STATE_TYPES: dict[np.dtype[Any], type[np.floating[Any]]] = {
    np.dtype(np.float64): np.float64,
    np.dtype(np.float32): np.float32,
    np.dtype(np.float16): np.float32,
    np.dtype(np.uint16): np.float32,
}

_BLOCK = 1 << 16  # elements worked on at one time; six or seven blocks of 256 KiB stay in the cache of a core


@dataclass
class _Section:
    """The state for one array of parameters.

    Attributes:
        anchor: phi, shape (size,).
        momentum: m, shape (size,).
        largest_anchor: largest absolute value in the anchor.
        largest_momentum: largest absolute value in the momentum.
    """

    anchor: FloatArray
    momentum: FloatArray
    largest_anchor: float = 0.0
    largest_momentum: float = 0.0


class OuterOptimizer:
    """Anchor and momentum of one node, over one or several arrays of parameters.

    Memory: two arrays of the size of each theta, in float32 (float64 for a float64 theta).

    A theta, and what is said of the peer, must be finite, and so small that nothing can overflow; otherwise a step
    changes nothing, neither here nor in `out`, and answers False.

    Args:
        theta: where training begins, which is the first anchor: flat arrays of float64, float32, float16, or of uint16
            with the bits of bfloat16. Copied.
        learning_rate: how much of the way the anchor goes at once: lr in `step`, beta in `pair_step`; above 0.
        momentum: mu, the share of the last move in the next one, from 0 to below 1.
        nesterov: `step` looks ahead by one momentum; `pair_step` has no such form.
        anchor_pull: gamma, how much the anchors of a pair pull at each other, 0 to below 2 (1 + momentum).

    Raises:
        ConfigError: an option is out of its limits, or a theta is no flat array of these types, or not finite.
    """

    def __init__(
        self,
        theta: Sequence[FloatArray],
        *,
        learning_rate: float = 0.7,
        momentum: float = 0.9,
        nesterov: bool = True,
        anchor_pull: float = 0.7,
    ) -> None:
        problems = number_problems("learning_rate", learning_rate, above=0)
        problems += number_problems("momentum", momentum, least=0, below=1)
        if not problems:
            # Two nodes that meet again and again: the difference of their anchors follows the recursion
            # x^2 - (1 + mu - gamma) x + mu = 0, whose roots leave the unit circle at gamma = 2 (1 + mu).
            problems += number_problems("anchor_pull", anchor_pull, least=0, below=2 * (1 + momentum))
        problems += [
            f"theta[{index}]: expected a flat array of float64, float32, float16 or uint16 (the bits of bfloat16), "
            f"got {array.dtype} of shape {array.shape}"
            for index, array in enumerate(theta)
            if array.ndim != 1 or array.dtype not in _STATE_TYPES
        ]
        if problems:
            raise ConfigError(problems)
        self._learning_rate = float(learning_rate)
        self._momentum = float(momentum)
        self._nesterov = nesterov
        self._anchor_pull = float(anchor_pull)
        self._theta_types = [array.dtype for array in theta]
        types = [_STATE_TYPES[array.dtype] for array in theta]
        self._sections = [
            _Section(np.zeros(array.size, kind), np.zeros(array.size, kind))
            for array, kind in zip(theta, types, strict=True)
        ]
        self.steps = 0
        """Steps made, of either form."""
        if not self.restart(theta):
            raise ConfigError("theta: expected finite values far from overflow, got NaN, infinity or larger ones")

    @property
    def anchors(self) -> tuple[FloatArray, ...]:
        """The present phi of each array, as views that cannot be written to; the next step changes what they show."""
        views = tuple(section.anchor.view() for section in self._sections)
        for view in views:
            view.flags.writeable = False
        return views

    def restart(self, theta: Sequence[FloatArray]) -> bool:
        """Begin anew at theta, without momentum: for a model that was taken from a peer.

        Args:
            theta: as in the constructor.

        Returns:
            False if theta has values that are not finite or too large; then nothing has changed.

        Raises:
            ConfigError: an array has not the size or the type of the first theta.
        """
        self._check_arrays("theta", theta, self._theta_types)
        with np.errstate(all="ignore"):  # the check decides, not a warning
            largest = [_largest(array) for array in theta]
        if not all(_fits(section, value) for section, value in zip(self._sections, largest, strict=True)):
            return False
        for section, array, value in zip(self._sections, theta, largest, strict=True):
            for block in _blocks(array.size):
                section.anchor[block] = widened(array[block])
            section.momentum.fill(0)
            section.largest_anchor, section.largest_momentum = value, 0.0
        return True

    def step(self, theta: Sequence[FloatArray], out: Sequence[FloatArray]) -> bool:
        """One outer step without a peer.

        With D = phi - theta: m <- mu m + D; then phi <- phi - lr (D + mu m) (Nesterov) or phi <- phi - lr m. With a
        learning rate of 1 and no momentum phi becomes theta exactly, and the increment 0.

        Args:
            theta: the model after its local steps, as in the constructor.
            out: receives the increments, new phi - theta: one array for each theta, in float32 (float64 for float64).
                May be the arrays of theta themselves.

        Returns:
            False if theta has values that are not finite or too large; then nothing has changed.

        Raises:
            ConfigError: an array has not the size or the type that it must have.
        """
        self._check_arrays("theta", theta, self._theta_types)
        self._check_arrays("out", out, self._state_types)
        with np.errstate(all="ignore"):  # the checks decide, not a warning
            largest = [_largest(array) for array in theta]
            if not all(self._can_step(section, value) for section, value in zip(self._sections, largest, strict=True)):
                return False
            for section, their, increment in zip(self._sections, theta, out, strict=True):
                self._step_section(section, their, increment)
        self.steps += 1
        return True

    def pair_step(
        self,
        theta: Sequence[FloatArray],
        theta_difference: Sequence[FloatArray],
        anchor_difference: Sequence[FloatArray],
        out: Sequence[FloatArray],
    ) -> bool:
        """One outer step with a peer.

        With D = theta - phi and means over the two nodes: m <- mu m + beta mean(D) - gamma (phi - mean(phi));
        phi <- phi + m. When both nodes do this with the same two thetas and anchors, the mean of their anchors moves
        by mu (mean of m) + beta mean(D) whatever gamma is.

        Args:
            theta: this node's model after its local steps, as in the constructor.
            theta_difference: the peer's theta - this theta, in float32 (float64 for float64).
            anchor_difference: the peer's phi - the present one of this node, in the same types.
            out: receives the increments, new phi - theta, in the same types. May be the arrays of one of the others.

        Returns:
            False if the values given are not finite or too large; then nothing has changed.

        Raises:
            ConfigError: an array has not the size or the type that it must have.
        """
        self._check_arrays("theta", theta, self._theta_types)
        self._check_arrays("theta_difference", theta_difference, self._state_types)
        self._check_arrays("anchor_difference", anchor_difference, self._state_types)
        self._check_arrays("out", out, self._state_types)
        given = list(zip(self._sections, theta, theta_difference, anchor_difference, out, strict=True))
        with np.errstate(all="ignore"):
            for section, *arrays, _ in given:
                if not self._can_pair(section, *map(_largest, arrays)):
                    return False
            for section, their, theta_change, anchor_change, increment in given:
                self._pair_section(section, their, theta_change, anchor_change, increment)
        self.steps += 1
        return True

    def state_dict(self) -> dict[str, FloatArray]:
        """Copies of all that a checkpoint needs: "steps", and "anchor.N" and "momentum.N" for each array."""
        state: dict[str, FloatArray] = {"steps": np.array(self.steps, np.int64)}
        for index, section in enumerate(self._sections):
            state[f"anchor.{index}"] = section.anchor.copy()
            state[f"momentum.{index}"] = section.momentum.copy()
        return state

    def load_state_dict(self, state: Mapping[str, FloatArray]) -> None:
        """Go on from a checkpoint.

        Args:
            state: what `state_dict` returned; copied.

        Raises:
            ConfigError: it does not fit this optimizer, or is not finite; every problem is named, and nothing has
                changed.
        """
        arrays = {f"anchor.{index}": section.anchor for index, section in enumerate(self._sections)}
        arrays |= {f"momentum.{index}": section.momentum for index, section in enumerate(self._sections)}
        keys = ("steps", *arrays)
        problems = [f"{key}: missing" for key in keys if key not in state]
        problems += [f"{key}: unknown; expected only {', '.join(keys)}" for key in state if key not in keys]
        for key, own in arrays.items():
            if key in state:
                problems += _misfits(key, state[key], own)
        steps = state.get("steps")
        if steps is not None and (steps.shape != () or steps.dtype.kind not in "iu" or steps < 0):
            problems.append(f"steps: expected a whole number of at least 0, got {steps!r}")
        if problems or steps is None:
            raise ConfigError([f"loading the state of an outer optimizer: {problem}" for problem in problems])
        for key, own in arrays.items():
            np.copyto(own, state[key])
        for section in self._sections:
            section.largest_anchor, section.largest_momentum = _largest(section.anchor), _largest(section.momentum)
        self.steps = int(steps)

    @property
    def _state_types(self) -> list[np.dtype[Any]]:
        return [section.anchor.dtype for section in self._sections]

    def _check_arrays(self, name: str, arrays: Sequence[FloatArray], types: Sequence[np.dtype[Any]]) -> None:
        sizes = [section.anchor.size for section in self._sections]
        expected = [f"{kind}[{size}]" for kind, size in zip(types, sizes, strict=True)]
        came = [f"{array.dtype}{list(array.shape)}" for array in arrays]
        if came != expected:
            raise ConfigError(
                f"an outer step's {name}: expected arrays of {', '.join(expected) or 'none'}, "
                f"got {', '.join(came) or 'none'}"
            )

    def _can_step(self, section: _Section, theta: float) -> bool:
        """Whether no number on the way can overflow, judged by the largest values."""
        way = section.largest_anchor + theta
        momentum = self._momentum * section.largest_momentum + way
        lead = self._learning_rate * self._momentum * momentum
        return _fits(section, way, momentum, theta + abs(1 - self._learning_rate) * way + lead)

    def _can_pair(self, section: _Section, theta: float, theta_difference: float, anchor_difference: float) -> bool:
        """Whether no number on the way can overflow, judged by the largest values."""
        way = section.largest_anchor + theta + theta_difference + anchor_difference
        momentum = self._momentum * section.largest_momentum + self._learning_rate * way
        momentum += self._anchor_pull * anchor_difference
        return _fits(section, way, momentum, section.largest_anchor + momentum + way)

    def _step_section(self, section: _Section, theta: FloatArray, out: FloatArray) -> None:
        """The formulas of `step`, turned around so that nothing small is lost beside something large.

        new phi - theta = (1 - lr) D - lr mu m, with the new m (Nesterov) or the old one, and new phi = theta + that.
        """
        rate, mu = self._learning_rate, self._momentum
        scratch = np.empty((2, min(_BLOCK, theta.size)), section.anchor.dtype)
        largest_anchor = largest_momentum = 0.0
        for block in _blocks(theta.size):
            anchor, momentum, wide = section.anchor[block], section.momentum[block], widened(theta[block])
            change, lead = scratch[0, : anchor.size], scratch[1, : anchor.size]
            np.subtract(anchor, wide, out=change)
            if not self._nesterov:
                np.multiply(momentum, rate * mu, out=lead)
            momentum *= mu
            momentum += change
            if self._nesterov:
                np.multiply(momentum, rate * mu, out=lead)
            change *= 1 - rate
            change -= lead
            np.add(wide, change, out=anchor)
            out[block] = change  # last, because it may be theta
            largest_anchor = max(largest_anchor, _largest_of(anchor))
            largest_momentum = max(largest_momentum, _largest_of(momentum))
        section.largest_anchor, section.largest_momentum = largest_anchor, largest_momentum

    def _pair_section(
        self,
        section: _Section,
        theta: FloatArray,
        theta_difference: FloatArray,
        anchor_difference: FloatArray,
        out: FloatArray,
    ) -> None:
        """The formulas of `pair_step`, with the own D = theta - phi.

        mean(D) = D + (theta_difference - anchor_difference) / 2, phi - mean(phi) = -anchor_difference / 2, and
        new phi - theta = m - D.
        """
        beta, mu, gamma = self._learning_rate, self._momentum, self._anchor_pull
        scratch = np.empty((2, min(_BLOCK, theta.size)), section.anchor.dtype)
        largest_anchor = largest_momentum = 0.0
        for block in _blocks(theta.size):
            anchor, momentum, wide = section.anchor[block], section.momentum[block], widened(theta[block])
            way, other = scratch[0, : anchor.size], scratch[1, : anchor.size]
            np.subtract(wide, anchor, out=way)
            np.subtract(theta_difference[block], anchor_difference[block], out=other)
            other *= 0.5
            other += way
            other *= beta
            momentum *= mu
            momentum += other
            np.multiply(anchor_difference[block], gamma / 2, out=other)
            momentum += other
            anchor += momentum
            np.subtract(momentum, way, out=out[block])  # last, because it may be one of the others
            largest_anchor = max(largest_anchor, _largest_of(anchor))
            largest_momentum = max(largest_momentum, _largest_of(momentum))
        section.largest_anchor, section.largest_momentum = largest_anchor, largest_momentum


def _blocks(size: int) -> Iterator[slice]:
    for first in range(0, size, _BLOCK):
        yield slice(first, min(first + _BLOCK, size))


def _largest(array: FloatArray) -> float:
    """Largest absolute value; NaN if there is one."""
    largest = 0.0
    for block in _blocks(array.size):
        here = _largest_of(widened(array[block]))
        if not here <= largest:  # so that NaN is taken, too
            largest = here
            if not math.isfinite(here):
                break
    return largest


def _largest_of(block: FloatArray) -> float:
    """Largest absolute value of a block that is not empty; NaN if there is one. Faster than through `abs`."""
    return max(float(block.max()), -float(block.min()))


def _fits(section: _Section, *largest: float) -> bool:
    """Whether numbers are finite and far enough from the largest one of the section's type."""
    limit = float(np.finfo(section.anchor.dtype).max) / 4
    return all(number <= limit for number in largest)  # False for NaN


def _misfits(key: str, given: FloatArray, own: FloatArray) -> list[str]:
    if given.dtype != own.dtype or given.shape != own.shape:
        return [f"{key}: expected {own.dtype}{list(own.shape)}, got {given.dtype}{list(given.shape)}"]
    with np.errstate(all="ignore"):
        return [] if math.isfinite(_largest(given)) else [f"{key}: expected finite values, got NaN or infinity"]
