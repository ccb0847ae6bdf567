"""Verified decoding writes what the trunk alone would, whatever the head drafts."""

import itertools

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig

from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp import MTPForCausalLM
from mtp.decoding.direct import decode, pad_left
from mtp.decoding.speculative import SHARED, VERIFY, decode_verified

PROMPTS = [[3, 7, 1], [5], [2, 9, 4, 4, 8]]


def build(trunk, name="block-chain", block_size=3):
    model = MTPForCausalLM.from_trunk(trunk, name, block_size).eval()
    torch.manual_seed(2)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def alone(model, prompt, row, length, warp, seed, verify):
    """The trunk, one token a pass over the whole text, with the noise of each place."""
    text = torch.tensor([prompt])
    for place in range(length):
        logits = model.trunk(text).logits[:, -1]
        rng = Rng(seed, torch.tensor([row]), torch.tensor([place]))
        if verify == "gumbel":
            uniform = rng.uniform("gumbel", 1, logits.shape[-1], dtype=torch.float64)
            token, _ = warp.draw(logits, (-(-uniform.log()).log()).float())
        else:
            token, _ = warp.draw(logits, rng.uniform("place", 1, 1)[:, 0])
        text = torch.cat([text, token[:, None]], 1)
    return text[0, len(prompt) :].tolist()


@pytest.mark.parametrize("verify", SHARED)
@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, 0.8)])
def test_shared_noise_writes_the_trunks_own_text_word_for_word(trunk, verify, warp):
    """Ragged prompts, rows that accept different lengths, a cache that is rolled back: nothing shows."""
    model = build(trunk)
    out = decode_verified(model, *pad_left(PROMPTS, 0), max_new_tokens=11, warp=warp, seed=9, verify=verify)
    with torch.inference_mode():
        for row, prompt in enumerate(PROMPTS):
            assert out.tokens[row].tolist() == alone(model, prompt, row, 11, warp, 9, verify)
    assert (out.accepted.sum(1) >= 11).all() and out.accepted.max() > 1


@pytest.mark.parametrize("verify", VERIFY)
def test_greedy_is_greedy(trunk, verify):
    model = build(trunk, "recurrent-chain")
    ids, mask = pad_left(PROMPTS, 0)
    out = decode_verified(model, ids, mask, max_new_tokens=10, warp=Warp(0.0), verify=verify)
    assert torch.equal(out.tokens, decode(model, ids, mask, max_new_tokens=10, warp=Warp(0.0), block_size=1).tokens)


@pytest.fixture(scope="module")
def tiny(four_words):
    return build(four_words, "recurrent-chain")


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, 0.9)])
@torch.no_grad()
def test_texts_follow_the_trunks_law(tiny, verify, warp):
    """χ² over all texts of four tokens: two blocks or more, bonus tokens included."""
    n, texts = 20_000, torch.tensor(list(itertools.product(range(4), repeat=4)))
    prompt = [1, 2]
    logits = tiny.trunk(torch.cat([torch.tensor([prompt]).expand(len(texts), -1), texts], 1)).logits[:, 1:-1]
    expected = warp.log_prob(logits).gather(-1, texts[..., None])[..., 0].double().sum(1).exp() * n
    ids, mask = pad_left([prompt] * n, 0)
    out = decode_verified(tiny, ids, mask, max_new_tokens=4, warp=warp, seed=3, verify=verify)
    observed = torch.bincount((out.tokens * torch.tensor([64, 16, 4, 1])).sum(1), minlength=256).double()
    assert observed[expected == 0].sum() == 0
    big = expected > 5
    rest = torch.tensor([n - observed[big].sum(), n - expected[big].sum()]).clamp_min(1e-9)
    pvalue = stats.chisquare(torch.cat([observed[big], rest[:1]]), torch.cat([expected[big], rest[1:]])).pvalue
    assert pvalue > 1e-3
    assert len(set(out.accepted[:, 0].tolist())) > 1  # rows do accept different lengths
    scored = tiny.trunk(torch.cat([ids, out.tokens], 1)).logits[:, 1:-1]
    told = warp.log_prob(scored).gather(-1, out.tokens[..., None])[..., 0]
    assert torch.allclose(out.log_q, told, atol=1e-4)


def test_a_row_is_the_same_text_in_any_batch(trunk):
    model = build(trunk)
    ids, mask = pad_left([[3, 7]] * 6, 0)
    whole = decode_verified(model, ids, mask, max_new_tokens=9, seed=4, verify="block")
    part = decode_verified(
        model, ids[:2], mask[:2], max_new_tokens=9, seed=4, verify="block", rows=torch.tensor([4, 5])
    )
    assert torch.equal(whole.tokens[4:], part.tokens)


