"""Blocks: nothing leaks, whatever computes the attention; the ends of the family are what they should be."""

import warnings

import pytest
import torch
from transformers import DynamicCache

from flowlm import FlowLM, FlowLMConfig, Known, blocks
from flowlm.blocks import Blocks
from flowmap.attention import ShortAttention
from flowmap.objectives.tokens import TOKEN_OBJECTIVES, TokenStates, VariationalBound
from flowmap.rng import Rng

V, N, ROWS = 7, 12, 6
SIZES = torch.tensor([1, 2, 3, 4, 6, 12])  # a block length for each row
BACKENDS = ["sdpa", "sdpa_math", "eager", "flex_attention", "sdpa in bf16", "short bf16"]


def build(attention="sdpa", length=N, **more):
    torch.manual_seed(0)
    backbone = {
        "width": 32,
        "depth": 3,
        "heads": 2,
        "read_bias": 0.0,
        "attention": attention,
        **more.pop("backbone", {}),
    }
    config = FlowLMConfig(vocab_size=V, length=length, codebook="embedding", state_size=4, backbone=backbone, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a backend that is not here
        model = FlowLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def given(seed=0, rows=ROWS, length=N):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (rows, length), generator=generator)
    x, t = torch.randn(rows, length, 4, generator=generator), torch.rand(rows, generator=generator) * 0.8 + 0.1
    return tokens, x, t


def nothing(tokens):
    return Known(tokens, torch.zeros_like(tokens, dtype=torch.bool))


def context(tokens, size=None, known=None):
    return Blocks(tokens, SIZES[: len(tokens)] if size is None else size, known or nothing(tokens))


def run(backend):
    """Logits by a backend: (x, t, s, context) → (B, N, V). One that is not here is sdpa once more: it has its test where it is."""
    if backend == "flex_attention" and not torch.cuda.is_available():
        pytest.skip("flex_attention needs a GPU")
    model = build("sdpa" if "bf16" in backend else backend)

    @torch.no_grad()
    def logits(*args):
        if backend == "short bf16":
            with torch.autocast("cpu", torch.bfloat16), ShortAttention():
                return model.map.logits(*args)
        if backend == "sdpa in bf16":
            with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
                patch.setattr("flowmap.attention.SHORT", 0)  # the fused kernel, whatever the length
                return model.map.logits(*args)
        return model.map.logits(*args)

    return logits


