"""`leaplm-flow` for lm-eval: a flow language model, which writes whole windows in one to a few steps.

It has no likelihood of its own; `estimator` gives a bound where there is one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.registry import register_model

from eval.flow import Sampling, load_flow, samplings, write_all
from eval.harness.base import HarnessModel, Writing
from eval.harness.scoring import Span

Estimator = Callable[[Any, Sequence[Span], int], list[float]]
"""(run, spans, seed) → a lower bound on each log P(continuation | context), nats, its noise addressed by Span.address."""


@register_model("leaplm-flow")
class LeapFlow(HarnessModel):
    """pretrained: a run directory, a checkpoint or a model folder. steps: refinement steps, the draw of the tokens being the
    last. sampler: one of the model's, default its first. estimator: what scores likelihood requests."""

    def __init__(
        self,
        pretrained: str,
        steps: int = 4,
        sampler: str | None = None,
        estimator: Estimator | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps {steps!r}: a text takes a whole number of steps, 1 at least")
        if estimator is not None and not callable(estimator):
            raise ValueError(f"estimator {estimator!r}: there is none of this name; generation tasks need none")
        super().__init__(**options)
        self.run = load_flow(str(pretrained), self._device)
        self.tokenizer, self.estimator = self.run.tokenizer, estimator
        (first,) = samplings(self.run, (steps,), sampler)
        self.steps, self.sampler, self.max_length = first.steps, first.sampler, self.run.model.config.length

    def score(self, spans: Sequence[Span], want_greedy: bool) -> list[tuple[float, bool]]:
        if self.estimator is None:
            raise ValueError(
                f"{self.run.name} is a flow language model, which has no likelihood: take tasks that generate, "
                "leaplm-mtp for tasks that score, or give an estimator of a bound"
            )
        return [(value, False) for value in self.estimator(self.run, spans, self.seed)]

    def room(self, new: int) -> int:
        """A window holds prompt and answer: at most half of it is kept free for the answer."""
        return self.max_length - min(new, max(1, self.max_length // 2))

    def write(self, prompts: Sequence[list[int]], how: Writing, addresses: Sequence[int]) -> list[list[int]]:
        sampling = Sampling(self.steps, self.sampler, how.warp, self.seed)
        made = write_all(self.run, prompts, sampling, len(prompts), addresses=torch.tensor(addresses))
        return [self._ended(row[: how.new]) for rows in made for row in rows.texts]

    def _ended(self, tokens: list[int]) -> list[int]:
        end = self.eot_token_id
        return tokens[: tokens.index(end)] if end in tokens else tokens

    def get_model_info(self) -> dict[str, Any]:
        return {
            "model_num_parameters": self.run.model.num_parameters(),
            "leaplm": {
                "run": self.run.name, "decoder": "window", "subject": self.run.subject, "kind": "bound",
                "steps": self.steps, "sampler": self.sampler, "max_length": self.max_length, "seed": self.seed,
                "train_seed": self.run.train_seed, "ema": self.run.ema,
            },
        }  # fmt: skip
