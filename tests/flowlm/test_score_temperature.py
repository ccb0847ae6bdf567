"""Score temperature: every jump heads for the codes expected under p^{1/τ}, whatever else is asked, and nothing else is heated."""

import pytest
import torch

from flowlm import Known
from flowlm.draft import Draft
from flowmap.rng import Rng
from tests.flowlm.test_sphere_model import sphere
from tests.flowlm.test_token_map import N, V, build

ROWS, TAU = 64, 0.3


def written(model, tau, **how):
    tokens = torch.arange(N).expand(ROWS, N) % V
    known = Known(tokens, (torch.arange(N) == 0).expand(ROWS, N))
    return model.write(known, Rng(5, torch.arange(ROWS)), score_temperature=tau, **how).tokens


WAYS = {
    "map": ({}, {}),
    "denoiser": ({}, {"sampler": "ddim"}),
    "blocks": ({"block_lengths": [1, N]}, {"block_length": 1}),
    "one token after the other": ({"noise": "token"}, {"delay": 1}),
    "guidance": ({"prompt_dropout": 0.1}, {"guidance": 2.0}),
    "two passes": ({"self_conditioning": 0.5}, {}),
    "several times at once": ({}, {"sampler": "picard"}),
}


@pytest.mark.parametrize("name", WAYS)
def test_it_moves_what_is_written_however_it_is_written(name):
    options, how = WAYS[name]
    model = build(**options)
    plain, cold = (written(model, tau, steps=3, **how) for tau in (None, TAU))
    assert torch.equal(written(model, 1.0, steps=3, **how), plain) and not torch.equal(cold, plain)
    assert torch.equal(cold[:, 0], plain[:, 0])  # known


def test_on_the_sphere_too():
    model = sphere()
    plain, cold = (written(model, tau, steps=3, sampler="ddim") for tau in (None, TAU))
    assert not torch.equal(cold, plain)


@torch.no_grad()
def test_under_guidance_each_branch_is_heated_before_they_are_mixed():
    model = build(prompt_dropout=0.1)
    tokens = torch.arange(N).expand(8, N) % V
    known = Known(tokens, (torch.arange(N) < 2).expand(8, N))
    x, t = torch.randn(8, N, V), torch.full((8,), 0.6)
    draft = Draft(model.map, known, None, 2.0, TAU)
    shown, blind = (model.map.logits(x, t, t, c) / TAU for c in (known, known.without()))
    one, other = (model.map.path.expected(model.map.codebook, z, x) for z in (shown, blind))
    assert torch.allclose(draft.heading(x, t, t), other + 2.0 * (one - other), atol=1e-5)
    plain = Draft(model.map, known, None, 2.0)
    assert torch.equal(draft.logits(x, t, t), plain.logits(x, t, t))
    assert torch.equal(draft.heading(x, t, t, heated=False), plain.heading(x, t, t))


def test_a_decoder_reads_what_the_map_itself_says():
    """In one step nothing is headed for: x̂ of the last estimate is a decoder's, and no jump's."""
    model = build("embedding", prior=False, rounding={"depth": 1})
    for module in model.map.rounding.modules():
        for parameter in module.parameters(recurse=False):
            torch.nn.init.normal_(parameter, std=0.5)
    for decoder in ("contextual", "nearest"):
        one, two = (
            [written(model, tau, steps=steps, decoder=decoder, sampler="ddim") for tau in (None, 0.05)]
            for steps in (1, 3)
        )
        assert torch.equal(*one) and not torch.equal(*two)
