"""The path on the sphere: its identities, its posterior, and the flow of one token from even noise to its law."""

import itertools
import math

import pytest
import torch
from scipy import stats

from flowmap.codebook import Embedding, OneHot, Table
from flowmap.path import expand
from flowmap.rng import Rng
from flowmap.sphere import SlerpPath, slerp

D, V = 5, 7
PATH = SlerpPath()
TOKENS = torch.arange(V)[None].repeat(40, 1)


def codebook(d=D, size=V, seed=0):
    rows = torch.randn(size, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Table(d**0.5 * torch.nn.functional.normalize(rows, dim=-1))


def angle(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos()


def noised(t, d=D):
    codes = codebook(d)
    x_0 = codes.encode(TOKENS)
    e = PATH.draw_noise(Rng(0, torch.arange(len(TOKENS))), "e", x_0)
    return codes, x_0, e, PATH.noise(x_0, e, t)


def spread_times(count=40):
    return torch.linspace(0.01, 1, count, dtype=torch.float64)


def test_noise_is_even_over_the_sphere():
    e = PATH.draw_noise(Rng(0, torch.arange(3000)), "e", torch.zeros(3000, 2, D, dtype=torch.float64))
    assert torch.allclose(e.norm(dim=-1), torch.tensor(D**0.5).double())
    for axis in range(D):
        share = (e[:, 1, axis] ** 2 / D).numpy()
        assert stats.kstest(share, stats.beta(0.5, (D - 1) / 2).cdf).pvalue > 1e-3
    assert abs(float(e.mean())) < 4 / (3000 * 2 * D) ** 0.5


def test_states_leave_their_code_at_an_even_rate_and_never_the_sphere():
    t = spread_times()
    _, x_0, e, x_t = noised(t)
    assert torch.allclose(x_t.norm(dim=-1), x_0.norm(dim=-1))
    assert torch.allclose(angle(x_0, x_t), t[:, None] * angle(x_0, e), atol=1e-6)
    assert torch.allclose(angle(x_0, x_t) + angle(x_t, e), angle(x_0, e), atol=1e-6)
    assert torch.allclose(PATH.noise(x_0, e, 0 * t), x_0) and torch.allclose(PATH.noise(x_0, e, 0 * t + 1), e)
    written = torch.sin((1 - expand(t, x_t)) * angle(x_0, e)[..., None]) * x_0
    written = (written + torch.sin(expand(t, x_t) * angle(x_0, e)[..., None]) * e) / torch.sin(angle(x_0, e))[..., None]
    assert torch.allclose(x_t, written)


def test_jumps_of_any_network_stay_on_the_sphere_begin_at_the_state_and_end_at_the_end():
    t = spread_times()
    codes, _, _, x_t = noised(t)
    logits = torch.randn(*TOKENS.shape, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    g = PATH.expected(codes, logits, x_t)
    for share in (0.0, 0.3, 1.0):
        x_s = PATH.jump(x_t, g, t, share * t)
        assert torch.allclose(x_s.norm(dim=-1), torch.tensor(D**0.5).double())
        if share in (0, 1):
            assert torch.allclose(x_s, x_t if share else g)


def test_where_one_token_is_sure_two_jumps_are_one_and_the_last_is_its_code():
    t = spread_times()
    codes, x_0, e, x_t = noised(t)
    sure = torch.where(torch.nn.functional.one_hot(TOKENS, V).bool(), 0.0, -torch.inf).double()
    far = angle(x_0, x_t) < math.pi - 0.05
    assert torch.allclose(PATH.expected(codes, sure, x_t)[far], x_0[far], atol=1e-6)

    def jump(x, t, s):
        return PATH.jump(x, PATH.expected(codes, sure, x), t, s)

    x_u, s = jump(x_t, t, 0.6 * t), 0.25 * t
    assert torch.allclose(jump(x_u, 0.6 * t, s)[far], jump(x_t, t, s)[far], atol=1e-6)
    assert torch.allclose(jump(x_t, t, s)[far], PATH.noise(x_0, e, s)[far], atol=1e-6)  # the way it came


def test_a_small_jump_is_the_mean_of_the_tokens_velocities():
    """−Σ_v p_v Log_x(c_v)/t, each Log by a difference along its own circle."""
    t, h = spread_times(), 1e-5
    codes, _, _, x_t = noised(t)
    logits = torch.randn(*TOKENS.shape, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = logits.softmax(-1)
    ways = sum(
        p[..., v, None] * (slerp(x_t, codes.codes()[v].expand_as(x_t), torch.tensor(h)) - x_t) / h for v in range(V)
    )
    moved = PATH.jump(x_t, PATH.expected(codes, logits, x_t), t, t * (1 - h)) - x_t
    assert torch.allclose(moved / h, ways, atol=1e-3)


@pytest.mark.parametrize("d", [3, 16])
def test_the_matched_filter_is_the_density_of_states_around_a_code(d):
    """(sin(φ/t)/sin φ)^{d−2}/t is a density relative to the even one: its mean over even states is 1."""
    codes = codebook(d)
    x = PATH.draw_noise(Rng(3, torch.arange(200_000)), "x", torch.zeros(200_000, 1, d, dtype=torch.float64))
    for t in (0.6, 0.9):
        at = torch.full((len(x),), t, dtype=torch.float64)
        outside = angle(x, codes.codes()[0]) > math.pi * t
        ratio = (PATH.prior_logits(codes, x, at)[..., 0].exp() / t).masked_fill(outside, 0.0)
        assert float(ratio.mean()) == pytest.approx(1, abs=4 * float(ratio.std()) / len(x) ** 0.5)


def test_the_matched_filter_is_calibrated():
    """Σ_v p_v·(1[v] − p_v) has the mean 0 at the posterior."""
    codes, count = codebook(), 20_000
    tokens = torch.randint(V, (count, 1), generator=torch.Generator().manual_seed(0))
    x_0 = codes.encode(tokens)
    for t in (0.3, 0.7, 1.0):
        at = torch.full((count,), t, dtype=torch.float64)
        x_t = PATH.noise(x_0, PATH.draw_noise(Rng(0, torch.arange(count)), "e", x_0), at)
        p = PATH.prior_logits(codes, x_t, at).softmax(-1)[:, 0]
        told = p.gather(1, tokens)[:, 0]
        gap = told - p.square().sum(1)
        assert abs(float(gap.mean())) < 4 * float(gap.std()) / count**0.5 + 1e-9
        assert float(told.mean()) > (1 / V - 1e-6 if t == 1 else 1.5 / V)


def test_the_flow_of_one_token_carries_even_noise_to_its_law():
    """Codes without symmetry: a velocity towards Cᵀp, which weighs tokens otherwise, arrives at other shares."""
    codes, count, steps = codebook(3, 4, seed=2), 12_000, 150
    x = PATH.draw_noise(Rng(1, torch.arange(count)), "z", torch.zeros(count, 1, 3, dtype=torch.float64))
    grid = torch.linspace(1, 0.02, steps + 1, dtype=torch.float64)
    plain = x
    for t, s in itertools.pairwise(grid):
        t, s = t.expand(count), s.expand(count)
        x = PATH.jump(x, PATH.expected(codes, PATH.prior_logits(codes, x, t), x), t, s)
        plain = PATH.jump(plain, codes.expected(PATH.prior_logits(codes, plain, t)), t, s)
    shares = torch.bincount(codes.decode(x)[:, 0], minlength=4)
    assert stats.chisquare(shares.numpy()).pvalue > 1e-3
    assert float(angle(x, codes.encode(codes.decode(x))).max()) < 0.1
    wrong = torch.bincount(codes.decode(plain)[:, 0], minlength=4)
    assert stats.chisquare(wrong.numpy()).pvalue < 1e-6


def test_gradients_reach_learned_codes_even_where_noise_is_none():
    codes = Embedding(V, D, norm=D**0.5)
    x_0 = codes.encode(TOKENS)
    e = PATH.draw_noise(Rng(0, torch.arange(len(TOKENS))), "e", x_0)
    PATH.noise(x_0, e, torch.zeros(len(TOKENS))).sum().backward()
    assert codes.weight.grad.isfinite().all() and codes.weight.grad.any()


def test_what_has_no_meaning_here_is_refused():
    x, t = torch.ones(1, 1, V), torch.ones(1) / 2
    for call in (PATH.snr, PATH.alpha, lambda t: PATH.secant(x, x, t), lambda t: PATH.ode(x, x, t)):
        with pytest.raises(ValueError, match="no signal-to-noise"):
            call(t)
    with pytest.raises(ValueError, match="one-hot"):
        PATH.prior_logits(OneHot(V), x, t)
