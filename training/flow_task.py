"""The task of flow language models and their baselines: data (text or a suite), any objective on token states, its model."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowlm.encoder_codes import encoder_codes
from flowlm.model import FlowLM
from flowlm.rounding import WithRounding
from flowmap.objectives.tokens import AncestralBound
from flowmap.rng import Rng
from training.block_watch import cost_by_block, in_blocks
from training.config import FlowConfig, RunConfig
from training.data.cases import case_rows, encode_suite
from training.data.corpus import load_corpus
from training.data.flow_windows import FlowWindows
from training.data.tokenizer import load_tokenizer
from training.data.windows import TextWindows
from training.flow_encoder import load_encoder
from training.flow_laws import laws_of, quantiles
from training.flow_models import OBJECTIVES, check_noise, hold_codes, make_model
from training.flow_start import begin_with, denoise_first, teach_from
from training.mtp_task import VALIDATION_SEED, suite_of, suite_tokenizer, validation_windows
from training.objectives import build_objective
from training.run_dir import model_folder
from training.task import Task

WATCHED = 64
"""Windows of either split whose blocks are watched by their place, at most."""
FITTED = 8
"""Batches that an encoder's directions are fitted on."""


def build(config: RunConfig, accelerator: Accelerator) -> Task:
    """Everything the loop needs; the same on every rank."""
    plan = config.flow
    assert plan is not None
    if config.head.name:
        raise ValueError("flow and head.name exclude each other: a flow language model has no trunk for a head")
    with accelerator.main_process_first():
        tokenizer, train, validation, facts = _data(config, plan, not accelerator.is_main_process)
    torch.manual_seed(config.seed)  # an objective may have weights of its own
    objective = build_objective("flow", plan, OBJECTIVES, laws_of(plan, len(tokenizer)))
    check_noise(plan, objective)
    torch.manual_seed(config.seed)  # so that the network starts the same under every objective
    if (plan.codebook in ("table", "contextual")) != (plan.encoder is not None):
        raise ValueError(
            f"flow.codebook {plan.codebook}: table and contextual go together with flow.encoder, whose codes they hold: give both or neither"
        )
    encoder = load_encoder(plan.encoder, tokenizer) if plan.codebook == "contextual" and plan.encoder else None
    model = make_model(
        plan, objective, vocab_size=len(tokenizer), length=train.source.length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
        **({} if encoder is None else {"encoder": encoder.config}),
    )  # fmt: skip
    if encoder is not None:
        model.map.codebook.encoder.load_state_dict(encoder.weights.state_dict())
        rows = torch.arange(config.training.batch_size)
        model.map.codebook.fit(torch.cat([train.batch(n, rows).tokens for n in range(FITTED)]))
    elif plan.encoder is not None:
        model.map.codebook.table.copy_(encoder_codes(plan.encoder, tokenizer, plan.state_size, plan.encoder_states))
    if plan.start:
        begin_with(model, earlier(plan.start, tokenizer, "flow.start"), f"flow.start {plan.start}")
    if plan.teacher:
        teacher = earlier(plan.teacher, tokenizer, "flow.teacher").to(accelerator.device)
        teach_from(objective, teacher, model, f"flow.teacher {plan.teacher}")
    denoise_first(objective, plan.denoiser_first, config.training.steps)
    hold_codes(plan, model)
    if plan.decoder == "contextual":
        objective = WithRounding(objective, plan.decoder_latest)
    probe = None
    if plan.block_lengths and validation:
        held = validation[0]()
        rows = torch.arange(min(WATCHED, config.training.batch_size, held.size))
        seen = {"train": train.batch(0, rows), "held": held[rows]}
        watched = {name: in_blocks(states, plan.block_lengths) for name, states in seen.items()}
        probe = partial(cost_by_block, model.map, watched)
    ramp = round(plan.prior_ramp * config.training.steps) if plan.prior else 0
    if ramp:
        model.map.ramp_prior()

    def begin(step: int) -> None:
        if ramp:
            model.map.prior_share.fill_(min(1.0, (step + 1) / ramp))

    alone: int = getattr(objective, "denoiser_steps", 0)

    def idle(step: int) -> list[nn.Parameter]:
        """Nothing is carried while the denoiser is trained alone."""
        carries = getattr(model.map, "carries", False)
        return list(model.map.network.read_self.parameters()) if carries and step < alone else []

    def save(folder: Path, state: dict[str, Tensor]) -> None:
        state = {name: value for name, value in state.items() if name != "prior_share"}
        if isinstance(objective, AncestralBound):
            model.config.grids = {str(k): grid for k, grid in objective.grids(model.map.codebook.codes()).items()}
        if isinstance(model, FlowLM):
            model.config.clock = quantiles(objective, model.map.path)
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
        project=plan.project,
        begin=begin,
        idle=idle,
        probe=probe,
        facts=facts | {"parameters": sum(p.numel() for p in model.parameters()), "length": train.source.length},
    )


def earlier(run: str, tokenizer: Any, section: str) -> FlowLM:
    """The model of an earlier run, of the same tokens; section names it in what is said of a mistake."""
    folder = model_folder(run)
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"{section} {run} has other tokens than this run: train both on the same data and tokenizer")
    try:
        return FlowLM.from_pretrained(folder, dtype=torch.float32)
    except Exception as error:  # a broken file fails in as many ways as there are formats
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{section} {run} did not load: {first_line}") from error


def _data(config: RunConfig, plan: FlowConfig, quiet: bool) -> tuple[Any, FlowWindows, list[Any], dict[str, Any]]:
    size, suite = config.training.batch_size, suite_of(config)
    loop: dict[str, Any] = {
        "block_lengths": tuple(plan.block_lengths), "noise": plan.noise, "prompt_dropout": plan.prompt_dropout,
    }  # fmt: skip
    if plan.prompt_dropout and not suite and not plan.prompts:
        raise ValueError("flow.prompt_dropout hides known tokens, and text has none: set flow.prompts too")
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
