"""A suite in tokens: what is trained on and what is probed are encoded by the same hand."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from eval.validity.suites import Suite
from training.data.tokenizer import start_token
from training.data.windows import CaseRows


@dataclass(frozen=True)
class EncodedSuite:
    """starts: prompt → its tokens, begin token first. answers: prompt → text → tokens.

    closed: answers end with the end token. Those that all take the same number of tokens need none:
    the block itself is the answer.
    """

    suite: Suite
    starts: dict[str, list[int]]
    answers: dict[str, dict[str, list[int]]]
    closed: bool

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest answer, the end token included."""
        return max(len(tokens) for law in self.answers.values() for tokens in law.values())

    @property
    def one_token_per_word(self) -> bool:
        """Then a text has one tokenisation, and its probability can be read off token by token."""
        return all(
            len(tokens) == len(text.split()) + self.closed
            for law in self.answers.values()
            for text, tokens in law.items()
        )


def encode_suite(suite: Suite, tokenizer: Any) -> EncodedSuite:
    """A space joins prompt and answer for tokenizers that see it."""

    def encode(texts: list[str]) -> list[list[int]]:
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        for text, row in zip(texts, rows, strict=True):
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in row:
                raise ValueError(f"the tokenizer does not know the words of {text!r}: it was made for another suite")
        return rows

    laws = {**suite.trained, **suite.laws}
    prompts = list(laws)
    starts = {p: [start_token(tokenizer), *row] for p, row in zip(prompts, encode(prompts), strict=True)}
    spoken = list(dict.fromkeys(f" {text}" if prompt else text for prompt, law in laws.items() for text in law))
    tokens = dict(zip(spoken, encode(spoken), strict=True))
    lengths = {len(row) for row in tokens.values()}
    closed = len(lengths) > 1 or max(lengths) < 2
    if closed:
        tokens = {text: [*row, tokenizer.eos_token_id] for text, row in tokens.items()}
    answers = {prompt: {text: tokens[f" {text}" if prompt else text] for text in law} for prompt, law in laws.items()}
    return EncodedSuite(suite, starts, answers, closed)


def case_rows(encoded: EncodedSuite, reach: int, batch_size: int, seed: int, starts_only: bool = False) -> CaseRows:
    """Prompts are as likely as the suite says, all alike if it says nothing; answers follow their law."""
    often = encoded.suite.train_weights
    cases = [
        (encoded.starts[prompt], encoded.answers[prompt][text], p * often.get(prompt, 1.0))
        for prompt, law in encoded.suite.trained.items()
        for text, p in law.items()
    ]
    longest = max(len(start) + len(answer) for start, answer, _ in cases)
    padded = [[*start, *answer, *[0] * (longest - len(start) - len(answer))] for start, answer, _ in cases]
    prompt_lengths = torch.tensor([len(start) for start, _, _ in cases])
    lengths = torch.tensor([len(start) + len(answer) for start, answer, _ in cases])
    weights = torch.tensor([p for *_, p in cases], dtype=torch.float64)
    return CaseRows(torch.tensor(padded), prompt_lengths, lengths, weights, reach, batch_size, seed, starts_only)
