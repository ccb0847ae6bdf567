"""lm-eval's result JSON as our records: one for each task, metric and filter.

Its metrics keep their own names under `score`: the harness's perplexity is of words of one task and no other's.
"""

from importlib.metadata import version
from typing import Any

from eval.records import record


def harness_records(results: dict[str, Any]) -> list[dict[str, Any]]:
    """results: what lm-eval writes, of one run. A model that is not ours is named as lm-eval names it."""
    asked = results["config"]
    ours = asked.get("leaplm") or {}
    model = ours.get("subject") or str(asked.get("model"))
    run = ours.get("run") or (asked.get("model_args") or {}).get("pretrained")
    contract = {
        "batch": asked.get("batch_size"), "dtype": asked.get("model_dtype", "unknown").removeprefix("torch."),
        **{key: ours[key] for key in ("decoder", "block", "verify", "steps", "sampler", "estimator", "calls", "max_length", "ema") if key in ours},
    }  # fmt: skip
    common: dict[str, Any] = {
        "subject": model, "run": run, "train_seed": ours.get("train_seed"), "sample_seed": ours.get("seed"),
        "harness": version("lm_eval"), "unit": "score",
    }  # fmt: skip
    made = []
    for task, scores in results["results"].items():
        settings = results.get("configs", {}).get(task, {})
        generated = settings.get("output_type") == "generate_until"
        kind = "estimate" if generated or not ours else ours["kind"]
        shots = results.get("n-shot", {}).get(task)
        sizes = results.get("n-samples", {}).get(task)  # groups have none
        size = {"n": sizes["effective"]} if sizes else {}
        for key, value in scores.items():
            name, _, chain = key.partition(",")
            if not chain or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = scores.get(f"{name}_stderr,{chain}")
            made.append(
                record(
                    "harness_score", value, on=task, score=name, filter=chain, kind=kind, **size,
                    stderr=error if isinstance(error, int | float) else None, stderr_over="documents",
                    contract={**contract, "num_fewshot": shots, "limit": asked.get("limit")}, **common,
                )
            )  # fmt: skip
    return made
