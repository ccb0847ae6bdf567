"""The posterior over a suite's listed answers in the place of a network: what a number of steps costs, however well one trains.

p(answer | x_t) ∝ p(answer) · Π_n N(x_t^n; α c(answer^n), σ²ν²)
p_{t→s}^n(v) = Σ of it over the answers with v at n: of a denoiser, whatever s is
"""

import torch
from torch import Tensor, nn

from eval.flow import FlowRun
from eval.validity.suites import Suite
from flowlm.token_map import Known, TokenMap
from flowmap.rng import Rng
from training.data.cases import case_rows, encode_suite
from training.data.flow_windows import FlowWindows

LEAST, EARLIEST = 1e-30, 1e-3
"""A marginal of 0 is not taken the logarithm of, nor the evidence, which grows as 1/σ², at a time of 0."""


class ExactPosterior:
    """Stands for `TokenMap.logits` of a run on windows of the suite, every answer and prompt listed."""

    def __init__(self, run: FlowRun, suite: Suite) -> None:
        cases = case_rows(encode_suite(suite, run.tokenizer), 0, 1, 0)
        every = torch.arange(len(cases.rows))
        windows = FlowWindows(cases, run.tokenizer.eos_token_id).states(cases.take(every), Rng(0, every))
        self.map: TokenMap = run.model.map
        self.log_p = cases.cdf.diff(prepend=cases.cdf.new_zeros(1)).log()
        answers = nn.functional.one_hot(windows.tokens, self.map.codebook.size)
        self.shape, self.answers = answers.shape[1:], answers.double().flatten(1)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor, context: Known, self_cond: Tensor | None = None) -> Tensor:
        """(B, N, V), where t is of whole windows."""
        evidence = context.settle(
            self.map.path.prior_logits(self.map.codebook, x_t.double(), t.double().clamp_min(EARLIEST))
        )
        posterior = (evidence.flatten(1) @ self.answers.T + self.log_p).softmax(-1)
        marginals = (posterior @ self.answers).unflatten(1, self.shape)
        return context.settle(marginals.clamp_min(LEAST).log().to(x_t))


def idealised(run: FlowRun, suite: Suite) -> FlowRun:
    """The same run, its codes, clock and samplers, with the posterior in the network's place."""
    if (
        run.model.config.model_type != "leaplm-flow"
        or run.model.config.block_lengths
        or run.model.config.noise != "sample"
    ):
        raise ValueError(f"{run.name} is no flow of whole windows: the exact posterior stands for those alone")
    run.model.map.logits = ExactPosterior(run, suite)
    return run
