"""Carried estimates: a jump hears what the one before it expected, in training as in writing, and nothing else does."""

import pytest
import torch

from flowlm import Known
from flowlm.likelihood.laws import FewStep
from flowmap.objectives.tokens import TokenStates, TrajectoryKL
from flowmap.objectives.tokens.base import NoisedTokens, kl
from flowmap.rng import Rng
from flowmap.schedule import DecodeError
from tests.flowlm.test_token_map import N, V, build
from tests.flowmap.six_hands import TOKENS, SixHands
from tests.flowmap.test_token_losses import fixed, network
from training.config import load_preset, override
from training.flow_models import make_model

ROWS = 8


def heard(model, **how):
    """Of each call of the network, what it was told: (rows, n, d) or None; and the windows."""
    told = []
    hook = model.map.network.register_forward_pre_hook(
        lambda _, args, kwargs: told.append(kwargs.get("self_cond")), with_kwargs=True
    )
    blank = Known(torch.zeros(ROWS, N, dtype=torch.long), torch.zeros(ROWS, N, dtype=torch.bool))
    out = model.write(how.pop("known", blank), Rng(5, torch.arange(ROWS)), **how)
    hook.remove()
    return told, out


@pytest.mark.parametrize("sampler", ["pushforward", "restart"])
@torch.no_grad()
def test_a_jump_hears_the_codes_that_the_one_before_it_expected(sampler):
    model, said = build("embedding", carries=True), []
    logits = model.map.logits
    model.map.logits = lambda *args, **more: said.append(logits(*args, **more)) or said[-1]
    told, out = heard(model, steps=3, sampler=sampler, score_temperature=0.5)
    assert out.nfe == 3 and told[0] is None
    for before, now in zip(said, told[1:], strict=False):  # what p itself says, not what the jump headed for
        assert torch.allclose(now * model.map.data_scale, model.map.codebook.expected(before), atol=1e-6)


def test_only_jumps_of_a_map_that_was_taught_so_do():
    assert all(one is None for one in heard(build("embedding"), steps=3)[0])
    model = build("embedding", carries=True)
    for sampler in ("euler", "ddim", "ddpm", "heun", "picard"):
        assert all(one is None for one in heard(model, steps=3, sampler=sampler)[0])
    for other in ({"self_conditioning": True}, {"sampler": "jacobi"}, {"sampler": "ancestral"}):
        with pytest.raises(ValueError, match="hears the one before it"):
            heard(model, steps=2, **other)


def test_every_block_begins_without():
    model = build("embedding", carries=True, block_lengths=[1, N], noise="block")
    told, _ = heard(model, steps=2, block_length=1)
    assert [one is None for one in told] == [True, False] * N


@torch.no_grad()
def test_what_writes_is_what_is_scored():
    model = build("embedding", carries=True)
    z = model.map.path.draw_noise(Rng(5, torch.arange(ROWS)), "z", torch.zeros(ROWS, N, model.map.codebook.state_size))
    last = FewStep(model.map, 3).last(z, Rng(5, torch.arange(ROWS)))
    drawn = heard(model, steps=3)[1]
    p = last.log_softmax(-1).gather(-1, drawn.tokens[..., None])[..., 0]
    assert torch.allclose(p, drawn.log_q, atol=1e-5)


def test_a_known_token_is_told_of_as_itself():
    model = build("embedding", carries=True)
    tokens = torch.arange(N).expand(ROWS, N) % V
    told, out = heard(model, known=Known(tokens, (torch.arange(N) == 0).expand(ROWS, N)), steps=2)
    assert torch.equal(out.tokens[:, 0], tokens[:, 0])
    assert torch.allclose(told[1][:, 0] * model.map.data_scale, model.map.codebook.encode(tokens[:, :1])[:, 0])


def test_training_tells_each_jump_what_the_target_of_the_one_before_it_expects():
    law, oracle = DecodeError(6), SixHands()
    tokens, noise, t = fixed(oracle, 12, 1.0)
    x = NoisedTokens(tokens, noise, t, torch.zeros_like(t), None, t)
    objective = TrajectoryKL(times=law, num_steps=16, jumps=4, carry=True)
    jumps, q = objective.taught(oracle, x, 0)
    plain, same = TrajectoryKL(times=law, num_steps=16, jumps=4).taught(oracle, x, 0)
    assert plain.carried is None and torch.equal(q, same)
    u = [0.0, *law.time_of(torch.linspace(0, 1, 17, dtype=torch.float64) ** 2).tolist()[1:16], 1.0]
    ends = [
        [min(range(17), key=lambda k: abs(u[k] - float(at[row]))) for at in (jumps.t, jumps.s)]
        for row in range(0, 96, 12)
    ]
    number = {tuple(way): k for k, way in enumerate(ends)}
    behind = {(12, 8): (16, 12), (8, 4): (12, 8), (4, 0): (8, 4), (8, 0): (16, 8), (12, 0): (16, 12)}
    for way, k in number.items():
        rows = slice(12 * k, 12 * (k + 1))
        if way[0] == 16:
            assert not jumps.carried[rows].any()
        else:
            first = q[12 * number[behind[way]] :][:12]
            assert torch.allclose(
                jumps.carried[rows], oracle.codebook.expected(first.clamp_min(1e-30).log()), atol=1e-6
            )


