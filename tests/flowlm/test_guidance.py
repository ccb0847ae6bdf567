"""Classifier-free guidance by prompts: the guided law where it is known, both calls counted, nothing seen of what is dropped."""

import math

import pytest
import torch
from scipy import stats

from flowlm import Known
from flowlm.writing import LOCAL, nothing, write
from flowmap.codebook import Bits
from flowmap.objectives.tokens import CrossEntropy, TokenStates
from flowmap.path import LinearPath, expand
from flowmap.rng import Rng
from flowmap.samplers import SERIAL
from flowmap.times import Uniform
from flowmap.warp import Warp
from tests.flowlm.test_token_map import N, V, build

LAW = torch.tensor([[0.35, 0.05], [0.25, 0.35]])
"""P(a, b): a prompt of one token, an answer of one."""
ROWS = 20_000


class Exact(torch.nn.Module):
    """The posterior of b given its own state and, where it is shown, a; codes ±1, noise N(0, 1), the linear path."""

    finishes, passes, data_scale = False, 1, 1.0

    def __init__(self):
        super().__init__()
        self.path, self.codebook = LinearPath(), Bits(2)
        self.network = torch.nn.Linear(1, 1)
        self.network.read_self = None

    def logits(self, x, t, s, context=None):
        alpha, sigma = expand(1 - t, x), expand(t, x)
        own = -(x - alpha * self.codebook.codes()[:, 0]).square() / (2 * sigma.square())  # (B, 2, V)
        told, shown = context.tokens[:, 0], context.hidden is None or not context.hidden[0, 0]
        prior = LAW[told] if shown else LAW.sum(0).expand(len(x), 2)
        return context.settle(torch.stack([own[:, 0], own[:, 1] + prior.log()], 1))


def prompts(rows, a):
    return Known(torch.tensor([[a, 0]]).repeat(rows, 1), torch.tensor([[True, False]]).repeat(rows, 1))


def drawn(a, **how):
    out = write(Exact(), torch.zeros(ROWS, 2, 1), Rng(4, torch.arange(ROWS)), known=prompts(ROWS, a), **how)
    assert (out.tokens[:, 0] == a).all()
    return int(out.tokens[:, 1].sum())


def guided(a, w):
    """P(b = 1), b ~ P(b | a)^w P(b)^{1−w} normalised."""
    law = (LAW[a] / LAW[a].sum()) ** w * LAW.sum(0) ** (1 - w)
    return float(law[1] / law.sum())


@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_in_one_step_tokens_follow_the_guided_law(a, w):
    ones = drawn(a, guidance=w)
    assert stats.binomtest(ones, ROWS, guided(a, w)).pvalue > 1e-3
    for other in {0.0, 1.0, 2.5} - {w}:
        assert stats.binomtest(ones, ROWS, guided(a, other)).pvalue < 1e-6


def two_steps(a, w, count=200_001, reach=9.0):
    """P(b = 1) by summing over the noise: one jump by the guided end from 1 to 1/2, then the guided posterior there."""
    total, weight = 0.0, 0.0
    ends = [float((p[1] - p[0]) / p.sum()) for p in (LAW[a], LAW.sum(0))]  # E b as ±1: codes are −1 and 1
    end = ends[1] + w * (ends[0] - ends[1])
    z = torch.linspace(-reach, reach, count, dtype=torch.float64)
    x = 0.5 * z + 0.5 * end
    logit = 2 * 0.5 * x / 0.25  # log p(x | 1)/p(x | −1) at t = 1/2
    told, base = (torch.sigmoid(logit + math.log(float(p[1] / p[0]))) for p in (LAW[a], LAW.sum(0)))
    one, none = told**w * base ** (1 - w), (1 - told) ** w * (1 - base) ** (1 - w)
    density = (-z.square() / 2).exp()
    total, weight = (density * one / (one + none)).sum(), density.sum()
    return float(total / weight)


@pytest.mark.parametrize("sampler", ["pushforward", "ddim", "euler"])
@pytest.mark.parametrize("w", [1.0, 2.5])
def test_in_two_steps_too_where_the_walk_is_guided(sampler, w):
    ones = drawn(1, guidance=w, steps=2, sampler=sampler)
    assert stats.binomtest(ones, ROWS, two_steps(1, w)).pvalue > 1e-3
    assert stats.binomtest(ones, ROWS, two_steps(1, 3.5 - w)).pvalue < 1e-6


@pytest.fixture(scope="module")
def model():
    return build(prompt_dropout=0.2, self_conditioning=0.5, noise="token", codebook="embedding")


def told(rows=12):
    tokens = torch.randint(V, (rows, N), generator=torch.Generator().manual_seed(2))
    return Known(tokens, torch.arange(N).expand(rows, N) % 3 == 0)  # a prompt and a gap


@pytest.mark.parametrize("sampler", SERIAL)
@pytest.mark.parametrize("twice", [False, True])
def test_both_calls_are_counted_and_at_1_it_is_the_plain_sampler_bit_by_bit(model, sampler, twice):
    how, calls = {"steps": 3, "sampler": sampler, "self_conditioning": twice}, []
    hook = model.map.network.register_forward_hook(lambda *_: calls.append(1))
    plain, one, two = (model.write(told(), Rng(1, torch.arange(12)), guidance=w, **how) for w in (None, 1.0, 2.0))
    hook.remove()
    assert torch.equal(plain.tokens, one.tokens) and torch.equal(plain.log_q, one.log_q) and plain.nfe == one.nfe
    assert two.nfe == 2 * plain.nfe and len(calls) == 4 * plain.nfe
    assert not torch.equal(two.log_q, one.log_q) and torch.equal(two.tokens[told().at], told().tokens[told().at])
    assert sampler in LOCAL or plain.nfe == 3 * (1 + twice)


