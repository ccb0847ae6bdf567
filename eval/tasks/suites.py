"""Our validity suites as lm-eval tasks: drawn answers, how many are valid, and how far their law is from the true one.

A document is one draw: a prompt, which begins a document of the model's, and its number. An answer counts as it does in
`leaplm probe`, exactly and with no retry, but that lm-eval hands over text and not tokens: it is read to its end, or, where
all answers have one number of words and so carry no end token, for that many words.
"""

from collections import Counter, defaultdict
from functools import cache
from typing import Any

from datasets import Dataset, DatasetDict

from eval.validity.suites import Suite, load_suite


def draws(*, suite: str, draws: int, **_: Any) -> DatasetDict:
    """At least so many documents where prompts are fewer, which all get the same number; else `draws` of the prompts,
    evenly spread."""
    prompts = known(suite).prompts
    if len(prompts) > draws:
        rows = [(prompts[i * len(prompts) // draws], 0) for i in range(draws)]
    else:
        rows = [(prompt, number) for number in range(-(-draws // len(prompts))) for prompt in prompts]
    documents = [{"suite": suite, "prompt": prompt, "draw": n, "begins_document": True} for prompt, n in rows]
    return DatasetDict({"test": Dataset.from_list(documents)})


known = cache(load_suite)


@cache
def words(suite: str) -> int | None:
    """Of every answer, where they have one number."""
    lengths = {len(text.split()) for law in known(suite).laws.values() for text in law}
    return lengths.pop() if len(lengths) == 1 else None


def answer(doc: dict[str, Any], results: list[str]) -> str:
    return " ".join(results[0].split()[: words(doc["suite"])])


def validity(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    return {"validity": float(known(doc["suite"]).is_valid(doc["prompt"], answer(doc, results)))}


def validity_and_law(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Where a prompt has many draws."""
    return {**validity(doc, results), "total_variation": (doc["suite"], doc["prompt"], answer(doc, results))}


def total_variation(items: list[tuple[str, str, str]]) -> float:
    """½ Σ |drawn − true|, mean over prompts. Of n draws it is too high: exact sampling shows about √(answers/(2πn))."""
    drawn: dict[str, Counter] = defaultdict(Counter)
    for _, prompt, text in items:
        drawn[prompt][text] += 1
    suite: Suite = known(items[0][0])
    return sum(_apart(counts, suite.laws[prompt]) for prompt, counts in drawn.items()) / len(drawn)


def _apart(counts: Counter, law: Any) -> float:
    n = counts.total()
    return sum(abs(counts[text] / n - law.get(text, 0.0)) for text in {*counts, *law}) / 2
