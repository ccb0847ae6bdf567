"""Writing: tokens follow the last softmax averaged over noise, calls are counted, what is known stays."""

import itertools

import pytest
import torch
from scipy import stats

from flowlm import Known
from flowlm.writing import LOCAL, write
from flowmap.rng import Rng
from flowmap.samplers import SERIAL, Guided, pushforward, uniform_times
from flowmap.warp import Warp
from tests.flowlm.test_token_map import N, V, build

ROWS = 20_000


@pytest.fixture(scope="module")
def model():
    made = build()
    for parameter in made.map.network.parameters():
        parameter.data *= 0.7  # a law that is spread out
    return made


def draws(model, rows=8, seed=5, **how):
    tokens = torch.zeros(rows, N, dtype=torch.long)
    return write(model.map, model.blank_states(tokens), Rng(seed, torch.arange(rows)), **how)


@pytest.mark.parametrize("steps", [1, 2])
@torch.no_grad()
def test_pairs_of_tokens_are_as_often_as_the_mean_softmax_over_noise_says(model, steps):
    """Means of p(x_1) p(x_2) over other noise, against counts."""
    rows, times = 3 * ROWS, uniform_times(steps)
    tokens = draws(model, ROWS, steps=steps).tokens
    z = model.map.path.draw_noise(Rng(99, torch.arange(rows)), "z", torch.zeros(rows, N, V))
    x = pushforward(Guided(model.map), z, times[:-1]).x if steps > 1 else z
    t = times[-2].float().expand(rows)
    p = model(x, t, torch.zeros_like(t)).softmax(-1)
    joint = torch.einsum("na,nb->ab", p[:, 0].double(), p[:, 1].double()).flatten() / rows
    seen = torch.bincount(tokens[:, 0] * V + tokens[:, 1], minlength=V * V).double()
    big = joint * ROWS > 10
    # the expected counts are themselves a mean over three times as many draws: χ² grows by 1 + 1/3 at most
    value = ((seen - joint * ROWS).square() / (joint * ROWS))[big].sum() / (4 / 3)
    assert stats.chi2.sf(float(value), int(big.sum()) - 1) > 1e-3
    apart = torch.outer(p[:, 0].double().mean(0), p[:, 1].double().mean(0)).flatten()
    wrong = ((seen - apart * ROWS).square() / (apart * ROWS))[big].sum() / (4 / 3)  # words taken one by one
    assert steps > 1 or stats.chi2.sf(float(wrong), int(big.sum()) - 1) < 1e-6


@pytest.mark.parametrize("sampler", SERIAL)
def test_calls_are_counted_and_what_is_known_stays(model, sampler):
    tokens = torch.arange(N).expand(8, N) % V
    at = torch.arange(N).expand(8, N) == 2
    calls = []
    hook = model.map.network.register_forward_hook(lambda *_: calls.append(1))
    out = draws(model, known=Known(tokens, at), sampler=sampler, steps=3)
    hook.remove()
    assert out.nfe == len(calls) == (5 if sampler == "heun" else 3)
    assert (out.tokens[:, 2] == 2).all() and (out.log_q[:, 2] == 0).all() and (out.log_q[:, [0, 1, 3, 4]] < 0).all()


def test_a_local_sampler_never_tells_the_network_where_it_lands(model):
    for sampler in SERIAL:
        told = []
        hook = model.map.network.register_forward_pre_hook(lambda _, args: told.append((args[1] != args[2]).any()))  # noqa: B023
        draws(model, sampler=sampler, steps=3)
        hook.remove()
        assert any(told) == (sampler not in LOCAL)


def test_a_row_is_the_same_text_in_any_batch_and_drafts_are_heard(model):
    heard = []
    whole = draws(model, 6, steps=4, watch=heard.append)
    part = write(model.map, torch.zeros(2, N, V), Rng(5, torch.tensor([3, 4])), steps=4)
    assert torch.equal(whole.tokens[3:5], part.tokens)
    assert len(heard) == 4 and all(draft.shape == (6, N) for draft in heard)


def test_greedy_takes_the_likeliest(model):
    heard = []
    greedy = draws(model, steps=2, warp=Warp(0.0), watch=heard.append)
    assert torch.equal(greedy.tokens, heard[-1])


def test_what_the_last_softmax_reads_has_the_noise_of_its_time():
    """restart: the estimate before, noised anew up to 1/n; a map that always says the same shows how much."""
    model, rows, seen = build(wild=False, prior=False), 4000, []
    hook = model.map.network.register_forward_pre_hook(lambda _, args: seen.append(args[:2]))
    draws(model, rows, sampler="restart", steps=4)
    hook.remove()
    (x, t), estimate = seen[-1], model.map.codebook.codes().mean(0)  # of a fresh map: all tokens alike
    assert (t == 0.25).all()
    scale = model.map._scaled(torch.ones(1, 1, 1), t[:1]).item()
    left = x / scale - 0.75 * estimate
    assert left.std().item() == pytest.approx(0.25, rel=0.02)


def test_half_precision_is_refused_before_times_are_rounded(model):
    with pytest.raises(ValueError, match="float32"):
        draws(build().bfloat16())


@pytest.mark.parametrize(
    "how, what",
    [
        ({"steps": 0}, "1 at least"),
        ({"renoise": 0.5}, "of the sampler restart"),
        ({"sampler": "restart", "renoise": 0.0}, "above 0"),
        ({"score_temperature": 0.0}, "above 0"),
        ({"sampler": "leap"}, "known are pushforward"),
    ],
)
def test_wrong_asks_are_refused(model, how, what):
    with pytest.raises(ValueError, match=what):
        draws(model, **how)


