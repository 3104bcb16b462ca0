"""The exchanged tensors of a PyTorch module, and of its optimizer: how they are followed, copied out and blended.

The tensors of a section lie one behind the other in a snapshot. On a GPU a fused copy first gathers them into one flat
piece of memory, so that one transfer per section crosses the bus; blends go back the same way. See `streams.py`.

Runs in: the trainer's thread, which alone writes the model: in place, under `torch.no_grad()`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dpwa import Buffer, ClusterConfig, ConfigError, Layout, Role, Section, Values

from .changes import Watch
from .optimizer_state import OptimizerState
from .process_groups import refuse_groups, unwrapped
from .selection import form_problem, holder_of, is_written_elementwise, select
from .shards import refuse_nothing, refuse_whole, return_to_shards, whole_form
from .streams import Copies, PinnedArrays, copies_for

__all__ = ["TorchModel"]

_logger = logging.getLogger("dpwa")

# Names of one kind in a message.
_MOST_NAMES = 8

_WHAT_TO_DO = (
    "make the adapter after the model has got its final form (loaded, converted, wrapped, all layers unfrozen that "
    "will be trained; with `frozen_parameters: blend` they may be unfrozen later)"
)


@dataclass(frozen=True)
class _Run:
    """Neighbouring tensors of one section on one device.

    Attributes:
        index: number of the section.
        section: the one they belong to.
        first: their first element within the section.
        tensors: in the order of the layout.
    """

    index: int
    section: Section
    first: int
    tensors: list[Tensor]

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @property
    def stop(self) -> int:
        """One past their last element within the section."""
        return self.first + sum(tensor.numel() for tensor in self.tensors)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Flat memory of exactly these tensors, in their shapes."""
        made, first = [], 0
        for tensor in self.tensors:
            made.append(flat[first : first + tensor.numel()].view(tensor.shape))
            first += tensor.numel()
        return made

    @property
    def byte_range(self) -> tuple[int, int]:
        """Their first byte within a snapshot, and one past their last."""
        start, item_bytes = self.section.start_byte, self.section.item_bytes
        return start + self.first * item_bytes, start + self.stop * item_bytes


