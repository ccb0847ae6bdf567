"""`leaplm-flow` for lm-eval: a flow language model, or a baseline of its kind, which writes and scores whole windows.

loglikelihood   minus the model's own bound on a continuation given its context, which is known text (`eval.harness.windows`):
                the variational bound, that of K ancestral steps where it was trained for them, the NELBO of masked diffusion,
                and exactly, of the autoregressive model; a model of blocks by its blocks
is_greedy       whether the model at temperature 0 writes the continuation behind the context, in as many steps as it writes in
                for generation tasks, from noise that depends on seed and context alone: of one length one continuation does
generate_until  window after window, each behind the end of what stands so far, until an end token, a stop string or
                max_gen_toks; of a model whose windows are whole texts, one window

Every request is scored by itself, its draws side by side, with noise addressed by (seed, context, continuation): its value has
the same bits in any batch, any order and on any number of processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from lm_eval.api.registry import register_model

from eval.baseline_likelihood import ESTIMATOR
from eval.flow import Sampling, load_flow, samplings, write_all
from eval.flow_perplexity import Estimators, block_lengths, estimator_of
from eval.flow_records import Request
from eval.flow_text import scored_text
from eval.harness.base import HarnessModel, Writing
from eval.harness.scoring import Span, hash_of
from eval.harness.windows import Laid, Windows
from flowlm.model import FlowLM
from flowmap.rng import Rng
from flowmap.warp import Warp

Estimator = Callable[[Any, Sequence[Span], int], list[float]]
"""(run, spans, seed) → a lower bound on each log P(continuation | context), nats, its noise addressed by Span.address."""
KINDS = {"vlb": "bound", "k-step": "bound", "sampler": "bound", "ode": "estimate", "nelbo": "bound", "exact": "exact"}
STEPS = 4


@register_model("leaplm-flow")
class LeapFlow(HarnessModel):
    """pretrained: a run directory, a checkpoint or a model folder. steps: refinement steps, the draw of the tokens being the
    last; the bound of ancestral steps is of as many; default 4, or the most that such a run was trained for. sampler: one of the
    model's, default its first. estimator: vlb, k-step, sampler, ode, of a baseline nelbo or exact, default the model's own, or
    a function. calls: network calls a request, at least. block: of a model of blocks. decoder: softmax, contextual (of a model
    that has one, and then the default) or nearest; only softmax is scored. data: a text or a suite that estimators are fitted on, fit windows of it; default what the
    run was trained on. common: requests of one context whose continuations begin with the same so many tokens have their noise in
    common, so that what is asked of two of them is not asked of their noise."""

    def __init__(
        self,
        pretrained: str,
        steps: int | None = None,
        sampler: str | None = None,
        estimator: str | Estimator | None = None,
        calls: int = 32,
        block: int | None = None,
        decoder: str | None = None,
        data: str | None = None,
        fit: int = 256,
        common: int | None = None,
        **options: Any,
    ) -> None:
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"steps {steps!r}: a text takes a whole number of steps, 1 at least")
        if not all(isinstance(n, int) for n in (calls, fit)) or calls < 6 or fit < 1:
            raise ValueError(f"calls {calls!r} with fit {fit!r}: whole numbers, 6 network calls a request at least")
        super().__init__(**options)
        run = self.run = load_flow(str(pretrained), self._device)
        config, self.tokenizer = run.model.config, run.tokenizer
        self.max_length, self.calls, self.data, self.fit, self.common = config.length, calls, data, fit, common
        (self.block,) = block_lengths(run, None if block is None else [block])
        grids = getattr(config, "grids", None)
        if grids:
            steps, sampler = steps or 1 + max(map(int, grids)), sampler or "ancestral"
        self.function: Estimator | None = None
        if callable(estimator):
            self.function, self.estimator = estimator, "function"
        else:
            self.estimator = estimator_of(run, estimator)
            if self.estimator not in KINDS:
                raise ValueError(f"estimator {estimator!r}: known are {', '.join(KINDS)}")
        (self.sampling,) = samplings(run, (steps or STEPS,), sampler, seed=self.seed)
        told: dict[str, Any] = {"block_length": self.block} if self.block else {}
        if isinstance(run.model, FlowLM):
            told["decoder"] = run.model.decoder(decoder)
        elif decoder not in (None, "softmax"):
            raise ValueError(f"decoder {decoder!r}: {run.name} draws from its softmax, leave it out")
        self.sampling = replace(self.sampling, options=self.sampling.options | told)
        own = run.config.get("data") or {}
        begins = bool(own.get("suite") or own.get("cases"))
        self.windows = Windows.of(config, self.eot_token_id, begins, self.block)

    @property
    def steps(self) -> int:
        return self.sampling.steps

    def span(self, context: Sequence[int], continuation: Sequence[int]) -> Span:
        """A window holds both: of a continuation that fills one, nothing is known."""
        return Span.of(context, continuation, self.max_length)

    def score(self, spans: Sequence[Span], want_greedy: bool) -> list[tuple[float, bool]]:
        if self.function is not None:
            return [(value, False) for value in self.function(self.run, spans, self.seed)]
        written: dict[tuple[int, ...], list[int]] = {}
        scored = []
        for span in spans:
            laid = self.windows.lay(span)
            states = laid.states.to(self.run.model.device)
            address = torch.tensor([self._address(span)])
            (made,) = self.estimators.scores(states, listed=False, addresses=address)
            hit = want_greedy and self._greedy(laid, written) == list(span.tokens[span.start :])
            scored.append((-float(made.score.nats[0]), hit))
        return scored

    def _address(self, span: Span) -> int:
        if self.common is None:
            return span.address
        return hash_of("common", *span.tokens[: span.start + self.common])

    @cached_property
    def estimators(self) -> Estimators:
        """Fitted once, on the same windows by every process."""
        if (decoder := self.sampling.options.get("decoder")) in ("contextual", "nearest"):
            raise ValueError(
                f"{self.run.name} writes by the decoder {decoder}, whose law has no bound here: take tasks that generate, or "
                "decoder=softmax"
            )
        steps = self.steps - 1 if self.estimator == "k-step" else self.steps
        asked = Request(
            self.estimator, (steps,), self.calls, sampler=self.sampling.sampler, seed=self.seed, block=self.block
        )
        without = Estimators(self.run, None, asked)  # says first what has no likelihood
        if self.estimator in ESTIMATOR.values() or not (self.data or self.run.config.get("data")):
            return without
        text = scored_text(self.run, self.data, "text", "validation", 1, self.fit, self.block)
        return Estimators(self.run, text.training, asked)

    def _greedy(self, laid: Laid, written: dict[tuple[int, ...], list[int]]) -> list[int]:
        """What stands in the continuation's places at temperature 0. written: windows that were made of a context before."""
        key = (len(laid.states.tokens[0]), laid.places.start, *laid.context.tokens[0].tolist())
        if key not in written:
            rng = Rng(self.seed, torch.tensor([hash_of("greedy", *key)], device=self.run.model.device))
            how = {"steps": self.steps, "sampler": self.sampling.sampler, "warp": Warp(0.0), **self.sampling.options}
            out = self.run.model.write(laid.context.to(self.run.model.device), rng, **how)
            written[key] = out.tokens[0].tolist()
        return written[key][laid.places]

    def room(self, new: int) -> int:
        """A window holds prompt and answer: at most half of it is kept free for the answer."""
        return self.max_length - min(new, max(1, self.max_length // 2))

    def write(self, prompts: Sequence[list[int]], how: Writing, addresses: Sequence[int]) -> list[list[int]]:
        texts: list[list[int]] = [[] for _ in prompts]
        left, window = list(range(len(prompts))), 0
        while left:
            starts = [(prompts[i] + texts[i])[-self.room(how.new - len(texts[i])) :] for i in left]
            own: dict[str, Any] = {**self.sampling.options, "ends": (self.eot_token_id,)}
            if self.block is None:  # of blocks an end would number their noise by what else is in the batch
                last = max(len(start) + how.new - len(texts[i]) for start, i in zip(starts, left, strict=True))
                own["end"] = min(last, self.max_length)
            sampling = Sampling(self.steps, self.sampling.sampler, how.warp, self.seed, own)
            noise = torch.tensor([hash_of(addresses[i], window) if window else addresses[i] for i in left])
            (made,) = write_all(self.run, starts, sampling, len(left), addresses=noise)
            for i, new in zip(left, made.texts, strict=True):
                texts[i] = (texts[i] + new)[: how.new]
            left = [] if self.windows.begins else [i for i in left if self._goes_on(texts[i], how)]
            window += 1
        return [self._ended(text) for text in texts]

    def _goes_on(self, text: list[int], how: Writing) -> bool:
        done = len(text) >= how.new or self.eot_token_id in text
        return not done and not any(stop in self.tokenizer.decode(text) for stop in how.until)

    def _ended(self, tokens: list[int]) -> list[int]:
        end = self.eot_token_id
        return tokens[: tokens.index(end)] if end in tokens else tokens

    def get_model_info(self) -> dict[str, Any]:
        decoder = self.sampling.options.get("decoder", "softmax")
        return {
            "model_num_parameters": self.run.model.num_parameters(), "model_dtype": str(self.run.model.dtype),
            "leaplm": {
                "run": self.run.name, "decoder": "window" if decoder == "softmax" else f"window, {decoder}", "subject": self.run.subject, "kind": KINDS.get(self.estimator, "bound"),
                "estimator": self.estimator, "calls": self.calls, "steps": self.steps, "sampler": self.sampling.sampler,
                "block": self.block, "max_length": self.max_length, "seed": self.seed,
                "train_seed": self.run.train_seed, "ema": self.run.ema,
            },
        }  # fmt: skip
