"""The baselines' likelihoods: exact, or a bound that is one; tight where the conditionals are right; and leaks are caught."""

import pytest
import torch

from flowlm.discrete.causal import Autoregressive, CausalMap
from flowlm.discrete.likelihood import exact_nll, nelbo, nelbo_in_full
from flowlm.discrete.masked import LAWS, MaskedDiffusion, MaskedMap, blank_nll
from flowlm.token_map import Known
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng
from tests.flowlm.windows_law import TableLaw, every_window, network

V, N = 3, 3
ALL = TokenStates(every_window(V, N))
TEXTS = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 1, 1], [2, 0, 0]])
OBJECTIVES = {"causal": Autoregressive, "masked": MaskedDiffusion}
SCORES = {"causal": exact_nll, "masked": nelbo_in_full}


def trained(model, kind, steps=150, map_=None):
    objective, map_ = OBJECTIVES[kind](), map_ or model.map
    optimizer = torch.optim.AdamW(map_.parameters(), lr=5e-3)
    batch = TokenStates(TEXTS.repeat(8, 1))
    for step in range(steps):
        loss = objective(map_, batch, rng=Rng(1, torch.arange(batch.size), step), step=step)
        (loss.sum / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return map_


def total(kind, map_):
    """Σ exp(−score) over all of V^N."""
    return float((-SCORES[kind](map_, ALL).nats).exp().sum())


@pytest.mark.parametrize("state", ["fresh", "random", "trained"])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_universal_certificate(kind, state):
    model = network(kind, wild=0 if state == "fresh" else 0.2)
    map_ = trained(model, kind) if state == "trained" else model.map
    mass = total(kind, map_)
    if kind == "causal" or state == "fresh":  # a fresh network has all tokens alike, in whatever order
        assert mass == pytest.approx(1, abs=1e-5)
    else:
        assert mass < 1 - 1e-3
    if state == "trained":  # the bound is of use: the texts are worth little more than log 4 nats
        assert float(SCORES[kind](map_, TokenStates(TEXTS)).nats.mean()) < 1.75


class LeakyCausal(CausalMap):
    def logits(self, tokens, context=None):
        return self.ahead(tokens)  # each place reads its own token


class LeakyMasked(MaskedMap):
    """Its blanks are read as whatever was there."""

    def denoise(self, x_t, t, context=None):
        return super().denoise(self.told, t)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_network_that_is_shown_the_answer_breaks_it(kind):
    model = network(kind)
    leaky = (LeakyCausal if kind == "causal" else LeakyMasked)(model.map.network, model.map.codebook)
    leaky.told = TEXTS.repeat(8, 1)
    trained(model, kind, map_=leaky)
    leaky.told = ALL.tokens
    assert total(kind, leaky) > 2


@torch.no_grad()
def test_no_place_sees_what_it_has_to_say():
    causal, masked = network("causal").map, network("masked").map
    tokens = ALL.tokens
    for place in range(N):
        other = tokens.clone()
        other[:, place:] = (other[:, place:] + 1) % V  # itself and all behind it
        torch.testing.assert_close(causal.logits(other)[:, place], causal.logits(tokens)[:, place])
        if place:
            other = tokens.clone()
            other[:, place - 1] = (other[:, place - 1] + 1) % V
            assert not torch.allclose(causal.logits(other)[:, place], causal.logits(tokens)[:, place], atol=1e-3)
    x_t = tokens.masked_fill(torch.tensor([True, False, True]), V)
    assert masked.logits(x_t, torch.ones(len(x_t))).shape == (V**N, N, V)  # the blank itself is never written
    sure = masked.logits(x_t, torch.ones(len(x_t))).softmax(-1)[:, 1]
    torch.testing.assert_close(sure, torch.nn.functional.one_hot(tokens[:, 1], V).float())  # what is there stays


def table():
    p = torch.rand(V**N, generator=torch.Generator().manual_seed(3)).double().pow(4)
    p[[0, 5]] = 0  # some windows never happen
    return TableLaw(p, V, N)


def test_with_the_exact_conditionals_the_bound_is_the_entropy():
    law = table()
    possible = law.p > 0
    nats = nelbo_in_full(law, TokenStates(law.windows[possible])).nats
    torch.testing.assert_close(nats, -law.p[possible].log(), rtol=0, atol=1e-5)
    entropy = float(torch.special.entr(law.p).sum())
    assert float(law.p[possible] @ nats) == pytest.approx(entropy, abs=1e-5)
    marginal = -(law.denoise(torch.full((1, N), V))[0].log_softmax(-1))[torch.arange(N), law.windows[possible]].sum(1)
    assert float(law.p[possible] @ marginal) > entropy + 0.1  # which is more than the tokens one by one cost


@pytest.mark.parametrize("blanks", LAWS)
def test_both_laws_of_blanks_have_the_mean_of_the_bound(blanks):
    """A batch of many rows of the same window; five of its own standard errors."""
    map_, rows = network("masked").map, 40_000
    objective = MaskedDiffusion(blanks)
    for window in ([0, 1, 2], [2, 2, 1]):
        batch, rng = TokenStates(torch.tensor([window]).expand(rows, N)), Rng(7, torch.arange(rows))
        drawn = objective.law(rng, "blank", batch)
        with torch.no_grad():
            each = drawn.total(blank_nll(map_, batch, drawn))
            loss = objective(map_, batch, rng=rng, step=0)
        exact = float(nelbo_in_full(map_, batch[torch.arange(1)]).nats)
        assert abs(float(each.mean()) - exact) < 5 * float(each.std()) / rows**0.5
        assert float(loss.sum) == pytest.approx(float(each.sum()), rel=1e-4) and loss.count == rows * N


def test_the_estimate_knows_its_own_error():
    map_, windows = network("masked").map, TokenStates(TEXTS.repeat(200, 1))
    found = nelbo(map_, windows, Rng(2, torch.arange(windows.size)), draws=16)
    exact = nelbo_in_full(map_, TokenStates(TEXTS)).nats.repeat(200)
    assert found.kind == "bound" and found.repeats.shape == (16, 800)
    off = (found.nats - exact) / found.stderr
    assert abs(float(off.mean())) < 0.25 and 0.85 < float(off.std()) < 1.3
    assert float(found.stderr.max()) < 1 and (exact_nll(network("causal").map, windows).stderr == 0).all()


def test_a_network_that_is_told_the_time_is_scored_by_time():
    map_ = network("masked", time_conditioning=True).map
    x_t = torch.full((1, N), V)
    assert not torch.allclose(map_.logits(x_t, torch.tensor([0.9])), map_.logits(x_t, torch.tensor([0.1])))
    plain = network("masked").map
    assert torch.equal(plain.logits(x_t, torch.tensor([0.9])), plain.logits(x_t, torch.tensor([0.1])))
    with pytest.raises(ValueError, match="told the time"):
        nelbo_in_full(map_, ALL)
    grid, mean = 400, 0.0  # ∫ dt by midpoints, each over all sets of blanks
    for i in range(grid):
        t = (i + 0.5) / grid
        for chosen in range(1, 2**N):
            at = torch.tensor([bool(chosen >> place & 1) for place in range(N)])
            chance = t ** int(at.sum()) * (1 - t) ** int(N - at.sum())
            with torch.no_grad():
                z = map_.logits(TEXTS.masked_fill(at, V), torch.full((len(TEXTS),), t)).log_softmax(-1)
            nll = -z.gather(-1, TEXTS[..., None])[..., 0].sum(1).double()
            mean = mean + chance / t * nll / grid
    rows = 20_000
    found = nelbo(map_, TokenStates(TEXTS.repeat(rows // 4, 1)), Rng(5, torch.arange(rows)), draws=2).nats
    for text in range(4):
        own = found[text::4]
        assert abs(float(own.mean() - mean[text])) < 5 * float(own.std()) / len(own) ** 0.5


def test_what_is_known_costs_nothing_and_the_rest_is_a_law_of_its_own():
    """Σ over what is open, given what is known, is 1 (exact) or less; wherever the known stand."""
    at = torch.zeros(V**N, N, dtype=torch.bool)
    at[:, 1] = True
    for kind, score in SCORES.items():
        map_ = network(kind).map
        nats = score(map_, TokenStates(ALL.tokens, Known(ALL.tokens, at), ~at)).nats
        for token in range(V):
            mass = float((-nats[ALL.tokens[:, 1] == token]).exp().sum())
            assert mass == pytest.approx(1, abs=1e-5) if kind == "causal" else mass < 1
        whole = torch.ones_like(at)
        loss = OBJECTIVES[kind]()(
            map_, TokenStates(ALL.tokens, Known(ALL.tokens, whole), ~whole), rng=Rng(0, torch.arange(V**N)), step=0
        )
        assert loss.sum == 0 and loss.count == 0


def test_with_known_tokens_the_exact_conditionals_give_the_exact_conditional_likelihood():
    law = table()
    at = torch.tensor([[True, False, False]]).expand(V**N, N)
    possible = law.p > 0
    nats = nelbo_in_full(law, TokenStates(law.windows, Known(law.windows, at), ~at)[possible]).nats
    first = torch.stack([law.p[law.windows[:, 0] == token].sum() for token in range(V)])[law.windows[:, 0]]
    torch.testing.assert_close(nats, -(law.p / first)[possible].log(), rtol=0, atol=1e-5)


def test_slices_of_a_batch_add_up():
    map_, objective = network("masked").map, MaskedDiffusion()
    whole = objective(map_, ALL, rng=Rng(3, torch.arange(V**N)), step=0)
    parts = [objective(map_, ALL[rows], rng=Rng(3, rows), step=0) for rows in (torch.arange(5), torch.arange(5, V**N))]
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum)


def test_wrong_asks_are_refused():
    map_ = network("masked").map
    with pytest.raises(ValueError, match="2 at least"):
        nelbo(map_, ALL, Rng(0, torch.arange(V**N)), draws=1)
    with pytest.raises(ValueError, match="known are time, count"):
        MaskedDiffusion("space")
    with pytest.raises(ValueError, match="no time to tell"):
        MaskedDiffusion("count", time_conditioning=True)
    with pytest.raises(ValueError, match="up to 12"):
        nelbo_in_full(map_, TokenStates(torch.zeros(1, 13, dtype=torch.long)))
