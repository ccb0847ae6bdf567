"""Likelihoods of flow language models by the command: what is scored, what is said of it, and what is no likelihood."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

import leaplm
from eval.certificate import of_score
from eval.flow import load_flow, samplings
from eval.flow_perplexity import Estimators, Request, joined, together
from eval.flow_text import freed, scored_text
from flowlm.likelihood import FewStep, enumerated
from tests.training.harness import SMALL
from training.config import load_preset, override
from training.loop import train
from training.run_dir import model_folder
from training.tasks import build

TINY = {"flow__width": 16, "flow__depth": 1, "flow__heads": 2, "training__batch_size": 32, **SMALL}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    text = folder / "text"
    text.mkdir()
    for i in range(8):
        (text / f"{i}.txt").write_text("".join(f"row {j} of page {i} says {j * i % 7}\n" for j in range(60)))
    config = override(load_preset("flow-poker"), training__steps=120, **TINY)
    train(config, folder / "poker", build, quiet=True)
    on_text = {
        "data__suite": None,
        "data__name": str(text),
        "data__length": 12,
        "tokenizer__kind": "bpe",
        "tokenizer__vocab_size": 300,
    }
    train(
        override(load_preset("flow-poker"), training__steps=60, **on_text, **TINY), folder / "prose", build, quiet=True
    )
    return folder


def records(runs, name, tmp_path, *words):
    out = tmp_path / "r.json"
    assert leaplm.main(["perplexity", str(runs / name), *words, "--json", str(out)]) == 0
    return json.loads(out.read_text())["results"]


@pytest.mark.parametrize(
    "estimator, kind", [("vlb", "bound"), ("k-step", "bound"), ("ode", "estimate"), ("sampler", "bound")]
)
def test_a_suite_is_scored_by_every_estimator(runs, tmp_path, capsys, estimator, kind):
    found = records(
        runs, "poker", tmp_path, "--estimator", estimator, "--steps", "2", "--calls", "64", "--draws", "512"
    )
    nll, perplexity = (next(r for r in found if r["metric"] == name) for name in ("nll", "perplexity"))
    assert nll["kind"] == kind and nll["on"] == "poker" and nll["n"] == 12 and nll["stderr_over"] == "monte-carlo"
    assert perplexity["value"] == pytest.approx(math.exp(nll["value"]))
    assert nll["value"] > math.log(6) / 2 - 4 * nll["stderr"] - (0.05 if kind == "estimate" else 0)
    assert nll["value"] < math.log(10) + 1 and nll["contract"]["estimator"] == estimator
    assert nll["contract"]["nfe"] == {"k-step": 3, "sampler": 2}.get(estimator, nll["contract"]["calls"])
    assert kind in capsys.readouterr().out
    assert (runs / "poker" / "records" / f"perplexity-poker-law-{estimator}.json").is_file()


def test_no_step_at_all_is_the_cross_entropy_of_independent_tokens(runs, tmp_path, capsys):
    found = records(runs, "poker", tmp_path, "--estimator", "k-step", "--steps", "0,1")
    assert [(r["contract"]["steps"], r["contract"]["nfe"]) for r in found if r["metric"] == "nll"] == [(0, 1), (1, 2)]
    assert "k-step 0 nll" in capsys.readouterr().out


def test_the_sampler_s_law_is_of_the_grid_that_jumps_were_taught_on(runs, tmp_path):
    shutil.copytree(runs / "poker", tmp_path / "clocked")
    folder = model_folder(str(tmp_path / "clocked"))
    for name, told in (("config", {"clock": [0.0, 0.02, 0.1, 1.0]}), ("generation_config", {"grid": "clock"})):
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | told))
    asked = ("--estimator", "sampler", "--steps", "2", "--draws", "512")
    even, clock = (
        next(r for r in records(where, name, tmp_path, *asked) if r["metric"] == "nll")
        for where, name in ((runs, "poker"), (tmp_path, "clocked"))
    )
    assert even["contract"]["grid"] is None and clock["contract"]["grid"] == "clock"
    assert even["value"] != clock["value"]


def test_text_has_both_errors_and_bits_per_byte(runs, tmp_path):
    found = records(runs, "prose", tmp_path, "--windows", "40")
    nll, bits = (next(r for r in found if r["metric"] == name) for name in ("nll", "bits_per_byte"))
    assert nll["stderr_over"] == "documents" and nll["stderr"] > 0 and nll["monte_carlo"] > 0
    assert nll["n"] % 12 == 0 and 0 < nll["value"] < math.log(300) + 2
    text = scored_text(load_flow(str(runs / "prose")), None, "text", "validation", 40, 20)
    assert bits["value"] == pytest.approx(nll["value"] * text.per_byte / math.log(2))
    assert text.training.size == 20 and not set(text.states.tokens[0].tolist()) <= {0}
    assert (np.diff(text.documents) >= 0).all()


@pytest.mark.parametrize(
    "name, estimator", [("poker", "vlb"), ("poker", "sampler"), ("prose", "k-step"), ("prose", "sampler")]
)
def test_an_honest_run_is_certified(runs, capsys, name, estimator):
    words = ["--estimator", estimator, "--steps", "2", "--draws", "100"]
    assert leaplm.main(["perplexity", str(runs / name), "--certify", *words]) == 0
    said = capsys.readouterr().out
    assert "passed" in said and "NOT" not in said
    if estimator == "sampler":
        assert "= 1.0000" in said


@pytest.mark.parametrize("estimator", ["vlb", "k-step"])
def test_a_run_that_has_seen_the_answer_is_not_and_the_exit_code_says_so(runs, capsys, monkeypatch, estimator):
    from flowlm.token_map import TokenMap

    honest = TokenMap.logits

    def peek(self, x_t, t, s, context=None, self_cond=None):
        told = torch.nn.functional.one_hot(context.tokens, self.codebook.size)
        return honest(self, x_t, t, s, context, self_cond) + 3 * told

    monkeypatch.setattr(TokenMap, "logits", peek)
    assert leaplm.main(["perplexity", str(runs / "poker"), "--certify", "--estimator", estimator, "--steps", "4"]) == 1
    assert "NOT passed" in capsys.readouterr().out


def test_one_position_is_freed_and_the_rest_is_known(runs):
    text = scored_text(load_flow(str(runs / "poker")), None, "text", "validation", 10, 10)
    strings = freed(text.states, 12)
    assert strings.tokens.shape[0] == 12 and (strings.scored.sum(1) == 1).all()
    place = int(strings.scored[0].nonzero()[0])
    assert strings.tokens[:, place].tolist() == list(range(12)) and bool(text.states.scored[0, place])
    assert torch.equal(strings.context.at, ~strings.scored)


@torch.no_grad()
def test_prompts_share_their_noise_and_rows_keep_their_order(runs):
    run = load_flow(str(runs / "poker"))
    states = scored_text(run, None, "text", "validation", 10, 10).states
    law = FewStep(run.model.map, 2)
    whole = together(law, states, 0, 200)
    assert torch.allclose(whole.nats, enumerated(law, states.tokens, 0, 200, states.context, states.scored[0]).nats)
    parts = [
        enumerated(law, states.tokens[rows], 5, 200, states.context, states.scored[0])
        for rows in ([4, 1], [0, 2, 3, 5])
    ]
    order = torch.tensor([4, 1, 0, 2, 3, 5]).argsort()
    both = joined(parts, order)
    assert torch.allclose(both.nats[[4, 1]], parts[0].nats) and torch.allclose(both.nats[[0, 2, 3, 5]], parts[1].nats)
    assert both.monte_carlo < sum(p.monte_carlo for p in parts)
    assert Estimators(run, states, Request("vlb")).often.size == 132  # six answers, as often as it takes
    fitted = Estimators(run, states[torch.arange(6).repeat(30)], Request("sampler", (2,)))
    assert fitted.often.size == 180
    (made,) = fitted.scores(states, False)  # as if there were too many to list
    assert (
        made.score.details["effective_sample_size"] > 1
        and made.score.details["bound_at_64"] < made.score.details["bound_at_4"]
    )
    assert of_score(made.score).total > 0


@pytest.mark.parametrize(
    "words, what",
    [
        (["--data", "pairs-10"], "another suite"),
        (["--calls", "2"], "6 at least"),
        (["--estimator", "sampler", "--steps", "0"], "1 at least"),
        (["--fit", "0"], "1 or above"),
        (["--block", "2"], "trained on whole windows"),
    ],
)
def test_what_does_not_apply_is_one_line(runs, words, what, capsys):
    assert leaplm.main(["perplexity", str(runs / "poker"), *words]) == 2
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1


def test_codes_that_have_no_table_have_no_bound():
    from types import SimpleNamespace

    from eval.flow_perplexity import asked_as_trained
    from tests.flowlm.test_latent_map import build as contextual

    with pytest.raises(ValueError, match="elf walks through codes that depend on the whole window"):
        asked_as_trained(SimpleNamespace(name="elf", model=contextual()))


def test_a_map_of_few_steps_is_scored_on_its_own_grid_and_told_where_it_lands(runs, tmp_path, capsys):
    config = override(load_preset("flow-poker-k-step"), training__steps=60, flow__options={"num_steps": "1,4"}, **TINY)
    train(config, runs / "few", build, quiet=True)
    model = load_flow(str(runs / "few")).model
    assert {k: len(grid) for k, grid in model.config.grids.items()} == {"1": 2, "4": 5}
    assert (model.generation_config.sampler, model.generation_config.num_steps) == ("ancestral", 5)
    assert [how.steps for how in samplings(load_flow(str(runs / "few")), (1, 2, 4, 5))] == [2, 5]
    assert [how.steps for how in samplings(load_flow(str(runs / "few")), (1, 2), "ddpm")] == [1, 2]
    found = [
        r for r in records(runs, "few", tmp_path) if r["metric"] == "nll"
    ]  # its own estimator, the steps that it was trained for
    assert [(r["contract"]["estimator"], r["contract"]["steps"], r["contract"]["nfe"]) for r in found] == [
        ("k-step", 1, 2),
        ("k-step", 4, 5),
    ]
    assert all(r["contract"]["told"] and r["value"] > math.log(6) / 2 - 4 * r["stderr"] for r in found)
    assert leaplm.main(["perplexity", str(runs / "few"), "--certify", "--steps", "1"]) == 0
    assert leaplm.main(["perplexity", str(runs / "few"), "--steps", "3"]) == 2
    assert "trained for 1, 4 ancestral steps" in capsys.readouterr().err
