import dataclasses
import time
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from flowmap.attention import NAMES, ShortAttention, differentiable, resolve
from flowmap.backbone import Backbone, BackboneConfig, Context

POSITIONS = ["learned", "rope", "rope+learned", "learned-2d", "rope-2d", "none"]
CONTEXT = Context(torch.tensor([1, 2, 4]), torch.randn(3, 6), torch.randn(3, 2, 7))


def build(**more):
    torch.manual_seed(0)
    config = BackboneConfig(
        state_size=5, width=32, depth=2, heads=2, grid=(2, 4), num_classes=4, vector_size=6, prefix_size=7,
        self_conditioning=True, time_scale=3.0,
    )  # fmt: skip
    network = Backbone(dataclasses.replace(config, **more))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


X, T = torch.randn(3, 8, 5), torch.tensor([0.3, 0.6, 0.9])


def test_a_fresh_network_says_nothing_yet():
    assert not Backbone(BackboneConfig(state_size=5))(X, T, T / 2).any()


@pytest.mark.parametrize("positions", POSITIONS)
def test_one_pair_of_times_a_sample_or_a_position(positions):
    network = build(positions=positions)
    whole = network(X, T, T / 2, CONTEXT)
    each = network(X, T[:, None].expand(3, 8), (T / 2)[:, None].expand(3, 8), CONTEXT)
    assert torch.allclose(whole, each, atol=1e-5)
    other = network(X, T[:, None] * torch.linspace(0.5, 1, 8), (T / 2)[:, None].expand(3, 8), CONTEXT)
    assert not torch.allclose(whole, other, atol=1e-2)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("context", [CONTEXT, Context(CONTEXT.label), None])
def test_clean_states_are_those_at_time_zero(context, each):
    """As times of each state say it; but what the context tells all states of their noise is not for them."""
    network, clean = build(), torch.arange(8).expand(3, 8) % 3 == 0
    t, s = (part[:, None].expand(3, 8) if each else part for part in (T, T / 2))
    got = network(X, t, s, context, clean=clean)
    assert not torch.allclose(got, network(X, t, s, context), atol=1e-2)
    if context is not CONTEXT:
        times = (torch.where(clean, 0.0, part[:, None].expand(3, 8)) for part in (T, T / 2))
        assert torch.allclose(got, network(X, *times, context), atol=1e-5)
    nothing = network(X, t, s, context, clean=torch.zeros_like(clean))
    assert torch.allclose(nothing, network(X, t, s, context), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: dataclasses.replace(c, label=torch.tensor([0, 2, 4])),
        lambda c: dataclasses.replace(c, vector=c.vector + 1),
        lambda c: dataclasses.replace(c, prefix=c.prefix + 1),
    ],
    ids=["label", "vector", "prefix"],
)
def test_every_part_of_the_context_is_read(change):
    network = build()
    assert not torch.allclose(network(X, T, T / 2, CONTEXT)[0], network(X, T, T / 2, change(CONTEXT))[0], atol=1e-3)


@pytest.mark.parametrize("embed", ["s", "t-s"])
def test_the_switch_that_zeroes_s(embed):
    told, not_told = build(embed=embed), build(embed=embed, use_s=False)
    assert not torch.allclose(told(X, T, T / 2), told(X, T, T / 4), atol=1e-3)
    assert torch.equal(not_told(X, T, T / 2), not_told(X, T, T / 4))
    assert sum(p.numel() for p in told.parameters()) == sum(p.numel() for p in not_told.parameters())


def test_self_conditioning_is_an_input_and_optional():
    network = build()
    assert not torch.allclose(network(X, T, T / 2), network(X, T, T / 2, self_cond=X), atol=1e-3)
    with pytest.raises(ValueError, match="without self_conditioning"):
        build(self_conditioning=False)(X, T, T, self_cond=X)


@pytest.mark.parametrize("positions", POSITIONS)
def test_positions_are_told_apart_or_not(positions):
    network, turned = build(positions=positions), torch.arange(8).flip(0)
    same = torch.allclose(network(X[:, turned], T, T)[:, turned], network(X, T, T), atol=1e-4)
    assert same == (positions == "none")


