"""Samples of flow language models, in the one form that `leaplm quality` scores and `leaplm report` shows."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from eval.flow import FlowRun, Sampling, write_all
from eval.samples import in_tokens


def draw_flow(
    run: FlowRun, prompts: Sequence[tuple[str, str]], how: Sampling, *, new: int, batch: int = 64
) -> list[dict[str, Any]]:
    """One sample a prompt, cut after `new` tokens and at its first end token. drafts: the text as every estimate had
    it, the last one's softmax being what the sample was drawn from."""
    starts, end = starts_of(run, prompts), run.tokenizer.eos_token_id
    new = min(new, run.model.config.length - min(map(len, starts)))
    samples = []
    for rows in write_all(run, starts, how, batch, drafts=True):
        contract = how.contract(run, rows, batch) | {"new": new}
        for i, (prompt, real) in enumerate(prompts[rows.which]):
            whole = rows.texts[i][:new]
            told = whole[: whole.index(end)] if end in whole else whole
            text, first = run.tokenizer.decode(told), len(starts[rows.which][i])
            size = contract.get("block", first + len(told)) or 1  # of a text that ends before its first token
            cuts = [0, *range(size - first % size, len(told), size), len(told)]
            samples.append(
                {
                    "subject": run.subject, "run": run.name, "train_seed": run.train_seed, "prompt": prompt, "text": text,
                    "blocks": [run.tokenizer.decode(told[a:b]) for a, b in pairwise(cuts)], "tokens": len(told), "real": real, "contract": contract, "sample_seed": how.seed,
                    "drafts": [run.tokenizer.decode(draft[i][:new]) for draft in rows.drafts],
                }
            )  # fmt: skip
    return samples


def starts_of(run: FlowRun, prompts: Sequence[tuple[str, str]]) -> list[list[int]]:
    """What is known of each window. A suite's window begins with the start token, a window of text anywhere in the text: of
    an empty prompt nothing is known."""
    data = run.config.get("data") or {}
    if data.get("suite") or data.get("cases"):
        return in_tokens(run, prompts)
    return [run.tokenizer.encode(prompt, add_special_tokens=False) for prompt, _ in prompts]
