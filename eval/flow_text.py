"""What a flow language model is scored on, and what its clocks and grids are fitted to: windows of text, or a suite's answers."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.flow import FlowRun
from eval.validity.suites import Suite, load_suite
from flowlm.blocks import Blocks
from flowlm.likelihood.terms import of_parts
from flowlm.token_map import Known
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng
from training.config import DataConfig, TokenizerConfig
from training.data.cases import case_rows, encode_suite
from training.data.corpus import load_corpus
from training.data.flow_windows import FlowWindows
from training.data.store import TokenStore
from training.data.windows import CaseRows, TextWindows


@dataclass(frozen=True)
class Scored:
    """states: what is scored. training: what is fitted on. on, split: their names. tokens: (B,) of a text itself, padding left
    out. weights: (B,) of a suite's answers under its law. blocks: that have to be written of each, 1 of whole windows. documents: (B,) in which a window begins. per_byte: tokens a byte."""

    states: TokenStates
    training: TokenStates
    on: str
    split: str
    tokens: Tensor
    weights: Tensor | None = None
    blocks: int = 1
    documents: np.ndarray | None = None
    per_byte: float | None = None


def scored_text(
    run: FlowRun, data_name: str | None, text_column: str, split: str, windows: int, fit: int, block: int | None = None
) -> Scored:
    """windows, fit: rows at most, spread evenly over what there is. data_name: a text or a suite, default the run's own. block:
    cut windows into blocks of so many tokens."""
    if not run.config and not data_name:
        raise ValueError(f"{run.name} does not say what it was trained on: name a text or a suite with --data")
    own = DataConfig(**(run.config.get("data") or {}))
    suite = None if data_name else own.suite or own.cases
    if data_name and (found := _suite(data_name)):
        return _suite_rows(run, found, windows, fit, block)
    if suite:
        return _suite_rows(run, load_suite(suite), windows, fit, block)
    data = DataConfig(name=data_name, text_column=text_column, root=own.root) if data_name else own
    stores = load_corpus(data, TokenizerConfig(kind="pretrained", name=run.folder)).stores
    states, documents = _windows(run, stores[split], f"{data.name}, {split}", windows, block)
    training, _ = _windows(run, stores["train"], f"{data.name}, train", fit, block)
    length = float(run.model.config.length)
    tokens = torch.full((states.size,), length, dtype=torch.float64)
    per_byte = len(stores[split].tokens) / stores[split].num_bytes
    blocks = blocks_to_write(states)
    return Scored(states, training, data.name, split, tokens, None, blocks, documents, per_byte)


def blocks_to_write(states: TokenStates) -> int:
    """Of the row that has most."""
    if states.levels is None:
        return 1
    open_ = torch.ones_like(states.levels) if states.scored is None else states.scored.long()
    return int((of_parts(states, open_) > 0).sum(1).max())


def _suite(name: str) -> Suite | None:
    try:
        return load_suite(name)
    except ValueError as error:
        if str(error).startswith("unknown suite"):
            return None
        raise


def _cut(run: FlowRun, source: CaseRows | TextWindows, block: int | None) -> FlowWindows:
    """Rows as the run takes them."""
    loop: dict[str, Any] = {} if block is None else {"block_lengths": (block,), "noise": "block"}
    return FlowWindows(source, run.tokenizer.eos_token_id, **loop)


def _windows(
    run: FlowRun, store: TokenStore, name: str, most: int, block: int | None
) -> tuple[TokenStates, np.ndarray]:
    """Whole windows of a split: the tail that fills none is left out."""
    length = run.model.config.length
    whole = len(store.tokens) // length
    if not whole:
        raise ValueError(f"{name}: {len(store.tokens)} tokens, less than the {length} of one window of {run.name}")
    picked = np.unique(np.linspace(0, whole - 1, min(most, whole)).astype(int))
    windows = TextWindows(store, length, 0, 1, seed=0)
    batch = windows.windows(picked.tolist())
    states = _cut(run, windows, block).states(batch, Rng(0, torch.arange(len(picked))))
    return states.to(run.model.device), batch.document[:, 0].numpy()


def _suite_rows(run: FlowRun, suite: Suite, windows: int, fit: int, block: int | None) -> Scored:
    training, *_ = _rows(run, suite, fit, block)
    told = replace(suite, train_laws=None, train_weights={})
    states, weights, tokens = _rows(run, told, windows, block)
    split = "law" if suite.train_laws is None else "held-out"
    return Scored(states, training, suite.name, split, tokens, weights, blocks_to_write(states))


def _rows(run: FlowRun, suite: Suite, most: int, block: int | None) -> tuple[TokenStates, Tensor, Tensor]:
    """Every answer of every prompt that is trained on, or so many draws where there are more; weights and tokens of each."""
    rows = case_rows(encode_suite(suite, run.tokenizer), 0, most, seed=0)
    if rows.length != run.model.config.length:
        raise ValueError(
            f"{suite.name} fills windows of {rows.length} tokens and {run.name} has {run.model.config.length}: score it on a suite of its own length"
        )
    chance = rows.cdf.diff(prepend=torch.zeros(1, dtype=rows.cdf.dtype))
    if len(chance) <= most:
        batch, weights = rows.take(torch.arange(len(chance))), chance
    else:
        batch, weights = rows.batch(0, torch.arange(most)), torch.full((most,), 1 / most, dtype=torch.float64)
    states = _cut(run, rows, block).states(batch, Rng(0, torch.arange(len(weights))))
    return states.to(run.model.device), weights, batch.scored.sum(1).double()


def freed(states: TokenStates, size: int) -> TokenStates:
    """One unknown position of the first row, in the middle of those there are, at every token of the vocabulary; the rest is
    known."""
    scored = torch.ones_like(states.tokens[0], dtype=torch.bool) if states.scored is None else states.scored[0]
    places = torch.nonzero(scored)[:, 0]
    place = places[len(places) // 2]
    tokens = states.tokens[:1].repeat(size, 1)
    tokens[:, place] = torch.arange(size, device=tokens.device)
    at = (torch.arange(tokens.shape[1], device=tokens.device) != place).expand_as(tokens)
    known, first = Known(tokens, at), torch.zeros(size, dtype=torch.long, device=tokens.device)
    if not isinstance(states.context, Blocks):
        return TokenStates(tokens, known, ~at)
    assert states.levels is not None
    return TokenStates(tokens, replace(states.context[first], tokens=tokens, known=known), ~at, states.levels[first])
