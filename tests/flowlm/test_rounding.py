"""The contextual decoder: causal, one law however it is computed, exact on codes, and joint where softmaxes are not."""

import itertools

import pytest
import torch
from scipy import stats
from transformers import AutoModel

from flowlm import FlowLM, FlowLMConfig, Known
from flowlm.rounding import WithRounding
from flowlm.writing import nothing
from flowmap.objectives.tokens import CrossEntropy, ProgressiveKL, TokenStates
from flowmap.rng import Rng
from flowmap.warp import Warp
from tests.flowmap.six_hands import INDEPENDENT, TOKENS, WORDS, hands

V, N = 5, 3
EVERY = torch.tensor(list(itertools.product(range(V), repeat=N)))


def build(vocab=V, length=N, wild=0.3, **more):
    """wild: deviation of the weights; 0: a fresh network, whose map expects the mean code whatever it sees."""
    torch.manual_seed(0)
    sizes = {"backbone": {"width": 32, "depth": 1, "heads": 2}, "rounding": {"depth": 2}}
    model = FlowLM(FlowLMConfig(vocab_size=vocab, length=length, codebook="embedding", state_size=4, **sizes | more))
    for parameter in model.parameters():
        if wild and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=wild)
    return model.eval()


def teach(model, batch, states, steps):
    """The decoder alone, on these states of these tokens."""
    decoder, read = model.map.rounding, model.map.clean_states
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    for _ in range(steps):
        before = torch.nn.functional.pad(read(batch), (0, 0, 1, 0))[:, :-1]
        loss = torch.nn.functional.cross_entropy(decoder.logits(states, before).transpose(1, 2), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def model():
    return build()


def said(model, states, tokens):
    """log p of every token behind the true ones before it, in one pass."""
    before = torch.nn.functional.pad(model.map.clean_states(tokens), (0, 0, 1, 0))[:, :-1]
    logits = model.map.rounding.logits(states, before)
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


@torch.no_grad()
def test_what_is_written_behind_a_cache_has_the_chance_that_one_pass_gives_it(model):
    states = torch.randn(40, N, 4)
    at = torch.rand(40, N) < 0.3
    for known in (
        nothing(states),
        Known(torch.randint(V, (40, N)), at),
        Known(torch.ones(40, N).long(), at | (torch.arange(N) < 1)),
    ):
        tokens, log_q, calls = model.map.rounding.write(
            states, known, model.map.clean_states, Warp(), torch.rand(40, N)
        )
        assert torch.equal(tokens[known.at], known.tokens[known.at])
        expected = said(model, states, tokens).masked_fill(known.at, 0.0)
        torch.testing.assert_close(log_q, expected, atol=1e-5, rtol=1e-4)
        assert calls == N - int(known.at[:, 0].all())


@torch.no_grad()
def test_a_token_knows_all_states_and_the_tokens_before_it_and_no_other(model):
    states, tokens = torch.randn(1, N, 4), torch.tensor([[1, 2, 3]])
    base = said(model, states, tokens)
    for place in range(N):
        other = tokens.clone()
        other[0, place] = 4
        before = torch.nn.functional.pad(model.map.clean_states(other), (0, 0, 1, 0))[:, :-1]
        plain = torch.nn.functional.pad(model.map.clean_states(tokens), (0, 0, 1, 0))[:, :-1]
        moved = (
            (model.map.rounding.logits(states, before) - model.map.rounding.logits(states, plain)).abs().amax((0, 2))
        )
        assert (moved[: place + 1] < 1e-6).all() and (moved[place + 1 :] > 1e-3).all()
        shown = states.clone()
        shown[0, place] += 1
        assert ((said(model, shown, tokens) - base).abs() > 1e-4).all()


@torch.no_grad()
def test_windows_are_as_often_as_the_product_of_conditionals_says(model):
    rows, states = 20_000, torch.randn(1, N, 4)
    law = said(model, states.expand(len(EVERY), -1, -1), EVERY).sum(1).exp()
    assert law.sum() == pytest.approx(1, abs=1e-4)
    whole = states.expand(rows, -1, -1)
    uniform = Rng(3, torch.arange(rows)).uniform("token", rows, N)
    tokens, *_ = model.map.rounding.write(whole, nothing(whole), model.map.clean_states, Warp(), uniform)
    seen = torch.bincount((tokens * torch.tensor([V * V, V, 1])).sum(1), minlength=V**N).double()
    big = law * rows > 8
    expected = (law * rows)[big].double()
    value = ((seen[big] - expected).square() / expected).sum() + (seen[~big].sum() - (law[~big].sum() * rows)) ** 2 / (
        law[~big].sum() * rows
    ).clamp_min(1)
    assert stats.chi2.sf(float(value), int(big.sum())) > 1e-3


def test_states_that_are_codes_are_rounded_exactly():
    """All windows there are, after teaching; before it the decoder knows nothing."""
    model = build(wild=0)
    states = model.map.clean_states(EVERY).detach()

    def read(states):
        return model.map.rounding.write(
            states, nothing(states), model.map.clean_states, Warp(0.0), torch.zeros(len(EVERY), N)
        )

    assert not torch.equal(read(states)[0], EVERY)
    teach(model, EVERY, states, 150)
    assert torch.equal(read(states)[0], EVERY)


def test_where_states_leave_all_open_hands_are_valid_and_words_drawn_apart_are_not():
    """A fresh map expects the mean code everywhere: as near to every word as codes of one length can be."""
    model, rows = build(len(WORDS), 2, wild=0), 3000
    objective = WithRounding(CrossEntropy())
    optimizer, batch = torch.optim.Adam(model.map.rounding.parameters(), 3e-3), hands(96)
    for step in range(150):
        loss = objective(model.map, TokenStates(batch), rng=Rng(1, torch.arange(96), step), step=step)
        optimizer.zero_grad()
        loss.sum.backward()
        optimizer.step()
    assert loss.metrics["rounding"][0] / 96 < 1.02 * torch.log(torch.tensor(6.0))  # of a hand; taken apart 3.1 nats
    assert INDEPENDENT > 3
    known = nothing(torch.zeros(rows, 2, 4))
    codes = torch.tensor([10, 1])
    valid = {}
    for decoder in ("contextual", "softmax"):
        out = model.write(known, Rng(7, torch.arange(rows)), decoder=decoder)
        found = torch.isin((out.tokens * codes).sum(1), (TOKENS * codes).sum(1))
        valid[decoder] = found.float().mean().item()
        if decoder == "contextual":
            often = torch.stack([(out.tokens == hand).all(1).sum() for hand in TOKENS]).double()
            assert stats.chisquare(often.numpy()).pvalue > 1e-4
    assert valid["contextual"] > 0.99 and valid["softmax"] < 0.3
    sure = model.write(known, Rng(7, torch.arange(rows)), warp=Warp(0.0))  # its temperature is the decoder's
    assert len(sure.tokens.unique(dim=0)) == 1


@pytest.mark.parametrize("steps", [1, 3])
def test_calls_of_the_map_and_of_the_decoder_are_counted_apart(steps):
    model, calls = build(self_conditioning=0.5), {"map": 0, "decoder": 0}

    def counter(name):
        def count(*_):
            calls[name] += 1

        return count

    hooks = [
        part.register_forward_hook(counter(name))
        for name, part in (("map", model.map.network), ("decoder", model.map.rounding.network))
    ]
    out = model.generate(torch.tensor([[1]]), num_steps=steps, return_dict_in_generate=True, num_return_sequences=4)
    assert (out.nfe, out.decoder_calls) == (calls["map"], calls["decoder"]) == (2 * steps, N - 1)
    assert out.tokens_per_forward == pytest.approx((N - 1) / (2 * steps + N - 1))
    plain = model.generate(torch.tensor([[1]]), num_steps=steps, decoder="softmax", return_dict_in_generate=True)
    assert (plain.nfe, plain.decoder_calls, calls["decoder"]) == (2 * steps, 0, N - 1)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kind", [CrossEntropy, ProgressiveKL])
def test_the_decoders_loss_moves_the_decoder_alone_and_slices_add_up(kind):
    model, tokens = build(), torch.randint(V, (8, N), generator=torch.Generator().manual_seed(0))
    at = torch.arange(N).expand(8, N) < 1
    states, told = TokenStates(tokens, Known(tokens, at), ~at), []
    for objective in (kind(), WithRounding(kind())):
        model.zero_grad()
        loss = objective(model.map, states, rng=Rng(3, torch.arange(8)), step=0)
        loss.sum.backward()
        told.append(
            [
                p.grad.clone()
                for name, p in model.map.named_parameters()
                if "rounding" not in name and p.grad is not None
            ]
        )
    assert all(torch.allclose(a, b) for a, b in zip(*told, strict=True))
    assert any(p.grad.abs().sum() > 0 for p in model.map.rounding.parameters())
    parts = [objective(model.map, states[r], rng=Rng(3, r), step=0) for r in (torch.arange(3), torch.arange(3, 8))]
    torch.testing.assert_close(sum(p.sum for p in parts), loss.sum)
    whole = TokenStates(tokens, Known(tokens, torch.ones_like(at)), torch.zeros_like(at))
    assert objective(model.map, whole, rng=Rng(3, torch.arange(8)), step=0).metrics["rounding"][0] == 0


def test_the_nearest_code_of_where_the_last_jump_lands_is_taken():
    """Which is not always the likeliest token: a mean of codes may lie next to a third."""
    model = build(wild=0.15)
    at = torch.arange(N).expand(300, N) == 1
    known, rng = Known(torch.full((300, N), 2), at), Rng(3, torch.arange(300))
    out = model.write(known, rng, decoder="nearest")
    context = known
    z, one = model.map.path.draw_noise(rng, "z", torch.zeros(300, N, 4)), torch.ones(300)
    landed, codes = model.map.endpoint(z, one, 0 * one, context), model.map.codebook.codes()
    assert torch.equal(out.tokens, torch.cdist(landed, codes.expand(300, -1, -1)).argmin(-1))
    assert (out.tokens[:, 1] == 2).all() and not out.log_q.any() and (out.nfe, out.decoder_calls) == (1, 0)
    likeliest = model.map.logits(z, one, 0 * one, context).argmax(-1)
    assert 0.02 < (out.tokens != likeliest).float().mean() < 0.9


def test_it_is_saved_with_the_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    again, known = AutoModel.from_pretrained(tmp_path), nothing(torch.zeros(20, N, 4))
    one, two = (m.write(known, Rng(1, torch.arange(20))) for m in (model, again))
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.log_q, two.log_q) and one.decoder_calls == N


def test_what_it_cannot_do_is_one_line(model):
    known, rng = nothing(torch.zeros(2, N, 4)), Rng(1, torch.arange(2))
    with pytest.raises(ValueError, match="known are softmax, contextual, nearest"):
        model.write(known, rng, decoder="argmax")
    with pytest.raises(ValueError, match="trained without it, take softmax"):
        build(rounding=None).write(known, rng, decoder="contextual")
    apart = build(noise="token")
    for decoder in ("contextual", "nearest"):
        with pytest.raises(ValueError, match="draws tokens as they arrive"):
            apart.write(known, rng, decoder=decoder, delay=1)
    assert apart.write(known, rng, delay=1).decoder_calls == 0
    with pytest.raises(ValueError, match="reads whole windows"):
        build(block_lengths=[1, 3])
