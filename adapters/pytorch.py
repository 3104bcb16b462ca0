"""dpwa for PyTorch: wrap any training loop.

    from dpwa.adapters.pytorch import DpwaPyTorchAdapter

    with DpwaPyTorchAdapter(model) as node:
        for inputs, targets in loader:
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            node.step(loss)

Must not know: sockets, threads, the wire. Runs in: the trainer's thread, which alone writes the model: in place, under
`torch.no_grad()`, at the step boundary.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from dpwa.config import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.node import Node
from dpwa.observe.journal import node_folder
from dpwa.record import NodeStatistics

from .streams import LateLosses
from .tensors import TorchModel as _TorchModel
from .tensors import plain_name

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
        self._tensors = _TorchModel(model, self.config)
        self._late_losses = LateLosses()
        self._node = Node(self.config, self.name, self._tensors, run_dir=self.run_dir)
        self._is_closed = False
        self._node.start()
        # A script that ends without closing must not leave threads that the interpreter would stop in mid-air.
        atexit.register(self.close)

    @property
    def rank(self) -> int:
        """Position of this node in the cluster file, from 0.

        `DistributedSampler(data, num_replicas=node.world_size, rank=node.rank)` is all that sharding takes.
        """
        return self.config.nodes.index(self.config.node(self.name))

    @property
    def world_size(self) -> int:
        """How many nodes the cluster has: 1 for a script that runs alone."""
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
            loss: of this step, a number or a tensor of one element. A tensor on a CUDA GPU is not waited for: what
                counts in this step is the newest loss that has come from there, as a rule that of the step before.

        Raises:
            NodeClosed: after `close`.
            ConfigError: the loss is no single number.
            InternalError: a background thread failed.
        """
        self._node.step(self._known(loss))

    def update_send(self, loss: LossLike = None) -> None:
        """The 2017 dpwa's call before a batch: publishes and asks for an exchange. Raises as `step`."""
        self._node.update_send(self._known(loss))

    def update_wait(self, loss: LossLike = None) -> None:
        """The 2017 dpwa's call after a batch: applies the exchange, waiting up to `wait_ms`. Raises as `step`."""
        self._node.update_wait(self._known(loss))

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

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep beside model and optimizer: clock, mass, anchors, momentum …, as plain tensors.

        Waits for a push under way, up to some seconds: a mass must be in one place.

            torch.save({"model": model.state_dict(), "dpwa": node.state_dict()}, path)

        Raises:
            NodeClosed: after `close`.
            InternalError: a background thread failed.
        """
        return cast("dict[str, Any]", _as_tensors(self._node.state_dict()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; call it before the first step, after the model has been loaded.

        Raises:
            ConfigError: it is of another method or model, or damaged.
        """
        self._node.load_state_dict(cast("dict[str, Any]", _as_arrays(state)))

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
            self._tensors.close()
        finally:
            if self.run_dir is not None and self._node.statistics().step > 0:
                _save(self._model, node_folder(self.run_dir, self.name) / MODEL_FILE)

    def _known(self, loss: LossLike) -> float | None:
        """The loss, as far as it is known without waiting for a GPU."""
        if isinstance(loss, Tensor) and loss.is_cuda and loss.numel() == 1 and not loss.is_complex():
            return self._late_losses.exchange(loss)
        return _as_float(loss)


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    loss: Callable[[], LossLike] | None = None,
    name: str | None = None,
    config: str | os.PathLike[str] | ClusterConfig | None = None,
) -> DpwaPyTorchAdapter:
    """Give an existing loop dpwa in one line: every real step of the optimizer becomes a step of the node.

    A step that a GradScaler skips does not count (a fused optimizer's on a GPU does: to know better, the trainer would
    have to wait for the GPU). dpwa ends with the process, or with `close` of what is returned;
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
    return found_inf is not None and not found_inf.is_cuda and bool(found_inf > 0)


def _as_tensors(value: object) -> object:
    """The same with tensors for arrays, which `torch.load` takes without trusting the file."""
    if isinstance(value, Mapping):
        return {key: _as_tensors(item) for key, item in value.items()}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _as_arrays(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _as_arrays(item) for key, item in value.items()}
    return value.numpy() if isinstance(value, Tensor) else value


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
    return {plain_name(name): value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