class TorchModel:
    """The exchanged tensors of a module: a `dpwa.Model`.

    `check` follows the module when its tensors are replaced by others of the same form.

    Args:
        module: the model.
        config: says whether to exchange buffers and frozen parameters.
        find_copies: returns what moves the tensors of a device; None: they are read and written directly.
        optimizer: the one that trains the module, whose state travels if the config says `optimizer_state: blend`.
        island: ranks of the processes that hold copies of the model and are this node together; none: this one alone.
        parts: other processes hold other parts of the model; this one's are exchanged.

    Raises:
        ConfigError: a tensor cannot be exchanged, or other processes hold a part of the model.
    """

    def __init__(
        self,
        module: nn.Module,
        config: ClusterConfig,
        find_copies: Callable[[torch.device, PinnedArrays], Copies | None] = copies_for,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        island: tuple[int, ...] = (),
        parts: bool = False,
    ) -> None:
        self._island = island
        self._has_parts = parts
        if not config.is_alone:  # a script that runs alone may do as it likes
            refuse_groups(module, island)
        self.module = unwrapped(module)
        self._select = partial(
            select,
            self.module,
            buffers=config.buffers == "blend",
            frozen=config.frozen_parameters == "blend",
            alone=config.is_alone and not parts,
            parts=parts,
        )
        self._find_copies = find_copies
        self._taken = self._select()
        self._warn_of_left_out()
        if parts:
            refuse_nothing(self._taken.parameters())
            refuse_whole(self._taken.parameters())
        self._state: OptimizerState | None = None
        self.inventory = self._taken.inventory()
        if config.optimizer_state == "blend" and not config.is_alone:
            self._state = state = OptimizerState(optimizer, self.module, self._taken.parameters())
            self.inventory = replace(
                self.inventory,
                exchanged_tensors=self.inventory.exchanged_tensors + len(state.specs),
                exchanged_bytes=self.inventory.exchanged_bytes + state.bytes,
            )
        self._specs = tuple(self._taken.specs())
        self.layout = Layout([*self._specs, *(() if self._state is None else self._state.specs)])
        self.blends = 0
        """How often the model was changed, by `blend`."""
        self._has_been_checked = False
        self._has_complained = False
        # The same few buffers come again and again; making views of each once keeps a step cheap for small models.
        self._views: dict[int, tuple[Any, list[list[Tensor]]]] = {}
        self._value_views: dict[tuple[int, int], tuple[Any, list[Tensor]]] = {}
        self._pinned = PinnedArrays()
        self._gpus: list[_Gpu] = []
        self._bind()

    def _bind(self) -> None:
        """Prepare copies and blends for the tensors that are taken now."""
        self._let_go()
        tensors = {name: chosen.tensor for name, chosen in self._taken.exchanged.items()}
        if self._state is not None:
            tensors |= self._state.tensors
        runs: list[_Run] = []
        for index, section in enumerate(self.layout.sections):
            runs += _runs(index, section, [tensors[spec.name] for spec in section.tensors])
        self._direct: list[_Run] = []
        for device in dict.fromkeys(run.device for run in runs):
            copies, here = self._find_copies(device, self._pinned), [run for run in runs if run.device == device]
            if copies is None:
                self._direct += here
            else:
                self._gpus.append(_Gpu(here, copies))
        self._where = {id(tensor): (run, at) for run in runs for at, tensor in enumerate(run.tensors)}
        self._watch = Watch(self.module, self._taken)

    def _warn_of_left_out(self) -> None:
        names = self._taken.left_out
        if names:
            _logger.warning(
                "not exchanged, because they hold NaN, infinite or no values: buffers %s%s; right for a mask; for one "
                "that becomes a statistic run a batch before dpwa takes the model, on every node",
                ", ".join(names[:_MOST_NAMES]),
                f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "",
            )

    # --- Following the module -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Follow the module's tensors at a step boundary. Cheap: checks everything only the first time, then in turn.

        Adopts tensors of the same form that have replaced others (`load_state_dict(assign=True)`, `.to()`).

        Raises:
            ConfigError: the model no longer has the tensors that were taken.
        """
        if not self._has_been_checked:
            self._has_been_checked = True
            self.check_all()
            return
        if self._has_parts:
            return_to_shards(self.module)
        with self._noting_a_complaint():
            has_new_state = self._state is not None and self._state.has_changed()
            if not self._has_followed_buffers() or self._watch.has_changed() or has_new_state:
                self._take_anew()

    def check_all(self) -> None:
        """Follow the module's tensors, checking everything.

        Raises:
            ConfigError: as `check`; or other processes hold a part of the model.
        """
        if self._has_parts:
            return_to_shards(self.module)
        with self._noting_a_complaint():
            refuse_groups(self.module, self._island)
            has_new_state = self._state is not None and self._state.has_changed()
            if self._watch.replaced() or self._watch.has_changed_anywhere() or has_new_state:
                self._take_anew()

    @contextmanager
    def _noting_a_complaint(self) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            self._has_complained = True  # `close` need not say it again
            raise

    def _has_followed_buffers(self) -> bool:
        """Adopt replaced buffers, which some models have in every step; False: something else was replaced, too."""
        replaced = self._watch.replaced()
        if not replaced:
            return True
        taken = list(self._taken.exchanged.items())
        known = {id(chosen.tensor) for _, chosen in taken}
        for number in replaced:
            name, chosen = taken[number]
            now = holder_of(chosen.module, chosen.role).get(chosen.key)
            if chosen.role is not Role.BUFFER or now is None or id(now) in known or not _is_alike(now, chosen.tensor):
                return False
            run, at = self._where.pop(id(chosen.tensor))
            run.tensors[at] = now
            self._where[id(now)] = (run, at)
            self._taken.exchanged[name] = replace(chosen, tensor=now, found=now)
            self._watch.follow(number, now)
        return True

    def _take_anew(self) -> None:
        """Adopt the tensors that the module has now, and its optimizer.

        Raises:
            ConfigError: their form has changed since they were taken.
        """
        now = self._select(before=self._taken)
        problem = form_problem(self._specs, self._taken, now)
        if problem is not None:
            raise ConfigError(f"{problem} when dpwa took the model; {_WHAT_TO_DO}")
        if self._state is not None:
            self._state.follow(now.parameters())
        self._taken = now
        self._bind()

    @property
    def form(self) -> str:
        """The same in all processes of an island that have taken the same model, whichever part of it each holds."""
        return whole_form(self.module) if self._has_parts else self.layout.fingerprint.hex()

    @property
    def buffers(self) -> list[Tensor]:
        """The exchanged buffers as they are now."""
        return [chosen.tensor for chosen in self._taken.exchanged.values() if chosen.role is Role.BUFFER]

    @property
    def tensors(self) -> list[Tensor]:
        """The exchanged tensors as they are now, in an order that all processes with this model have in common."""
        own = [chosen.tensor for chosen in self._taken.exchanged.values()]
        return own if self._state is None else [*own, *self._state.tensors.values()]

    # --- What a node wants ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def copy_into(self, buffer: Buffer) -> Callable[[], None] | None:
        """See `dpwa.Model`."""
        known = self._views.get(id(buffer))
        if known is None:
            raw = torch.from_numpy(buffer)
            views = [run.views(raw[slice(*run.byte_range)].view(run.dtype)) for run in self._direct]
            known = self._views[id(buffer)] = (buffer, views)  # holding the buffer keeps its id from being given away
        with self._naming_the_tensor():
            for views_of_run, run in zip(known[1], self._direct, strict=True):
                torch._foreach_copy_(views_of_run, run.tensors)
            all_ready = [gpu.copy_into(buffer) for gpu in self._gpus]
        if not all_ready:
            return None

        def ready() -> None:
            for one_ready in all_ready:
                one_ready()

        return ready

    @torch.no_grad()
    def blend(self, values: Sequence[Values], factor: float) -> None:
        """See `dpwa.Model`."""
        self.blends += 1
        with self._naming_the_tensor():
            for run in self._direct:
                section_values = values[run.index]
                views = self._views_of_values(section_values, run)
                _blend(run.tensors, views, factor, is_difference=section_values.is_difference)
            for gpu in self._gpus:
                gpu.blend(values, factor)

    @contextmanager
    def _naming_the_tensor(self) -> Iterator[None]:
        """Name a tensor whose shape was changed in place since `check` last saw it: there torch raises."""
        try:
            yield
        except RuntimeError:
            self.check_all()
            raise

    def close(self) -> None:
        """Wait for copies under way, and release the memory beside the model. Call it after the node has been closed.

        A change of the model since the last check is only a warning: it may have come after the last step, and must not
        fail a training that has ended.
        """
        if self._has_been_checked and not self._has_complained:
            try:
                self.check_all()
            except ConfigError as error:
                _logger.warning("the last steps may not have exchanged all of the model: %s", error)
        self._let_go()

    def _let_go(self) -> None:
        for gpu in self._gpus:
            gpu.close()
        self._gpus = []
        self._pinned.close()
        self._views.clear()
        self._value_views.clear()

    def _views_of_values(self, values: Values, run: _Run) -> list[Tensor]:
        key = (id(values.array), run.first)
        known = self._value_views.get(key)
        if known is None:
            flat = torch.from_numpy(values.array)[run.first : run.stop]
            known = self._value_views[key] = (values.array, run.views(flat))
        return known[1]


class _Gpu:
    """The tensors of one GPU, and flat memory beside them for what leaves and for values that arrive."""

    def __init__(self, runs: list[_Run], copies: Copies) -> None:
        self._runs = runs
        self._copies = copies
        # Each made when it is first needed: a node alone needs none. Flat memory, and its parts in the tensors' shapes.
        self._leaving: list[tuple[Tensor, list[Tensor]]] = []
        self._arriving: list[tuple[Tensor, list[Tensor]]] = []

    def copy_into(self, buffer: Buffer) -> Callable[[], None]:
        self._leaving = self._leaving or [self._flat(run, run.dtype) for run in self._runs]
        host = self._copies.pin(buffer)

        def gather() -> None:
            for (_, views), run in zip(self._leaving, self._runs, strict=True):
                torch._foreach_copy_(views, run.tensors)

        moves = [
            (flat, host.part(*run.byte_range).typed(run.dtype))
            for (flat, _), run in zip(self._leaving, self._runs, strict=True)
        ]
        return self._copies.to_host(gather, moves)

    def blend(self, values: Sequence[Values], factor: float) -> None:
        hosts = [self._copies.pin(values[run.index].array).part(run.first, run.stop) for run in self._runs]
        self._arriving = self._arriving or [
            self._flat(run, host.plain.dtype) for run, host in zip(self._runs, hosts, strict=True)
        ]

        def use() -> None:
            for (_, views), run in zip(self._arriving, self._runs, strict=True):
                _blend(run.tensors, views, factor, is_difference=values[run.index].is_difference)

        moves = [(host, flat) for host, (flat, _) in zip(hosts, self._arriving, strict=True)]
        self._copies.to_device(moves, use)

    def close(self) -> None:
        self._copies.close()

    def _flat(self, run: _Run, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        flat = self._copies.staging(run.stop - run.first, dtype)
        return flat, run.views(flat)


def _runs(index: int, section: Section, tensors: list[Tensor]) -> list[_Run]:
    """A section's tensors, split where the device changes: one run, unless the model is spread over several devices."""
    runs: list[_Run] = []
    first = 0
    for tensor in tensors:
        if runs and runs[-1].device == tensor.device:
            runs[-1].tensors.append(tensor)
        else:
            runs.append(_Run(index, section, first, [tensor]))
        first += tensor.numel()
    return runs


def _is_alike(tensor: Tensor, other: Tensor) -> bool:
    """Whether a tensor can replace another one as it is."""
    return (
        is_written_elementwise(tensor)
        and tensor.dtype is other.dtype
        and tensor.shape == other.shape
        and tensor.device == other.device
    )


def _blend(tensors: list[Tensor], views: list[Tensor], factor: float, *, is_difference: bool) -> None:
    there = [view.to(tensor.device) for view, tensor in zip(views, tensors, strict=True)]
    if factor == 1.0 and not is_difference:
        torch._foreach_copy_(tensors, there)  # exactly, also where the model holds NaN
        return
    # Half precision is blended in float32 and rounded once.
    is_narrow = tensors[0].dtype != there[0].dtype
    wide = [tensor.to(there[0].dtype) for tensor in tensors] if is_narrow else tensors
    if is_difference:
        torch._foreach_add_(wide, there, alpha=factor)
    else:
        torch._foreach_lerp_(wide, there, factor)
    if is_narrow:
        torch._foreach_copy_(tensors, wide)
