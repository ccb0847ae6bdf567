"""Every scorer, on every kind of network, and the networks that must be caught."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from eval.certificate import certify, every_string
from eval.likelihood import block_likelihood, likelihoods
from mtp import MTPForCausalLM
from mtp.heads.base import BlockContext
from mtp.objective import JointCrossEntropy
from tests.mtp.test_heads import EXACT

V, L = 5, 4
LAW = {(1, 2, 3, 4): 0.5, (1, 3, 2, 4): 0.3, (4, 4, 0, 0): 0.2}


def chain(model, store):
    return likelihoods(model, store, L + 1, quiet=True).chain.sums


def block(model, store):
    """The block at the document's start, which is the only one that is whole."""
    result = block_likelihood(model, store, L + 1, L, quiet=True)
    assert (result.count == 1).all()
    return result.head.sum(1)


def direct(size):
    def score(model, store):
        return likelihoods(model, store, L + 1, [size], quiet=True).direct[size].sums

    return score


SCORERS = {"chain": chain, "block": block, "direct-2": direct(2), "direct-3": direct(3), "direct-4": direct(4)}


def fresh(head: str):
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=V, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    model = MTPForCausalLM.from_trunk(AutoModelForCausalLM.from_config(config), head, L)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def trained(head: str, steps: int = 80):
    from flowmap.rng import Rng
    from mtp.batch import TokenBatch

    model, objective = fresh(head), JointCrossEntropy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    strings = torch.tensor([(0, *text) for text, p in LAW.items() for _ in range(round(10 * p))])
    tokens = torch.cat([strings, torch.zeros(len(strings), L, dtype=torch.int64)], 1)
    document = torch.where(torch.arange(tokens.shape[1]) <= L, 0, -1).expand_as(tokens)
    batch = TokenBatch(tokens, document, document == 0, L + 1)
    losses = []
    for step in range(steps):
        loss = objective(model, batch, rng=Rng(0, torch.arange(len(tokens))), step=step)
        loss.sum.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.sum.detach()))
    assert losses[-1] < 0.4 * losses[0]
    return model.eval()


class Oracle(nn.Module):
    """The law itself behind the contract. A state is the next token's log-conditional and, beside it, the prefix,
    from which the head knows the block's whole law; the unembedding reads the first part alone."""

    def __init__(self):
        super().__init__()
        self.head = self
        self.block_size, self.exact, self.device = L, True, torch.device("cpu")
        self.table = torch.cat([torch.eye(V), torch.zeros(V, L + 1)], 1)

    def states(self, ids):
        def state(prefix):
            return [*self.conditional(prefix), len(prefix), *prefix, *[0] * (L - len(prefix))]

        return torch.tensor([[state(tuple(row[1 : i + 1])) for i in range(len(row))] for row in ids.tolist()]), None

    def context(self, hidden):
        return BlockContext(hidden, self.table, self.table)

    def anchored(self, hidden, tokens, anchors):
        return self.context(hidden[anchors])

    def log_prob(self, ctx, x):
        made = torch.zeros(x.shape)
        for n, (state, block) in enumerate(zip(ctx.hidden[:, V:].long().tolist(), x.tolist(), strict=True)):
            prefix = tuple(state[1 : 1 + state[0]])
            for k, token in enumerate(block[: L - len(prefix)]):
                made[n, k] = torch.tensor(self.conditional((*prefix, *block[:k]))).log_softmax(0)[token]
        return made

    def conditional(self, prefix):
        mass = [sum(p for text, p in LAW.items() if text[: len(prefix) + 1] == (*prefix, v)) for v in range(V)]
        total = sum(mass)  # off the law any conditional will do
        return [
            max(-50.0, float(torch.tensor(m / total).log())) if total else -float(torch.tensor(V).log()) for m in mass
        ]


made = cache(lambda make, head: make(head))


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("make", [fresh, trained])
@pytest.mark.parametrize("head", EXACT)
def test_every_scorer_spends_exactly_the_whole_probability(name, make, head):
    model = made(make, head)
    got = certify(lambda store: SCORERS[name](model, store), V, L)
    assert got.holds and got.exact and got.stderr == 0


