"""Tokens ↔ states. A codebook C (V × d) gives token v the state c_v; a network's logits z give the code to expect:

    g = Cᵀ softmax(z)                                                        (math.md §1)
    z_prior(x_t) = α/(σ²ν²)·x_t Cᵀ − α²‖c_v‖²/(2σ²ν²)  (+ log π_v)            (§4, the matched filter)

z_prior is the exact posterior of one token alone under x_t = α c + σ ε, ε ~ N(0, ν²I), so that a network need only
add what the other tokens say. It has a pole at σ = 0. Shapes: B batch, N positions, V tokens, d state.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flowmap.path import expand


class Codebook(nn.Module):
    """What all share. size: V. state_size: d. Subclasses give the codes, (V, d)."""

    def __init__(self, size: int, state_size: int) -> None:
        super().__init__()
        if size < 2 or state_size < 1:
            raise ValueError(f"a codebook of {size} tokens in {state_size} dimensions: at least 2 in 1 are needed")
        self.size, self.state_size = size, state_size
        self._still = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no gradient reaches the codes."""
        before, self._still = self._still, True
        try:
            yield
        finally:
            self._still = before

    def codes(self) -> Tensor:
        """(V, d), in fp32 or better."""
        raise NotImplementedError

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, N) int64 → (B, N, d). Gradients reach the codes where they are learned."""
        return nn.functional.embedding(tokens, self.codes())

    def expected(self, logits: Tensor) -> Tensor:
        """(B, N, V) → g, (B, N, d), in fp32 or better."""
        return _product(in_full(logits).softmax(-1), self.codes())

    def decode(self, states: Tensor) -> Tensor:
        """(B, N, d) → (B, N), the nearest code: argmax_v x·c_v − ‖c_v‖²/2."""
        codes = self.codes()
        return (_product(states, codes.T) - codes.square().sum(-1) / 2).argmax(-1)

    def prior_logits(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, noise_scale: float = 1.0, log_prior: Tensor | None = None
    ) -> Tensor:
        """(B, N, V). alpha, sigma: (B,) or (B, N), σ > 0. log_prior: (V,) or (B, N, V), π of a token where it stands."""
        codes = self.codes()
        alpha, precision = expand(alpha, x_t), 1 / expand(sigma * noise_scale, x_t).square()
        logits = precision * (alpha * _product(x_t, codes.T) - alpha.square() * codes.square().sum(-1) / 2)
        return logits if log_prior is None else logits + log_prior


class OneHot(Codebook):
    """C = I: a state is a point of the simplex's own space, g the probabilities themselves. No V × V table is made."""

    one: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.register_buffer("one", torch.ones(()), persistent=False)  # carries the number type and the device

    def codes(self) -> Tensor:
        return torch.eye(self.size, dtype=self.one.dtype, device=self.one.device)

    def encode(self, tokens: Tensor) -> Tensor:
        return nn.functional.one_hot(tokens, self.size).to(in_full(self.one).dtype)

    def expected(self, logits: Tensor) -> Tensor:
        return in_full(logits).softmax(-1)

    def decode(self, states: Tensor) -> Tensor:
        return states.argmax(-1)

    def prior_logits(self, x_t, alpha, sigma, noise_scale=1.0, log_prior=None):
        alpha, precision = expand(alpha, x_t), 1 / expand(sigma * noise_scale, x_t).square()
        logits = precision * (alpha * in_full(x_t) - alpha.square() / 2)
        return logits if log_prior is None else logits + log_prior


class Embedding(Codebook):
    """Learned codes of one length, normalised where they are used: no optimizer step can shrink them towards each
    other, or blow them up beyond the noise. norm: 1 (Plaid 2305.18619), or √d, the length of the noise."""

    def __init__(self, size: int, state_size: int, norm: float = 1.0) -> None:
        super().__init__(size, state_size)
        self.norm = norm
        self.weight = nn.Parameter(torch.randn(size, state_size))

    def codes(self) -> Tensor:
        weight = self.weight.detach() if self._still else self.weight
        return self.norm * nn.functional.normalize(in_full(weight), dim=-1)


class Table(Codebook):
    """Codes that are given and stay: an encoder's latents, a trained embedding. Norms may differ."""

    table: Tensor

    def __init__(self, codes: Tensor | Sequence[Sequence[float]]) -> None:
        codes = torch.as_tensor(codes).detach().clone()
        if codes.ndim != 2:
            raise ValueError(f"codes of shape {tuple(codes.shape)}: (tokens, state size) is needed")
        super().__init__(*codes.shape)
        self.register_buffer("table", codes)

    def codes(self) -> Tensor:
        return in_full(self.table)


class Bits(Table):
    """Token v is its ⌈log₂ V⌉ binary digits as ±1, the lowest first. The table is small: V·log₂ V."""

    def __init__(self, size: int) -> None:
        digits = torch.arange(max(1, (size - 1).bit_length()))
        super().__init__(2.0 * ((torch.arange(size)[:, None] >> digits) & 1) - 1)


CODEBOOKS: dict[str, type[Codebook]] = {
    "one-hot": OneHot,
    "embedding": Embedding,
    "sphere": Embedding,  # the same codes of one length, joined by great circles: `sphere.SlerpPath`
    "bits": Bits,
    "table": Table,
}


def in_full(x: Tensor) -> Tensor:
    """fp32 or better: softmax and its products are never taken in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the better of their types, whatever autocast says."""
    kind = torch.promote_types(in_full(a).dtype, b.dtype)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(kind) @ b.to(kind)
