"""`leaplm perplexity` of models that write windows in blocks: scored as they write, by block length."""

import json
import math
from dataclasses import replace

import pytest
import torch

import leaplm
from eval.flow import load_flow
from eval.flow_text import freed, scored_text
from tests.training.harness import SMALL
from training.config import load_preset, override
from training.loop import train
from training.tasks import build

LENGTHS = (1, 2, 4, 12)
ENTROPY = math.log(14) / 8
"""Nats a token of the fourteen balanced words."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    small = {"flow__width": 24, "flow__depth": 1, "flow__heads": 2, **SMALL, "training__batch_size": 32}
    config = override(load_preset("flow-block-brackets-8"), **small, training__steps=150)
    train(config, folder / "flow", build, quiet=True)
    config.flow = replace(config.flow, objective="masked", options={"blanks": "count"})
    train(config, folder / "bd3lm", build, quiet=True)
    return folder


def scored(runs, name, tmp_path, *words):
    out = tmp_path / "r.json"
    assert leaplm.main(["perplexity", str(runs / name), *words, "--json", str(out)]) == 0
    return [r for r in json.loads(out.read_text())["results"] if r["metric"] == "nll"]


@pytest.mark.parametrize("estimator, kind", [("vlb", "bound"), ("k-step", "bound"), ("ode", "estimate"), ("sampler", "bound")])  # fmt: skip
def test_every_estimator_scores_blocks_behind_clean_text(runs, tmp_path, capsys, estimator, kind):
    found = scored(runs, "flow", tmp_path, "--estimator", estimator, "--steps", "2", "--block", "1", "4", "--fit", "64")
    assert [r["contract"]["block"] for r in found] == [1, 4]
    for r in found:
        contract = r["contract"]
        assert r["kind"] == kind and r["n"] == 14 * 8 and contract["num_blocks"] == 8 // contract["block"]
        calls = {"k-step": 3, "sampler": 2}.get(estimator)
        assert contract["nfe"] == (contract["calls"] if calls is None else calls * contract["num_blocks"])
        assert r["value"] > ENTROPY - 4 * r["stderr"] - (0.05 if kind == "estimate" else 0)
    assert "B=4" in capsys.readouterr().out
    assert (runs / "flow" / "records" / f"perplexity-brackets-8-law-{estimator}-block-1-block-4.json").is_file()


def test_shorter_blocks_of_a_trained_model_cost_less_without_a_step(runs, tmp_path):
    """Independent tokens of a block: the longer it is, the more they leave out."""
    words = ["--estimator", "k-step", "--steps", "0", "--block", *map(str, LENGTHS), "--from-zero"]
    found = {r["contract"]["block"]: r for r in scored(runs, "flow", tmp_path, *words)}
    assert all(r["kind"] == "exact" and r["stderr"] == 0 and r["contract"]["state"] == "zero" for r in found.values())
    noisy = {r["contract"]["block"]: r for r in scored(runs, "flow", tmp_path, *words[:-1])}
    assert noisy[1]["kind"] == "bound" and noisy[1]["value"] < noisy[4]["value"] < noisy[12]["value"]


def test_masked_diffusion_in_blocks_is_scored_in_blocks(runs, tmp_path):
    """Of one token nothing is left to draw: an exact chain; the longest is the default."""
    found = {r["contract"]["block"]: r for r in scored(runs, "bd3lm", tmp_path, "--block", *map(str, LENGTHS))}
    assert found[1]["stderr"] < 1e-6 and found[12]["stderr"] > 1e-4
    assert found[1]["value"] < found[12]["value"]
    (default,) = scored(runs, "bd3lm", tmp_path)
    assert default["contract"]["block"] == 12 and default["value"] == pytest.approx(found[12]["value"])


@pytest.mark.parametrize("name, estimator", [("flow", "vlb"), ("flow", "k-step"), ("flow", "sampler"), ("bd3lm", "nelbo")])  # fmt: skip
def test_an_honest_run_is_certified_at_every_block_length(runs, capsys, name, estimator):
    words = ["--estimator", estimator, "--steps", "2", "--block", "1", "2", "4", "--fit", "64"]
    assert leaplm.main(["perplexity", str(runs / name), "--certify", *words]) == 0
    said = capsys.readouterr().out
    assert said.count("passed") == 3 and "NOT" not in said and "in blocks of 2" in said


def test_a_mask_that_shows_a_block_its_own_clean_text_is_no_likelihood(runs, capsys, monkeypatch):
    from flowlm.token_map import TokenMap

    honest = TokenMap.logits

    def peek(self, x_t, t, s, context=None, self_cond=None):
        told = torch.nn.functional.one_hot(context.tokens, self.codebook.size)
        return context.settle(honest(self, x_t, t, s, context, self_cond) + 4 * told)

    monkeypatch.setattr(TokenMap, "logits", peek)
    words = ["--certify", "--estimator", "k-step", "--steps", "2", "--block", "2", "--fit", "64"]
    assert leaplm.main(["perplexity", str(runs / "flow"), *words]) == 1
    assert "NOT passed" in capsys.readouterr().out


def test_one_position_of_a_block_is_freed(runs):
    run = load_flow(str(runs / "flow"))
    text = scored_text(run, None, "text", "validation", 10, 10, block=4)
    size = run.model.config.vocab_size
    strings = freed(text.states, size)
    assert text.blocks == 2 and (text.states.levels == torch.arange(12) // 4).all()
    assert torch.equal(strings.context.tokens, strings.tokens) and torch.equal(
        strings.context.known.at, ~strings.scored
    )
    assert (strings.context.size == 4).all() and strings.levels.shape == strings.tokens.shape == (size, 12)


@pytest.mark.parametrize(
    "words, what",
    [
        (["--block", "3"], "trained with blocks of 1, 2, 4, 12"),
        (["--from-zero"], "vlb shows the network no state of pure noise alone"),
    ],
)
def test_what_does_not_apply_is_one_line(runs, words, what, capsys):
    assert leaplm.main(["perplexity", str(runs / "flow"), *words]) == 2
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1
