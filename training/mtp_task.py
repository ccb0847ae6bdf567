"""The joint-head task: data (text or a suite), trunk (from scratch, pretrained or frozen), head, objective."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from eval.validity.suites import Suite, load_suite
from mtp.heads import option_names
from mtp.heads.base import MAX_BLOCK, MIN_BLOCK
from mtp.model import MTPForCausalLM
from mtp.objective import JointCrossEntropy
from training.adapters import adapt, adapter_weights, merged_state
from training.config import HeadConfig, RunConfig
from training.data.cases import case_rows, encode_suite
from training.data.corpus import load_corpus
from training.data.state_cache import cache_states
from training.data.store import TokenStore
from training.data.tokenizer import load_tokenizer, word_tokenizer
from training.data.windows import Dataset, TextWindows
from training.task import Task
from training.trunk import load_head, new_trunk, pretrained_trunk, trunk_folder, weights_digest

VALIDATION_SEED = 2**31
"""Added to the run's seed where validation draws its own samples."""


@dataclass(frozen=True)
class Data:
    """block_size: K; a cases file sets its own."""

    tokenizer: Any
    block_size: int
    train: Dataset
    validation: Sequence[Callable[[], Any]]
    facts: dict[str, Any]


def build(config: RunConfig, accelerator: Accelerator) -> Task:
    """Everything the loop needs; the same on every rank."""
    suite = suite_of(config)
    if config.trunk.cache_states and (not config.trunk.frozen or not config.trunk.pretrained or suite):
        raise ValueError("trunk.cache_states needs trunk.pretrained, trunk.frozen and text to read")
    if config.trunk.lora and (config.trunk.frozen or not config.trunk.pretrained):
        raise ValueError("trunk.lora adapts what trunk.pretrained names: give it, and set trunk.frozen to false")
    asked = [name for name in ("distill", "curriculum", "balance", "own_samples") if getattr(config.head, name)]
    if asked and config.head.name is None:
        raise ValueError(f"head.{asked[0]} needs head.name")
    with accelerator.main_process_first():
        quiet = not accelerator.is_main_process
        data = _suite_data(config, suite) if suite else _text_data(config, quiet)
    torch.manual_seed(config.seed)
    trunk = (
        pretrained_trunk(config.trunk.pretrained)
        if config.trunk.pretrained
        else new_trunk(config.trunk, data.tokenizer, 0 if suite else config.data.length)
    )
    vocab_size = trunk.get_output_embeddings().weight.shape[0]
    if len(data.tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer has {len(data.tokenizer)} tokens and the trunk {vocab_size}: set tokenizer.kind to pretrained"
        )
    facts = dict(data.facts)
    if config.trunk.pretrained:
        facts["trunk_sha256"] = weights_digest(trunk)
    torch.manual_seed(config.seed)  # so that a head starts the same whether its trunk was drawn or loaded
    model = MTPForCausalLM.from_trunk(trunk, config.head.name, data.block_size, **_head_options(config.head))
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    facts["head_parameters"] = sum(p.numel() for p in model.head.parameters()) if model.head else 0
    if config.head.start:
        load_head(model, config.head.start)
    trainable: nn.Module = model
    adapted = adapt(trunk, config.trunk.lora) if config.trunk.lora else None
    if config.trunk.frozen:
        if model.head is None:
            raise ValueError("trunk.frozen leaves nothing to train without head.name")
        model.trunk.requires_grad_(False)
        trainable = model.head
    elif adapted is not None:
        parts = {"head": model.head, "adapters": adapter_weights(adapted)}
        trainable = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})
    train = data.train
    if config.trunk.cache_states:
        assert isinstance(train, TextWindows)
        with accelerator.main_process_first():
            model.to(accelerator.device)
            train = cache_states(
                model,
                train,
                f"{facts['trunk_sha256']}-{facts['fingerprint']}",
                accelerator.device,
                progress=accelerator.is_main_process,
            )

    def save(folder: Path, state: dict[str, Tensor]) -> None:
        if adapted is not None:
            weights = [state.get(f"adapters.{i}", own) for i, own in enumerate(adapter_weights(adapted))]
            trunk_state = {f"trunk.{name}": value for name, value in merged_state(adapted, weights).items()}
            state = {name: value for name, value in state.items() if name.startswith("head.")} | trunk_state
        model.save_pretrained(folder, state_dict=state)
        data.tokenizer.save_pretrained(folder)

    return Task(
        model=model,
        trainable=trainable,
        prefix="head." if config.trunk.frozen else "",
        objective=JointCrossEntropy(
            config.trunk.frozen,
            config.head.weight,
            config.head.anchor_fraction,
            config.head.weighting or "uniform",
            config.head.distill,
            None if config.head.curriculum is None else config.head.curriculum * config.training.steps,
            config.head.balance,
            config.head.own_samples,
            config.head.on_policy,
            config.head.samples or 4,
        ),
        train=train,
        train_seed=config.seed,
        validation=data.validation,
        save=save,
        facts=facts | {"block_size": data.block_size},
    )


