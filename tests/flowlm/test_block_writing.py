"""Block after block: a cache changes nothing but the work, calls are counted, rows end apart, streams tell what is settled."""

import pytest
import torch
from transformers import AutoModel

from flowlm import Known
from flowlm.blocks import Blocks
from flowlm.writing import write
from flowmap.path import Path
from flowmap.rng import Rng
from flowmap.samplers import SERIAL
from flowmap.warp import Warp
from tests.flowlm.test_blocks import N, V, build
from tests.flowlm.test_flow_generation import Listener

ROWS = 40


@pytest.fixture(scope="module")
def model():
    made = build(block_lengths=[1, 3, 4, 12], noise="block", prior=True)
    for parameter in made.map.network.parameters():
        parameter.data *= 0.8  # laws that are spread out
    return made


def draws(model, block, rows=ROWS, seed=5, **how):
    like = model.blank_states(torch.zeros(rows, N, dtype=torch.long))
    with torch.no_grad():
        return write(model.map, like, Rng(seed, torch.arange(rows)), block=block, **how)


def some_known(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return Known(torch.randint(V, (ROWS, N), generator=generator), torch.rand(ROWS, N, generator=generator) < 0.3)


@pytest.mark.parametrize("sampler", SERIAL)
@pytest.mark.parametrize("block", [1, 4, 12])
def test_with_a_cache_and_without_the_same_tokens_at_the_same_chance(model, sampler, block):
    heard = [[], []]
    for told, cached in zip(heard, (True, False), strict=True):
        out = draws(model, block, known=some_known(), sampler=sampler, steps=3, cached=cached, told=told.append)
        told.append(out)
    (*parts, out), (*plain, again) = heard
    assert torch.equal(out.tokens, again.tokens) and out.nfe == again.nfe
    torch.testing.assert_close(out.log_q, again.log_q, atol=1e-5, rtol=1e-4)
    assert [part.shape[1] for part in parts] == [part.shape[1] for part in plain] == list(range(block, N + 1, block))


@torch.no_grad()
def test_it_is_the_doubled_pass_taken_block_by_block(model):
    """The same noise put into whole windows behind the tokens that were written, as in training."""
    block, known = 4, some_known()
    out, rows = draws(model, block, known=known), torch.arange(ROWS)
    sizes, one, zero = torch.full((ROWS,), block), torch.ones(ROWS), torch.zeros(ROWS)
    for number in range(N // block):
        here, own = slice(number * block, (number + 1) * block), Rng(5, rows * (N // block) + number)
        x = torch.zeros(ROWS, N, 4)
        x[:, here] = model.map.path.draw_noise(own, "z", x[:, here])
        logits = model.map.logits(x, one, zero, Blocks(out.tokens, sizes, known))[:, here]
        tokens, log_q = Warp().draw(logits, own.uniform("token", ROWS, block))
        assert torch.equal(tokens, out.tokens[:, here])
        torch.testing.assert_close(log_q, out.log_q[:, here], atol=1e-5, rtol=1e-4)
    assert torch.equal(out.tokens[known.at], known.tokens[known.at]) and (out.log_q[known.at] == 0).all()


def test_one_block_is_a_window_written_as_a_whole(model):
    for how in ({"steps": 3}, {"steps": 2, "sampler": "ddpm"}):
        whole, one = draws(model, None, **how), draws(model, N, **how)
        assert torch.equal(whole.tokens, one.tokens) and whole.nfe == one.nfe


@pytest.mark.parametrize("sampler, each", [("pushforward", 3), ("heun", 5)])
def test_every_call_is_counted_and_what_is_known_costs_none(model, sampler, each):
    at = torch.arange(N).expand(ROWS, N) < 5  # the first block of four, and one token of the second
    known, calls = Known(torch.ones(ROWS, N, dtype=torch.long), at), []
    hook = model.map.network.register_forward_hook(lambda *_: calls.append(1))
    out = draws(model, 4, known=known, sampler=sampler, steps=3)
    hook.remove()
    assert out.nfe == len(calls) == 2 * each and (out.calls == 2 * each).all()


def test_the_noise_of_each_block_and_of_each_of_its_steps_is_its_own(model, monkeypatch):
    drawn, real = [], Path.draw_noise
    monkeypatch.setattr(Path, "draw_noise", lambda *args: drawn.append(real(*args)) or drawn[-1])
    draws(model, 4, sampler="restart", steps=2)
    assert len(drawn) == 6  # of each block its start, and one restart
    alike = torch.corrcoef(torch.stack(drawn).flatten(1)) - torch.eye(6)
    assert alike.abs().max() < 5 / drawn[0].numel() ** 0.5


def test_rows_that_end_are_left_and_the_others_go_on_as_they_would_have(model):
    whole = draws(model, 4, steps=2)
    out = draws(model, 4, steps=2, ends=[2, 5])
    ended = torch.isin(out.tokens, torch.tensor([2, 5])).view(ROWS, 3, 4).any(2)
    blocks = torch.where(ended.any(1), ended.long().argmax(1) + 1, 3)
    assert torch.equal(out.calls, 2 * blocks) and len(set(blocks.tolist())) > 1
    for row, count in enumerate(blocks.tolist()):
        assert torch.equal(out.tokens[row, : 4 * count], whole.tokens[row, : 4 * count])
        assert not out.tokens[row, 4 * count :].any()
    given = Known(torch.full((ROWS, N), 2), torch.arange(N).expand(ROWS, N) < 4)  # an end that was given ends nothing
    assert draws(model, 4, known=given, ends=[2]).calls.min() > 0


def test_generate_writes_until_all_rows_have_ended():
    model = build(block_lengths=[3, 4], eos_token_id=2, pad_token_id=6)
    out = model.generate(
        torch.tensor([[2, 0]]), num_return_sequences=60, do_sample=True, temperature=10.0, num_steps=2,
        return_dict_in_generate=True,
    )  # fmt: skip
    lengths = []
    for row in out.sequences.tolist():
        ends = [i for i in range(2, N) if row[i] == 2]
        lengths.append(ends[0] + 1 if ends else N)
        assert all(token == 6 for token in row[lengths[-1] :])
    blocks = sum(-(-length // 4) for length in lengths)  # the longest blocks are the default
    assert out.tokens_per_forward == pytest.approx(sum(n - 2 for n in lengths) / (2 * blocks)) and len(set(lengths)) > 3
    short = model.generate(torch.tensor([[1, 0]]), max_new_tokens=2, return_dict_in_generate=True)
    assert short.sequences.shape == (1, 4) and short.nfe == 1


def test_a_stream_hears_each_block_when_it_is_settled():
    model, listener = build(block_lengths=[4]), Listener()
    rows = model.generate(torch.tensor([[1, 3]]), num_steps=2, streamer=listener)
    assert [len(part.flatten()) for part in listener.put_] == [2, 2, 4, 4] and listener.ended
    assert torch.equal(torch.cat([part.flatten() for part in listener.put_]), rows[0])
    assert [draft.shape[1] for draft in listener.drafts] == [2, 2, 4, 4, 4, 4]  # of what is not settled yet
    assert torch.equal(listener.drafts[3][0], rows[0, 4:8])


def test_blocks_are_kept_beside_the_weights(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert again.config.block_lengths == [1, 3, 4, 12] and again.config.noise == "block"
    torch.manual_seed(0)
    rows = model.generate(block_length=3, num_steps=2, do_sample=True)
    torch.manual_seed(0)
    assert torch.equal(rows, again.generate(block_length=3, num_steps=2, do_sample=True))


@pytest.mark.parametrize(
    "made, how, what",
    [
        ({"block_lengths": [5]}, {}, r"5 does not divide a window of 12: \[1, 2, 3, 4, 6, 12\] do"),
        ({"noise": "block"}, {}, "needs block lengths"),
        ({"noise": "word"}, {}, "sample, block, token"),
        ({"causal": True, "block_lengths": [4]}, {}, "exclude each other"),
        ({"block_lengths": [4]}, {"block_length": 3}, "trained with 4"),
        ({}, {"block_length": 4}, "trained with 12"),
        ({"block_lengths": [4]}, {"delay": 1}, "times of their own"),
        ({"block_lengths": [4]}, {"delay": -1}, "0 steps or more"),
        ({"noise": "token", "causal": True}, {"delay": 1, "order": "random"}, "from left to right"),
        ({"noise": "token"}, {"delay": 1, "sampler": "heun"}, "pushforward or ddim"),
        ({"noise": "token"}, {"delay": 1, "order": "inwards"}, "in the order of"),
    ],
)
def test_what_cannot_be_is_one_line(made, how, what):
    with pytest.raises(ValueError, match=what):
        build(**made).generate(**how)


def test_what_is_known_behind_an_open_block_is_refused_and_inside_one_is_not():
    model = build(block_lengths=[4, 12])
    window, known = torch.ones(1, N, dtype=torch.long), torch.zeros(1, N, dtype=torch.bool)
    known[0, [3, 7]] = True
    with pytest.raises(ValueError, match="nothing of what is known behind"):
        model.generate(window, known=known, block_length=4)
    assert (model.generate(window, known=known)[known] == 1).all()  # one block sees all of it
    known[0, :7] = True
    assert model.generate(window, known=known, block_length=4).shape == (1, N)