def test_the_loss_asks_the_map_with_what_is_carried_and_the_denoiser_without():
    objective = TrajectoryKL(0.0, num_steps=4, jumps=2, boundary=1.0, t_min=0.05, carry=True)
    model = network(self_conditioning=True)
    x, _ = objective.noised(model, TokenStates(TOKENS), Rng(0, torch.arange(6)), 0)
    error, _ = objective.divergence(model, model, x, 0)
    jumps, q = objective.taught(model, x, 0)
    p = model.logits(jumps.x_t, jumps.t, jumps.s, self_cond=jumps.carried)
    assert torch.allclose(error, kl(q, p)) and jumps.carried.any()
    assert not torch.allclose(error, kl(q, model.logits(jumps.x_t, jumps.t, jumps.s)))
    assert torch.equal(objective.taught(model, x, 0)[1], q)  # the target is the denoiser's, which hears nothing


@torch.no_grad()
def test_what_a_jump_leaves_in_memory_the_next_one_reads():
    model, left = build("embedding", carries=True, memory=3, jumps=4), []
    ask = model.map.logits_and_memory

    def asked(*args):
        logits, memory = ask(*args)
        left.append((model.map.codebook.expected(logits), memory))
        return logits, memory

    model.map.logits_and_memory = asked
    told, _ = heard(model, steps=3)
    assert told[0] is None and model.map.network.write.out_features == V + 3
    for (codes, memory), now in zip(left, told[1:], strict=False):
        assert torch.allclose(now, torch.cat([codes / model.map.data_scale, memory], -1), atol=1e-6)
        assert memory.shape == (ROWS, N, 3) and memory.any()
    model.map.logits_and_memory = ask
    more = heard(model, steps=5)[0]  # than it was taught to make one after the other
    assert not any(one[..., -3:].any() for one in more[1:]) and all(one[..., :-3].any() for one in more[1:])


@torch.no_grad()
def test_under_guidance_each_branch_keeps_a_memory_of_its_own():
    model = build("embedding", carries=True, memory=3, jumps=2, prompt_dropout=0.5)
    known = Known(torch.zeros(ROWS, N, dtype=torch.long), (torch.arange(N) == 0).expand(ROWS, N))
    told, _ = heard(model, known=known, steps=2, guidance=2.0)
    codes, memory = zip(*(one.tensor_split([model.map.codebook.state_size], -1) for one in told[2:]), strict=True)
    assert torch.equal(codes[0][:, 1:], codes[1][:, 1:]) and not torch.allclose(memory[0][:, 1:], memory[1][:, 1:])


def test_memory_is_learned_through_the_jumps_that_read_it():
    model = build("embedding", carries=True, memory=3).map
    objective = TrajectoryKL(0.0, num_steps=8, jumps=4, boundary=1.0, t_min=0.05, carry=True, memory=3)
    tokens = torch.randint(V, (ROWS, N), generator=torch.Generator().manual_seed(1))
    x, _ = objective.noised(model, TokenStates(tokens), Rng(0, torch.arange(ROWS)), 0)
    jumps, q = objective.taught(model, x, 0)
    said, left = {}, {}
    for k, jump in enumerate(objective.order):  # each behind the one before it, alone
        part, before = jumps[torch.arange(ROWS * k, ROWS * (k + 1))], objective.before[jump]
        memory = left[before] * (part.u >= 0.25)[:, None, None] if before else torch.zeros(ROWS, N, 3)
        told = torch.cat([part.carried, memory], -1)
        said[jump], left[jump] = model.logits_and_memory(part.x_t, part.t, part.s, self_cond=told)
    error, _ = objective.divergence(model, model, x, 0)
    assert torch.allclose(error, kl(q, torch.cat([said[jump] for jump in objective.order])), atol=1e-4)
    assert 0 < (jumps.u < 0.25).sum() < len(jumps.u)
    rows = torch.autograd.grad(error.sum(), model.network.write.weight)[0][V:]
    assert rows.abs().sum() > 0
    plain = build("embedding", carries=True, memory=3).map
    before = plain.logits(x.x_t, x.t, x.s)
    plain.network.write.weight.data[V:] += 1.0  # what is left says nothing of what is written now
    assert torch.equal(plain.logits(x.x_t, x.t, x.s), before)


def test_memory_without_jumps_that_hear_is_refused():
    with pytest.raises(ValueError, match="memory 4 is of jumps that hear"):
        TrajectoryKL(num_steps=4, jumps=2, memory=4)


@pytest.mark.parametrize("more", [{"jumps": 1}, {"jumps": 2, "self_conditioning": 0.5}])
def test_what_carries_nothing_is_refused(more):
    with pytest.raises(ValueError, match="carry needs jumps"):
        TrajectoryKL(num_steps=4, carry=True, **more)


@pytest.mark.parametrize("num_steps, jumps", [(12, 4), (20, 4), (48, 8), (6, 2)])
def test_every_jump_but_the_first_has_one_before_it_whatever_the_number_of_steps(num_steps, jumps):
    objective = TrajectoryKL(num_steps=num_steps, jumps=jumps, carry=True)
    for (first, last), before in objective.before.items():
        assert (before is None) == (first == 0)
        assert before is None or (before in objective.spans and before[1] == first)
        assert last == num_steps or before is None or before[0] == 2 * first - last


@pytest.mark.parametrize("more", [{"flow__noise": "token"}, {"flow__decoder": "contextual"}])
def test_tokens_that_move_apart_or_are_decoded_carry_nothing(more):
    plan = override(load_preset("flow-leap"), **more).flow
    with pytest.raises(ValueError, match="carry is of tokens that move together"):
        make_model(plan, TrajectoryKL(num_steps=4, jumps=2, carry=True), vocab_size=V, length=N)