@pytest.mark.parametrize("verify", ["token", "gumbel"])
def test_stop_tokens_end_a_row_there_and_nowhere_else(trunk, verify):
    model = build(trunk, block_size=4)
    ids, mask = pad_left(PROMPTS * 4, 0)
    free = decode_verified(model, ids, mask, max_new_tokens=22, seed=1, verify=verify)
    stops = (6, 11)
    out = decode_verified(model, ids, mask, max_new_tokens=22, seed=1, verify=verify, stop_tokens=stops, pad_token=19)
    for row in range(len(ids)):
        text = free.tokens[row].tolist()
        ends = [i + 1 for i, token in enumerate(text) if token in stops]
        length = ends[0] if ends else 22
        assert out.lengths[row] == length and bool(out.stopped[row]) == bool(ends)
        assert out.tokens[row, :length].tolist() == text[:length] and (out.tokens[row, length:] == 19).all()
        committed = int(out.accepted[row].sum())
        assert committed == length if ends else committed >= length
    assert len(set(out.lengths.tolist())) > 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_any_attention_backend_keeps_to_the_mask(trunk, attention):
    model = build(trunk)
    model.trunk.set_attn_implementation(attention)
    ids, mask = pad_left(PROMPTS, 0)
    out = decode_verified(model, ids, mask, max_new_tokens=10, warp=Warp(0.0))
    assert torch.equal(out.tokens, decode(model, ids, mask, max_new_tokens=10, warp=Warp(0.0), block_size=1).tokens)


def test_a_position_table_may_end_with_the_text():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=20, bos_token_id=0, eos_token_id=0)
    model = build(AutoModelForCausalLM.from_config(config).eval(), block_size=4)
    ids = torch.tensor([[2, 9, 4, 4, 8]])
    out = decode_verified(model, ids, max_new_tokens=15, warp=Warp(0.0))
    assert torch.equal(out.tokens, decode(model, ids, max_new_tokens=15, warp=Warp(0.0), block_size=1).tokens)


def test_a_sliding_window_that_would_bind_is_refused():
    config = MistralConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    model = build(AutoModelForCausalLM.from_config(config).eval())
    assert decode_verified(model, torch.tensor([[1, 2, 3]]), max_new_tokens=5).tokens.shape == (1, 5)
    with pytest.raises(ValueError, match="looks back 8 tokens"):
        decode_verified(model, torch.tensor([[1, 2, 3]]), max_new_tokens=6)


def test_passes_that_committed_nothing_are_not_counted(trunk):
    """Where looking is dear the loop runs on after the last row has ended."""
    model = build(trunk)
    ids, mask = pad_left(PROMPTS, 0)
    plain = decode_verified(model, ids, mask, max_new_tokens=10, warp=Warp(0.0))
    assert plain.trunk_passes == int((plain.accepted > 0).any(0).sum()) + 1 == plain.accepted.shape[1] + 1


WAITS = {"_local_scalar_dense", "nonzero", "unique", "_unique2", "masked_select", "equal"}


class HostReads(TorchDispatchMode):
    """How often the host waits for a value of the device: for a number, or for a shape that hangs on values."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in WAITS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("verify", VERIFY)
def test_the_host_looks_once_a_pass_however_many_rows(trunk, verify, monkeypatch):
    """At whether all have ended, and at nothing of a row's own."""
    model = build(trunk)
    for name in ("tolist", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(name))
    reads = []
    for most, rows in itertools.product((8, 24), (1, 4)):
        ids, mask = pad_left(PROMPTS * rows, 0)
        with HostReads() as found:
            out = decode_verified(model, ids, mask, max_new_tokens=most, warp=Warp(0.0), verify=verify)
        reads.append((found.count, out.trunk_passes))
    (few, passes), (more, alike), (longer, later), (again, same) = reads
    assert passes == alike and few == more and later == same and longer == again
    assert longer - few == later - passes > 0


def test_what_cannot_be_verified_is_refused(trunk):
    model = MTPForCausalLM.from_trunk(trunk)
    ids, mask = pad_left(PROMPTS, 0)
    with pytest.raises(ValueError, match="joint head"):
        decode_verified(model, ids, mask, max_new_tokens=4)
    with pytest.raises(ValueError, match="inside a prompt"):
        decode_verified(model, ids[2:], torch.tensor([[1, 0, 1, 1, 1]]), max_new_tokens=4, verify="jacobi")
    with pytest.raises(ValueError, match="1 or above"):
        decode_verified(model, ids, mask, max_new_tokens=0, verify="jacobi")
    with pytest.raises(ValueError, match="known are token, block"):
        decode_verified(model, ids, mask, max_new_tokens=4, verify="tokens")
    assert (
        decode_verified(model, ids, mask, max_new_tokens=4, verify="jacobi", block_size=3).lengths.tolist() == [4] * 3
    )


@pytest.mark.parametrize("option", [{"threshold": 0.1}, {"verify": "none", "drawn": True}])
def test_an_end_of_drafts_needs_an_estimate(trunk, option):
    with pytest.raises(ValueError, match=r"^[^\n]*confidence"):
        decode_verified(build(trunk), torch.tensor([PROMPTS[0]]), max_new_tokens=4, **option)