def _text_data(config: RunConfig, quiet: bool) -> Data:
    pretrained, reach = config.trunk.pretrained, config.head.block_size if config.head.name else 1
    corpus = load_corpus(
        config.data, config.tokenizer, trunk_folder(pretrained) if pretrained else None, progress=not quiet
    )
    length = config.data.length
    train = TextWindows(corpus.stores["train"], length, reach, config.training.batch_size, config.seed)
    validation = validation_windows(corpus.stores["validation"], length, reach, config)
    return Data(corpus.tokenizer, reach, train, validation, {"data": config.data.name, **corpus.facts})


def validation_windows(store: TokenStore, length: int, reach: int, config: RunConfig) -> list[Callable[[], Any]]:
    """Validation windows spread over the whole split, always the same ones."""
    if len(store.tokens) < 2:
        return []
    size = config.training.batch_size
    windows = TextWindows(store, length, reach, size, seed=0)
    wanted = min(windows.num_windows, config.training.evaluate_batches * size)
    picked = torch.linspace(0, windows.num_windows - 1, wanted).long()
    return [partial(windows.windows, part.tolist()) for part in picked.split(size)]


def suite_tokenizer(config: RunConfig, suite: Suite) -> Any:
    """The trunk's or the one named, else a token for every word of the suite."""
    if config.trunk.pretrained:
        return load_tokenizer(trunk_folder(config.trunk.pretrained))
    if config.tokenizer.kind == "pretrained":
        if not config.tokenizer.name:
            raise ValueError("tokenizer.kind 'pretrained' needs tokenizer.name")
        return load_tokenizer(config.tokenizer.name)
    if config.tokenizer.kind == "characters":
        raise ValueError("tokenizer.kind 'characters' is for text: a suite takes words or pretrained")
    laws = (suite.trained, suite.laws)
    return word_tokenizer(text for part in laws for prompt, law in part.items() for text in (prompt, *law))


def _suite_data(config: RunConfig, suite: Suite) -> Data:
    tokenizer = suite_tokenizer(config, suite)
    encoded = encode_suite(suite, tokenizer)
    block_size = config.head.block_size if config.head.name else 1
    if config.data.cases and config.head.name:  # K from the longest text and its end token
        block_size = min(MAX_BLOCK, max(MIN_BLOCK, encoded.longest))
    size = config.training.batch_size
    train = case_rows(encoded, block_size, size, config.seed, starts_only=config.head.starts_only)
    fresh = train.with_seed(config.seed + VALIDATION_SEED)
    validation = [partial(fresh.batch, n, torch.arange(size)) for n in range(config.training.evaluate_batches)]
    return Data(tokenizer, block_size, train, validation, {"suite": suite.name, "fingerprint": suite.fingerprint})


def suite_of(config: RunConfig) -> Suite | None:
    if config.data.suite and config.data.cases:
        raise ValueError("data.suite and data.cases exclude each other")
    name = config.data.suite or config.data.cases
    return load_suite(name) if name else None


def _head_options(config: HeadConfig) -> dict[str, int | float]:
    if config.name is None or config.rank is None or "rank" not in option_names(config.name):
        return config.options
    return {"rank": config.rank, **config.options}
