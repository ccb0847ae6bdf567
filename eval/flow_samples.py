"""Samples of flow language models, in the one form that `leaplm quality` scores and `leaplm report` shows."""

from collections.abc import Sequence
from typing import Any

from eval.flow import FlowRun, Sampling, write_all
from eval.samples import in_tokens


def draw_flow(
    run: FlowRun, prompts: Sequence[tuple[str, str]], how: Sampling, *, new: int, batch: int = 64
) -> list[dict[str, Any]]:
    """One sample a prompt, cut after `new` tokens and at its first end token. drafts: the text as every estimate had
    it, the last one's softmax being what the sample was drawn from."""
    starts, end = in_tokens(run, prompts), run.tokenizer.eos_token_id
    new = min(new, run.model.config.length - min(map(len, starts)))
    samples = []
    for rows in write_all(run, starts, how, batch, drafts=True):
        contract = {
            "steps": how.steps, "nfe": rows.nfe, "sampler": how.sampler, **how.options, "temperature": how.warp.temperature, "top_p": how.warp.top_p,
            "batch": batch, "dtype": "float32", "verify": "none", "ema": run.ema, "new": new,
        }  # fmt: skip
        for i, (prompt, real) in enumerate(prompts[rows.which]):
            whole = rows.texts[i][:new]
            told = whole[: whole.index(end)] if end in whole else whole
            text = run.tokenizer.decode(told)
            samples.append(
                {
                    "subject": run.subject, "run": run.name, "train_seed": run.train_seed, "prompt": prompt, "text": text,
                    "blocks": [text], "tokens": len(told), "real": real, "contract": contract, "sample_seed": how.seed,
                    "drafts": [run.tokenizer.decode(draft[i][:new]) for draft in rows.drafts],
                }
            )  # fmt: skip
    return samples
