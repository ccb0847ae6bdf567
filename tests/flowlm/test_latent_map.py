"""Codes of whole windows: what they are made of, what they must not show, and the map that walks among them."""

import pytest
import torch
from scipy import stats
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig, LlamaModel, T5Config, T5Model

from flowlm import FlowLM, FlowLMConfig, Known, MaskedDiffusionLM
from flowlm.contextual_codes import ContextualCodes
from flowlm.discrete.model import MaskedDiffusionConfig
from flowlm.writing import nothing
from flowmap.objectives.tokens import TokenStates
from flowmap.objectives.tokens.decoded import DecodedEndpoint
from flowmap.rng import Rng
from flowmap.samplers import SERIAL

V, N, D, H = 7, 5, 6, 12


def masked():
    backbone = {"width": H, "depth": 2, "heads": 2}
    return MaskedDiffusionLM(MaskedDiffusionConfig(vocab_size=V, length=N, backbone=backbone))


def bert():
    size = {"hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return BertModel(BertConfig(vocab_size=V, **size))


def llama():
    size = {"hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return LlamaModel(LlamaConfig(vocab_size=V, **size))


def t5():
    return T5Model(T5Config(vocab_size=V, d_model=H, d_kv=6, d_ff=16, num_layers=1, num_heads=2))


ENCODERS = {"masked": masked, "bert": bert, "llama": llama, "t5": t5}


def build(kind="masked", wild=0.3, **more):
    torch.manual_seed(0)
    encoder = ENCODERS[kind]()
    for parameter in encoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    config = FlowLMConfig(
        vocab_size=V, length=N, codebook="contextual", state_size=D, encoder=encoder.config.to_dict(), noise_scale=2.0,
        backbone={"width": 32, "depth": 2, "heads": 2}, **more,
    )  # fmt: skip
    model = FlowLM(config)
    own = encoder.get_encoder() if kind == "t5" else encoder
    model.map.codebook.encoder.load_state_dict(own.state_dict())
    model.map.codebook.fit(windows(400))
    for parameter in model.map.network.parameters():
        if wild and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=wild)
    return model.eval()


def windows(rows, seed=0):
    return torch.randint(V, (rows, N), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ENCODERS)
def test_codes_are_the_principal_directions_of_the_encoders_states_at_unit_variance(kind):
    book, tokens = build(kind).map.codebook, windows(400)
    c = book.encode(tokens).flatten(0, 1).double()
    with torch.no_grad():
        h = book.read(tokens).flatten(0, 1).double()
    singular = torch.linalg.svdvals(h - h.mean(0))[:D].square()
    expected = torch.diag(singular) / singular.mean() * len(h)
    assert torch.allclose(c.T @ c, expected, atol=1e-3 * len(h)) and c.mean(0).abs().max() < 1e-4
    assert c.square().mean().item() == pytest.approx(1, abs=1e-4)
    again = book.encode(tokens[:3])
    other = tokens[:3].clone()
    other[:, 0] = (other[:, 0] + 1) % V  # the whole window is looked at
    assert ((book.encode(other) - again)[:, -1].abs().amax(-1) > 1e-4).all()
    assert not any(p.requires_grad for p in book.parameters())
    assert not build(kind).map.codebook.train().encoder.training


@pytest.mark.parametrize("kind", ["masked", "bert", "t5", "llama"])
@torch.no_grad()
def test_what_is_known_is_encoded_without_what_is_not(kind):
    model, tokens = build(kind), windows(8)
    at = torch.arange(N).expand(8, N) < 3
    other = torch.where(at, tokens, (tokens + 1) % V)
    book = model.map.codebook
    assert torch.allclose(book.encode(tokens, at)[at], book.encode(other, at)[at], atol=1e-5)
    x, t = torch.randn(8, N, D), torch.full((8,), 0.4)
    for ask in (model.map.endpoint, model.map.logits):
        told = [ask(x, t, t, Known(some, at)) for some in (tokens, other)]
        torch.testing.assert_close(*told)
        changed = torch.where(at, (tokens + 1) % V, tokens)
        assert not torch.allclose(ask(x, t, t, Known(changed, at))[~at], told[0][~at])
    assert (model.map.logits(x, t, t, Known(tokens, at)).argmax(-1) == tokens)[at].all()


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_encoder_is_saved_with_the_model_bit_by_bit(kind, tmp_path):
    model = build(kind, self_conditioning=0.5)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    at = torch.arange(N).expand(6, N) < 2
    one, two = (m.write(Known(windows(6), at), Rng(1, torch.arange(6)), steps=2) for m in (model, again))
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.log_q, two.log_q)
    assert torch.equal(one.tokens[at], windows(6)[at])


