import pytest
import torch

from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp import MTPForCausalLM
from mtp.decoding.direct import compiled_step, decode, pad_left
from mtp.heads import NAMES

PROMPTS = [[3, 7, 1], [5], [2, 9, 4, 4, 8]]


def build(trunk, name, block_size=3):
    model = MTPForCausalLM.from_trunk(trunk, name, block_size).eval()
    torch.manual_seed(2)
    if name:
        for parameter in model.head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def slow_decode(model, prompt, row, steps, warp, seed):
    """One row, no cache, no padding: the trunk reads the whole text anew for every block."""
    size = model.head.block_size if model.head else 1
    noise = Rng(seed, torch.tensor([row])).uniform("decode", 1, steps, size)
    text = torch.tensor([prompt])
    for step in range(steps):
        hidden, _ = model.states(text)
        ctx = model.anchored(hidden, text, torch.arange(text.shape[1])[None] == text.shape[1] - 1)
        if model.head is None:
            block = warp.draw(ctx.first_logits(), noise[:, step, 0])[0][:, None]
        else:
            block = model.head.sample(ctx, warp, noise=noise[:, step]).tokens
        text = torch.cat([text, block], 1)
    return text[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", [*NAMES, None])
@pytest.mark.parametrize("warp", [Warp(), Warp(0.0), Warp(0.7, 0.8)])
def test_cache_padding_and_batching_change_nothing(trunk, name, warp):
    model = build(trunk, name)
    steps = 4
    length = steps * (3 if name else 1)
    out = decode(model, *pad_left(PROMPTS, 0), max_new_tokens=length, warp=warp, seed=9)
    with torch.inference_mode():
        for row, prompt in enumerate(PROMPTS):
            assert out.tokens[row].tolist() == slow_decode(model, prompt, row, steps, warp, 9)
    assert out.trunk_passes == steps
    assert out.tokens_per_forward == length / steps


def test_a_row_draws_the_same_text_in_any_batch(trunk):
    model = build(trunk, "recurrent-chain")
    ids, mask = pad_left([[3, 7]] * 6, 0)
    whole = decode(model, ids, mask, max_new_tokens=9, seed=4)
    part = decode(model, ids[:2], mask[:2], max_new_tokens=9, seed=4, rows=torch.tensor([4, 5]))
    assert torch.equal(whole.tokens[4:], part.tokens)


def test_stop_tokens_inside_a_block_end_a_row_there_and_nowhere_else(trunk):
    model = build(trunk, "block-chain", block_size=4)
    ids, mask = pad_left(PROMPTS * 4, 0)
    free = decode(model, ids, mask, max_new_tokens=22, seed=1)
    stops = (6, 11)
    out = decode(model, ids, mask, max_new_tokens=22, seed=1, stop_tokens=stops, pad_token=19)
    for row in range(len(ids)):
        text = free.tokens[row].tolist()
        ends = [i + 1 for i, token in enumerate(text) if token in stops]
        length = ends[0] if ends else 22
        assert out.lengths[row] == length and bool(out.stopped[row]) == bool(ends)
        assert out.tokens[row, :length].tolist() == text[:length]
        assert (out.tokens[row, length:] == 19).all() and (out.log_q[row, length:] == 0).all()
    assert len(set(out.lengths.tolist())) > 2  # the rows really are ragged


def test_log_q_is_the_heads_own_score_of_the_block(trunk):
    model = build(trunk, "block-chain")
    ids, mask = pad_left([[3, 7]] * 5, 0)
    out = decode(model, ids, mask, max_new_tokens=3, seed=1)
    hidden, _ = model.states(ids)
    assert torch.allclose(out.log_q, model.head.log_prob(model.context(hidden[:, -1]), out.tokens), atol=1e-5)


def test_a_shorter_block_may_be_asked_and_a_longer_one_is_refused(trunk):
    model = build(trunk, "block-chain", block_size=4)
    ids, mask = pad_left(PROMPTS, 0)
    assert decode(model, ids, mask, max_new_tokens=8, block_size=2).trunk_passes == 4
    with pytest.raises(ValueError, match="at most 4"):
        decode(model, ids, mask, max_new_tokens=8, block_size=5)
    with pytest.raises(ValueError, match="left"):
        decode(model, ids, mask.flip(1), max_new_tokens=8)


@pytest.mark.slow
def test_a_compiled_pass_writes_the_same_text(trunk):
    model = build(trunk, "recurrent-chain")
    ids, mask = pad_left(PROMPTS, 0)
    plain = decode(model, ids, mask, max_new_tokens=9, seed=4)
    compiled = decode(model, ids, mask, max_new_tokens=9, seed=4, step_states=compiled_step(model))
    assert torch.equal(plain.tokens, compiled.tokens)
    assert torch.allclose(plain.log_q, compiled.log_q, atol=1e-4)
