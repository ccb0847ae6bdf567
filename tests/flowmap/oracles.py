"""Maps known in closed form, behind FlowMap's names, with parameters that push them off the truth."""

import torch
from torch import Tensor, nn

from flowmap.path import LinearPath, Path, expand

MU, TAU, NU = 0.7, 0.4, 1.0


class GaussianMap(nn.Module):
    """The exact two-time map of data N(μ, τ²) under noise N(0, ν²) on the linear path, plus a perturbation
    θ·(1, x, t−s, s) that is zero at the truth.

    X_{t→s} = α_s μ + √(V_s/V_t)(x − α_t μ), V_t = (1−t)²τ² + t²ν². v = (X − x)/(s−t), written without the pole
    at s = t.
    """

    def __init__(self, theta=(0.0, 0.0, 0.0, 0.0), mu=MU, tau=TAU, nu=NU):
        super().__init__()
        self.path: Path = LinearPath(noise_scale=nu)
        self.mu, self.tau, self.nu = mu, tau, nu
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def variance(self, t: Tensor) -> Tensor:
        return (1 - t) ** 2 * self.tau**2 + t**2 * self.nu**2

    def forward(self, x, t, s, context=None):
        t, s = expand(t, x), expand(s, x)
        rise = (s + t - 2) * self.tau**2 + (s + t) * self.nu**2
        gain = rise / (self.variance(t) * ((self.variance(s) / self.variance(t)).sqrt() + 1))
        exact = gain * (x - (1 - t) * self.mu) - self.mu
        a, b, c, d = self.theta
        return exact + a + b * x + c * (t - s) + d * s

    def velocity(self, x, t, s, context=None):
        return self(x, t, s, context)

    def jump(self, x, t, s, context=None):
        return self.path.move(x, self(x, t, s), t, s)

    def output_scale(self, t, s):
        return self.path.coefficients(t, s)[1].abs()


def gaussian(count: int, seed: int = 0, mu=MU, tau=TAU, size: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mu + tau * torch.randn(count, size, dtype=torch.float64, generator=generator)


class Mixture(nn.Module):
    """Σ_k w_k N(m_k, d_k²) in one dimension on the linear path: the local velocity E[ε − x_0 | x_t] in closed form,
    the two-time map by integrating it (`flow`). velocity ignores s and adds an offset that is 0 at the truth."""

    def __init__(self, weights, means, deviations, nu=NU):
        super().__init__()
        self.path: Path = LinearPath(noise_scale=nu)
        self.nu = nu
        self.w, self.m, self.d = (torch.tensor(x, dtype=torch.float64) for x in (weights, means, deviations))
        self.offset = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def sample(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.w, count, True, generator=generator)
        return (self.m[k] + self.d[k] * torch.randn(count, dtype=torch.float64, generator=generator))[:, None]

    def posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t]; x: (batch, 1), t: (batch,)."""
        t = t[:, None]
        variance = (1 - t) ** 2 * self.d**2 + t**2 * self.nu**2
        shift = x - (1 - t) * self.m
        share = (self.w.log() - variance.log() / 2 - shift**2 / (2 * variance)).softmax(-1)
        mean = self.m + (1 - t) * self.d**2 / variance * shift
        return (share * mean).sum(-1, keepdim=True)

    def velocity(self, x, t, s, context=None):
        return (x - self.posterior(x, t)) / expand(t, x) + self.offset

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        """X_{t→s} by scipy, to 1e-9."""
        from scipy.integrate import solve_ivp

        def rate(time, state):
            at = torch.from_numpy(state)[:, None]
            with torch.no_grad():
                return self.velocity(at, torch.full((len(at),), time, dtype=torch.float64), None)[:, 0].numpy()

        return torch.from_numpy(solve_ivp(rate, (t, s), x[:, 0].numpy(), rtol=1e-9, atol=1e-11).y[:, -1])[:, None]
