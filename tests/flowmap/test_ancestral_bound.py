"""The K-step objective: its mean is the evaluator's score, its least the posterior, and its grid the best there is."""

import pytest
import torch

from flowlm.likelihood import Ancestral, enumerated, k_step, total_probability
from flowmap.objectives.tokens import AncestralBound, TokenStates
from flowmap.rng import Rng
from tests.flowlm.test_block_likelihood import EVERY, in_blocks, network
from tests.flowmap.six_hands import TOKENS, SixHands, hands


class Posterior(SixHands):
    """The posterior at t, wherever the step lands."""

    def logits(self, x, t, s, context=None):
        return super().logits(x, t, t)


class Timed(SixHands):
    """A network to which it matters where it lands."""

    def logits(self, x, t, s, context=None):
        return super().logits(x, t, t) + (3 * (t - s))[:, None, None] * self.pattern[1]


def estimate(objective, model, batch, rounds):
    """(nats a token, standard error) over rounds of noise."""
    found = []
    with torch.no_grad():
        for n in range(rounds):
            loss = objective(model, batch, rng=Rng(n, torch.arange(batch.size)), step=0)
            found.append(float(loss.sum / loss.count))
    values = torch.tensor(found)
    return float(values.mean()), float(values.std()) / rounds**0.5


@pytest.mark.parametrize("kind", [Posterior, Timed])
@pytest.mark.parametrize("steps", [1, 3])
def test_its_mean_is_what_the_evaluator_says_of_the_same_grid_and_landings(kind, steps):
    model, objective, batch = kind(), AncestralBound(steps), TokenStates(hands(600))
    grid = torch.tensor(objective.grids(model.codebook.codes())[steps], dtype=torch.float64)
    scored = k_step(model, batch, Rng(5, torch.arange(600)), grid, draws=64, told=True)
    value, error = estimate(objective, model, batch, 60)
    print(f"\n{kind.__name__}, K = {steps}: {value:.4f} ± {error:.4f}, evaluator {scored.value:.4f}")
    assert error < 0.02 and value == pytest.approx(scored.value, abs=4 * (error + scored.monte_carlo))
    untold = k_step(model, batch, Rng(5, torch.arange(600)), grid, draws=64)
    told_apart = abs(untold.value - scored.value) > 0.05
    assert told_apart == (kind is Timed)


def test_several_numbers_of_steps_are_drawn_alike():
    model, batch = Posterior(), TokenStates(hands(600))
    mean, error = estimate(AncestralBound("1,3"), model, batch, 60)
    alone = [estimate(AncestralBound(n), model, batch, 60) for n in (1, 3)]
    assert mean == pytest.approx(sum(a for a, _ in alone) / 2, abs=4 * (error + sum(e for _, e in alone)))


def test_blocks_each_draw_a_step_of_their_own():
    model, batch, objective = network(), in_blocks(EVERY[::4], 2), AncestralBound(2)
    grid = torch.tensor(objective.grids(model.codebook.codes())[2], dtype=torch.float64)
    with torch.no_grad():
        scored = k_step(model, batch, Rng(5, torch.arange(batch.size)), grid, draws=48, told=True)
    value, error = estimate(objective, model, batch, 80)
    assert value == pytest.approx(scored.value, abs=4 * (error + scored.monte_carlo))


def test_at_the_posterior_the_gradient_vanishes_and_beside_it_does_not():
    objective, batch, grads = AncestralBound("1,2"), TokenStates(hands(1200)), {}
    for name, theta in (("at", (0.0,) * 4), ("beside", (0.5, -1.0, 0.5, -0.4))):
        found = []
        for n in range(24):
            model = Posterior(theta)
            loss = objective(model, batch, rng=Rng(n, torch.arange(1200)), step=0)
            (gradient,) = torch.autograd.grad(loss.sum / loss.count, model.theta)
            found.append(gradient)
        grads[name] = torch.stack(found)
    mean, error = grads["at"].mean(0), grads["at"].std(0) / 24**0.5
    assert (mean.abs() < 4 * error + 1e-6).all(), (mean, error)
    assert float(grads["beside"].mean(0).abs().max()) > 20 * float(error.max())


@pytest.mark.parametrize("steps, best", [(1, 2.731), (2, 2.527)])
def test_the_grid_finds_its_best(steps, best):
    """From a bad one to within 0.02 nats of the known optimum, by the loss's own gradient."""
    model, objective = Posterior(), AncestralBound(steps)
    objective.gaps[0].data += 1.5
    codes, rows = model.codebook.codes(), torch.arange(600)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)

    def bound():
        grid = torch.tensor(objective.grids(codes)[steps], dtype=torch.float64)
        return 2 * k_step(model, TokenStates(hands(600)), Rng(3, rows), grid, draws=40, told=True).value

    before = bound()
    for n in range(150):
        loss = objective(model, TokenStates(hands(600)), rng=Rng(n, rows), step=n)
        (loss.sum / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert before > best + 0.2
    assert bound() == pytest.approx(best, abs=0.03)


def test_the_sampler_that_is_told_is_the_one_that_is_bounded():
    model, grid = Timed(), torch.tensor([0.0, 0.6, 1.5], dtype=torch.float64)
    own = enumerated(Ancestral(model, grid, told=True), TOKENS, seed=3, draws=4000)
    bound = k_step(model, TokenStates(hands(600)), Rng(0, torch.arange(600)), grid, draws=32, told=True)
    assert own.value < bound.value
    strings = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    score = k_step(model, TokenStates(strings), Rng(0, torch.arange(100)), grid, draws=64, told=True)
    total, error = total_probability(score)
    assert total < 1 + 3 * error


@pytest.mark.parametrize("wrong", ["0", "1,,2", "many", 0])
def test_numbers_of_steps_that_are_none(wrong):
    with pytest.raises(ValueError, match="1 at least"):
        AncestralBound(wrong)
