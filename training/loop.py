"""The training loop, one for every task.

Gradients of sums are added over ranks and micro-batches, divided once by the global count, then
clipped. Learning rate, data and noise are functions of (seed, step), so what a checkpoint holds is
weights, optimizer moments, averages and the step: nothing else moves.
"""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from flowmap.rng import Rng
from training.averages import averaged_state, moving_average, swapped, teacher_of
from training.config import RunConfig
from training.hardware import choose_threads, keep_freed_memory, quiet_libraries, resolve_precision
from training.metrics import Metrics
from training.optimizers import make_optimizers
from training.profiling import Profiler
from training.projection import Projection
from training.run_dir import RunDir
from training.schedules import learning_rate
from training.slices import SliceLoss, slices_of
from training.task import Task
from training.tracking import begin, log_with, tell


def train(
    config: RunConfig,
    run_dir: Path,
    build: Callable[[RunConfig, Accelerator], Task],
    quiet: bool = False,
    profile: bool = False,
) -> dict[str, float]:
    """Run or go on with a run; returns the last validation metrics. profile: see `training.profiling`."""
    quiet_libraries()
    keep_freed_memory()
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), **log_with(config.training.tracker, run_dir))
    check_whole(accelerator.distributed_type)
    folder = RunDir(run_dir)
    trains = accelerator.is_main_process and config.training.steps not in folder.steps()
    with folder.alone() if trains else contextlib.nullcontext():
        return _train(config, folder, build, accelerator, quiet, profile)


def _train(
    config: RunConfig,
    folder: RunDir,
    build: Callable[[RunConfig, Accelerator], Task],
    accelerator: Accelerator,
    quiet: bool,
    profile: bool,
) -> dict[str, float]:
    plan, run_dir = config.training, folder.path
    main, device = accelerator.is_main_process, accelerator.device
    with accelerator.main_process_first():
        if main:
            folder.open(config)
    slices = accelerator.num_processes * plan.accumulation
    if plan.batch_size % slices:
        raise ValueError(
            f"training.batch_size {plan.batch_size} does not divide into {accelerator.num_processes} processes × {plan.accumulation} micro-batches"
        )
    task = build(config, accelerator)
    if (plan.batch_size // slices) % task.objective.group_size:
        raise ValueError(
            f"training.batch_size {plan.batch_size} in {slices} slices does not hold whole groups of {task.objective.group_size}"
        )
    known = folder.provenance()
    precision = known.get("precision") or resolve_precision(plan.precision, device)
    module = SliceLoss(task.model, task.objective, precision).to(device)
    if device.type == "cpu":
        threads = plan.threads or known.get("threads") or _time_threads(module, task, plan.batch_size // slices)
        torch.set_num_threads(threads)
    if main:
        folder.record(
            **task.facts,
            objective_version=getattr(task.objective, "version", None),
            precision=precision,
            threads=torch.get_num_threads(),
            processes=accelerator.num_processes,
        )

    begin(accelerator, config, run_dir)

    def log(record: dict[str, Any]) -> None:
        folder.log(record)
        tell(accelerator, record)

    optimizers = make_optimizers(module, config.optimizer)
    average = AveragedModel(task.trainable, multi_avg_fn=moving_average(plan.ema)) if plan.ema else None
    teacher = teacher_of(task)
    if teacher:
        module.teach(teacher.module)
    averages = {name: kept for name, kept in (("average", average), ("teacher", teacher)) if kept}
    start = _resume(folder, task, optimizers, averages)
    if main:
        folder.forget_after(start)
    spent, begun = folder.cpu_seconds(), time.process_time()
    prepared, *optimizers = accelerator.prepare(module, *optimizers)
    # once: a walk through all modules costs a small step dear
    weights = [p for p in module.parameters() if p.requires_grad]
    projection = Projection(weights) if task.project else None

    def checkpoint(step: int) -> None:
        if main:
            state = {"step": step, "trainable": task.trainable.state_dict(), "objective": task.objective.state_dict()}
            state |= {"optimizers": [o.state_dict() for o in optimizers]}
            state |= {n: kept.state_dict() for n, kept in averages.items()}
            folder.save(step, state, lambda path: task.save(path, averaged_state(task, average)), plan.keep_checkpoints)
        accelerator.wait_for_everyone()

    validation: dict[str, float] = {}
    bar = tqdm(
        range(start, plan.steps),
        initial=start,
        total=plan.steps,
        desc=run_dir.name,
        disable=None if main and not quiet else True,
    )
    clock, window, waited = time.perf_counter(), Metrics(), 0.0
    profiler = Profiler(run_dir / "profile" if profile and main else None, plan.steps - start)
    for step in bar:
        # ------------------------------------------------------------ one training step
        if task.begin:
            task.begin(step)
        before = time.perf_counter()
        slices_of_step = slices_of(task, accelerator, plan, step, device)
        waited += time.perf_counter() - before
        count = torch.zeros((), device=device)
        statistics: dict[str, Tensor] = {}
        for m, (batch, rng) in enumerate(slices_of_step):
            last = m == len(slices_of_step) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(prepared):
                if projection:
                    projection.add(loss := module(batch, rng, step))
                else:
                    loss = prepared(batch, rng, step)
                    # DDP means over ranks; the sum is wanted
                    accelerator.backward(loss.sum * accelerator.num_processes)
            count += loss.count
            window.add(loss)
            statistics = {name: statistics.get(name, 0) + part for name, part in loss.statistics.items()}
        if projection:
            projection.settle(lambda part: accelerator.reduce(part, "sum"))
        for weight in task.idle(step) if task.idle else ():
            weight.grad = None
        count = accelerator.reduce(count, "sum")
        torch._foreach_div_([p.grad for p in weights if p.grad is not None], count.clamp_min(1))
        norm = accelerator.clip_grad_norm_(weights, config.optimizer.clip)
        rate = learning_rate(step, plan.steps, config.optimizer)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        for kept in averages.values():
            kept.update_parameters(task.trainable)
        if statistics:
            task.objective.learn({name: accelerator.reduce(statistics[name], "sum") for name in sorted(statistics)})
        profiler.step()
        # ------------------------------------------------------------
        done = step + 1
        saves = done % plan.checkpoint_every == 0 or done == plan.steps
        if done % plan.log_every == 0 or saves:  # so that no logged mean straddles a restart
            metrics = window.reduce(accelerator)
            if not math.isfinite(float(norm)) or not math.isfinite(metrics["loss"]):
                raise ValueError(
                    f"the loss is not finite at step {done}: lower optimizer.lr; {run_dir} keeps its last checkpoint"
                )
            seconds = time.perf_counter() - clock
            metrics |= {"grad_norm": float(norm), "lr": rate, "data_wait": waited / seconds}
            metrics["cpu_seconds"] = round(spent + time.process_time() - begun, 1)  # of this process, over restarts
            metrics["train_tokens_per_second"] = window.positions * accelerator.num_processes / seconds
            shown = {"loss": metrics["loss"], **{k: v for k, v in validation.items() if k == "head_nll"}}
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})
            if main:
                log({"step": done, "split": "train", **metrics})
            clock, window, waited = time.perf_counter(), Metrics(), 0.0
        if task.validation and (done % plan.evaluate_every == 0 or done == plan.steps):
            before = time.perf_counter()
            if main:
                validation = evaluate(task, module, average, device, done - 1)
                log({"step": done, "split": "validation", **validation})
            accelerator.wait_for_everyone()
            clock += time.perf_counter() - before
        if saves:
            before = time.perf_counter()
            checkpoint(done)
            clock += time.perf_counter() - before
    profiler.close()
    # what holds the process group goes before it does: a worker thread that outlives it ends the process with an abort
    accelerator.free_memory()
    del prepared
    accelerator.end_training()
    return validation