def leaks(logits):
    """How far logits of a noisy block move when what they must not see is changed, and when what they must see is."""
    tokens, x, t = given()
    block = torch.arange(N) // SIZES[:, None]
    times = t[:, None].expand(-1, N)
    base = logits(x, times, times * 0.5, context(tokens))
    hidden, seen = [torch.zeros(())], {"clean": [], "state": []}
    for place in range(N):
        here = block[:, place, None]  # the block that holds it, in each row
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % V
        moved = (logits(x, times, times * 0.5, context(other)) - base).abs().amax(-1)
        hidden.append(moved[block <= here].max())
        seen["clean"].append(moved[block > here])
        far, later = x.clone(), times.clone()
        far[:, place] += 3
        later[:, place] = 0.97
        moved = (logits(far, later, times * 0.5, context(tokens)) - base).abs().amax(-1)
        hidden.append(moved[block != here].max())
        seen["state"].append(moved[block == here])
    return torch.stack(hidden).max(), {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_noisy_block_sees_itself_and_the_clean_tokens_before_it_and_nothing_else(backend):
    hidden, seen = leaks(run(backend))
    assert hidden == 0
    assert all(moved.min() > 0 for moved in seen.values())  # every token and state that may be seen is


@pytest.mark.parametrize(
    "part, wrong",
    [
        ("clean_blocks_before", lambda q, k: ~q.clean & k.clean & (k.block <= q.block)),
        ("own_noisy_block", lambda q, k: ~q.clean & ~k.clean & (k.block <= q.block)),
        ("clean_to_own_block", lambda q, k: q.clean & k.clean),
        ("clean_to_own_block", lambda q, k: q.clean & (k.block <= q.block)),
    ],
    ids=["own clean block", "noisy blocks before", "clean blocks behind", "clean sees noisy"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_mask_is_found_out(monkeypatch, backend, part, wrong):
    monkeypatch.setattr(blocks, part, wrong)
    assert leaks(run(backend))[0] > 1e-3


@torch.no_grad()
def test_one_block_is_the_whole_window():
    model = build(prior=True)
    tokens, x, t = given()
    at = torch.arange(N).expand(ROWS, N) % 5 == 1
    for known in (nothing(tokens), Known(tokens, at)):
        whole = context(tokens, torch.full((ROWS,), N), known)
        torch.testing.assert_close(model(x, t, t * 0.5, whole), model(x, t, t * 0.5, known))
    apart = context(tokens, torch.full((ROWS,), 4))
    assert not torch.allclose(model(x, t, t, apart), model(x, t, t, None), atol=1e-2)


@torch.no_grad()
def test_blocks_of_one_token_are_read_from_left_to_right():
    """The clean half by itself is a causal model: fed alone, with a triangular mask, it fills the same cache."""
    model = build()
    tokens, x, t = given()
    size = torch.ones(ROWS, dtype=torch.long)
    ours, plain = DynamicCache(), DynamicCache()
    model(x[:, :1], t, t, Blocks(tokens[:, :-1], size, nothing(tokens[:, :1]), N - 1, ours))
    zero, triangle = torch.zeros(ROWS), torch.ones(N - 1, N - 1, dtype=torch.bool).tril()
    model.map.network(model.map.clean_states(tokens[:, :-1]), zero, zero, mask=triangle, cache=plain)
    for a, b in zip(ours.layers, plain.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.values, b.values, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rope", "learned", "rope+learned"])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_one_block_behind_a_cache_is_that_block_of_the_doubled_pass(positions, size):
    """Read in as many parts as there are blocks, and each noisy block twice: the cache keeps the clean ones alone."""
    model = build(backbone={"positions": positions})
    tokens, x, t = given()
    sizes, cache = torch.full((ROWS,), size), DynamicCache()
    at = torch.rand(ROWS, N, generator=torch.Generator().manual_seed(1)) < 0.3
    whole = model(x, t, t * 0.5, context(tokens, sizes, Known(tokens, at)))
    for first in range(0, N, size):
        here = slice(first, first + size)
        known = Known(tokens[:, here], at[:, here])
        for kept in (cache, cache, None):
            part = Blocks(tokens[:, :first], sizes, known, first, kept)
            torch.testing.assert_close(model(x[:, here], t, t * 0.5, part), whole[:, here], atol=1e-5, rtol=1e-5)
        assert cache.get_seq_length() == first


@torch.no_grad()
def test_times_of_their_own_reach_each_block_alone():
    model = build()
    tokens, x, _ = given()
    sizes = torch.full((ROWS,), 4)
    each = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(2)).repeat_interleave(4, 1)
    whole = model(x, each, each * 0.5, context(tokens, sizes))
    for b in range(3):
        one = each[:, 4 * b]
        alike = model(x, one, one * 0.5, context(tokens, sizes))
        torch.testing.assert_close(alike[:, 4 * b : 4 * b + 4], whole[:, 4 * b : 4 * b + 4])


@torch.no_grad()
def test_self_conditioning_is_of_the_noisy_states():
    model = build(backbone={"self_conditioning": True})
    tokens, x, t = given()
    told = model.map.logits(x, t, t, context(tokens), self_cond=torch.zeros_like(x))
    torch.testing.assert_close(told, model.map.logits(x, t, t, context(tokens)))
    assert not torch.allclose(model.map.logits(x, t, t, context(tokens), self_cond=x), told, atol=1e-3)


def test_rows_of_a_context():
    tokens, x, t = given()
    model, rows = build(), torch.tensor([4, 1])
    with torch.no_grad():
        whole = model(x, t, t, context(tokens))
        torch.testing.assert_close(
            model(x[rows], t[rows], t[rows], context(tokens)[rows]), whole[rows], atol=1e-4, rtol=1e-4
        )
    with pytest.raises(ValueError, match="whole batches"):
        Blocks(tokens, SIZES, nothing(tokens), 0, DynamicCache())[rows]


# Objectives behind the context.


@pytest.mark.parametrize("name", TOKEN_OBJECTIVES)
@pytest.mark.parametrize("noise", ["sample", "block"])
def test_every_objective_learns_blocks_and_known_tokens_carry_no_loss(name, noise):
    model, (tokens, *_), objective = (
        build(),
        given(),
        TOKEN_OBJECTIVES[name](**({"group_size": 2} if name == "imm" else {})),
    )
    at = torch.arange(N).expand(ROWS, N) % 3 == 0
    levels = torch.arange(N) // SIZES[:, None] if noise == "block" else None

    def loss(at, rows):
        states = TokenStates(tokens, context(tokens, known=Known(tokens, at)), ~at, levels)[rows]
        return objective(model.map, states, rng=Rng(3, rows), step=0)

    every = torch.arange(ROWS)
    whole, parts = loss(at, every), [loss(at, rows) for rows in every.split([2, 4])]
    torch.testing.assert_close(whole.sum, sum(part.sum for part in parts), rtol=1e-5, atol=1e-5)
    whole.sum.backward()
    assert whole.sum > 0 and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert loss(torch.ones_like(at), every).sum.item() == pytest.approx(0, abs=2e-3)  # distances are clamped at 1e-4


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("wild, low, high", [(0.0, 0.9, 1.1), (0.3, 0.05, 0.8)])
def test_the_bound_of_blocks_is_one_of_a_law(size, wild, low, high):
    """Σ exp(−bound) over all windows, one time a block: 1 at most. A fresh network with the matched filter is the posterior
    of the uniform law, of which the bound is tight."""
    torch.manual_seed(0)
    backbone = {"width": 16, "depth": 1, "heads": 2, "read_bias": 0.0}
    config = FlowLMConfig(vocab_size=2, length=4, codebook="bits", prior=True, backbone=backbone)
    model, draws = FlowLM(config), 4000
    for parameter in model.parameters():
        parameter += wild * torch.randn_like(parameter)
    windows = torch.cartesian_prod(*[torch.arange(2)] * 4)
    tokens = windows.repeat_interleave(draws, 0)
    sizes = torch.full((len(tokens),), size)
    levels = torch.arange(4) // sizes[:, None]
    bounds = []
    for part in torch.arange(len(tokens)).split(draws):
        states = TokenStates(tokens, context(tokens, sizes), None, levels)[part]
        objective = VariationalBound(0.05, 1.0, "logistic")
        bounds.append(objective(model.map, states, rng=Rng(0, part), step=0).sum / draws)
    total = torch.stack(bounds).neg().exp().sum()
    assert low < total < high
