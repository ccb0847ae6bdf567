"""Masked diffusion block after block: an exact chain at blocks of one token, the whole-window model at one block."""

import itertools

import pytest
import torch
from scipy import stats

from flowlm import Known, MaskedDiffusionLM
from flowlm.blocks import Blocks
from flowlm.discrete.likelihood import nelbo
from flowlm.discrete.masked import LAWS, MaskedDiffusion, blank_nll, by_time
from flowlm.discrete.model import MaskedDiffusionConfig
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng

V, N = 3, 4
WINDOWS = torch.tensor(list(itertools.product(range(V), repeat=N)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = {"width": 16, "depth": 2, "heads": 2}
    made = MaskedDiffusionLM(
        MaskedDiffusionConfig(vocab_size=V, length=N, block_lengths=[1, 2, 4], backbone=backbone)  # type: ignore[call-arg]
    ).eval()
    for part in made.parameters():
        if part.ndim > 1:
            torch.nn.init.normal_(part, std=0.12)
    return made


def nothing(tokens):
    at = torch.zeros_like(tokens, dtype=torch.bool)
    return Known(tokens, at)


def windows(tokens, size, known=None):
    known = known or nothing(tokens)
    sizes = torch.full((len(tokens),), size)
    levels = (torch.arange(N) // size).expand_as(tokens)
    return TokenStates(tokens, Blocks(tokens, sizes, known), ~known.at, levels)


@torch.no_grad()
def chain(model):
    """−log P of every window where each block is one token, always blank."""
    x = torch.full_like(WINDOWS, model.map.blank)
    logits = model.map.logits(x, torch.ones(len(x)), windows(WINDOWS, 1).context)
    return -logits.log_softmax(-1).gather(-1, WINDOWS[..., None])[..., 0].double().sum(1)


def test_blocks_of_one_token_are_an_exact_chain(model):
    """Certificate: a block that saw its own clean token, or a later one, would add up to more."""
    assert chain(model).neg().exp().sum() == pytest.approx(1, abs=1e-6)


def test_the_bound_of_blocks_of_one_is_that_chain_and_of_longer_ones_sums_to_one_at_most(model):
    scores = {
        size: nelbo(model.map, windows(WINDOWS, size), Rng(0, torch.arange(len(WINDOWS))), 400) for size in (1, 2)
    }
    torch.testing.assert_close(
        scores[1].nats, chain(model), atol=1e-4, rtol=1e-4
    )  # of one place, k = n = 1: nothing is drawn
    spread = scores[2].stderr
    total = (scores[2].nats.neg().exp() * (1 - spread**2 / 2)).sum()
    assert 0.3 < total < 1 + 3 * float((scores[2].nats.neg().exp() * spread).square().sum().sqrt())


def test_one_block_is_the_whole_window(model):
    tokens = WINDOWS[::7]
    x = tokens.masked_fill(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.5, model.map.blank)
    t = torch.full((len(x),), 0.5)
    whole, one = model.map.logits(x, t), model.map.logits(x, t, windows(tokens, N).context)
    torch.testing.assert_close(whole, one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_a_block_sees_clean_tokens_before_it_and_its_own_blanks_alone(model, size):
    tokens = WINDOWS[50:51].repeat(N, 1)
    changed = tokens.clone()
    changed[torch.arange(N), torch.arange(N)] = (changed[torch.arange(N), torch.arange(N)] + 1) % V  # row l: token l
    x, t = torch.full_like(tokens, model.map.blank), torch.ones(N)
    before, after = (model.map.logits(x, t, windows(text, size).context) for text in (tokens, changed))
    moved = (before - after).abs().amax(-1) > 0
    block = torch.arange(N) // size
    assert not moved[block[:, None] >= block].any()  # row's token at or behind the place's block
    assert moved[block[:, None] < block].all()


@pytest.mark.parametrize("law", LAWS)
def test_blanks_have_a_time_a_block(law):
    at = torch.arange(N).expand(4000, N) == 1
    batch = windows(torch.zeros(4000, N, dtype=torch.long), 2, Known(at.long(), at))
    drawn = LAWS[law](Rng(0, torch.arange(4000)), "blank", batch)
    assert drawn.t.shape == (4000, N) and (drawn.t[:, 2] == drawn.t[:, 3]).all()
    assert not drawn.at[:, 1].any()
    mean = (drawn.at * drawn.weight).mean(0)
    assert mean[[0, 2, 3]].tolist() == pytest.approx([1, 1, 1], abs=0.15 if law == "time" else 0.05)
    if law == "time":
        assert torch.corrcoef(drawn.t[:, [0, 2]].T)[0, 1].abs() < 0.05
    else:  # of one open place that, of two one or both
        assert drawn.at[:, 0].all() and set(drawn.at[:, 2:].sum(1).tolist()) == {1, 2}


def test_clipped_times_lie_where_they_are_asked_to_and_weigh_every_token_as_before():
    batch, rng = windows(torch.zeros(4000, N, dtype=torch.long), 2), Rng(0, torch.arange(4000))
    drawn = MaskedDiffusion(least=0.3, most=0.8).law(rng, "blank", batch)
    assert 0.3 < drawn.t.min() < 0.31 and 0.79 < drawn.t.max() <= 0.8
    assert (drawn.at * drawn.weight).mean(0).tolist() == pytest.approx([1] * N, abs=0.08)
    assert torch.equal(by_time(rng, "blank", batch).t, MaskedDiffusion().law(rng, "blank", batch).t)
    for more in ({"least": 0.8, "most": 0.3}, {"blanks": "count", "most": 0.5}):
        with pytest.raises(ValueError, match="times rise from 0 to 1, and counts are not cut"):
            MaskedDiffusion(**more)


def test_blocks_learn_alike_in_slices(model):
    batch, rows = windows(WINDOWS, 2), torch.arange(len(WINDOWS))
    for law in LAWS:
        whole = MaskedDiffusion(law)(model.map, batch, rng=Rng(0, rows), step=0)
        parts = [MaskedDiffusion(law)(model.map, batch[part], rng=Rng(0, part), step=0) for part in rows.split(27)]
        torch.testing.assert_close(whole.sum, sum(part.sum for part in parts), rtol=1e-4, atol=1e-3)


def test_known_tokens_of_blocks_are_never_blank_and_cost_nothing(model):
    at = torch.arange(N).expand_as(WINDOWS) == 2
    batch = windows(WINDOWS, 2, Known(WINDOWS, at))
    drawn = by_time(Rng(0, torch.arange(len(WINDOWS))), "blank", batch)
    assert not drawn.at[:, 2].any() and not blank_nll(model.map, batch, drawn)[:, 2].any()


@pytest.mark.parametrize("size, steps", [(1, 1), (2, 2)])
def test_what_is_written_block_after_block_has_the_law_of_the_conditionals(model, size, steps):
    """Blocks of one in one pass: the chain, by χ². Blocks of two, a token a pass: any order within a block, so that the two
    orders' chains are averaged."""
    rows = 20_000
    blank = nothing(torch.zeros(rows, N, dtype=torch.long))
    out = model.write(blank, Rng(3, torch.arange(rows)), steps=steps, sampler="even", block_length=size)
    assert out.nfe == steps * N // size
    counts = torch.bincount((out.tokens * V ** torch.arange(N - 1, -1, -1)).sum(1), minlength=V**N)
    law = chain(model).neg().exp() if size == 1 else in_either_order(model)
    assert law.sum() == pytest.approx(1, abs=1e-5)
    assert stats.chisquare(counts.numpy(), (law / law.sum() * rows).numpy()).pvalue > 1e-3
    other = torch.full_like(law, 1 / V**N)
    assert stats.chisquare(counts.numpy(), (other * rows).numpy()).pvalue < 1e-10


@torch.no_grad()
def in_either_order(model):
    """P of every window in blocks of two, one token a pass, both orders alike likely in each block."""
    law = torch.ones(len(WINDOWS), dtype=torch.float64)
    context, t = windows(WINDOWS, 2).context, torch.ones(len(WINDOWS))
    blank = torch.full_like(WINDOWS, model.map.blank)

    def nats(x):
        return -model.map.denoise(x, t, context).log_softmax(-1).gather(-1, WINDOWS[..., None])[..., 0].double()

    alone = nats(blank)
    for first in (0, 2):
        second = first + 1
        shown = [nats(torch.where(torch.arange(N) == place, WINDOWS, blank)) for place in (first, second)]
        law = (
            law * ((-alone[:, first] - shown[0][:, second]).exp() + (-alone[:, second] - shown[1][:, first]).exp()) / 2
        )
    return law
