"""A network with its optimizer, on one process or several, and the step that training and timing share."""

import logging
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as state

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.adam import EpsInRoot
from rmsnorm_lab.experiments.recipes.common import TrainConfig
from rmsnorm_lab.experiments.task import Batch, Task, torch_generator


@dataclass(frozen=True)
class Setup:
    """How a task's networks are run; with the task's recipe, the normaliser and the seed it decides a run."""

    kernels: str = "rmsnorm"
    device: str = "cpu"
    precision: str = "32-true"


def fabric_for(setup: Setup, strategy: str = "ddp") -> Fabric:
    """Fabric for ``setup``: one process, or all those that torchrun started, under ``strategy`` ("ddp" or "fsdp")."""
    device = torch.device(setup.device)
    processes, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if processes == 1:
        devices: Any = 1 if device.index is None else [device.index]
        chosen: Any = "auto"
    else:
        if device.index is not None:
            raise UserError(
                f"under torchrun each process takes a device of its own; got --device {setup.device}. "
                f"Pass --device {device.type}."
            )
        devices = here
        chosen = "ddp" if strategy == "ddp" else ModelParallelStrategy(_shard, processes, 1)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # its banner of every process
    fabric = Fabric(
        accelerator=device.type,
        strategy=chosen,
        devices=devices,
        num_nodes=processes // here,
        precision=setup.precision,  # type: ignore[arg-type]  # one of recipes.common.PRECISIONS
    )
    if processes > 1:
        fabric.launch()
    return fabric


