"""The flow language model's task: data (text or a suite), codes, backbone, any objective on token states."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flowlm.model import FlowLM, FlowLMConfig
from flowmap.objectives.tokens import TOKEN_OBJECTIVES
from flowmap.path import PATHS
from flowmap.rng import Rng
from flowmap.schedule import DecodeError
from training.config import FlowConfig, RunConfig
from training.data.cases import case_rows, encode_suite
from training.data.corpus import load_corpus
from training.data.flow_windows import FlowWindows
from training.data.windows import TextWindows
from training.mtp_task import VALIDATION_SEED, suite_of, suite_tokenizer, validation_windows
from training.objectives import TIMES, build_objective
from training.task import Task

BACKBONE = ("width", "depth", "heads", "positions", "time_scale", "use_s", "attention")


def build(config: RunConfig, accelerator: Accelerator) -> Task:
    """Everything the loop needs; the same on every rank."""
    plan = config.flow
    assert plan is not None
    if config.head.name:
        raise ValueError("flow and head.name exclude each other: a flow language model has no trunk for a head")
    with accelerator.main_process_first():
        tokenizer, train, validation, facts = _data(config, plan, not accelerator.is_main_process)
    torch.manual_seed(config.seed)  # an objective may have weights of its own
    objective = build_objective("flow", plan, TOKEN_OBJECTIVES, _laws(plan, len(tokenizer)))
    if plan.noise == "token" and not objective.each_token:
        fit = [name for name, kind in TOKEN_OBJECTIVES.items() if kind.each_token]
        raise ValueError(
            f"flow.noise token: {plan.objective} needs one time for all that see each other; {', '.join(fit)} do not"
        )
    torch.manual_seed(config.seed)  # so that the network starts the same under every objective
    model = FlowLM(
        FlowLMConfig(  # type: ignore[call-arg]  # the base class takes more than its fields
            vocab_size=len(tokenizer), length=train.source.length, codebook=plan.codebook, state_size=plan.state_size,
            path=plan.path, prior=plan.prior, t_min=getattr(objective, "t_min", 1e-3),
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
            backbone={name: getattr(plan, name) for name in BACKBONE},
            block_lengths=plan.block_lengths or None, noise=plan.noise, causal=plan.causal,
        )
    )  # fmt: skip

    def save(folder: Path, state: dict[str, Tensor]) -> None:
        model.save_pretrained(folder, state_dict={f"map.{name}": value for name, value in state.items()})
        tokenizer.save_pretrained(folder)

    return Task(
        model=model.map,
        trainable=model.map,
        prefix="",
        objective=objective,
        train=train,
        train_seed=config.seed,
        validation=validation,
        save=save,
        facts=facts | {"parameters": sum(p.numel() for p in model.parameters()), "length": train.source.length},
    )


def _laws(plan: FlowConfig, size: int) -> dict[str, Any]:
    """Those of images, and of one-hot codes two that look where they are decided."""
    path = PATHS[plan.path]()
    if plan.codebook != "one-hot":
        return dict(TIMES)
    law = partial(DecodeError, size, path)
    return {**TIMES, "decode-error": law, "decode-error-mixed": partial(law, uniform=0.1)}


def _data(config: RunConfig, plan: FlowConfig, quiet: bool) -> tuple[Any, FlowWindows, list[Any], dict[str, Any]]:
    size, suite = config.training.batch_size, suite_of(config)
    loop: dict[str, Any] = {"block_lengths": tuple(plan.block_lengths), "noise": plan.noise}
    if suite:
        tokenizer = suite_tokenizer(config, suite)
        rows = case_rows(encode_suite(suite, tokenizer), 0, size, config.seed)
        train = FlowWindows(rows, tokenizer.eos_token_id, **loop)
        fresh = FlowWindows(rows.with_seed(config.seed + VALIDATION_SEED), tokenizer.eos_token_id, **loop)
        fixed = [partial(fresh.batch, n, torch.arange(size)) for n in range(config.training.evaluate_batches)]
        return tokenizer, train, fixed, {"suite": suite.name, "fingerprint": suite.fingerprint}
    corpus = load_corpus(config.data, config.tokenizer, progress=not quiet)
    windows = TextWindows(corpus.stores["train"], config.data.length, 0, size, config.seed)
    train = FlowWindows(windows, corpus.tokenizer.eos_token_id, plan.prompts, **loop)

    def states(n: int, make: Any) -> Any:
        batch = make()
        return train.states(batch, Rng(0, torch.arange(batch.size), n))

    held = validation_windows(corpus.stores["validation"], config.data.length, 0, config)
    facts = {"data": config.data.name, **corpus.facts}
    return corpus.tokenizer, train, [partial(states, n, make) for n, make in enumerate(held)], facts