@torch.no_grad()
def test_nothing_is_seen_of_a_prompt_that_is_dropped(model):
    """Not by the first of two passes either, whose estimate holds the code of what is known."""
    from flowmap.self_conditioning import TwoPass

    known, t = told(), torch.linspace(0.2, 0.9, 12)
    other = Known(torch.where(known.at, (known.tokens + 1) % V, known.tokens), known.at)
    x = torch.randn(12, N, 4, generator=torch.Generator().manual_seed(1))
    for ask in (model.map.logits, TwoPass(model.map).logits):
        a, b = (ask(x, t, t, some.without()) for some in (known, other))
        assert torch.equal(a[~known.at], b[~known.at])
        moved = torch.where(known.at[..., None], x + 3, x)
        assert torch.equal(ask(moved, t, t, known.without())[~known.at], a[~known.at])
        assert (a.argmax(-1) == known.tokens)[known.at].all()  # it is known all the same
        c, d = (ask(x, t, t, some) for some in (known, other))
        assert not torch.allclose(c[~known.at], d[~known.at])


def test_tokens_that_start_apart_are_guided_alike(model):
    """Where one is open there is nothing to be apart from; where several are, each that arrives is shown to both branches."""
    known = told()
    lone = Known(known.tokens, torch.arange(N).expand(12, N) != 2)
    for guidance in (1.0, 2.0):
        how = {"guidance": guidance, "steps": 3, "self_conditioning": False}
        together, apart = (model.write(lone, Rng(1, torch.arange(12)), delay=delay, **how) for delay in (0, 2))
        assert torch.equal(together.tokens, apart.tokens) and together.nfe == apart.nfe == 3 * int(guidance)
        torch.testing.assert_close(together.log_q, apart.log_q, atol=1e-4, rtol=1e-3)
    several = model.write(known, Rng(1, torch.arange(12)), delay=3, guidance=2.0, steps=3, self_conditioning=False)
    assert several.nfe == 2 * (3 + 3 * 2)


def test_what_dropping_teaches_is_the_marginal_and_the_conditional():
    model = build(wild=False, prior=False, prompt_dropout=0.5)
    pairs = torch.cat([torch.tensor([[a, b]]).repeat(int(20 * LAW[a, b] + 0.5), 1) for a in (0, 1) for b in (0, 1)])
    tokens = torch.nn.functional.pad(pairs, (0, N - 2)).repeat(6, 1)  # 20 rows are the law; half of them see no prompt
    rows = torch.arange(len(tokens))
    at = torch.arange(N).expand(len(rows), N) != 1
    drop = (rows < len(rows) // 2)[:, None] & at
    optimizer, objective = torch.optim.Adam(model.parameters(), 6e-3), CrossEntropy(Uniform(0.9, 1.0))
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 6e-3 * (1 - step / 200)
        loss = objective(
            model.map, TokenStates(tokens, Known(tokens, at, drop), ~at), rng=Rng(0, rows, step), step=step
        )
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()
    one = torch.ones(2000)
    z = model.map.path.draw_noise(Rng(1, torch.arange(2000)), "z", torch.zeros(2000, N, V))
    for a in (0, 1):
        window = Known(torch.tensor([[a, *[0] * (N - 1)]]).repeat(2000, 1), torch.arange(N).expand(2000, N) != 1)
        with torch.no_grad():
            found = [model.map.logits(z, one, one, k).softmax(-1)[:, 1, 1].mean() for k in (window, window.without())]
        assert found[0] == pytest.approx(float(LAW[a, 1] / LAW[a].sum()), abs=0.06)
        assert found[1] == pytest.approx(float(LAW[:, 1].sum()), abs=0.06)


def test_generate_takes_it_and_what_it_cannot_do_is_one_line(model):
    prompt = torch.tensor([[1, 2]])
    out = model.generate(prompt, guidance=2.0, num_steps=2, return_dict_in_generate=True, self_conditioning=False)
    assert out.nfe == 4 and out.sequences[0, :2].tolist() == [1, 2]
    assert write(model.map, torch.zeros(3, N, 4), Rng(0, torch.arange(3)), guidance=2.0).nfe == 2  # nothing known
    plain = build()
    assert plain.generate(prompt, guidance=1.0, return_dict_in_generate=True).nfe == 1
    with pytest.raises(ValueError, match="never trained with its prompts dropped"):
        plain.generate(prompt, guidance=2.0)
    with pytest.raises(ValueError, match="0 or above"):
        model.generate(prompt, guidance=-1.0)
    with pytest.raises(ValueError, match="always shown"):
        build(prompt_dropout=0.1, block_lengths=[1, 5], noise="block")
    with pytest.raises(ValueError, match="leave it out for blocks"):
        write(model.map, torch.zeros(3, N, 4), Rng(0, torch.arange(3)), guidance=2.0, block=1)
    known = nothing(torch.zeros(3, N, 4))
    assert model.write(known, Rng(0, torch.arange(3)), guidance=2.0, warp=Warp(0.0)).tokens.shape == (3, N)