@pytest.mark.parametrize("sampler", SERIAL)
@pytest.mark.parametrize("twice", [False, True])
def test_samplers_walk_to_time_0_and_one_more_call_reads(sampler, twice):
    model, times, heard = build(self_conditioning=0.5), [], []
    hook = model.map.network.register_forward_pre_hook(lambda _, args: times.append(float(args[1][0])))
    how = {"steps": 3, "sampler": sampler, "self_conditioning": twice, "watch": heard.append}
    out = model.write(nothing(torch.zeros(4, N, D)), Rng(1, torch.arange(4)), **how)
    hook.remove()
    assert out.nfe == len(times) == (5 if sampler == "heun" else 3) * (1 + twice) + 1
    assert times[-1] == 0 and min(times[:-1]) > 0 and len(heard) == 1


@torch.no_grad()
def test_at_the_exact_velocity_euler_walks_into_the_codes():
    """g put at the codes of one window: every sampler arrives there, and nowhere but there is anything read."""
    model, tokens = build(wild=0), windows(1)
    codes = model.map.codebook.encode(tokens)
    model.map.endpoint = lambda x, *_, **__: codes.expand_as(x)
    seen = []
    model.map.logits = lambda x, *_: (seen.append(x), torch.zeros(*x.shape[:2], V))[1]
    for sampler in SERIAL:
        model.write(nothing(torch.zeros(4, N, D)), Rng(1, torch.arange(4)), steps=4, sampler=sampler)
        torch.testing.assert_close(seen[-1], codes.expand(4, -1, -1), atol=1e-5, rtol=1e-4)


def exact_loss(model, objective, tokens, rng):
    """By rows and places, one at a time."""
    count, book, total = len(tokens), model.map.codebook, 0.0
    c = book.encode(tokens)
    reads = rng.uniform("decode", count) < objective.decode
    t = objective.times.draw(rng, "t", count).clamp_min(objective.t_min)
    eps, off = 2.0 * rng.normal("eps", *c.shape), objective.noise * rng.normal("off", *c.shape)
    u = torch.sigmoid(objective.corruption + objective.deviation * rng.normal("corruption", count, N))
    for row in range(count):
        one = slice(row, row + 1)
        if reads[row]:
            x = (1 - u[one, :, None]) * c[one] + u[one, :, None] * off[one]
            logits = model.map.logits(x, t[one] * 0, t[one] * 0)
            total -= sum(logits.log_softmax(-1)[0, place, tokens[row, place]] for place in range(N))
            continue
        x = (1 - t[row]) * c[one] + t[row] * eps[one]
        g = model.map.endpoint(x, t[one], t[one])
        velocity, aim = (x - g) / t[row], eps[one] - c[one]
        total += (velocity - aim).square().mean(-1).sum()
    return total, reads


def test_the_objective_is_velocity_regression_and_decoding_by_the_book():
    model, tokens, rng = build(), windows(24), Rng(3, torch.arange(24))
    objective = DecodedEndpoint(decode=0.4)
    loss = objective(model.map, TokenStates(tokens), rng=rng, step=0)
    expected, reads = exact_loss(model, objective, tokens, rng)
    assert 0 < reads.sum() < 24
    torch.testing.assert_close(loss.sum, expected, rtol=1e-4, atol=1e-3)
    assert loss.count == 24 * N and {name: int(count) for name, (_, count) in loss.metrics.items()} == {
        "endpoint": N * int((~reads).sum()), "cross_entropy": N * int(reads.sum()),
    }  # fmt: skip
    loss.sum.backward()
    assert all(p.grad is None for p in model.map.codebook.parameters())
    parts = [
        objective(model.map, TokenStates(tokens[r]), rng=Rng(3, r), step=0)
        for r in (torch.arange(9), torch.arange(9, 24))
    ]
    torch.testing.assert_close(sum(p.sum for p in parts), loss.sum, rtol=1e-4, atol=1e-3)
    law = objective.times.draw(Rng(5, torch.arange(4000)), "t", 4000)
    assert law.logit().mean().item() == pytest.approx(1.5, abs=0.05) and law.median() > 0.5  # mostly noise


