"""The token map: what it knows before it has learned, and what is known from outside."""

import pytest
import torch

from flowlm import FlowLM, FlowLMConfig, Known
from flowmap.objectives.tokens import TOKEN_OBJECTIVES, TokenStates
from flowmap.rng import Rng

V, N, BATCH = 7, 5, 6


def build(codebook="one-hot", wild=True, prior=True, **more):
    """wild: with weights that say something; else a fresh network, which adds nothing."""
    torch.manual_seed(0)
    config = FlowLMConfig(
        vocab_size=V,
        length=N,
        codebook=codebook,
        state_size=4,
        prior=prior,
        backbone={"width": 16, "depth": 2, "heads": 2, "read_bias": 0.0},
        **more,
    )
    model = FlowLM(config).eval()
    if wild:
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def noised(model, seed=0):
    tokens = torch.randint(V, (BATCH, N), generator=torch.Generator().manual_seed(seed))
    t = torch.linspace(0.2, 0.9, BATCH)
    codes = model.map.codebook.encode(tokens)
    return (
        tokens,
        model.map.path.noise(codes, model.map.path.draw_noise(Rng(seed, torch.arange(BATCH)), "e", codes), t),
        t,
    )


@pytest.mark.parametrize("codebook", ["one-hot", "embedding", "bits"])
@pytest.mark.parametrize("path", ["linear", "cosine"])
@torch.no_grad()
def test_a_fresh_map_is_the_posterior_of_every_token_alone(codebook, path):
    model = build(codebook, wild=False, path=path)
    _, x_t, t = noised(model)
    alpha, sigma = (f(t)[:, None, None, None] for f in (model.map.path.alpha, model.map.path.sigma))
    apart = (x_t[:, :, None] - alpha * model.map.codebook.codes()).square().sum(-1)  # (B, N, V)
    expected = (-apart / (2 * sigma[..., 0].square())).softmax(-1)
    torch.testing.assert_close(model(x_t, t, t).softmax(-1), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_is_known_is_certain_and_what_its_states_hold_is_never_looked_at():
    model = build()
    tokens, x_t, t = noised(model)
    at = torch.zeros(BATCH, N, dtype=torch.bool)
    at[:, 1], at[0, 3] = True, True
    z = model(x_t, t, t * 0.5, Known(tokens, at))
    p = z.softmax(-1).gather(-1, tokens[..., None])[..., 0]
    assert (p[at] == 1).all() and (p[~at] < 1).all()
    other = torch.where(at[..., None], x_t + 5, x_t)
    torch.testing.assert_close(model(other, t, t * 0.5, Known(tokens, at)), z)
    elsewhere = torch.where(at, tokens, (tokens + 1) % V)  # nor the tokens where nothing is known
    torch.testing.assert_close(model(x_t, t, t * 0.5, Known(elsewhere, at)), z)
    changed = torch.where(at, (tokens + 1) % V, tokens)  # but the known ones are
    assert not torch.allclose(model(x_t, t, t * 0.5, Known(changed, at))[~at], z[~at])


@torch.no_grad()
def test_nothing_known_is_no_context_at_all():
    model = build()
    tokens, x_t, t = noised(model)
    nothing = Known(tokens, torch.zeros_like(tokens, dtype=torch.bool))
    torch.testing.assert_close(model(x_t, t, t, nothing), model(x_t, t, t))


@pytest.mark.parametrize("name", TOKEN_OBJECTIVES)
def test_known_tokens_carry_no_loss_under_any_objective(name):
    """A window that is all known costs nothing; one of which some is, as much per token as its rest."""
    model = build()
    tokens, *_ = noised(model)
    objective = TOKEN_OBJECTIVES[name](**({"group_size": 2} if name == "imm" else {}))
    whole = torch.ones(BATCH, N, dtype=torch.bool)

    def loss(at):
        return objective(
            model.map, TokenStates(tokens, Known(tokens, at), ~at), rng=Rng(3, torch.arange(BATCH)), step=0
        )

    nothing = loss(whole)
    assert nothing.sum.item() == pytest.approx(0, abs=2e-3) and nothing.count == 0  # distances are clamped at 1e-4
    half = torch.arange(N).expand(BATCH, N) < 2
    some = loss(half)
    assert some.count == BATCH * (N - 2) and some.sum > 0.1
    some.sum.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("diagonal", [0.0, 1.0])
def test_codes_learn_on_the_diagonal_alone(diagonal):
    """With known tokens and the matched filter, through which they would otherwise be moved."""
    model = build("embedding", prior=True)
    tokens, *_ = noised(model)
    at = torch.arange(N).expand(BATCH, N) < 2
    objective = TOKEN_OBJECTIVES["kl-psd"](diagonal=diagonal)
    objective(
        model.map, TokenStates(tokens, Known(tokens, at), ~at), rng=Rng(3, torch.arange(BATCH)), step=0
    ).sum.backward()
    gradient = model.map.codebook.weight.grad
    assert (gradient is not None and gradient.abs().max() > 1e-3) == (diagonal == 1)


def test_slices_of_a_batch_add_up():
    model = build()
    tokens, *_ = noised(model)
    at = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(0)) < 0.4
    objective = TOKEN_OBJECTIVES["kl-psd"]()
    states = TokenStates(tokens, Known(tokens, at), ~at)
    whole = objective(model.map, states, rng=Rng(3, torch.arange(BATCH)), step=0)
    parts = [
        objective(model.map, states[rows], rng=Rng(3, rows), step=0)
        for rows in (torch.arange(2), torch.arange(2, BATCH))
    ]
    torch.testing.assert_close(sum(p.sum for p in parts), whole.sum)
    assert sum(p.count for p in parts) == whole.count