@pytest.mark.parametrize("sampler", ["pushforward", "ddim"])
@torch.no_grad()
def test_a_score_temperature_is_of_the_codes_headed_for_and_not_of_the_draw(model, sampler):
    """τ: the jump before the last heads for Cᵀ softmax(z/τ); the tokens are drawn at temperature 1 where it lands."""
    tau, rows, (t, s) = 0.5, 64, (1.0, 0.5)
    z = model.map.path.draw_noise(Rng(5, torch.arange(rows)), "z", torch.zeros(rows, N, V))
    now, then = torch.full((rows,), t), torch.full((rows,), s)
    aim, last = (now, then) if sampler == "ddim" else (then, torch.zeros(rows))
    heading = (model(z, now, aim) / tau).softmax(-1) @ model.map.codebook.codes()
    logits = model(model.map.path.jump(z, heading, now, then), then, last)
    tokens, log_q = Warp().draw(logits, Rng(5, torch.arange(rows)).uniform("token", rows, N))
    out = draws(model, rows, steps=2, sampler=sampler, score_temperature=tau)
    assert torch.equal(out.tokens, tokens) and torch.allclose(out.log_q, log_q, atol=1e-5)
    assert not torch.equal(out.tokens, draws(model, rows, steps=2, sampler=sampler).tokens)
    one = [draws(model, rows, steps=1, sampler=sampler, score_temperature=x).tokens for x in (tau, 1.0)]
    assert torch.equal(*one)  # nothing is headed for


def test_all_windows_are_possible(model):
    """No token is ruled out by construction: the law covers V^N."""
    tokens = draws(model, 3000, warp=Warp(5.0)).tokens
    assert len({tuple(row) for row in tokens[:, :2].tolist()}) == len(list(itertools.product(range(V), repeat=2)))


def test_two_passes_a_step_are_counted_and_read_the_first_passes_estimate():
    told = build(self_conditioning=0.5)
    one, two = (draws(told, steps=3, self_conditioning=flag) for flag in (False, True))
    assert (one.nfe, two.nfe) == (3, 6) and not torch.equal(one.log_q, two.log_q)
    blank = Known(torch.zeros(8, N, dtype=torch.long), torch.zeros(8, N, dtype=torch.bool))
    rng = Rng(5, torch.arange(8))
    assert [told.write(blank, rng, steps=3, self_conditioning=flag).nfe for flag in (None, False, True)] == [6, 3, 6]


def test_ancestral_steps_are_taken_at_the_times_that_were_trained_and_the_map_is_told_where_each_lands():
    """The sampler in x_t is the law in z = y√S that the bound charges for: the same mean last softmax; by its own grid alone."""
    from flowlm import FlowLM, FlowLMConfig
    from flowlm.draft import Draft
    from flowlm.likelihood import Ancestral
    from flowlm.writing import Refinement

    torch.manual_seed(0)
    grid, backbone = [0.0, 0.4, 1.3], {"width": 24, "depth": 1, "heads": 2, "time_scale": 10.0}
    config = FlowLMConfig(vocab_size=5, length=2, codebook="bits", grids={"2": grid}, backbone=backbone)
    model = FlowLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    rows = torch.arange(20_000)
    like = torch.zeros(len(rows), 2, model.map.codebook.state_size)
    z = model.map.path.draw_noise(Rng(1, rows), "z", like)
    heard = []
    told = model.map.logits

    def hears(x, t, s, *more):
        heard.append((float(t[0]), float(s[0])))
        return told(x, t, s, *more)

    model.map.logits = hears
    how = Refinement(3, "ancestral", times=model.trained_times(3))
    ours = how.last_logits(Draft(model.map, None, None), z, Rng(2, rows)).softmax(-1)
    times = [float(1 / (1 + s**0.5)) for s in grid]
    assert heard == [pytest.approx(pair, abs=1e-6) for pair in zip(times, [*times[1:], 0.0], strict=True)]
    law = Ancestral(model.map, torch.tensor(grid, dtype=torch.float64), told=True)
    with torch.no_grad():
        theirs = law.last(z, Rng(3, rows)).softmax(-1)
    error = ((ours.var(0) + theirs.var(0)) / len(rows)).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error + 1e-6).all()
    second = [(p[:, 0, :, None] * p[:, 1, None]).mean(0) for p in (ours, theirs)]  # both tokens together
    torch.testing.assert_close(*second, atol=0.01, rtol=0)
    blank = Known(torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, 2, dtype=torch.bool))
    assert model.write(blank, Rng(0, torch.arange(4)), steps=3, sampler="ancestral").nfe == 3
    with pytest.raises(ValueError, match="trained for 3"):
        model.write(blank, Rng(0, torch.arange(4)), steps=2, sampler="ancestral")


@pytest.mark.parametrize(("parallel", "serial"), [("jacobi", "pushforward"), ("picard", "ddim")])
def test_all_steps_at_once_write_what_they_write_one_after_the_other(parallel, serial):
    model, known, heard = build("embedding"), Known(torch.full((6, N), 2), torch.arange(N).expand(6, N) == 1), []
    like = torch.zeros(6, N, model.map.codebook.state_size)
    how = {"known": known, "steps": 5}
    one = write(model.map, like, Rng(3, torch.arange(6)), sampler=serial, **how)
    all_ = write(model.map, like, Rng(3, torch.arange(6)), sampler=parallel, watch=heard.append, **how)
    assert torch.equal(one.tokens, all_.tokens) and torch.allclose(one.log_q, all_.log_q, atol=1e-2)
    assert (all_.tokens[:, 1] == 2).all() and all_.nfe > one.nfe == 5 and all(part.shape == (6, N) for part in heard)
    with pytest.raises(ValueError, match="asks for all steps at once"):
        write(model.map, like, Rng(3, torch.arange(6)), sampler=parallel, block=1, **how)
