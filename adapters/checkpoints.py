"""The checkpoints of one node: when they are due, what they keep, and how a node goes on from one.

A checkpoint is taken at the end of a step boundary: model, optimizers, random numbers and the node's state, of one
moment. What a script changes after `optimizer.step()` and before the next one, schedulers, gradient scalers and the
optimizers' `param_groups`, is read when the next step of any optimizer begins: a loop may call `scheduler.step()`
before the boundary or after it.

Runs in: the trainer's thread, but for `_ended`, which the writing thread calls.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dpwa import ConfigError

from .checkpoint_files import Found, read_newest
from .checkpoint_writer import Copied, Writer, Written
from .optimizer_state import unwrapped_optimizer
from .plain_state import Plain, Tensors, as_plain
from .random_state import random_state, set_random_state
from .restoring import Kept, Training

__all__ = ["Checkpoints"]

_logger = logging.getLogger("dpwa")

# A disk that takes longer than this for one checkpoint has no time left for the model, either.
_CLOSE_TIMEOUT_S = 60.0

_LATE = (torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)


class _Pending(NamedTuple):
    """A checkpoint that was taken, but for what is read late."""

    step: int
    plain: dict[str, Plain]
    copied: Copied


class Checkpoints:
    """Takes and restores the checkpoints of one node.

    Args:
        node: its name.
        folder: of its checkpoints.
        module: the model.
        optimizer: the one that trains it; None: the script has not said.
        parts: what else to keep, by name.
        every_s: seconds between two.
        keep: how many stay.
        monotonic_s: the clock.

    Raises:
        ConfigError: there is no optimizer, something cannot be kept, or another process is this node.
    """

    def __init__(
        self,
        node: str,
        folder: Path,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        parts: Mapping[str, Kept],
        every_s: float,
        keep: int,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._folder = folder
        self._training = Training(node, folder, module, optimizer, dict(parts))
        self._module = module
        self._optimizer = optimizer
        self._parts = dict(parts)
        self._every_s = every_s
        self._monotonic_s = monotonic_s
        self._state_of_node: Callable[[], object] = dict
        self._note: Callable[..., None] = _nowhere
        self._samplers: dict[str, Kept] = {}
        self._kept_samplers: dict[str, Any] = {}
        self._pending: _Pending | None = None
        self._skipped = 0
        self._has_failed = False
        self._restored: tuple[Found, dict[str, Any]] | None = None
        self.resumed_step = 0
        """Training steps that were made before this life."""
        self.step = 0
        """Training steps in all lives."""
        self._refuse_what_cannot_be_kept()
        self._lock = _locked(folder / "lock", node)
        self._writer = Writer(node, folder, keep=keep, ended=self._ended)
        self._hooks = [one.register_step_pre_hook(self._before_step) for one in self._optimizers()]
        self._due_s = monotonic_s() + every_s
        self.random_of_island: Callable[[], list[str] | None] | None = None
        """Of an island: the random numbers of its processes, by rank, at a step that `is_due` has chosen; else None."""

    def _refuse_what_cannot_be_kept(self) -> None:
        if self._optimizer is None and not any(
            isinstance(part, torch.optim.Optimizer) for part in self._parts.values()
        ):
            raise ConfigError(
                "`checkpoint:` needs the optimizer: write DpwaPyTorchAdapter(model, optimizer=optimizer) or "
                "attach(model, optimizer)"
            )
        for name, part in self._parts.items():
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                raise ConfigError(
                    f"checkpoint: {name}: expected an object with state_dict and load_state_dict, got a "
                    f"{type(part).__name__}"
                )
        self._plain_state(Tensors())
        self._late_state(Tensors())

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """All that say when their steps begin: the one that trains the model, and those among the parts."""
        given = [self._optimizer, *self._parts.values()]
        found = [unwrapped_optimizer(one, "checkpoint") for one in given if isinstance(one, torch.optim.Optimizer)]
        return list({id(one): one for one in found}.values())

    # --- Going on -------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Restore model, optimizer and parts from the newest checkpoint, if there is one.

        Raises:
            ConfigError: it is of another training.
        """
        found, problems = read_newest(self._folder)
        for problem in problems:
            _logger.warning("node %s: a checkpoint is damaged and left out: %s", self._node, problem)
        if found is None:
            if problems:
                _logger.warning("node %s: no checkpoint can be read; it begins anew", self._node)
            return
        state = self._training.restore(found)
        self._kept_samplers = dict(state.get("samplers", {}))
        self.resumed_step = self.step = int(state["step"])
        self._restored = found, state

    @property
    def found(self) -> Found | None:
        """What was loaded, until the node has been started."""
        return None if self._restored is None else self._restored[0]

    def prepare(self, node: Any) -> None:
        """The node is about to start: tell it where members were that are in no file of its own.

        Args:
            node: the `dpwa.Node`.

        Raises:
            ConfigError: the checkpoint is damaged.
        """
        if self._restored is not None:
            node.remember_members(self._restored[1]["node"].get("members", ()))

    def begin(self, node: Any, *, island_size: int = 1) -> None:
        """The node has been started: restore its state, then the random numbers.

        Args:
            node: the `dpwa.Node`.
            island_size: how many processes the node is. Random numbers are those of as many, or go on as they are.

        Raises:
            ConfigError: the checkpoint is of another method.
        """
        # Without a wait: a push under way counts as this node's.
        self._state_of_node, self._note = partial(node.state_dict, timeout_s=0.0), node.note
        if self._restored is None:
            return
        (found, state), self._restored = self._restored, None
        node.load_state_dict(state["node"])
        self._note("resume", of_step=self.step, clock=state["node"]["clock"], file=found.path.name)
        _logger.warning(
            "node %s goes on from step %d (%s)", self._node, self.step, found.path.relative_to(self._folder.parent)
        )
        if island_size in (1, len(state.get("random_of_island", ()))):
            set_random_state(state["random"])

    def keep_sampler(self, name: str, sampler: Kept) -> None:
        """Keep a sampler, too, from now on; it goes on from the checkpoint if that has one of this name.

        Args:
            name: says what it samples, and how.
            sampler: which.

        Raises:
            ConfigError: the checkpoint is damaged.
        """
        self._samplers[name] = sampler
        state = self._kept_samplers.pop(name, None)
        if state is not None:
            sampler.load_state_dict(state)

    # --- Taking ---------------------------------------------------------------------------------------------------

    def stepped(self) -> None:
        """Count a training step whose boundary has ended; take a checkpoint if one is due."""
        self._hand_over()  # that nobody has taken up since: this optimizer made no step
        self.step += 1
        others = [] if self.random_of_island is None else self.random_of_island()
        if others is not None and (others or self.is_due()):
            self._take(others)

    def is_due(self) -> bool:
        """Whether a checkpoint is to be taken now; then the next one is due later. In an island, asked in each step."""
        now_s = self._monotonic_s()
        if now_s < self._due_s:
            return False
        self._due_s = now_s + self._every_s
        self._skipped += self._writer.is_busy
        return not self._writer.is_busy

    def finish(self) -> None:
        """Take one more after the last step, so that a run that is resumed has nothing left to train.

        Also once `Node.finish` has changed the model, so that such a run ends with the same one.
        """
        self._hand_over()
        if self._writer.wait(_CLOSE_TIMEOUT_S):
            self._take([])
            self._hand_over()

    def close(self) -> None:
        """Write what was taken, and end."""
        for hook in self._hooks:
            hook.remove()
        self._hand_over()
        if not self._writer.close(_CLOSE_TIMEOUT_S):
            _logger.warning("node %s: its last checkpoint takes too long and is given up", self._node)
        self._state_of_node = dict
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take(self, random_of_island: list[str]) -> None:
        tensors = Tensors()
        try:
            plain = self._plain_state(tensors)
            plain["node"] = as_plain(self._state_of_node(), "node", tensors)
            plain["random"] = as_plain(random_state(), "random", tensors)
            plain["random_of_island"] = as_plain(random_of_island, "random_of_island", tensors)
        except ConfigError as error:  # a part holds something else by now
            self._ended(Written(self.step, 0, 0.0, error))
            return
        self._pending = _Pending(self.step, plain, self._writer.copy(tensors.by_name))
        if not self._hooks:
            self._hand_over()

    def _before_step(self, *_args: object) -> None:
        if self._pending is not None:
            self._hand_over()

    def _hand_over(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        tensors = Tensors()
        try:
            late = self._late_state(tensors)
        except ConfigError as error:
            self._ended(Written(pending.step, 0, 0.0, error))
            return
        pending.copied.tensors.update({name: tensor.cpu().clone() for name, tensor in tensors.by_name.items()})
        pending.plain["optimizer"] = _joined(pending.plain["optimizer"], late["optimizer"])
        pending.plain["parts"] = _joined(pending.plain["parts"], late["parts"])
        self._writer.begin(
            pending.step, {"dict": [[key, value] for key, value in pending.plain.items()]}, pending.copied
        )

    def _plain_state(self, tensors: Tensors) -> dict[str, Plain]:
        """All that belongs to the moment of the boundary."""
        optimizer = {} if self._optimizer is None else _but_groups(self._optimizer)
        parts = {
            name: _but_groups(part) if isinstance(part, torch.optim.Optimizer) else part.state_dict()
            for name, part in self._parts.items()
            if not isinstance(part, _LATE)
        }
        # Those of the checkpoint that the script has not made yet are kept as they were.
        samplers = {**self._kept_samplers, **{name: one.state_dict() for name, one in self._samplers.items()}}
        return {
            "step": self.step,
            "unix_s": time.time(),
            "model": as_plain(self._module.state_dict(), "model", tensors),
            "optimizer_kind": type(self._optimizer).__name__,
            "optimizer": as_plain(optimizer, "optimizer", tensors),
            "parts": as_plain(parts, "parts", tensors),
            "samplers": as_plain(samplers, "samplers", tensors),
        }

    def _late_state(self, tensors: Tensors) -> dict[str, Plain]:
        """What the script changes between the boundary and the next step of an optimizer."""
        groups = {} if self._optimizer is None else _groups(self._optimizer)
        parts = {
            name: _groups(part) if isinstance(part, torch.optim.Optimizer) else part.state_dict()
            for name, part in self._parts.items()
            if isinstance(part, (*_LATE, torch.optim.Optimizer))
        }
        return {
            "optimizer": as_plain(groups, "late.optimizer", tensors),
            "parts": as_plain(parts, "late.parts", tensors),
        }

    # --- In the writing thread ------------------------------------------------------------------------------------

    def _ended(self, written: Written) -> None:
        """Report a checkpoint, or why there is none: in the journal each time, to people when that changes."""
        skipped, self._skipped = self._skipped, 0
        counts = {"skipped": skipped} if skipped else {}
        if written.error is None:
            self._note(
                "checkpoint",
                of_step=written.step,
                bytes=written.size_bytes,
                seconds=round(written.duration_s, 6),
                **counts,
            )
            if self._has_failed:
                self._has_failed = False
                _logger.warning("node %s: checkpoints are written again (step %d)", self._node, written.step)
            return
        reason = getattr(written.error, "strerror", None) or str(written.error) or type(written.error).__name__
        self._note("checkpoint_failed", of_step=written.step, reason=reason, **counts)
        if not self._has_failed:
            self._has_failed = True
            _logger.warning(
                "node %s: the checkpoint of step %d cannot be written to %s (%s); training goes on, the next is tried "
                "in %g s",
                self._node,
                written.step,
                self._folder,
                reason,
                self._every_s,
            )


def _groups(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Of an optimizer's state what schedulers change."""
    return {key: value for key, value in optimizer.state_dict().items() if key == "param_groups"}


def _but_groups(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {key: value for key, value in optimizer.state_dict().items() if key != "param_groups"}


def _joined(first: Plain, second: Plain) -> Plain:
    """Two mappings as one; what both have is a mapping itself."""
    of_second = dict(second["dict"])
    both = [[key, _joined(value, of_second.pop(key)) if key in of_second else value] for key, value in first["dict"]]
    return {"dict": [*both, *map(list, of_second.items())]}


def _locked(path: Path, node: str) -> int | None:
    """Hold a node's checkpoints for this process. A forked child does not inherit the lock, unlike that of `flock`."""
    with suppress(OSError):  # a folder that cannot be written has its own warning
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(descriptor)
            raise ConfigError(
                f"node {node}: another process is this node, in the same run folder ({path.parent}); end it first, or "
                "name another run folder"
            ) from error
        except OSError:  # no locks on this file system
            os.close(descriptor)
            raise
        return descriptor
    return None


def _nowhere(event: str, /, **fields: object) -> None:
    """The node has not been started yet."""
