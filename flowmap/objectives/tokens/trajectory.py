"""Few-step distillation along the teacher's own trajectories (2101.02388, here on logits and for every pair of times).

    x_{i+1} = X(x_i; p_i) from u_i to u_{i+1},   p_i = p_{u_i→u_i}(x_i),   t = u_0 > … > u_n = s
    q = Σ_i w_i p_i,   w_i = (1/u_{i+1} − 1/u_i)/(1/s − 1/t)

since p_{t→s} is the mean of p_{u→u} over (1−u)/u along the way (math.md §2): only the denoiser is asked, so no error of the
few-step map comes back into its target. The price is n calls of the network where progressive distillation makes two, and
what n steps of DDIM leave of the flow's curvature. Between two u_i lie equal shares of the times that training looks at; where
jumps are taught, shares that shrink, of i steps behind (1 − i/n)² being left: what is near the text is hardest to foretell from afar.

carry: the second of two jumps along one way is told what the first expected, Cᵀq of its target here and of its answer in a sampler, so that it
goes on from there and need not find all of it in x_t again. Estimates carried from step to step are those of 2208.04202; here a trajectory
gives both, no pass is made for them, and the denoiser hears none, so that its bounds hold.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowmap.objectives.tokens.base import NoisedTokens
from flowmap.objectives.tokens.kl_psd import WholeJumps
from flowmap.path import expand

TINY = 1e-30
"""The least share that a token of a target is taken to have, where its logarithm is."""
CLOSING = 2
"""The power of what is left of even steps that is left of the law's shares; the grid `closing` of `flowlm` is the same."""


FORGET = 0.25
"""Share of the ways on which nothing is remembered."""


class TrajectoryKL(WholeJumps):
    """num_steps: n. jumps: J, a power of two that divides n: a trajectory teaches its way in 1, 2, 4, … and J jumps of equal numbers of
    steps, those that a sampler makes on the grid `closing`, and from where each begins to the end, as a sampler asks that draws all
    noise afresh; all from where the teacher stood. carry: those behind another hear what that expected. memory: and that many numbers of a
    state which it wrote for them itself, learned through them, so that jumps along a way are one network as deep as they are many; FORGET of the
    ways are made without, as a sampler makes more jumps than J. Each is drawn to its q as a sample's jump is: a way of 4 jumps weighs 8 times what a sample
    does."""

    version = 2

    def __init__(
        self, *args: Any, num_steps: int = 8, jumps: int = 1, carry: bool = False, memory: int = 0, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        if num_steps < 1:
            raise ValueError(f"num_steps {num_steps}: a trajectory has 1 at least")
        if jumps < 1 or jumps & (jumps - 1) or num_steps % jumps:
            raise ValueError(f"jumps {jumps} must be a power of two that divides num_steps {num_steps}")
        if carry and (jumps == 1 or self.self_conditioning):
            raise ValueError(
                "carry needs jumps of which one follows another, 2 at least, and maps that are asked by one pass"
            )
        if memory and not carry:
            raise ValueError(f"memory {memory} is of jumps that hear the one before them: set carry, or leave it out")
        self.num_steps, self.jumps, self.carries, self.memory = num_steps, jumps, carry, memory
        lengths = [num_steps >> k for k in range(jumps.bit_length())]
        made = {(first, first + length) for length in lengths for first in range(0, num_steps, length)}
        self.spans = sorted(made | {(first, num_steps) for first, _ in made})
        """Steps at which what is taught begins and ends."""
        self.before = {span: self._before(*span) for span in self.spans}
        self.order = sorted(self.spans, key=lambda span: span[1])
        """In the order in which a trajectory comes to their ends, and so before those behind them."""

    def _before(self, first: int, last: int) -> tuple[int, int] | None:
        """The jump that one in as many jumps makes before this one: as long, or, where no taught jump of that length ends there (before one to the
        end from anywhere, which only fresh noise asks for), the longest that does."""
        ending = [span for span in self.spans if span[1] == first]
        alike = [span for span in ending if first - span[0] == last - first]
        return next(iter(alike or sorted(ending)), None)

    def taught(self, teacher, x, step):
        local, at, now = self.local(teacher), x.x_t, x.t
        begin, end = (self.times.share_below(time) for time in (x.t, x.s))
        under_way: dict[tuple[int, int], tuple[Tensor, Tensor, Any]] = {}  # where a jump began, and its q so far
        made: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        expected, carried = dict[tuple[int, int], Tensor](), list[Tensor]()
        power = CLOSING if self.jumps > 1 else 1
        for i in range(self.num_steps):
            z = local.logits(at, now, now, x.context)
            p = z.softmax(-1)
            after = (
                x.s
                if i + 1 == self.num_steps
                else self._between(x, begin, end, 1 - (1 - (i + 1) / self.num_steps) ** power)
            )
            for first, last in self.spans:
                if not first <= i < last:
                    continue
                from_, t, q = (at, now, p) if i == first else under_way[first, last]
                q = torch.lerp(p, q, self._kept(t, now, after, p))
                under_way[first, last] = from_, t, q
                if i + 1 == last:
                    del under_way[first, last]
                    made.append((from_, t, after, q))
                    if self.carries:
                        before = self.before[first, last]
                        carried.append(torch.zeros_like(at) if before is None else expected[before])
                        expected[first, last] = local.codebook.expected(q.clamp_min(TINY).log()).to(at)
            if i + 1 < self.num_steps:
                at, now = local.path.jump(at, local.codebook.expected(z), now, after), after
        from_, t, s, q = (torch.cat(part) for part in zip(*made, strict=True))
        rows = torch.arange(len(x.t), device=q.device).repeat(len(made))
        return replace(x[rows], x_t=from_, t=t, s=s, carried=torch.cat(carried) if carried else None), q

    def said(self, model, x):
        if not self.memory:
            return super().said(model, x)
        jumps = dict(zip(self.order, torch.arange(len(x.t), device=x.t.device).chunk(len(self.order)), strict=True))
        said, left = dict[tuple[int, int], Tensor](), dict[tuple[int, int], Tensor]()
        while len(said) < len(jumps):
            ready = [j for j in jumps if j not in said and (self.before[j] is None or self.before[j] in said)]
            part = x[torch.cat([jumps[j] for j in ready])]
            nothing = part.carried.new_zeros(len(x.t) // len(jumps), part.carried.shape[1], self.memory)
            behind = [self.before[j] for j in ready]
            memory = torch.cat([nothing if before is None else left[before] for before in behind])
            told = torch.cat([part.carried, memory * expand((part.u >= FORGET).to(memory), memory)], -1)
            answers = model.logits_and_memory(part.x_t, part.t, part.s, part.context, self_cond=told)
            for found, answer in zip((said, left), answers, strict=True):
                found.update(zip(ready, answer.chunk(len(ready)), strict=True))
        return torch.cat([said[jump] for jump in self.order])

    def _between(self, x: NoisedTokens, begin: Tensor, end: Tensor, way: float) -> Tensor:
        """The time at which this share of the way from t to s, counted in the law's own shares, is behind."""
        u = self.times.time_of(torch.lerp(begin, end, way)).to(x.t)
        return torch.minimum(torch.maximum(u, x.s), x.t).clamp_min(self.t_min)

    def _kept(self, t: Tensor, u: Tensor, s: Tensor, p: Tensor) -> Tensor:
        """Share of [u, t] in the mean over [s, t]: s(t−u)/(u(t−s))."""
        return expand((s * (t - u) / (u * (t - s)).clamp_min(1e-12)).clamp(0, 1), p)
