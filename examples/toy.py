"""A two-time map learnt on a density known in closed form, and why a network must be told where it lands.

    python examples/toy.py [--out toy.png] [--steps 1500]

The data are five Gaussians in the plane. Noise becomes data along dx/dt = v(x, t), which this mixture has in closed
form; following it takes many small steps. A two-time map v(x, t, s) is told the time s at which it will land, and is
trained (Lagrangian self-distillation, 2505.18825) until one jump from t to s is what the flow would have done. A
network that is not told s learns the same v(x, t) and, asked for one step, jumps to the average of all data.
"""

import argparse
import math

import torch
from torch import Tensor

from flowmap.maps import ExactMap, FlowMap
from flowmap.objectives import FlowMatching, Lagrangian, Objective, StateBatch
from flowmap.path import LinearPath
from flowmap.rng import Rng
from flowmap.samplers import Guided, euler, pushforward, uniform_times
from imm.toys import EDGES, PointNetwork, histogram_kl

# The density Σ w_k N(m_k, d²I): mean 0, a deviation of about 0.5 in each coordinate, like the noise at t = 1.
WEIGHTS = torch.tensor([0.15, 0.2, 0.3, 0.2, 0.15])
CENTRES = 0.6 * torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [0.0, 0.0], [1.0, -1.0], [1.0, 1.0]])
DEVIATION = 0.1
PATH = LinearPath(noise_scale=0.5)  # x_t = (1 − t) x_0 + t ε


def sample(count: int, rng: Rng) -> Tensor:
    mode = torch.bucketize(rng.uniform("mode", count), WEIGHTS.cumsum(0)[:-1])
    return CENTRES[mode] + DEVIATION * rng.normal("point", count, 2)


def exact_velocity(x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
    """E[ε − x_0 | x_t] = (x_t − E[x_0 | x_t])/t: given the mode all is Gaussian, and the mode has Bayes' odds."""
    t = t[:, None]
    variance = (1 - t) ** 2 * DEVIATION**2 + t**2 * PATH.noise_scale**2  # of x_t given a mode
    away = x[:, None] - (1 - t[..., None]) * CENTRES  # (batch, mode, 2)
    odds = (WEIGHTS.log() - away.square().sum(-1) / (2 * variance)).softmax(-1)
    mean = CENTRES + ((1 - t) * DEVIATION**2 / variance)[..., None] * away
    return (x - (odds[..., None] * mean).sum(1)) / t


def cells() -> Tensor:
    """What the law gives each cell of the histogram, exactly."""
    below = torch.special.ndtr((EDGES[:, None, None] - CENTRES) / DEVIATION)
    x, y = below.diff(dim=0).unbind(-1)
    return (WEIGHTS * x) @ y.T


def train(network: PointNetwork, objective: Objective, steps: int, batch: int = 1024) -> FlowMap:
    model = FlowMap(network)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    rows = torch.arange(batch)
    for step in range(steps):
        rng = Rng(0, rows, step)
        loss = objective(model, StateBatch(sample(batch, rng)), rng=rng, step=step)
        (loss.sum / loss.count).backward()
        optimiser.step()
        optimiser.zero_grad()
        decay.step()
    return model


def transport(x: Tensor, y: Tensor) -> float:
    """The exact 2-Wasserstein distance between two sets of points."""
    try:
        import ot
    except ImportError:
        return math.nan  # pip install POT
    cost = torch.cdist(x.double(), y.double()).square().numpy()
    return math.sqrt(ot.emd2([], [], cost, numItermax=10**7))


def picture(panels: dict[str, Tensor], scores: dict[str, tuple[float, float]], out: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(2.6 * len(panels), 3), layout="constrained")
    for ax, (name, x) in zip(axes, panels.items(), strict=True):
        ax.scatter(*x[:2000].T, s=1, linewidths=0, color="k")
        ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", xticks=[], yticks=[])
        ax.set_title("{}\nKL {:.2f}, W₂ {:.2f}".format(name, *scores[name]), fontsize=9)
    figure.savefig(out, dpi=80)


def main(argv: list[str] | None = None) -> dict[str, tuple[float, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="toy.png")
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    exact = Guided(ExactMap(PATH, exact_velocity))
    told = Guided(train(PointNetwork(), Lagrangian(diagonal=0.5), args.steps))
    untold = Guided(train(PointNetwork(use_s=False), FlowMatching(), args.steps))

    noise = PATH.noise_scale * Rng(1).normal("noise", 20_000, 2)
    panels = {
        "data": sample(20_000, Rng(2)),
        "exact flow, 64 steps": euler(exact, noise, uniform_times(64)).x,
        "two-time map, 1 step": pushforward(told, noise, uniform_times(1)).x,
        "two-time map, 2 steps": pushforward(told, noise, uniform_times(2)).x,
        "not told s, 1 step": pushforward(untold, noise, uniform_times(1)).x,
    }
    fresh = sample(1000, Rng(3))
    scores = {name: (histogram_kl(cells(), x), transport(x[:1000], fresh)) for name, x in panels.items()}
    for name, (kl, w2) in scores.items():
        print(f"{name:24s} histogram KL {kl:6.3f} nats   W2 to data {w2:.3f}")
    picture(panels, scores, args.out)
    return scores


if __name__ == "__main__":
    main()
