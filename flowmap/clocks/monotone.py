"""A learned law for the variational bound: its ends by the bound itself, its interior by variance (VDM 2107.00630, Plaid
2305.18619).

    λ = λ_0 + (λ_1 − λ_0)·y,   y = F⁻¹(u),   F(y) = e·y + (1 − e)·Σ_k m_k·[σ(a_k(y − b_k)) − σ(−a_k b_k)]/[…]_{y=1}

F is a monotone network: m_k, a_k > 0, so that F rises from 0 to 1 whatever is learned. With density q(λ) of the looks and
h(λ) = ½S·‖c − ĉ‖² the estimate ℓ = h/q has the mean ∫h dλ whatever q is, and the second moment ∫E[h²]/q dλ, whose gradient is

    ∂_η E[ℓ²] = −E[ℓ²·∂_η log q(λ)]     at the drawn λ, held: the network is not differentiated

least at q ∝ √E[h²]. The ends move with the bound, through x_t alone: what a network makes of being told another time is
zero in the mean where it is the posterior of every time. Start: e = 5% even, components even.
"""

import torch
from torch import Tensor, nn

from flowmap.path import LinearPath, Path
from flowmap.signal import Looks, SignalLaw, log_snr, time_of

NAME = "squares"


class Monotone(SignalLaw):
    """path: of the model. t_min, t_max: where the ends start. units: K. reach: |λ| is below it. decay: of the running mean of
    ℓ², by which the interior's gradient is measured."""

    squares: Tensor

    def __init__(
        self, path: Path | None = None, t_min: float = 0.02, t_max: float = 0.99, units: int = 16, even: float = 0.05,
        reach: float = 12.0, decay: float = 0.99,
    ) -> None:  # fmt: skip
        super().__init__(t_min, t_max)
        low, high = (log_snr(path or LinearPath(), torch.tensor(t, dtype=torch.float64)) for t in (t_max, t_min))
        if not -reach < low < 0 < high < reach:
            raise ValueError(f"times from {t_min} to {t_max}: log S must start below 0 and end above, within ±{reach}")
        self.even, self.reach, self.decay = even, reach, decay
        self.range = nn.Parameter(torch.logit(torch.stack([-low, high]) / reach).float())
        self.mix = nn.Parameter(torch.zeros(units))
        self.middle = nn.Parameter((torch.arange(units) + 0.5) / units)
        self.steep = nn.Parameter(torch.full((units,), 2.0 * units).expm1().log())
        self.register_buffer("squares", torch.zeros(2, dtype=torch.float64))

    def log_snr_ends(self) -> tuple[Tensor, Tensor]:
        """(λ_0, λ_1) of the noisiest and of the cleanest time, λ_0 < 0 < λ_1."""
        far = self.reach * torch.sigmoid(self.range.double())
        return -far[0], far[1]

    def ends(self, path, device):
        low, high = (time_of(path, lam) for lam in reversed(self.log_snr_ends()))
        return low, high

    def share(self, y: Tensor) -> Tensor:
        """F(y), (count,), in float64."""
        a, b, m = self._parts()
        below, above = torch.sigmoid(-a * b), torch.sigmoid(a * (1 - b))
        parts = (torch.sigmoid(a * (y[:, None] - b)) - below) / (above - below)
        return self.even * y + (1 - self.even) * parts @ m

    def log_density(self, y: Tensor) -> Tensor:
        """log F'(y), (count,)."""
        a, b, m = self._parts()
        span = torch.sigmoid(a * (1 - b)) - torch.sigmoid(-a * b)
        f = torch.sigmoid(a * (y[:, None] - b))
        return torch.log(self.even + (1 - self.even) * (a * f * (1 - f) / span) @ m)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return nn.functional.softplus(self.steep.double()), self.middle.double(), self.mix.double().softmax(0)

    @torch.no_grad()
    def place(self, u: Tensor) -> Tensor:
        """F⁻¹(u), by bisection."""
        low, high = torch.zeros_like(u), torch.ones_like(u)
        for _ in range(40):
            y = (low + high) / 2
            below = self.share(y) < u
            low, high = torch.where(below, y, low), torch.where(below, high, y)
        return (low + high) / 2

    def draw(self, path, u):
        y = self.place(u)
        log_density = self.log_density(y)
        first, last = self.log_snr_ends()
        lam = first + (last - first) * y
        weight = lam.exp() * (last - first) * (-log_density.detach()).exp() / 2
        return Looks(time_of(path, lam), weight, log_density)

    def lesson(self, looks, drift):
        mean = self.squares[0] / self.squares[1].clamp_min(1e-300)
        worth = torch.where(mean > 0, drift.detach().double().square() / mean.clamp_min(1e-300), 0.0)
        surrogate = -(worth * looks.log_density).sum()
        return surrogate - surrogate.detach()  # a gradient and no value: the loss stays the bound

    def statistics(self, looks, drift, nats, tokens):
        squares = drift.detach().double().square()
        return {NAME: torch.stack([squares.sum(), torch.full_like(squares, 1.0).sum()])}

    def learn(self, statistics):
        self.squares.mul_(self.decay).add_(statistics[NAME])