def test_a_mask_hides_what_it_says():
    network = build(prefix_size=0)
    mask = torch.ones(8, 8, dtype=torch.bool).tril()
    changed = X.clone()
    changed[:, 5:] += 1
    a, b = network(X, T, T, mask=mask), network(changed, T, T, mask=mask)
    assert torch.allclose(a[:, :5], b[:, :5], atol=1e-5) and not torch.allclose(a[:, 5:], b[:, 5:], atol=1e-2)
    assert not torch.allclose(network(X, T, T)[:, :5], network(changed, T, T)[:, :5], atol=1e-2)


@pytest.mark.parametrize("positions, told", [("rope", False), ("learned", True), ("rope+learned", True)])
def test_learned_places_tell_states_apart_that_are_alike(positions, told):
    out = build(positions=positions)(X[:, :1].expand_as(X), T, T)
    assert torch.allclose(out, out[:, :1].expand_as(out), atol=1e-5) != told


def test_rope_and_learned_places_are_both_there():
    """Without what was learned the output is another, and rotations still tell the order."""
    network = build(positions="rope+learned")
    before = network(X, T, T)
    with torch.no_grad():
        network.learned.tables[0].weight.zero_()
    alike = network(X, T, T)
    assert not torch.allclose(before, alike, atol=1e-3)
    assert not torch.allclose(network(X.flip(1), T, T).flip(1), alike, atol=1e-4)


