"""Heads that read the text: its own pass, a pass for one anchor, and the cached passes of decoding agree."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp.batch import TokenBatch
from mtp.decoding.direct import decode
from mtp.decoding.speculative import decode_verified
from mtp.heads import NAMES, family
from mtp.heads.past import Past
from mtp.losses import distillation
from mtp.model import MTPForCausalLM
from mtp.objective import JointCrossEntropy

V, K = 11, 4


@pytest.fixture(scope="module", params=[name for name in NAMES if family(name).needs_past])
def model(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    made = MTPForCausalLM.from_trunk(LlamaForCausalLM(config), request.param, K, num_heads=2).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return made


def ragged():
    ids = torch.randint(V, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3], mask[2, :8] = 0, 0
    return ids, mask


def alone(model, text, block):
    """log q of a block after a text, from nothing but the two."""
    hidden, _ = model.states(text)
    last = torch.tensor([text.shape[1] - 1])
    return model.head.log_prob(model.context(hidden[:, -1], Past(hidden, text, torch.tensor([0]), last)), block)


@torch.no_grad()
def test_one_pass_over_the_text_gives_every_anchor_the_law_it_has_alone(model):
    tokens = torch.randint(V, (2, 12 + K), generator=torch.Generator().manual_seed(2))
    hidden, _ = model.states(tokens[:, :12])
    anchors = torch.ones(2, 12, dtype=torch.bool)
    anchors[0, 3:7] = False
    blocks = tokens[:, 1:].unfold(1, K, 1)[anchors]
    found = model.head.log_prob(model.anchored(hidden, tokens, anchors), blocks)
    for row, place, block, one in zip(*torch.nonzero(anchors, as_tuple=True), blocks, found, strict=True):
        expected = alone(model, tokens[row : row + 1, : place + 1], block[None])
        assert torch.allclose(one, expected[0], atol=1e-5)


@torch.no_grad()
def test_the_block_hangs_on_its_text_and_not_on_its_state_alone(model):
    text = torch.tensor([[1, 2, 3, 4]])
    hidden, _ = model.states(text)
    last, block = torch.tensor([3]), torch.tensor([[5, 6, 7, 8]])
    other = hidden.clone()
    other[0, 0] += 1
    laws = [
        model.head.log_prob(model.context(hidden[:, -1], Past(h, text, torch.tensor([0]), last)), block)
        for h in (hidden, other)
    ]
    assert torch.equal(laws[0][:, 0], laws[1][:, 0]) and not torch.allclose(laws[0][:, 1:], laws[1][:, 1:])


@torch.no_grad()
@pytest.mark.parametrize("block_size", [2, 3, K])
def test_direct_decoding_with_the_modules_cache_draws_from_the_law_without_one(model, block_size):
    ids, mask = ragged()
    out = decode(model, ids, mask, max_new_tokens=14, block_size=block_size)
    for row in range(3):
        text = ids[row][mask[row] == 1][None]
        for low in range(0, 14 - block_size, block_size):
            block = out.tokens[row : row + 1, low : low + block_size]
            told = out.log_q[row, low : low + block_size]
            assert torch.allclose(told, alone(model, text, block)[0].to(told.dtype), atol=1e-4)
            text = torch.cat([text, block], 1)


@torch.no_grad()
def test_drafts_after_rows_that_kept_different_lengths_follow_the_law_without_a_cache(model, monkeypatch):
    ids, mask = ragged()
    drafts = []
    sample = model.head.sample

    def watched(context, *args, **kwargs):
        draft = sample(context, *args, **kwargs)
        drafts.append((context.past.place.clone(), draft.tokens, draft.log_q))
        return draft

    monkeypatch.setattr(model.head, "sample", watched)
    out = decode_verified(model, ids, mask, max_new_tokens=16, verify="token", warp=Warp(1.5), seed=3)
    monkeypatch.undo()
    assert len({tuple(row) for row in out.accepted.tolist()}) > 1 and len(drafts) > 4
    for row in range(3):
        prompt = ids[row][mask[row] == 1]
        text = torch.cat([prompt, out.tokens[row]])[None]
        for place, tokens, log_q in drafts:
            at = int(place[row]) + 1
            if at + K > text.shape[1]:
                break
            hidden, _ = model.states(text[:, :at])
            past = Past(hidden, text[:, :at], torch.tensor([0]), torch.tensor([at - 1]))
            law = model.head.law(model.context(hidden[:, -1], past), tokens[row : row + 1])
            law = (law / 1.5).log_softmax(-1).gather(-1, tokens[row, 1:][None, :, None])[0, :, 0]
            assert torch.allclose(log_q[row, 1:], law.to(log_q.dtype), atol=1e-4)


@torch.no_grad()
def test_a_loaded_head_has_the_law_that_was_saved(model, tmp_path):
    text, block = torch.randint(V, (1, 9)), torch.tensor([[1, 2, 3, 4]])
    model.save_pretrained(tmp_path)
    loaded = MTPForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(alone(loaded, text, block), alone(model, text, block))


@torch.no_grad()
def test_the_training_loss_is_the_mean_over_anchors_alone(model):
    tokens = torch.randint(V, (2, 6 + K), generator=torch.Generator().manual_seed(4))
    batch = TokenBatch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool), 6)
    metrics = JointCrossEntropy(frozen_trunk=True)(model, batch, rng=Rng(0, torch.arange(2)), step=0).metrics
    expected = torch.zeros(K - 1, dtype=torch.double)
    for row in range(2):
        for i in range(6):
            expected -= alone(model, tokens[row : row + 1, : i + 1], tokens[row : row + 1, i + 1 : i + 1 + K])[0, 1:]
    found = torch.stack([metrics[f"nll_{k + 1}"][0] for k in range(1, K)])
    assert torch.allclose(found.double(), expected, atol=1e-4)


def test_without_its_past_the_head_says_what_it_lacks(model):
    with pytest.raises(ValueError, match="text before"):
        model.head.log_prob(model.context(torch.zeros(1, 32, dtype=torch.double)), torch.zeros(1, K, dtype=torch.long))


@pytest.mark.parametrize("options", [{"distill": "hybrid"}, {"own_samples": 0.7}])
def test_a_law_made_again_backwards_is_made_by_the_same_attention(model, options):
    """As the training loop has it in bf16 on a CPU: short attention forwards, and the backward pass outside of it."""
    from flowmap.attention import ShortAttention

    single, gradients = copy.deepcopy(model).float(), []
    tokens = torch.randint(V, (2, 12 + K), generator=torch.Generator().manual_seed(5))
    batch = TokenBatch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool), 12)
    single.trunk.requires_grad_(False)
    for fast in (False, True):
        single.zero_grad()
        objective = JointCrossEntropy(frozen_trunk=True, **options).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast), ShortAttention():
            loss = objective(single, batch, rng=Rng(0, torch.arange(2)), step=0)
        loss.sum.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in single.head.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95


@pytest.mark.parametrize("model", ["sequential"], indirect=True)
def test_the_modules_pass_a_text_once_however_many_parts_its_anchors_come_in(model, monkeypatch):
    tokens = torch.randint(V, (2, 12 + K), generator=torch.Generator().manual_seed(6))
    batch = TokenBatch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool), 12)
    objective, found, passes = JointCrossEntropy(frozen_trunk=True, distill="hybrid").train(), [], []
    hooks = [layer.register_forward_hook(lambda *_: passes.append(1)) for layer in model.head.layers]
    for logits in (2**22, 5 * V * (K - 1)):  # all 24 anchors at once, or 5 at a time
        monkeypatch.setattr(distillation, "CHUNK_LOGITS", logits)
        model.zero_grad()
        objective(model, batch, rng=Rng(0, torch.arange(2)), step=0).sum.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.head.parameters()]))
    for hook in hooks:
        hook.remove()
    assert torch.allclose(*found) and found[0].norm() > 0
    assert len(passes) == 2 * (K - 1)  # and none again backwards