@torch.no_grad()
def evaluate(
    task: Task, module: SliceLoss, average: AveragedModel | None, device: torch.device, step: int
) -> dict[str, float]:
    """Metrics of the averaged weights on the fixed validation batches, of the loss as it stands at this step."""
    module.eval()
    metrics = Metrics()
    with swapped(task, average):
        for n, make in enumerate(task.validation):
            batch = make().to(device)
            spread = batch.size if task.objective.low_discrepancy else None
            metrics.add(module(batch, Rng(0, torch.arange(batch.size, device=device), n, spread), step))
        more = task.probe() if task.probe else {}
    module.train()
    return metrics.means() | more


def check_whole(launched: DistributedType) -> None:
    """Averages, checkpoints and validation read a process's own weights, so every process must hold all of them."""
    if launched in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"{launched.value} cuts the weights among processes, and leaplm train needs them whole on each: launch it with "
            "configs/accelerate/ddp.yaml; loops of your own may shard our models"
        )


def _resume(folder: RunDir, task: Task, optimizers, averages: dict[str, AveragedModel]) -> int:
    state = folder.load()
    if state is None:
        return 0
    task.trainable.load_state_dict(state["trainable"])
    task.objective.load_state_dict(state["objective"])
    held = state.get("optimizers") or [state["optimizer"]]  # of a run from when there was one
    for optimizer, kept in zip(optimizers, held, strict=True):
        optimizer.load_state_dict(kept)
    for name, kept in averages.items():
        kept.load_state_dict(state[name])
    return state["step"]


def _time_threads(module: SliceLoss, task: Task, size: int) -> int:
    batch, rng = task.train.batch(0, torch.arange(size)), Rng(0, torch.arange(size))

    def work() -> None:
        module(batch, rng, 0).sum.backward()
        module.zero_grad()

    return choose_threads(work)
