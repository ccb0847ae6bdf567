"""How image objectives are compared: each drawn from as it was trained to be, settings chosen away from the test split."""

import json

import pytest

from benchmarks import costs
from benchmarks.claims import by_seed, matching_steps, ratios
from benchmarks.image_objectives import EULER_STEPS, STEPS, counts_of, options_of
from benchmarks.images import OBJECTIVES, VARIANTS, config_of, images_of, read_costs
from benchmarks.toy_training import COSTS, RECIPES
from flowmap.objectives import OBJECTIVES as KNOWN
from flowmap.samplers import OF_STATES
from imm.data import load_images
from training.config import override


def test_every_objective_of_the_package_is_compared_and_says_how_it_is_drawn_from():
    assert set(OBJECTIVES) == set(KNOWN)
    assert all(kind.sampler in OF_STATES for kind in KNOWN.values())
    assert {name for name, kind in KNOWN.items() if kind.most_steps == 1} == {"energy", "drifting"}
    assert {name for name, kind in KNOWN.items() if kind.sampler == "restart"} == {
        "consistency",
        "continuous-consistency",
    }


def test_a_model_is_drawn_from_at_the_numbers_of_steps_that_it_was_trained_for():
    assert counts_of("pushforward", None) == STEPS and counts_of("restart", 1) == (1,)
    assert counts_of("shortcut", None) == (1, 2, 4, 8, 16)  # the jumps that it learns are powers of two
    assert counts_of("euler", None) == counts_of("ddim", None) == EULER_STEPS and set(STEPS) <= set(EULER_STEPS)


def test_what_is_paced_runs_its_course_over_the_training():
    assert options_of("alpha-flow", 1000) == {"end": 1000} and options_of("consistency", 1000) == {"stage": 125}
    assert options_of("imm", 7) == {"k": 12, "group_size": 4, "weighted": False} and options_of("energy", 7) == {}
    config = config_of("digits", "continuous-consistency", 3, 400, {"optimizer__lr": 0.5})
    assert config.image.options == {"warmup": 100} and config.image.time_scale == KNOWN["mean-flow"].time_scale == 4.0
    assert (config.seed, config.training.steps, config.optimizer.lr) == (3, 400, 0.5)
    said = {
        (on, name): config_of(on, name, 0).image.parameterisation
        for on in ("digits", "mnist")
        for name in ("imm", "consistency")
    }
    assert list(said.values()) == ["euler-fm", "euler-fm", "endpoint", "simple-edm"]
    assert config_of("digits", "imm, s zeroed", 0).image.use_s is False and len(VARIANTS) == len(OBJECTIVES) + 3


def test_settings_are_chosen_on_images_of_the_training_split():
    whole = load_images("digits")
    config = override(config_of("digits", "imm", 0), image__selection=True)
    part = images_of(config)
    assert (whole.split, part.split) == ("test", "selection")
    assert len(part.train) + len(part.test) == len(whole.train)
    seen = {image.tobytes() for image in whole.test}
    assert not any(image.tobytes() in seen for image in part.test)
    assert not {image.tobytes() for image in part.train} & {image.tobytes() for image in part.test}


@pytest.mark.parametrize(
    "fids, goal, steps",
    [
        ({1: 9.0, 2: 5.0, 4: 3.0}, 5.0, 2),
        ({1: 9.0, 2: 5.0, 4: 3.0}, 2.0, None),
        ({1: 9.0, 2: 2.0, 4: 3.0, 8: 1.0}, 2.5, 8),  # better by chance at two is no match
        ({1: 1.0, 2: 1.0}, 1.0, 1),
    ],
)
def test_the_steps_that_match_are_those_from_which_on_none_is_worse(fids, goal, steps):
    assert matching_steps(fids, goal) == steps


def test_ratios_are_taken_seed_by_seed():
    def rows(scale):
        return [
            {"value": scale[seed] * steps, "train_seed": seed, "contract": {"steps": steps, "sampler": "pushforward"}}
            for seed in scale
            for steps in STEPS
        ]

    told, without = by_seed(rows({0: 1.0, 1: 2.0}), "pushforward"), by_seed(rows({0: 3.0, 1: 10.0}), "pushforward")
    found = ratios("digits", "imm", told, without, "pushforward")
    assert [r["contract"]["steps"] for r in found] == list(STEPS)
    assert all(r["value"] == 4.0 and r["stderr"] == pytest.approx(1.0) and r["seeds"] == [0, 1] for r in found)
    assert by_seed(rows({0: 1.0}), "restart") == {}


def test_costs_of_what_comes_later_are_in_the_unit_of_those_that_are_there(tmp_path, monkeypatch):
    """On a machine twice as slow as the first."""
    file = tmp_path / "costs.json"
    costs.keep_costs({"flow-matching": [2.0, 2.0, 2.0], "imm": [3.0]}, "digits", file, ["first"])
    before = json.loads(file.read_text())["results"]
    monkeypatch.setattr(costs, "cpu_seconds", lambda configs, *_: {"flow-matching": [4.0, 4.0], "energy": [10.0, 6.0]})
    costs.measure_costs({}, None, "digits", file, ["later"], later=True)
    assert costs.seconds_of_a_step(file, "") == {"flow-matching": 2.0, "imm": 3.0, "energy": 4.0}
    assert json.loads(file.read_text())["results"][:2] == before


def test_every_training_of_a_benchmark_has_a_cost():
    for on in ("digits", "mnist"):
        assert set(VARIANTS) <= set(read_costs(on))
    assert set(RECIPES) <= set(costs.seconds_of_a_step(COSTS, ""))