@pytest.mark.parametrize("positions", ["learned", "rope", "rope+learned"])
def test_a_cache_stands_for_the_states_before(positions):
    network = build(positions=positions)
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[:5, 5:] = False  # the first block does not look ahead
    times = T[:, None].expand(3, 8)
    whole = network(X, times, times, mask=mask)
    cache = DynamicCache()
    first = network(X[:, :5], T, T, cache=cache)
    second = network(X[:, 5:], T, T, cache=cache)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-5)
    assert cache.get_seq_length() == 8


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_cache_stands_for_a_prefix_too(positions):
    network, prefix = build(positions=positions), CONTEXT.prefix.shape[1]
    mask = torch.ones(prefix + 8, prefix + 8, dtype=torch.bool)
    mask[: prefix + 5, prefix + 5 :] = False
    whole = network(X, T, T, CONTEXT, mask=mask)
    cache = DynamicCache()
    first = network(X[:, :5], T, T, CONTEXT, cache=cache)
    second = network(X[:, 5:], T, T, dataclasses.replace(CONTEXT, prefix=None), cache=cache)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_backends_agree(name, masked):
    """All that are here, in bf16 where they must."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = torch.randn(3, 2, 4, 64, 32, generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.ones(64, 64, dtype=torch.bool, device=device).tril().expand(2, 1, 64, 64) if masked else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attend = resolve(name)
    if name != "sdpa" and attend is resolve("sdpa"):
        pytest.skip(f"{name} is not here")
    out = attend(q, k, v, mask)
    tolerance = 2e-2 if name.startswith("flash") and attend is not resolve("sdpa") else 1e-5
    assert torch.allclose(out, resolve("eager")(q, k, v, mask), atol=tolerance)


@pytest.mark.parametrize("length", [16, 300])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"mask": bool}, {"mask": float}, {"enable_gqa": True}])
def test_short_attention_is_torchs_own(length, options):
    """In bf16 to its rounding, gradients too; a long window is left to the fused kernel."""
    options, generator = dict(options), torch.Generator().manual_seed(0)
    kind = options.pop("mask", None)
    if kind is not None:
        look = torch.rand(2, 1, length, length, generator=generator) < 0.7
        look[..., 0] = True
        options["attn_mask"] = look if kind is bool else torch.zeros(look.shape).masked_fill(~look, -1e9).bfloat16()
    heads = 2 if options.get("enable_gqa") else 4
    q, k, v = (torch.randn(2, h, length, 32, generator=generator) for h in (4, heads, heads))
    call = torch.nn.functional.scaled_dot_product_attention
    exact = {**options, "attn_mask": options["attn_mask"].float()} if kind is float else options
    found = []
    for dtype, attention in ((torch.float32, nullcontext()), (torch.bfloat16, ShortAttention())):
        parts = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        with attention:
            out = call(*parts, **(exact if dtype is torch.float32 else options))
        out.float().square().sum().backward()
        found.append([out.float(), *(x.grad.float() for x in parts)])
    for expected, got in zip(*found, strict=True):
        assert (got - expected).norm() < 0.02 * expected.norm()


def test_a_backend_that_is_not_here_falls_back_loudly(monkeypatch):
    from flowmap.attention import _warn_once

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _warn_once.cache_clear()
    with pytest.warns(UserWarning, match="flash_attention_2 needs a GPU"):
        assert resolve("flash_attention_2") is resolve("sdpa")
    with pytest.raises(ValueError, match="known are sdpa"):
        resolve("fast")


@pytest.mark.parametrize("name", ["sdpa", "sdpa_math", "eager"])
def test_derivatives_in_time_go_through(name):
    network = build(attention=name).double()
    x, t, s = X.double(), T.double(), T.double() / 2
    with differentiable():
        _, slope = torch.func.jvp(lambda at: network(x, t, at), (s,), (torch.ones_like(s),))
    h = 1e-5
    expected = (network(x, t, s + h) - network(x, t, s - h)) / (2 * h)
    assert torch.allclose(slope, expected, atol=1e-6) and slope.abs().max() > 0.01


def test_attention_is_a_function_passed_in():
    calls = []

    def attend(q, k, v, mask):
        calls.append(q.shape)
        return resolve("eager")(q, k, v, mask)

    config = build().config
    torch.manual_seed(0)
    network = Backbone(config, attend)
    network(X, T, T / 2, CONTEXT)
    assert calls == [(3, 2, 10, 16)] * 2


def test_time_in_float64_is_not_rounded_on_the_way():
    network = build().double()
    x, t = X.double(), T.double()
    assert not torch.equal(network(x, t, t), network(x, t, t + 1e-10))


@pytest.mark.slow
def test_a_step_costs_what_an_encoder_of_torch_does():
    """Median of interleaved ratios; room for noise beyond the 15% that RESULTS.md reports."""
    width, depth, heads, batch, count = 256, 4, 4, 32, 64
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True),
        depth, enable_nested_tensor=False,
    )  # fmt: skip
    network = Backbone(BackboneConfig(state_size=width, width=width, depth=depth, heads=heads))
    x, t = torch.randn(batch, count, width), torch.rand(batch)
    seconds = {"ours": [], "torch": []}
    for _ in range(6):
        for name, run in (("ours", lambda: network(x, t, t)), ("torch", lambda: encoder(x))):
            start = time.perf_counter()
            run().sum().backward()
            seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["ours"][1:], seconds["torch"][1:], strict=True)]
    assert sorted(ratios)[2] < 1.5


def test_fresh_biases_tell_states_of_different_norms_apart():
    """Without them the norms of the first layer see a state's direction alone."""

    def inside(read_bias):
        torch.manual_seed(0)
        net = Backbone(BackboneConfig(3, width=64, depth=1, heads=2, positions="none", read_bias=read_bias))
        x = torch.randn(1, 2, 3)
        return [net.blocks[0].norm(net.read(scale * x)) for scale in (1.0, 3.0)]

    (one, three), (told, told_three) = inside(0.0), inside(1.0)
    assert torch.allclose(one, three, atol=1e-3) and not torch.allclose(told, told_three, atol=0.1)


@pytest.mark.parametrize("positions", ["learned", "rope", "rope+learned", "none"])
def test_one_state_looks_at_itself_alone(positions):
    """Without the products that can say nothing but that: the same output and the same gradient for every weight, none
    missing."""
    network, x = build(positions=positions).double(), X[:, :1].double()
    everything = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    context, gradients = Context(CONTEXT.label, CONTEXT.vector.double()), []
    for mask in (None, everything):  # a mask has the products taken
        out = network(x, T.double(), T.double() / 2, context, mask=mask, self_cond=x)
        used = [p for name, p in network.named_parameters() if "prefix" not in name]
        gradients.append([out, *torch.autograd.grad(out.square().sum(), used)])
    for short, long in zip(*gradients, strict=True):
        assert torch.allclose(short, long, atol=1e-12)