def test_known_tokens_cost_nothing():
    model, tokens = build(self_conditioning=0.5), windows(24)
    at = torch.arange(N).expand(24, N) < 2
    for some, count in ((at, 24 * (N - 2)), (torch.ones_like(at), 0)):
        states = TokenStates(tokens, Known(tokens, some), ~some)
        loss = DecodedEndpoint(self_conditioning=0.5)(model.map, states, rng=Rng(3, torch.arange(24)), step=0)
        assert loss.count == count and bool(loss.sum > 0.1) == (count > 0)


LAW = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [2, 3, 4, 5, 6], [3, 4, 5, 6, 0]])
"""Windows that share no token in the same place: of tokens drawn apart 1 in 256 would be one of them."""


@torch.no_grad()
def test_by_the_exact_posterior_every_window_of_a_law_is_written_as_often_as_it_should():
    model, rows = build(wild=0), 1200
    book = model.map.codebook
    book.fit(LAW)
    codes = book.encode(LAW)

    def posterior(x, t, *_, **__):
        apart = (x[:, None] - (1 - t)[:, None, None, None] * codes).square().flatten(2).sum(-1)
        return torch.einsum("bw,wnd->bnd", (-apart / (2 * (2.0 * t[:, None]) ** 2)).softmax(-1), codes)

    model.map.endpoint = posterior
    model.map.logits = lambda x, *_: (
        torch.nn.functional.one_hot(LAW[(x[:, None] - codes).square().sum((2, 3)).argmin(1)], V) * 50.0
    )
    out = model.write(nothing(torch.zeros(rows, N, D)), Rng(9, torch.arange(rows)), steps=64, sampler="heun")
    often = torch.stack([(out.tokens == window).all(1).sum() for window in LAW])
    assert often.sum() == rows and stats.chisquare(often.numpy()).pvalue > 1e-3


def test_what_is_learned_of_these_windows_is_whole_ones():
    model = build(wild=0)
    model.map.codebook.fit(LAW)
    objective, rows = DecodedEndpoint(), torch.arange(128)
    optimizer = torch.optim.Adam(model.map.network.parameters(), 4e-3)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 300)
        loss = objective(model.map, TokenStates(LAW.repeat(32, 1)), rng=Rng(0, rows, step), step=step)
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()
    out = model.write(nothing(torch.zeros(400, N, D)), Rng(9, torch.arange(400)), steps=8, sampler="ddim")
    whole = (out.tokens[:, None] == LAW).all(-1).any(-1).float().mean()
    assert whole > 0.5  # and not 0.004


def test_what_has_no_meaning_is_one_line():
    book = build().map.codebook
    for ask in (book.codes, lambda: book.expected(torch.zeros(1, 1, V)), lambda: book.decode(torch.zeros(1, 1, D))):
        with pytest.raises(ValueError, match="no table"):
            ask()
    for more, what in (
        ({"prior": True}, "no matched filter"),
        ({"path": "slerp"}, "slerp"),
        ({"block_lengths": [1]}, "whole windows"),
        ({"noise": "token"}, "whole windows"),
        ({"rounding": {"depth": 1}}, "decode mode"),
    ):
        with pytest.raises(ValueError, match=what):
            build(**more)
    with pytest.raises(ValueError, match="codes that have a table"):
        build().generate(num_steps=2, sampler="ddim", score_temperature=0.5)
    with pytest.raises(ValueError, match="needs an encoder"):
        FlowLM(FlowLMConfig(codebook="contextual"))
    with pytest.raises(ValueError, match=f"have {H} dimensions"):
        ContextualCodes(masked(), V, H + 1)
    with pytest.raises(ValueError, match="same of every token"):
        ContextualCodes(masked(), V, D).fit(torch.zeros(4, N, dtype=torch.long))
