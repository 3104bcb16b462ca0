"""dpwa for PyTorch: wrap any training loop.

    from dpwa.adapters.pytorch import DpwaPyTorchAdapter

    with DpwaPyTorchAdapter(model) as dpwa:
        for inputs, targets in loader:
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            dpwa.step(loss)

Must not know: sockets, threads, the wire. Runs in: the trainer's thread, which alone writes the model: in place, under
`torch.no_grad()`, at the step boundary.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dpwa.blending import Values
from dpwa.config import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.node import Node
from dpwa.observe.journal import node_folder
from dpwa.record import NodeStatistics
from dpwa.snapshot import Buffer, Layout, Role, Section, TensorSpec

__all__ = ["DpwaPyTorchAdapter", "attach"]

MODEL_FILE = "model.safetensors"

LossLike: TypeAlias = "Tensor | float | None"


class DpwaPyTorchAdapter:
    """Trains a model together with the other nodes of a cluster.

    Exchanged are all floating-point parameters that are trained, and the floating-point buffers (BatchNorm statistics);
    the config's `buffers` and `frozen_parameters` change that. Tied tensors travel once. Optimizer state stays local.
    All nodes must build the same model from the same initial weights: seed it.

    Args:
        model: the model as it will be trained: on its device, in its dtype, with its frozen parameters frozen.
        name: which node of the cluster this is; default: what `dpwa launch` set in DPWA_NODE.
        config: the cluster file, or a ready config; default: what `dpwa launch` set in DPWA_CONFIG. Without either,
            the node is alone: the script runs as if dpwa were not there.

    Raises:
        ConfigError: file, name or model cannot be used, or the node's port is taken.
    """

    def __init__(
        self, model: nn.Module, name: str | None = None, config: str | os.PathLike[str] | ClusterConfig | None = None
    ) -> None:
        name = name or os.environ.get("DPWA_NODE") or None
        given = _given_config(config)
        self.config = given or ClusterConfig.alone(name or "alone")
        self.name = _node_name(self.config, name)
        self.run_dir = _run_dir(self.config, given_cluster=given is not None)
        self._model = model
        self._node = Node(self.config, self.name, _TorchModel(model, self.config), run_dir=self.run_dir)
        self._is_closed = False
        self._node.start()
        # A script that ends without closing must not leave threads that the interpreter would stop in mid-air.
        atexit.register(self.close)

    @property
    def index(self) -> int:
        """Position of this node in the cluster file, from 0: `samples[dpwa.index :: dpwa.count]` is its shard."""
        return self.config.nodes.index(self.config.node(self.name))

    @property
    def count(self) -> int:
        """How many nodes the cluster has."""
        return len(self.config.nodes)

    def __enter__(self) -> DpwaPyTorchAdapter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def step(self, loss: LossLike = None) -> None:
        """Call after every `optimizer.step()`. Applies a finished exchange, publishes, asks for the next one.

        Args:
            loss: of this step, a number or a tensor of one element. A tensor on a GPU is waited for.

        Raises:
            NodeClosed: after `close`.
            ConfigError: the loss is no single number.
            InternalError: a background thread failed.
        """
        self._node.step(_as_float(loss))

    def update_send(self, loss: LossLike = None) -> None:
        """The 2017 dpwa's call before a batch: publishes and asks for an exchange. Raises as `step`."""
        self._node.update_send(_as_float(loss))

    def update_wait(self, loss: LossLike = None) -> None:
        """The 2017 dpwa's call after a batch: applies the exchange, waiting up to `wait_ms`. Raises as `step`."""
        self._node.update_wait(_as_float(loss))

    def log(self, **values: object) -> None:
        """Add values such as `epoch=1.5, test_accuracy=0.9` to this node's metrics from here on."""
        # A tensor is read now: later, the journal's thread would write its `repr`, of whatever it holds then.
        plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
        self._node.log(**plain)

    def finish(self, timeout_s: float = 10.0) -> bool:
        """Call after the last step: go on serving and blending until all peers have finished, too, or are gone.

        Without it, a node that is done early leaves the others to train without it.

        Args:
            timeout_s: wait at most so long.

        Returns:
            False if peers were still training when the time ran out.
        """
        return self._node.finish(timeout_s)

    def statistics(self) -> NodeStatistics:
        """What this node did so far. Any thread, any state."""
        return self._node.statistics()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def close(self) -> None:
        """End dpwa's threads and save the model in the run folder. May be called in any state, any number of times.

        Raises:
            InternalError: a background thread failed.
            OSError: the model cannot be written; a model saved earlier is still there.
        """
        if self._is_closed:
            return
        self._is_closed = True
        atexit.unregister(self.close)
        try:
            self._node.close()
        finally:
            if self.run_dir is not None and self._node.statistics().step > 0:
                _save(self._model, node_folder(self.run_dir, self.name) / MODEL_FILE)


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    loss: Callable[[], LossLike] | None = None,
    name: str | None = None,
    config: str | os.PathLike[str] | ClusterConfig | None = None,
) -> DpwaPyTorchAdapter:
    """Give an existing loop dpwa in one line: every real step of the optimizer becomes a step of the node.

    A step that a GradScaler skips does not count. dpwa ends with the process, or with `close` of what is returned;
    the optimizer then goes on without it.

    Args:
        model: see `DpwaPyTorchAdapter`.
        optimizer: the one that trains the model.
        loss: gives the loss of the latest step; needed by interpolations that look at it.
        name: see `DpwaPyTorchAdapter`.
        config: see `DpwaPyTorchAdapter`.

    Raises:
        ConfigError: as `DpwaPyTorchAdapter`; or the config's interpolation needs a loss and none is given.
    """
    given = _given_config(config)
    if loss is None and given is not None and (given.interpolation == "loss" or given.divergence_threshold > 0):
        raise ConfigError(
            "attach: this config's interpolation looks at the loss; pass loss=..., a function that returns the loss of "
            "the latest step, or call adapter.step(loss) in the loop instead"
        )
    adapter = DpwaPyTorchAdapter(model, name, given)

    def after_step(stepped: torch.optim.Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        if not adapter.closed and not _was_skipped(stepped):
            adapter.step(loss() if loss is not None else None)

    optimizer.register_step_post_hook(after_step)
    return adapter


def _was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler made this step do nothing."""
    # A GradScaler leaves out the call of most optimizers, but tells a fused one to skip by itself.
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf > 0)


def _given_config(config: str | os.PathLike[str] | ClusterConfig | None) -> ClusterConfig | None:
    """The cluster that the script or the launcher names; None if neither does."""
    if isinstance(config, ClusterConfig):
        return config
    path = config if config is not None else os.environ.get("DPWA_CONFIG") or None
    return ClusterConfig.load(Path(path)) if path is not None else None


def _node_name(config: ClusterConfig, name: str | None) -> str:
    if name is not None:
        return config.node(name).name
    if len(config.nodes) == 1:
        return config.nodes[0].name
    names = ", ".join(node.name for node in config.nodes[:8])
    raise ConfigError(
        f"which node is this? Expected one of {names}, got no name; "
        "pass name=..., set DPWA_NODE, or start with `dpwa launch`"
    )


def _run_dir(config: ClusterConfig, *, given_cluster: bool) -> Path | None:
    chosen = os.environ.get("DPWA_RUN_DIR")
    if chosen:
        return Path(chosen).absolute()
    if not given_cluster:
        return None  # alone there is nothing to record
    # Without a launcher every node started by hand gets a folder of its own; it stays the same when the script changes
    # its working folder.
    return Path.cwd() / "runs" / f"{config.run}-{time.strftime('%Y%m%d-%H%M%S')}"


def _as_float(loss: LossLike) -> float | None:
    if loss is None:
        return None
    if isinstance(loss, (str, bytes)):  # float() would read the digits in it
        raise _no_loss(loss)
    try:
        return float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _no_loss(loss) from error


def _no_loss(given: object) -> ConfigError:
    what = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
    return ConfigError(f"loss: expected a number or a tensor of one element, got {what}")


class _TorchModel:
    """The exchanged tensors of a module, as `dpwa.node.Model` wants them."""

    def __init__(self, module: nn.Module, config: ClusterConfig) -> None:
        tensors = _exchanged_tensors(
            module, buffers=config.buffers == "blend", frozen=config.frozen_parameters == "blend"
        )
        self.layout = Layout(
            TensorSpec(name, tuple(tensor.shape), _dtype_name(tensor), role) for name, (tensor, role) in tensors.items()
        )
        self._tensors = [[tensors[spec.name][0] for spec in section.tensors] for section in self.layout.sections]
        # The same few buffers come again and again; making views of each once keeps a step cheap for small models.
        self._views: dict[int, tuple[Any, list[list[Tensor]]]] = {}
        self._value_views: dict[int, tuple[Any, list[Tensor]]] = {}

    @torch.no_grad()
    def copy_into(self, buffer: Buffer) -> None:
        """See `dpwa.node.Model`."""
        if id(buffer) not in self._views:
            raw = torch.from_numpy(buffer)
            views = [
                _tensor_views(raw[section.start_byte : section.stop_byte].view(getattr(torch, section.dtype)), section)
                for section in self.layout.sections
            ]
            self._views[id(buffer)] = (buffer, views)  # holding the buffer keeps its id from being given away
        for views_of_section, tensors in zip(self._views[id(buffer)][1], self._tensors, strict=True):
            torch._foreach_copy_(views_of_section, tensors)

    @torch.no_grad()
    def blend(self, values: Sequence[Values], factor: float) -> None:
        """See `dpwa.node.Model`."""
        for section_values, tensors in zip(values, self._tensors, strict=True):
            views = self._views_of_values(section_values)
            if tensors[0].dtype == views[0].dtype:
                _blend_section(tensors, views, factor, is_difference=section_values.is_difference)
            else:
                # Half precision is blended in float32 and rounded once.
                wide = [tensor.to(views[0].dtype) for tensor in tensors]
                _blend_section(wide, views, factor, is_difference=section_values.is_difference)
                torch._foreach_copy_(tensors, wide)

    def _views_of_values(self, values: Values) -> list[Tensor]:
        key = id(values.array)
        if key not in self._value_views:
            views = _tensor_views(torch.from_numpy(values.array), values.section)
            self._value_views[key] = (values.array, views)
        return self._value_views[key][1]


def _blend_section(tensors: list[Tensor], views: list[Tensor], factor: float, *, is_difference: bool) -> None:
    there = [view.to(tensor.device) for view, tensor in zip(views, tensors, strict=True)]
    if is_difference:
        torch._foreach_add_(tensors, there, alpha=factor)
    else:
        torch._foreach_lerp_(tensors, there, factor)


def _tensor_views(flat: Tensor, section: Section) -> list[Tensor]:
    return [flat[first : first + spec.size].view(spec.shape) for spec, first in section.offsets()]


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _exchanged_tensors(module: nn.Module, *, buffers: bool, frozen: bool) -> dict[str, tuple[Tensor, Role]]:
    """Name to tensor and role; every memory once, however many names it has.

    Raises:
        ConfigError: a tensor has no values yet, or cannot be written element by element.
    """
    persistent = module.state_dict(keep_vars=True).keys()
    candidates: list[tuple[str, Tensor, Role]] = [
        (name, parameter, Role.PARAMETER)
        for name, parameter in module.named_parameters()
        if frozen or parameter.requires_grad
    ]
    if buffers:
        # Buffers outside the state dict are constants or caches, not learned.
        candidates += [(name, buffer, Role.BUFFER) for name, buffer in module.named_buffers() if name in persistent]
    chosen: dict[str, tuple[Tensor, Role]] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor, role in candidates:
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise ConfigError(f"tensor {name}: has no values yet; run the model once or load its weights before dpwa")
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue  # counters and indices cannot be averaged
        memory = _memory(tensor)
        if not tensor.numel() or memory in seen:
            continue  # nothing to exchange, or tied to a tensor that is exchanged already
        if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise ConfigError(
                f"tensor {name}: is expanded, so that its elements share memory and cannot be blended one by one; "
                f"expected each in its own place; make it with .expand(...).clone()"
            )
        seen.add(memory)
        chosen[name] = (tensor, role)
    return chosen


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that occupy the same memory, also when one is a transposed or reshaped view of the other."""
    runs: list[tuple[int, int]] = []  # (stride, size) of each dimension, neighbours that follow on each other merged
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if runs and stride == runs[-1][0] * runs[-1][1]:
            first_stride, first_size = runs.pop()
            runs.append((first_stride, first_size * size))
        elif size > 1:
            runs.append((stride, size))
    return (tensor.device, tensor.data_ptr(), *runs)


def _save(module: nn.Module, path: Path) -> None:
    """Write the whole state of the model; an existing file is replaced only by a complete one.

    Tied tensors are written once; the metadata names the others: {"tied": "decoder.weight=encoder.weight"}.
    """
    kept: dict[tuple[object, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: list[str] = []
    for name, tensor in _plain_state(module).items():
        memory = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and memory in kept:
            tied.append(f"{name}={kept[memory]}")
            continue
        kept[memory] = name
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    metadata = {"format": "pt", **({"tied": " ".join(tied)} if tied else {})}
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            file.write(save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _plain_state(module: nn.Module) -> Mapping[str, Tensor]:
    """The state dict's tensors; extra state of other kinds has no place in a file of tensors."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
