"""What a training will hold in memory, before it begins: `leaplm train PRESET --plan`.

Weights, gradients, moments and averages follow from their shapes. What autograd keeps between the forward and the backward
pass is counted: on one group of samples and on a few, as they are in the training's last step, through hooks on every tensor that
is saved, each storage once and weights not at all. It grows by the same for every sample more, or does so in the mean where samples are drawn to different tasks. What a pass needs for a moment beside that is not in the
plan, nor is the C library's or the GPU allocator's own waste.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flowmap.rng import Rng
from training.averages import teacher_of
from training.config import RunConfig, override
from training.hardware import resolve_precision
from training.optimizers import make_optimizers
from training.slices import SliceLoss
from training.tasks import build

MIB = 2**20
COUNTED = 16
"""Groups of samples, at most."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each process. fixed + each · samples: activations of a slice of so many samples; slices: of a global batch
    on one process; group: samples that a slice may not split; free: on the device now, or None where it does not say."""

    parameters: int
    trained: int
    weights: int
    gradients: int
    moments: int
    averages: int
    fixed: int
    each: int
    samples: int
    slices: int
    group: int
    precision: str
    free: int | None

    @property
    def activations(self) -> int:
        return self.fixed + self.each * self.samples

    @property
    def total(self) -> int:
        return self.held + self.activations

    @property
    def held(self) -> int:
        return self.weights + self.gradients + self.moments + self.averages

    def text(self) -> str:
        rows = [
            ("weights", self.weights, f"{self.parameters:,} parameters, {self.trained:,} of them trained"),
            ("gradients", self.gradients, ""),
            ("moments", self.moments, "of the optimizer"),
            ("averages", self.averages, "kept beside the weights, or learned from"),
            ("activations", self.activations, f"{self.samples} samples a slice, {self.each / MIB:.2f} MiB each"),
            ("together", self.total, "" if self.free is None else f"{self.free / MIB:,.0f} MiB are free here"),
        ]
        lines = [f"{name:<12}{size / MIB:>12,.1f} MiB   {more}".rstrip() for name, size, more in rows]
        lines.append(f"products in {self.precision}; {self.slices} slices a step on each process")
        return "\n".join(lines)

    def fitting_slices(self) -> int | None:
        """The fewest slices of whole groups that fit in what is free, None where none do."""
        batch = self.samples * self.slices
        for slices in range(1, batch // self.group + 1):
            whole = batch % slices == 0 and (batch // slices) % self.group == 0
            if whole and self.free is not None and self.held + self.fixed + self.each * (batch // slices) <= self.free:
                return slices
        return None


def plan_memory(config: RunConfig) -> MemoryPlan:
    """Makes the model and the data, and no more of the training than the gradient graph of a few groups."""
    config = override(config, trunk__cache_states=False)  # read by the trunk here, which holds no less
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device, plan = accelerator.device, config.training
    task = build(config, accelerator)
    precision = resolve_precision(plan.precision, device)
    module = SliceLoss(task.model, task.objective, precision).to(device)
    trained = [p for p in module.parameters() if p.requires_grad]
    moments = 0
    for optimizer in make_optimizers(module, config.optimizer):
        kept = 1 if isinstance(optimizer, torch.optim.Muon) else 2
        moments += kept * sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
    copy = sum(p.nbytes for p in task.trainable.parameters())
    averages = copy if plan.ema else 0
    if teacher := teacher_of(task):
        averages += copy
        module.teach(teacher.module)
    slices = plan.accumulation
    samples, group = plan.batch_size // (accelerator.num_processes * slices), task.objective.group_size
    few = max(2, min(COUNTED, samples // group))
    one, more = (_kept(module, task, n * group, config, device) for n in (1, few))
    each = (more - one) // ((few - 1) * group)
    return MemoryPlan(
        parameters=sum(p.numel() for p in module.parameters()),
        trained=sum(p.numel() for p in trained),
        weights=sum(x.nbytes for x in (*module.parameters(), *module.buffers())),
        gradients=sum(p.nbytes for p in trained),
        moments=moments,
        averages=averages,
        fixed=max(0, one - each * group),
        each=each,
        samples=samples,
        slices=slices,
        group=group,
        precision=precision,
        free=_free(device),
    )


def print_plan(config: RunConfig) -> None:
    """The plan; a ValueError with the mend where it does not fit."""
    plan = plan_memory(config)
    print(plan.text())
    if plan.free is None or plan.total <= plan.free:
        return
    slices = plan.fitting_slices()
    mend = f"--training.accumulation {slices} would fit" if slices else "no number of slices fits: take a smaller model"
    raise ValueError(f"{plan.total / MIB:,.0f} MiB do not fit in {plan.free / MIB:,.0f} MiB: {mend}")


def _kept(module: SliceLoss, task: Any, size: int, config: RunConfig, device: torch.device) -> int:
    """Bytes that autograd keeps for the backward pass of a slice of so many samples."""
    samples, last = torch.arange(size), config.training.steps - 1
    spread = config.training.batch_size if task.objective.low_discrepancy else None
    batch, rng = task.train.batch(0, samples).to(device), Rng(task.train_seed, samples.to(device), 0, spread)
    own = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    if task.begin:
        task.begin(last)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = module(batch, rng, last)
    del loss  # until here every storage lives, so that no two share an address
    return sum(kept.values())


def _free(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
