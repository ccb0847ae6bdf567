import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from eval.likelihood import (
    DRAWS,
    BlockLikelihood,
    block_likelihood,
    gap_closed,
    likelihoods,
    standard_error,
)
from flowmap.rng import Rng
from mtp import MTPForCausalLM
from training.data.store import TokenStore


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    made = MTPForCausalLM.from_trunk(AutoModelForCausalLM.from_config(config), "block-chain", 3, rank=8).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@torch.no_grad()
def test_head_and_trunk_are_scored_on_the_same_targets_as_a_double_loop_does(model):
    tokens = np.random.default_rng(0).integers(12, size=50).astype(np.uint16)
    store = TokenStore(tokens, np.array([0, 17, 20, 50]), 0)
    got = block_likelihood(model, store, length=8, batch=2)
    head, trunk, count = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3)
    for start in range(0, 49, 8):
        window = torch.tensor(tokens[start : start + 8].astype(np.int64))[None]
        hidden, _ = model.states(torch.nn.functional.pad(window, (0, 8 - window.shape[1])))
        log_p = model.context(hidden[0]).first_logits().log_softmax(-1)
        for i in range(8 - 2):  # the last anchors' targets lie in the next window
            here = start + i
            document = int(store.documents_of(np.array([min(here, 49)]))[0])
            if here + 3 >= store.offsets[document + 1]:
                continue
            block = torch.tensor(tokens[here + 1 : here + 4].astype(np.int64))[None]
            head[document] -= model.head.log_prob(model.context(hidden[0, i : i + 1]), block)[0].numpy()
            trunk[document] -= [float(log_p[i + k, block[0, k]]) for k in range(3)]
            count[document] += 1
    assert got.count.tolist() == count.tolist() and count[0] > 5 and count[1] == 0
    assert np.allclose(got.head, head, atol=1e-4) and np.allclose(got.trunk, trunk, atol=1e-4)
    assert np.allclose(got.head[:, 0], got.trunk[:, 0], atol=1e-4)  # position 1 is the trunk's own


@torch.no_grad()
def test_every_token_but_a_documents_first_is_scored_once_from_its_own_window(model):
    tokens = np.random.default_rng(1).integers(12, size=43).astype(np.uint16)
    store = TokenStore(tokens, np.array([0, 17, 20, 43]), 0)
    got = likelihoods(model, store, 8, batch=2).chain
    assert got.count.tolist() == [16, 2, 22]
    expected = np.zeros(3)
    for start in range(0, 42, 8):
        window = torch.tensor(tokens[start : start + 8].astype(np.int64))[None]
        log_p = model.trunk(window).logits[0].log_softmax(-1)
        for i in range(window.shape[1]):
            here = start + i
            document = int(store.documents_of(np.array([here]))[0])
            if here + 1 < store.offsets[document + 1]:
                expected[document] -= float(log_p[i, int(tokens[here + 1])])
    assert np.allclose(got.sums, expected, atol=1e-4)


@torch.no_grad()
def test_one_head_is_scored_at_every_smaller_block(model):
    tokens = np.random.default_rng(2).integers(12, size=70).astype(np.uint16)
    store = TokenStore(tokens, np.array([0, 2, 19, 70]), 0)
    both = likelihoods(model, store, 8, [2, 3], batch=4).blocks
    assert (both[2].count > both[3].count).any()
    for size in (2, 3):
        alone = block_likelihood(model, store, 8, size, batch=2)
        assert both[size].count.tolist() == alone.count.tolist()
        assert np.allclose(both[size].head, alone.head, atol=1e-4)
        assert np.allclose(both[size].trunk, alone.trunk, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [2, 3])
def test_direct_likelihood_cuts_each_document_into_blocks_as_a_loop_does(model, size):
    tokens = np.random.default_rng(3).integers(12, size=43).astype(np.uint16)
    store = TokenStore(tokens, np.array([0, 17, 20, 43]), 0)
    got = likelihoods(model, store, 8, [2, size], batch=2).direct[size]
    assert got.count.tolist() == likelihoods(model, store, 8).chain.count.tolist()
    expected = np.zeros(3)
    for document, (low, high) in enumerate(zip(store.offsets[:-1], store.offsets[1:], strict=True)):
        for anchor in range(low, high - 1, size):
            window = torch.tensor(tokens[anchor // 8 * 8 : anchor + 1].astype(np.int64))[None]
            hidden, _ = model.states(window)
            block = torch.tensor(tokens[anchor + 1 : min(anchor + 1 + size, high)].astype(np.int64))[None]
            expected[document] -= float(model.head.log_prob(model.context(hidden[:, -1]), block).sum())
    assert np.allclose(got.sums, expected, atol=1e-4)


def test_the_gap_closed_is_the_share_of_the_way_to_the_trunk():
    count = np.array([10.0, 30.0])
    part = lambda *nll: np.outer(count, nll)  # noqa: E731
    trunk = part(1, 2, 2)
    independent = BlockLikelihood(part(1, 4, 4), trunk, count)
    joint = BlockLikelihood(part(1, 3, 2), trunk, count)
    share, error = gap_closed(independent, joint)
    assert share == pytest.approx(0.75) and error == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="same blocks"):
        gap_closed(independent, BlockLikelihood(part(1, 3, 2), trunk, count + 1))


def test_the_bootstrap_error_is_that_of_a_mean_over_documents():
    sums = np.random.default_rng(0).normal(size=400)
    assert standard_error(sums, np.ones(400), 2000) == pytest.approx(sums.std() / 20, rel=0.1)


@torch.no_grad()
def test_a_mean_over_noise_is_scored_as_a_double_loop_estimates_it():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    trunk = AutoModelForCausalLM.from_config(config)
    model = MTPForCausalLM.from_trunk(trunk, "flow-map", 3, state_size=4, num_layers=1).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    tokens = np.random.default_rng(0).integers(12, size=24).astype(np.uint16)
    got = likelihoods(model, TokenStore(tokens, np.array([0, 17, 24]), 0), 8, [2, 3], batch=2)
    block, direct = {2: np.zeros(2), 3: np.zeros(2)}, {2: np.zeros(2), 3: np.zeros(2)}
    for start in (0, 8, 16):
        window = torch.tensor(tokens[start : start + 8].astype(np.int64))[None]
        hidden, _ = model.states(window)
        for i, size in ((i, size) for i in range(window.shape[1]) for size in (2, 3)):
            here = start + i
            document, end, first = (0, 17, 0) if here < 17 else (1, 24, 17)
            text = torch.tensor(tokens[here + 1 : min(here + 1 + size, end)].astype(np.int64))[None]
            if not text.numel():
                continue
            ctx, rng = model.context(hidden[0, i : i + 1]), Rng(0, torch.tensor([here]))
            nll = -float(model.head.estimate_log_prob(ctx, text, rng, DRAWS).log_prob)
            if text.shape[1] == size and i + size <= 8:
                block[size][document] += nll
            if (here - first) % size == 0:
                direct[size][document] += nll
    for size in (2, 3):
        assert np.allclose(got.blocks[size].head.sum(1), block[size], rtol=1e-4)
        assert np.allclose(got.direct[size].sums, direct[size], rtol=1e-4)
