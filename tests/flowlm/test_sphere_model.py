"""A flow language model on the sphere: its filter, what trains it, what samples it, what is refused."""

import pytest
import torch
from transformers import AutoModel

from flowlm import Known
from flowlm.writing import write
from flowmap.objectives.tokens import TOKEN_OBJECTIVES, TokenStates
from flowmap.rng import Rng
from flowmap.samplers import SERIAL
from tests.flowlm.test_token_map import BATCH, N, V, build, noised


def sphere(**more):
    return build("sphere", path="slerp", **more)


@torch.no_grad()
def test_a_fresh_map_is_the_posterior_of_every_token_alone():
    model = sphere(wild=False)
    _, x_t, t = noised(model)
    expected = model.map.path.prior_logits(model.map.codebook, x_t, t)
    torch.testing.assert_close(model(x_t, t, t).log_softmax(-1), expected.log_softmax(-1))
    torch.testing.assert_close(x_t.norm(dim=-1), torch.full((BATCH, N), 2.0))


@pytest.mark.parametrize("sampler", ["pushforward", "ddim", "restart"])
def test_it_writes_by_jumps_that_never_leave_the_sphere(sampler):
    model, seen = sphere(), []
    hook = model.map.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tokens = torch.arange(N).expand(8, N) % V
    known = Known(tokens, torch.arange(N).expand(8, N) == 1)
    out = write(model.map, model.blank_states(tokens), Rng(0, torch.arange(8)), known=known, steps=4, sampler=sampler)
    hook.remove()
    assert out.nfe == len(seen) == 4 and (out.tokens[:, 1] == 1).all()
    for x in seen:  # as the network reads them
        torch.testing.assert_close(x.norm(dim=-1), torch.full((8, N), 2.0))


@torch.no_grad()
def test_jumps_of_the_map_are_those_of_its_sampler():
    model = sphere()
    _, x_t, t = noised(model)
    g = model.map.endpoint(x_t, t, t * 0.5)
    torch.testing.assert_close(model.map.jump(x_t, t, t * 0.5), model.map.path.jump(x_t, g, t, t * 0.5))
    torch.testing.assert_close(g.norm(dim=-1), torch.full((BATCH, N), 2.0))


def test_cross_entropy_trains_it_and_its_codes():
    model = sphere()
    tokens, *_ = noised(model)
    loss = TOKEN_OBJECTIVES["cross-entropy"]()(model.map, TokenStates(tokens), rng=Rng(0, torch.arange(BATCH)), step=0)
    loss.sum.backward()
    assert model.map.codebook.weight.grad.any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_it_is_saved_and_loaded(tmp_path):
    model = sphere()
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    texts = model.generate(num_steps=3, sampler="ddim", do_sample=True)
    torch.manual_seed(1)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).generate(num_steps=3, sampler="ddim", do_sample=True), texts)


def test_what_needs_straight_paths_is_refused_in_a_line():
    model, batch = sphere(), TokenStates(torch.zeros(4, N, dtype=torch.long))
    for name in ("kl-psd", "esd", "lsd", "vlb"):
        with pytest.raises(ValueError, match=r"linear path, not of SlerpPath|no signal-to-noise"):
            TOKEN_OBJECTIVES[name]()(model.map, batch, rng=Rng(0, torch.arange(4)), step=0)
    for sampler in set(SERIAL) - {"pushforward", "ddim", "restart"}:
        with pytest.raises(ValueError, match="sample it by ddim"):
            model.generate(num_steps=2, sampler=sampler)
    with pytest.raises(ValueError, match="on the sphere no share of the noise"):
        model.generate(num_steps=2, sampler="restart", renoise=0.5)
    with pytest.raises(ValueError, match="set the path slerp"):
        build("sphere")
    with pytest.raises(ValueError, match="set the codebook sphere"):
        build("one-hot", path="slerp")
