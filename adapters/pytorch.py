"""dpwa for PyTorch: wrap any training loop.

    from dpwa import DpwaPyTorchAdapter

    with DpwaPyTorchAdapter(model) as node:
        for inputs, targets in loader:
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            node.step(loss)

Runs in: the trainer's thread, which alone writes the model: in place, under `torch.no_grad()`, at the step boundary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sized
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dpwa import MODEL_FILE, ConfigError, Node, NodeStatistics, node_folder

from .checkpoints import Checkpoints
from .identity import ConfigLike, Identity, in_folder, take_place
from .island_nodes import Follower, Leader, telling_failure
from .island_start import agreed
from .islands import Island
from .losses import LossLike, as_float
from .model_identity import identity_of_model
from .optimizer_hook import OptimizerHook
from .optimizer_state import unwrapped_optimizer
from .restoring import Kept, Training
from .sampler import SharingSampler
from .saving import save_model
from .shard_nodes import ShardNode
from .streams import LateLosses
from .tensors import TorchModel
from .termination import close_at_end, closing, end_with_agent, has_closed, raise_if_terminated, watch

__all__ = ["DpwaPyTorchAdapter"]

_logger = logging.getLogger("dpwa")


class DpwaPyTorchAdapter:
    """Trains a model together with the other nodes of a cluster.

    It exchanges all floating-point parameters that are trained, and the floating-point buffers (BatchNorm statistics);
    the config's `buffers` and `frozen_parameters` change that. Tied tensors travel once. The optimizer's state stays
    local, unless the config says `optimizer_state: blend`: then the momentum of SGD and the moments of Adam and AdamW
    travel with the parameters. All nodes must build the same model from the same initial weights: seed it.

    It does not exchange integers, buffers outside the state dict, and buffers that hold NaN or infinite values when the
    adapter is made (masks, observers before the first batch); a warning names the latter. `statistics()` and the
    journal's `start` event say how many tensors and bytes are exchanged, kept local by the config, and ignored.

    The model may change afterwards as long as the exchanged tensors keep their names, shapes and dtypes:
    `load_state_dict(assign=True)`, a new head of the same shape, `.to(device)` and `torch.compile` are followed. Any
    other change (new or unfrozen parameters, another shape or dtype, LoRA, pruning) is refused by the first step, later
    within 64 steps. To unfreeze layers later, train with `frozen_parameters: blend`.

    A node is one process, or an island: the processes that a DistributedDataParallel of the model spans, or as many as
    the config's `island: {size: 4}` says. All of them make the adapter, and call `step` and `finish` alike. The first
    one exchanges models; the others have its model after every step that changed it, and its answers. Under FSDP2
    (`fully_shard`) the processes that share a model are an island, too; there each exchanges its own part with the
    process at the same place of another island. The first FSDP's modules are refused; DataParallel and `torch.compile`
    are looked through.

    Args:
        model: the model as it will be trained: on its device, in its dtype, with its frozen parameters frozen.
        name: which node of the cluster this is; default: what `dpwa launch` set in DPWA_NODE.
        config: the cluster file, a mapping with its keys, or a ready config; default: what `dpwa launch` set in
            DPWA_CONFIG. Without either, the node is alone: the script runs as if dpwa were not there.
        optimizer: the one that trains the model; needed for `optimizer_state: blend` and for `checkpoint:`.
        checkpoint: what else a checkpoint keeps, by name: objects with `state_dict` and `load_state_dict`, such as
            {"scheduler": scheduler, "sampler": sampler}. Used where the config has `checkpoint: {every_s: ...}`.
        net: the 2017 dpwa's word for `model`.
        config_file: the 2017 dpwa's word for `config`.

    A second adapter for the same node in one process, as when a notebook's cell is run again, closes the first.

    Raises:
        ConfigError: file, name or model cannot be used, or the node's port is taken.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        name: str | None = None,
        config: ConfigLike = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        checkpoint: Mapping[str, Kept] | None = None,
        net: nn.Module | None = None,
        config_file: ConfigLike = None,
    ) -> None:
        model = _only(model, net, "model", "net")
        config = _only(config, config_file, "config", "config_file")
        # `attach` has found it already.
        identity = config if isinstance(config, Identity) else identity_of_model(model, name, config)
        self.config, self.name, self.run_dir = identity.config, identity.name, identity.run_dir
        inner = None if optimizer is None else unwrapped_optimizer(optimizer, "optimizer")
        self._island = None if identity.members is None else Island(identity.members)
        self._has_parts = identity.members is not None and identity.members.have_parts
        self._hook: OptimizerHook | None = None
        self._late_losses = LateLosses()
        self._samplers: list[SharingSampler] = []
        self._checkpoints: Checkpoints | None = None
        self._resumed_step = 0
        self._node: Node | Leader | Follower | ShardNode
        with ExitStack() as undo:
            if self._island is not None:
                undo.callback(self._island.close)
                end_with_agent()
            take = partial(TorchModel, model, self.config, optimizer=inner)
            if self._island is None:
                self._tensors = take()
            else:
                take = partial(take, island=self._island.ranks, parts=self._has_parts)
                self._tensors, run_dir = agreed(self._island, identity, take)
                self.config, self.run_dir = in_folder(identity, run_dir)
            if self._island is not None and self._has_parts:
                self._begin_part(self._island, identity, undo)
            elif self._island is None or self._island.is_first:
                with telling_failure(self._island):
                    self._begin(identity, inner, checkpoint or {}, undo)
            else:
                self._begin_to_follow(self._island, identity, inner, checkpoint or {}, undo)
            undo.pop_all()
        # A script that ends without closing must not leave threads that the interpreter would stop in mid-air.
        close_at_end(self.close)
        watch(self)

    def _begin(
        self,
        identity: Identity,
        optimizer: torch.optim.Optimizer | None,
        parts: Mapping[str, Kept],
        undo: ExitStack,
    ) -> None:
        """Make the node, and start it; where that fails, `undo` ends what there is of it."""
        self._checkpoints = self._load_checkpoint(optimizer, parts)
        if self._checkpoints is not None:
            undo.callback(self._checkpoints.close)
        node = self._new_node(identity)
        self._node = node if self._island is None else Leader(self._island, self._tensors, node)
        self._is_closed = False
        undo.callback(self.close)  # what fails holds no port, and is nobody's former adapter
        take_place(self, identity)
        if self._checkpoints is not None:
            self._checkpoints.prepare(self._node)
        self._node.start()
        found = None
        if self._checkpoints is not None:
            found, self._resumed_step = self._checkpoints.found, self._checkpoints.resumed_step
            self._checkpoints.begin(self._node, island_size=self.island_size)
        if isinstance(self._node, Leader):
            self._node.begin(found)
            if self._checkpoints is not None:
                self._node.is_checkpoint_due = self._checkpoints.is_due
                self._checkpoints.random_of_island = self._node.random_of_island

    def _begin_part(self, island: Island, identity: Identity, undo: ExitStack) -> None:
        """Make the node for this process's part of the model, and start it.

        Raises:
            ConfigError: the config wants checkpoints.
        """
        if self.config.checkpoint.every_s is not None:
            raise ConfigError(
                "`checkpoint:` keeps whole models, and this one is sharded over the processes of its node; leave it "
                "out, and have torch.distributed.checkpoint save model and optimizer, and with them node.state_dict() "
                "of each process"
            )
        self._node = part = ShardNode(island, self._tensors, self._new_node(identity), self._save)
        self._is_closed = False
        undo.callback(self.close)
        take_place(self, identity)
        part.start()

    def _new_node(self, identity: Identity) -> Node:
        return Node(
            self.config,
            self.name,
            self._tensors,
            run_dir=self.run_dir,
            peers_restart=identity.peers_restart,
            launch_id=identity.launch_id,
        )

    def _begin_to_follow(
        self,
        island: Island,
        identity: Identity,
        optimizer: torch.optim.Optimizer | None,
        parts: Mapping[str, Kept],
        undo: ExitStack,
    ) -> None:
        """Wait for the node, which another process of the island makes, and go on from what it went on from."""
        self._node = node = Follower(island, self._tensors, self.name)
        self._is_closed = False
        undo.callback(self.close)
        take_place(self, identity)
        found = node.begin()
        if found is not None:
            training = Training(self.name, found.path.parent, self._tensors.module, optimizer, parts)
            state = training.restore(found)
            self._resumed_step = int(state["step"])
            self._tensors.check_all()
            node.follow_start(state.get("random_of_island", ()))
        else:
            node.follow_start()

    def _load_checkpoint(
        self, optimizer: torch.optim.Optimizer | None, parts: Mapping[str, Kept]
    ) -> Checkpoints | None:
        """Restore the newest checkpoint of the run folder, if checkpoints are wanted."""
        folder, wanted = self.folder, self.config.checkpoint
        if wanted.every_s is None or folder is None:
            return None
        made = Checkpoints(
            self.name,
            folder / "checkpoints",
            module=self._tensors.module,
            optimizer=optimizer,
            parts=parts,
            every_s=wanted.every_s,
            keep=wanted.keep,
        )
        with ExitStack() as undo:
            undo.callback(made.close)
            made.load()
            self._tensors.check_all()
            undo.pop_all()
        return made

    @property
    def resumed_step(self) -> int:
        """How many training steps were made before this life of the node: 0, unless it goes on from a checkpoint.

        `for step in range(node.resumed_step, steps)` makes those that are left.
        """
        return self._resumed_step

    @property
    def rank(self) -> int:
        """Position of this node in the cluster file, from 0.

        `DistributedSampler(data, num_replicas=node.world_size, rank=node.rank)` is all that sharding takes.
        """
        return self.config.nodes.index(self.config.node(self.name))

    @property
    def world_size(self) -> int:
        """How many nodes the cluster file has: 1 for a script that runs alone. With `join` there may be others."""
        return len(self.config.nodes)

    @property
    def island_rank(self) -> int:
        """Position of this process among those that are this node together, from 0; the first is the node itself."""
        return 0 if self._island is None else self._island.rank

    @property
    def island_size(self) -> int:
        """How many processes are this node together: 1 without an island."""
        return 1 if self._island is None else self._island.size

    @property
    def folder(self) -> Path | None:
        """This node's folder in the run folder, for files of its own; None for a script that runs alone."""
        return None if self.run_dir is None else node_folder(self.run_dir, self.name)

    @property
    def clock(self) -> float:
        """Age of the model: the number of training updates in it. It jumps when a peer's model is taken over."""
        return self._node.statistics().clock

    def __repr__(self) -> str:
        did = self._node.statistics()
        state = "closed" if self._is_closed else "alone" if self.config.is_alone else f"of {self.world_size}"
        return f"<dpwa node {self.name} ({state}): {did.step} steps, {did.blended} blended>"

    def __deepcopy__(self, memo: dict[int, Any]) -> DpwaPyTorchAdapter:
        """The adapter itself: the copy of a module that holds it, such as an average of weights, is no other node."""
        return self

    def __enter__(self) -> DpwaPyTorchAdapter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def step(self, loss: LossLike = None) -> None:
        """Call after every `optimizer.step()`. Applies a finished exchange, publishes, asks for the next one.

        Args:
            loss: of this step, a number or a tensor of one element. dpwa does not wait for a tensor on a CUDA GPU: this
                step uses the newest loss that has arrived from there, usually that of the step before.

        Raises:
            NodeClosed: after `close`.
            SystemExit: `dpwa leave` has asked this node to go.
            ConfigError: `attach` has made the optimizer's steps the node's; the loss is not a single number; or the
                model no longer has the tensors that dpwa took.
            InternalError: a background thread failed.
        """
        self._refuse_beside_hook("step")
        self._step(loss)

    def _step(self, loss: LossLike = None) -> None:
        """`step`, also for the optimizer's hook."""
        self._leave_if_told()
        self._follow_model()
        self._node.step(self._known(loss))
        self._stepped()

    def _leave_if_told(self) -> None:
        raise_if_terminated()
        if self._node.is_asked_to_leave:
            raise SystemExit(0)  # as on SIGTERM the script is left by its `with` blocks, and the model is saved

    def _refuse_beside_hook(self, method: str) -> None:
        """With `attach` a step of the optimizer is the node's: another call would count each one twice."""
        if self._hook is not None and not self._is_closed:
            raise ConfigError(
                f"node.{method}: attach has made every step of the optimizer a step of the node, and this would count "
                f"each of them twice; leave node.{method} out, and give the loss to attach: loss=lambda: loss. Or make "
                "the node with DpwaPyTorchAdapter(model, optimizer=optimizer), and call node.step(loss) yourself"
            )

    def _stepped(self) -> None:
        """A step boundary has ended."""
        for sampler in self._samplers:
            sampler.stepped()
        if self._checkpoints is not None:
            self._checkpoints.stepped()

    def update_send(self, loss: LossLike = None) -> None:
        """The 2017 dpwa's call before a batch: publishes and asks for an exchange. Raises as `step`."""
        self._refuse_beside_hook("update_send")
        self._follow_model()
        self._node.update_send(self._known(loss))

    def update_wait(self, loss: LossLike = None) -> None:
        """The 2017 dpwa's call after a batch: applies the exchange, waiting up to `wait_ms`. Raises as `step`."""
        self._refuse_beside_hook("update_wait")
        self._leave_if_told()
        self._follow_model()
        self._node.update_wait(self._known(loss))
        self._stepped()

    def sampler(
        self, dataset: Sized, *, shuffle: bool = True, block_samples: int | None = None, seed: int = 0
    ) -> SharingSampler:
        """A sampler for a DataLoader that shares out a data set among the nodes while they train.

        Fast nodes take more of each epoch, so that all end together, and every sample is trained once by one of them.
        All nodes call it with the same data set and numbers. A node alone gets all samples.

        Args:
            dataset: what is sampled, for its length.
            shuffle: False: in the order of the data set.
            block_samples: samples that are shared out together; a multiple of the batch size makes all batches full.
                None: so many that each node has about 100 blocks in an epoch.
            seed: of the order.

        Raises:
            NodeClosed: after `close`.
            ConfigError: the data set is empty, a number is out of range, there is such a sampler already, or nodes may
                join this cluster.
        """
        if not isinstance(self._node, Node):
            raise ConfigError(
                "node.sampler: data are shared out among nodes of one process each, and this one has several; use a "
                "DistributedSampler over node.world_size * node.island_size processes instead"
            )
        sampler = SharingSampler(self._node, dataset, shuffle=shuffle, block_samples=block_samples, seed=seed)
        if self._checkpoints is not None:
            self._checkpoints.keep_sampler(sampler.cut, sampler)
        self._samplers.append(sampler)
        return sampler

    def log(self, **values: object) -> None:
        """Add values such as `epoch=1.5, test_accuracy=0.9` to this node's metrics from here on."""
        self._node.log(**values)

    def finish(self, timeout_s: float | None = None, *, merge: bool | None = None) -> bool:
        """Call after the last step: keeps serving and blending as long as peers train.

        Without it, a node that is done early leaves the others to train without it. Peers that are silent for 10 s, or
        answer and make no step for 10 minutes, are left behind; a warning names them. So is everybody after an hour or
        ten times as long as this node has trained, whichever is longer. Steps after it are this node's own: its peers
        take it for finished.

        Args:
            timeout_s: the longest wait; None: only those limits.
            merge: when all have finished, replace the parameters, and the floating-point buffers that are exchanged, by
                the mean of those of all nodes that are there and finish so: the same bits on each. `statistics()` tells
                in `merged_models` how many they are. None: as the config's `merge_at_end` says.

        Returns:
            False if peers are left behind; or, with `merge`, if this node has no merged model and keeps its own.

        Raises:
            NodeClosed: after `close`.
            ConfigError: the model no longer has the tensors that dpwa took.
            InternalError: a background thread failed.
        """
        self._follow_model(everywhere=True)
        for sampler in self._samplers:
            sampler.settle()
        blends = self._tensors.blends
        if self._checkpoints is not None:
            self._checkpoints.finish()  # should this process be killed while it waits
        answer = self._node.finish(timeout_s, merge=merge)
        if self._checkpoints is not None and self._tensors.blends != blends:
            self._checkpoints.finish()  # else a node that is started again would end with the model from before
        return answer

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep beside model and optimizer: clock, mass, anchors, momentum …, as plain tensors.

        Waits up to some seconds for a push that is under way: a mass must be in one place.

            torch.save({"model": model.state_dict(), "dpwa": node.state_dict()}, path)

        Raises:
            NodeClosed: after `close`.
            InternalError: a background thread failed.
        """
        return cast("dict[str, Any]", _as_tensors(self._node.state_dict()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Call it before the first step, after the model has been loaded.

        Raises:
            ConfigError: it belongs to another method or model, or is damaged.
        """
        self._node.load_state_dict(cast("dict[str, Any]", _as_arrays(state)))

    def statistics(self) -> NodeStatistics:
        """What this node has done so far, and how much of the model it exchanges. Any thread, also after `close`."""
        return self._node.statistics()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def close(self) -> None:
        """End dpwa's threads and save the model in the run folder. May be called in any state, any number of times.

        In a forked child it does nothing: node and folder are the parent's.

        Raises:
            InternalError: a background thread failed.
            OSError: the model cannot be written to the run folder. The message says whether it is elsewhere instead; a
                model saved earlier is still there.
        """
        if self._is_closed or self._node.is_forked:
            return
        self._is_closed = True
        has_closed(self.close)
        with closing(self):
            self._end()

    def _end(self) -> None:
        self._late_losses.close()
        if self._hook is not None:
            self._hook.remove()
        try:
            if self._checkpoints is not None:
                self._checkpoints.close()
        finally:
            self._end_node()

    def _end_node(self) -> None:
        try:
            self._node.close()
        finally:
            try:
                self._tensors.close()
            finally:
                if not isinstance(self._node, ShardNode):
                    self._save(self._tensors.module.state_dict())
                elif not self._node.is_saved and self.run_dir is not None and not self.island_rank:
                    _logger.warning(
                        "node %s: its model is sharded, and not saved in the run folder: only `finish`, called by all "
                        "processes of the node, could bring the parts together",
                        self.name,
                    )

    def _save(self, state: Mapping[str, object]) -> None:
        """Save the model in the run folder, if it has been trained."""
        if self.run_dir is not None and not self.island_rank and self._node.statistics().clock > 0:
            save_model(state, node_folder(self.run_dir, self.name) / MODEL_FILE)

    def _follow_model(self, *, everywhere: bool = False) -> None:
        """Follow tensors of the model that were replaced. A node alone exchanges nothing."""
        if self._is_closed or self.config.is_alone:
            return
        if everywhere:
            self._tensors.check_all()
        else:
            self._tensors.check()

    def _known(self, loss: LossLike) -> float | None:
        """The loss, as far as it is known without waiting for a GPU."""
        if isinstance(loss, Tensor) and loss.is_cuda and loss.numel() == 1 and not loss.is_complex():
            return self._late_losses.exchange(loss)
        return as_float(loss)


def _only(value: Any, older: Any, name: str, older_name: str) -> Any:
    """An argument that the 2017 dpwa called otherwise."""
    if older is None:
        return value
    if value is not None:
        raise ConfigError(f"{name} and {older_name} are the same argument: pass one of them")
    _logger.warning("%s=... is the 2017 dpwa's word; it is %s=... now", older_name, name)
    return older


def _as_tensors(value: object) -> object:
    """The same with tensors instead of arrays: `torch.load` reads those without trusting the file."""
    if isinstance(value, Mapping):
        return {key: _as_tensors(item) for key, item in value.items()}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _as_arrays(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _as_arrays(item) for key, item in value.items()}
    return value.cpu().numpy() if isinstance(value, Tensor) else value