def _shard(model: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise UserError(
            f"--strategy fsdp needs parameters of one dimension or more; {scalars[0]} is a scalar. "
            "Give it the shape (1,), or pass --strategy ddp."
        )
    fully_shard(model, mesh=mesh["data_parallel"])
    return model


def split(batch: Batch, parts: int) -> list[Batch]:
    """``batch`` cut into ``parts`` slices of its examples; where they do not divide, the first are one longer."""
    if parts == 1:
        return [batch]
    slices = zip(*(part.tensor_split(parts) for part in batch), strict=True)
    return [type(batch)(*each) if hasattr(batch, "_fields") else each for each in slices]


class Learner:
    """One network in training."""

    def __init__(self, task: Task, setup: Setup, norm: str, seed: int, fabric: Fabric | None = None) -> None:
        self.fabric = fabric or fabric_for(setup)
        self.task, self.setup, self.norm, self.seed = task, setup, norm, seed
        self.config = task.recipe.train
        model = self._plain()
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        task.initialise(model, seed)
        self.model = self.fabric.setup_module(model)
        made: Any = self.fabric.setup_optimizers(optimizer_for(self.model, self.config, setup.device))
        self.optimizer: _FabricOptimizer = made

    def _plain(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.task.model(self.norm, self.setup.kernels)

    def seed_step(self, step: int) -> None:
        """Dropout and noise of a step depend on seed, step and process only, so a checkpoint need not hold them."""
        torch.manual_seed(torch_generator(self.seed, step, self.fabric.global_rank).initial_seed())

    def step(self, batch: Batch, learning_rate: float, beta1: float) -> float:
        """One step of training on this process's slice of the whole ``batch``; the loss of all of it.

        Reading the loss waits for the device, so the call can be timed.
        """
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = learning_rate, (beta1, group["betas"][1])
        world, rank = self.fabric.world_size, self.fabric.global_rank
        mine = split(batch, world)[rank]
        weight = self._sum_over_processes(torch.tensor(float(self.task.weight(mine))))
        self.optimizer.zero_grad()
        parts = split(mine, self.config.accumulate)
        losses: list[Tensor] = []
        for part in parts:
            earlier = len(losses) + 1 < len(parts)
            with self.fabric.no_backward_sync(self.model, enabled=earlier):
                loss = self.task.loss(self.model, self.fabric.to_device(part))
                # Gradients are averaged over processes: their number times a slice's sum makes that the sum.
                self.fabric.backward(loss * world / weight.to(loss.dtype))
            losses.append(loss.detach().float())
        total = self._sum_over_processes(torch.stack(losses).sum())
        self._clip()
        self.optimizer.step()
        return float((total / weight).item())

    def start_optimizer(self) -> None:
        """Make the optimizer's state, as the first step would, by a step of length 0 on gradients of 0."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def anywhere(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self._sum_over_processes(torch.tensor(float(here))).item())

    def _sum_over_processes(self, number: Tensor) -> Tensor:
        number = number.to(self.fabric.device)
        if self.fabric.world_size > 1:
            dist.all_reduce(number)
        return number

    def _clip(self) -> None:
        # Not finite is not an error here: a run that diverges is a result, which the loss of the next step shows.
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        if self.config.clip == "global":
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        elif self.config.clip == "per_tensor":
            for parameter in parameters:
                torch.nn.utils.clip_grad_norm_(parameter, self.config.clip_norm)

    @torch.no_grad()
    def evaluate(self, split: str, weights: dict[str, Tensor] | None = None) -> dict[str, float]:
        """The task's figures on ``split``, on the plain network (or one with other ``weights``).

        The processes share the work, and every one comes to the same.
        """
        model = self.network() if weights is None else self._plain().to(self.fabric.device)
        if weights is not None:
            model.load_state_dict(weights)
        if self.fabric.world_size > 1:
            # Batch norm's running statistics are of each process's own slices: those of process 0 are kept and count.
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        model.eval()
        with self.fabric.autocast():
            found = self.task.evaluate(model, split)
        model.train()
        return found

    def network(self) -> nn.Module:
        """The plain network: the one that is trained, or under FSDP a whole copy of it."""
        if not isinstance(self.fabric.strategy, ModelParallelStrategy):
            module: nn.Module = self.model.module
            return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
        whole = state.get_model_state_dict(self.model.module, options=state.StateDictOptions(full_state_dict=True))
        model = self._plain()
        model.load_state_dict(whole)
        return model.to(self.fabric.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next step, whole on process 0 whatever the strategy (elsewhere empty)."""
        options = state.StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = state.get_state_dict(self._wrapped, self._optimizer, options=options)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave, of any strategy; every process has read it. ValueError if it lacks any.

        torch's own check sees what is too much, and not what is missing.
        """
        names = state.get_model_state_dict(self._wrapped).keys()
        if lacking := sorted(names - saved["model"].keys()):
            raise ValueError(f"it lacks {lacking[0]!r}")
        if len({frozenset(moments) for moments in saved["optimizer"]["state"].values()}) > 1:
            raise ValueError("the optimizer's state lacks a part")
        state.set_state_dict(
            self._wrapped,
            self._optimizer,
            model_state_dict=saved["model"],
            optim_state_dict=saved["optimizer"],
            options=state.StateDictOptions(full_state_dict=True),
        )

    @property
    def _wrapped(self) -> nn.Module:
        module: nn.Module = self.model.module
        return module

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer


def optimizer_for(model: nn.Module, config: TrainConfig, device: str) -> torch.optim.Optimizer:
    """Adam or AdamW as the recipe has it; weight decay for matrices, not for gains and biases."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    kind: Any = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    made: torch.optim.Optimizer = (EpsInRoot if config.eps_in_root else kind)(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.0,
        betas=config.betas,
        eps=config.optimizer_eps,
        fused=device.partition(":")[0] in ("cpu", "cuda"),
    )
    return made


def schedule_at(step: int, config: TrainConfig, peak: float) -> tuple[float, float]:
    """(learning rate, Adam's β₁) of a step, counted from 0; ``peak`` is the learning rate where the warm-up ends."""
    late = step >= config.steps / 2
    beta1 = config.betas[0] if config.late_beta1 is None or not late else config.late_beta1
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps, beta1
    final, rest = peak * config.final_share, config.steps - config.warmup_steps
    if config.schedule == "cosine":
        progress = (step + 1 - config.warmup_steps) / max(rest, 1)
        return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2, beta1
    if config.schedule == "inverse_sqrt":
        return peak * math.sqrt(max(config.warmup_steps, 1) / (step + 1)), beta1
    if config.schedule == "linear_second_half" and late:
        return peak + (final - peak) * (2 * (step + 1) / config.steps - 1), beta1
    return peak, beta1