def of_noise(head):
    model = fresh(head)
    for parameter in model.head.parameters():  # laws that vary less inside a slice, so that few repeats do
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("head", ["noise", "flow-map"])
@pytest.mark.parametrize("size", [2, 4])
def test_a_mean_over_noise_spends_the_whole_probability_in_mean(size, head):
    """Blocks one after another; each anchor's noise is its own."""
    model = of_noise(head)

    def score(store):
        found = [likelihoods(model, store, L + 1, [size], 64, True, seed).direct[size].sums for seed in range(30)]
        return np.stack(found)

    got = certify(score, V, L)
    first = 2 if head == "noise" else 1  # positions that hang on no noise
    assert got.exact and got.stderr < 0.02 and (got.stderr > 1e-7) == (size > first)


@pytest.mark.parametrize("head", ["noise", "flow-map"])
def test_the_monte_carlo_error_of_a_bound_is_its_spread_over_draws(head):
    model, store = of_noise(head), every_string(V, 3, 0)
    found = [likelihoods(model, store, 4, [3], 64, True, seed) for seed in range(16)]
    for laws in ([one.direct[3] for one in found], [one.blocks[3] for one in found]):
        means = [
            law.sums.sum() / law.count.sum() if hasattr(law, "sums") else law.head.sum() / law.count.sum() / 3
            for law in laws
        ]
        told = np.mean([law.monte_carlo for law in laws])
        assert told == pytest.approx(np.std(means, ddof=1), rel=0.6) and told > 0
    assert likelihoods(fresh("block-chain"), store, 4, [3], 64, True).direct[3].monte_carlo is None


@pytest.mark.parametrize("name", SCORERS)
def test_the_oracle_is_certified_and_scores_the_law(name):
    oracle = Oracle()
    got = certify(lambda store: SCORERS[name](oracle, store), V, L)
    assert got.holds and got.total == pytest.approx(1, abs=1e-5)
    store = every_string(V, L, 0)
    scored = SCORERS[name](oracle, store)
    nats = dict(zip(map(tuple, store.tokens.reshape(-1, L + 1)[:, 1:].tolist()), scored, strict=True))
    for text, p in LAW.items():
        assert nats[text] == pytest.approx(-torch.tensor(p).log().item(), abs=1e-5)


def see_the_answer(model):
    """The head is fed x_0: every token it is about to score."""
    honest = model.head._terms

    def terms(ctx, x):
        inputs, tables = honest(ctx, x)
        peek = nn.functional.one_hot(model.peeked, V).float()
        return [*inputs, 3 * peek], [*tables, torch.eye(V)]

    def log_prob(ctx, x):
        model.peeked = x[:, 1:]
        return type(model.head).log_prob(model.head, ctx, x)

    model.head._terms, model.head.log_prob = terms, log_prob


def see_the_next_token(model):
    """The trunk's state at i is computed with token i + 1 in view."""
    honest = model.states

    def states(ids, *args):
        hidden, cache = honest(ids, *args)
        coming = nn.functional.embedding(ids.roll(-1, 1), model.get_output_embeddings().weight)
        return hidden + 3 * coming, cache

    model.states = states


def carry_from_another_step(model):
    """The context holds an estimate made at another position, which had read the answer by then."""
    honest = model.states

    def states(ids, *args):
        hidden, cache = honest(ids, *args)
        estimate = nn.functional.embedding(ids[:, 1:], model.get_output_embeddings().weight).sum(1, keepdim=True)
        return hidden + 2 * estimate, cache

    model.states = states


@pytest.mark.parametrize("name", ["block", "direct-2", "direct-4"])
@pytest.mark.parametrize("cheat", [see_the_answer, see_the_next_token, carry_from_another_step])
def test_a_network_that_has_seen_the_answer_breaks_it(name, cheat):
    model = fresh("block-chain")
    cheat(model)
    assert not certify(lambda store: SCORERS[name](model, store), V, L).holds


@pytest.mark.parametrize("cheat", [see_the_next_token, carry_from_another_step])
def test_a_trunk_that_has_seen_the_answer_breaks_the_chains_certificate(cheat):
    model = fresh("independent")
    cheat(model)
    assert not certify(lambda store: chain(model, store), V, L).holds


def test_a_score_cut_short_is_caught():
    model = fresh("block-chain")
    assert not certify(lambda store: 0.9 * chain(model, store), V, L).holds


def test_noise_is_counted_as_noise():
    model = fresh("independent")
    exact = chain(model, every_string(V, L, 0))
    generator = torch.Generator().manual_seed(0)

    def noisy(store):
        return exact + 0.3 * torch.randn(50, len(exact), generator=generator).numpy() + 0.3**2 / 2

    got = certify(noisy, V, L)
    assert got.holds and got.exact and got.stderr > 0
