"""Steps that end where training looked equally often: kept with the model, asked for by name."""

import itertools

import pytest
import torch

from flowlm.token_map import Known
from flowmap.clocks import Monotone, Running
from flowmap.objectives.tokens import TOKEN_OBJECTIVES
from flowmap.path import LinearPath
from flowmap.rng import Rng
from flowmap.schedule import DecodeError
from flowmap.times import Uniform
from tests.flowlm.test_token_map import N, V, build
from training.flow_laws import POINTS, quantiles


class Looks:
    def __init__(self, times):
        self.times = times


def test_quantiles_rise_to_1_and_are_none_of_even_times():
    assert quantiles(Looks(Uniform()), LinearPath()) is None and quantiles(object(), LinearPath()) is None
    for law in (DecodeError(V), Running(), Monotone()):
        found = quantiles(Looks(law), LinearPath())
        assert len(found) == POINTS and found == sorted(found) and found[-1] == 1.0 and 0 <= found[0] < 0.2
    bound = TOKEN_OBJECTIVES["vlb"](times=Monotone())  # what it looks at is a law of the signal-to-noise ratio
    assert quantiles(bound, LinearPath()) == quantiles(Looks(Monotone()), LinearPath())
    law = DecodeError(V)
    middle = torch.tensor(quantiles(Looks(law), LinearPath())[POINTS // 2], dtype=torch.float64)
    assert float(law.share_below(middle)) == pytest.approx(0.5, abs=1e-6)


def test_a_grid_by_the_clock_ends_its_steps_there_and_an_even_one_is_the_default():
    model = build("embedding")
    blank = Known(torch.zeros(5, N, dtype=torch.long), torch.zeros(5, N, dtype=torch.bool))
    with pytest.raises(ValueError, match="take even"):
        model.write(blank, Rng(1, torch.arange(5)), steps=2, grid="clock")
    model.config.clock = [0.0, 0.1, 0.4, 1.0]
    assert model.times_on("even", 3) is None and model.times_on("clock", 1) == model.times_on("closing", 1) == (1.0,)
    assert model.times_on("clock", 3) == pytest.approx((1.0, 0.4, 0.1))
    assert model.times_on("clock", 6)[1] == pytest.approx(0.7)
    assert model.times_on("closing", 3) == pytest.approx((1.0, 0.1 + 0.3 * (4 / 9 - 1 / 3) * 3, 0.1 / 3))
    times = []
    hook = model.map.network.register_forward_pre_hook(lambda _, args: times.append(float(args[1][0])))
    own, even, plain = (model.write(blank, Rng(1, torch.arange(5)), steps=3, grid=g) for g in ("clock", "even", None))
    hook.remove()
    assert times == pytest.approx([1, 0.4, 0.1, 1, 2 / 3, 1 / 3, 1, 2 / 3, 1 / 3])
    assert torch.equal(even.log_q, plain.log_q) and not torch.equal(own.log_q, plain.log_q)
    with pytest.raises(ValueError, match="unknown grid"):
        model.write(blank, Rng(1, torch.arange(5)), grid="evn")


def test_restarts_on_the_closing_grid_land_where_the_kept_noise_says():
    model = build("embedding")
    blank = Known(torch.zeros(5, N, dtype=torch.long), torch.zeros(5, N, dtype=torch.bool))
    pairs = []
    hook = model.map.network.register_forward_pre_hook(
        lambda _, args: pairs.append((float(args[1][0]), float(args[2][0])))
    )
    for renoise in (None, 0.6):
        model.write(blank, Rng(1, torch.arange(5)), steps=3, grid="closing", sampler="restart", renoise=renoise)
    hook.remove()
    at = [1.0, 4 / 9, 1 / 9]  # even times, squared
    ahead = [0.8 * s / (1 - s) / (1 + 0.8 * s / (1 - s)) for s in at[1:]]
    told = [*zip(at, (0, 0, 0), strict=True), *zip(at, (*ahead, 0), strict=True)]
    assert [t for pair in pairs for t in pair] == pytest.approx([t for pair in told for t in pair], abs=1e-6)


def test_steps_stay_where_training_looked():
    model = build("embedding")
    times = model.times_on("closing", 100)
    assert min(times) >= model.config.t_min and all(a > b for a, b in itertools.pairwise(times))


def test_it_is_kept_with_the_model_and_generate_takes_it(tmp_path):
    from flowlm import FlowLM

    model = build("embedding")
    model.config.clock = [0.0, 0.2, 1.0]
    model.save_pretrained(tmp_path)
    again = FlowLM.from_pretrained(tmp_path)
    assert again.config.clock == [0.0, 0.2, 1.0]
    out = again.generate(num_steps=2, grid="clock", do_sample=False)
    assert out.shape[1] == N
