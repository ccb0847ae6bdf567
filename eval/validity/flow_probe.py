"""A suite's answers from a flow language model: a window, whole or by blocks, in as many steps as asked."""

from collections import Counter
from typing import Any

from eval.flow import FlowRun, Sampling, write_all
from eval.validity.probe import Probe, dumb_records, score
from eval.validity.suites import Suite
from eval.validity.ways import UNFINISHED
from training.data.cases import encode_suite


def probe_flow(run: FlowRun, suite: Suite, how: Sampling, *, num: int = 20_000, batch: int = 1024) -> Probe:
    """num: samples in all, the same number for every prompt. Exact match through the end token; no retry."""
    encoded = encode_suite(suite, run.tokenizer)
    per_prompt = max(1, num // len(suite.laws))
    prompts = [prompt for prompt in suite.prompts for _ in range(per_prompt)]
    counts: dict[str, Counter] = {prompt: Counter() for prompt in suite.prompts}
    for rows in write_all(run, [encoded.starts[prompt] for prompt in prompts], how, batch):
        for prompt, text in zip(prompts[rows.which], rows.texts, strict=True):
            counts[prompt][_answer(run, text, encoded.closed, encoded.longest)] += 1
    contract = how.contract(run, rows, batch) | {"end_token": encoded.closed}
    contract["one_block"] = contract.get("block", run.model.config.length) == run.model.config.length
    common: dict[str, Any] = {
        "on": suite.name, "subject": run.subject, "run": run.name, "train_seed": run.train_seed, "contract": contract,
        "split": "law" if suite.train_laws is None else "held-out", "sample_seed": how.seed,
    }  # fmt: skip
    records = score(suite, counts, per_prompt, common) + dumb_records(suite, common)
    return Probe(suite, run.subject, counts, records)


def _answer(run: FlowRun, tokens: list[int], closed: bool, longest: int) -> str:
    """Up to the end token, or of answers of one length its tokens."""
    end = run.tokenizer.eos_token_id
    if closed:
        told, done = tokens[: tokens.index(end)] if end in tokens else tokens, end in tokens
    else:
        told, done = tokens[:longest], True
    text = " ".join(run.tokenizer.decode(told).split())
    return text if done else f"{text} {UNFINISHED}"
