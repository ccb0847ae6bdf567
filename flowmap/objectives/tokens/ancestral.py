"""What K ancestral steps are charged for, learned by the map that makes them (the K-step bound of math.md §5; 2107.00630).

    L_K = ½ Σ_{k<K} (S_{k+1} − S_k) E‖c_x − Cᵀp_θ(x_{t_k}, t_k, t_{k+1})‖² + E Σ_l −log p_θ(x^l | x_{t_K}, t_K, 0)

on a grid 0 = S_0 < … < S_K of S = α²/(σ²ν²), t_k the time of S_k. The network is told where each step lands, so that the
map that samples, x_{t_k} → x_{t_{k+1}} (`samplers.ancestral`), is the one that is scored: L_K bounds −log P of that sampler
for any network. It is least where p_{t→s} is the posterior at t, whatever s: what training for a few steps brings is that
the network is asked at K + 1 times alone, with the weights that the score has.

The grid is learned with the map, by the same loss: with p at its best, L_K's gradient by S needs no derivative by the
times that the network is told, only by x_t and the weights (the envelope theorem). One step of the sum and the reading are
drawn for each sample, or for each of its blocks: the estimate has no bias. Codes learn through both terms. sum/count is
nats a token.
"""

import math

import torch
from torch import Tensor, nn

from flowmap.objectives.base import Loss, Objective
from flowmap.objectives.tokens.base import TokenStates, cross_entropy
from flowmap.path import Path, expand
from flowmap.rng import Rng
from flowmap.self_conditioning import asked, drawn


class AncestralBound(Objective):
    """num_steps: K, or several, "1,2,4,8", of which each sample draws one: one network for all of them."""

    def __init__(self, num_steps: int | str = "1,2,4,8", self_conditioning: float = 0.0) -> None:
        super().__init__()
        counts = [int(n) for n in str(num_steps).split(",") if n.strip().isdigit()]
        if not counts or len(counts) != len(str(num_steps).split(",")) or min(counts) < 1:
            raise ValueError(f"num_steps {num_steps!r}: a number of steps, 1 at least, or several as 1,2,4")
        self.counts, self.self_conditioning = sorted(set(counts)), self_conditioning
        # log of (S_{k+1} − S_k)·E‖c‖²: near its best for a dozen tokens
        self.gaps = nn.ParameterList([torch.full((n,), math.log(4 / (n + 2))) for n in self.counts])

    def grid(self, gaps: Tensor, codes: Tensor) -> Tensor:
        """(K + 1,) S from 0, float64; with a gradient by the gaps. codes: (V, d)."""
        norm = codes.detach().double().square().sum(1).mean()
        return nn.functional.pad(gaps.double().exp().cumsum(0) / norm, (1, 0))

    def grids(self, codes: Tensor) -> dict[int, list[float]]:
        """As learned so far, by K."""
        return {n: self.grid(gaps, codes).tolist() for n, gaps in zip(self.counts, self.gaps, strict=True)}

    def forward(self, model, batch: TokenStates, *, teacher=None, rng: Rng, step: int) -> Loss:
        model = asked(model, drawn(rng, batch.size, self.self_conditioning))
        codes, x_0 = model.codebook.codes(), model.codebook.encode(batch.tokens)
        longest = max(self.counts)
        padded = [nn.functional.pad(self.grid(g, codes), (0, longest - len(g))) for g in self.gaps]
        snr = torch.stack(padded)  # (numbers of steps, longest + 1)

        own, draws = batch.draws(rng)
        which = (own.uniform("steps", draws, dtype=torch.float64) * len(self.counts)).long().to(snr.device)
        count = torch.tensor(self.counts, device=snr.device)[which]
        k = (own.place("step", draws).to(snr.device) * count).long()
        here, ahead, end = (batch.at_tokens(snr[which, place]) for place in (k, k + 1, count))
        weight = (batch.at_tokens(count) * (ahead - here) / 2).to(x_0)

        t, s, last = (snr_time(model.path, at).to(x_0) for at in (here, ahead, end))
        x_t = model.path.noise(x_0, model.path.draw_noise(rng, "eps", x_0), t)
        logits = model.logits(x_t, t.detach(), s.detach(), batch.context)
        drift = (expand(weight, x_0) * (x_0 - model.codebook.expected(logits)).square()).flatten(1).sum(1)
        x_end = model.path.noise(x_0, model.path.draw_noise(rng, "eps_end", x_0), last)
        told = last.detach()
        reading = cross_entropy(model.logits(x_end, told, torch.zeros_like(told), batch.context), batch.tokens)

        parts = {"drift": drift, "reading": reading}
        metrics = {name: (part.sum().detach(), batch.count) for name, part in parts.items()}
        return Loss((drift + reading).sum(), batch.count, metrics)


def snr_time(path: Path, snr: Tensor) -> Tensor:
    """The time at which α²/(σ²ν²) is S; 1, whatever S would have been, where S is 0."""
    noise = snr <= 0
    return torch.where(noise, 1.0, path.from_ratio(snr.masked_fill(noise, 1.0).rsqrt() / path.noise_scale))
