"""The baselines measured by the same commands as flow language models: each with its own samplers and calls."""

import json
import math

import pytest
import torch

import leaplm
from eval.flow import load_flow, samplings, write_all
from eval.loading import load_run
from eval.quality import quality
from eval.samples import read_samples
from flowlm import AutoregressiveLM, MaskedDiffusionLM
from tests.training.harness import SMALL
from training.config import load_preset, override
from training.loop import train
from training.tasks import build

KINDS = {"flow-ar": AutoregressiveLM, "flow-mdlm": MaskedDiffusionLM}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each on a suite, long enough to know it, and on characters of a few lines."""
    folder = tmp_path_factory.mktemp("baselines")
    (folder / "text.txt").write_text("the house of cards stands on the hill and falls in the wind\n" * 60)
    small = {"flow__width": 32, "flow__depth": 1, "flow__heads": 2, **SMALL}
    suite = {"data__suite": "poker", "tokenizer__kind": "words", "training__batch_size": 64, "training__ema": 0.9}
    text = {"data__name": str(folder / "text.txt"), "data__length": 24, "training__batch_size": 8}
    for name in KINDS:
        how: dict = {"training__steps": 200, "optimizer__lr": 3e-3, "optimizer__warmup": 20}
        if name == "flow-mdlm":
            how |= {"training__steps": 500, "flow__options": {"blanks": "count"}}
        config = override(load_preset(name), **how, **suite, **small)
        train(config, folder / f"{name}-suite", build, quiet=True)
        train(
            override(load_preset(name), training__steps=3, **text, **small), folder / f"{name}-text", build, quiet=True
        )
    return folder


def probed(run, out, *more):
    assert leaplm.main(["probe", str(run), "--suite", "poker", "--num", "3000", "--json", str(out), *more]) == 0
    records = [r for r in json.loads(out.read_text())["results"] if r["metric"] == "validity"]
    return {(r["contract"]["steps"], r["contract"]["nfe"]): r for r in records if r["subject"].startswith("flow")}


def test_a_probe_of_masked_diffusion_is_right_as_often_as_words_are_not_drawn_at_once(runs, tmp_path):
    found = probed(runs / "flow-mdlm-suite", tmp_path / "a.json", "--steps", "1,2,4")
    assert found.keys() == {(1, 1), (2, 2), (4, 4)}
    for (steps, _), r in found.items():
        assert r["value"] == pytest.approx(1 - 26 / 36 / steps, abs=0.06) and r["contract"]["sampler"] == "ancestral"
    even = probed(runs / "flow-mdlm-suite", tmp_path / "b.json", "--steps", "1,2", "--sampler", "even")
    assert even[2, 2]["value"] > 0.97 and even[1, 1]["value"] < 0.4 and even[2, 2]["subject"] == "flow-mdlm"


def test_a_probe_of_an_autoregressive_model_has_one_grid(runs, tmp_path):
    found = probed(runs / "flow-ar-suite", tmp_path / "a.json", "--steps", "1,2,4")
    ((steps, nfe),) = found
    assert (steps, nfe) == (6, 2)  # a step a token of the window, a call for each that is not known
    assert found[6, 2]["value"] > 0.97 and found[6, 2]["contract"]["sampler"] == "causal"


@pytest.mark.parametrize("name", KINDS)
def test_samples_of_characters_are_characters(runs, name, tmp_path, capsys):
    run, out = str(runs / f"{name}-text"), tmp_path / "s.jsonl"
    how = ["--num", "3", "--steps", "2,3", "--prompt", "The HOUSE, of", "--new", "8", "--out", str(out)]
    assert leaplm.main(["sample", run, *how]) == 0
    rows = read_samples(out)
    calls = [2, 3] if name == "flow-mdlm" else [24 - len("the house of")]
    assert [row["contract"]["nfe"] for row in rows] == [n for n in calls for _ in range(3)]
    assert all(
        len(row["text"]) == row["tokens"] <= 8 and set(row["text"]) <= set(" abcdefghijklmnopqrstuvwxyz")
        for row in rows
    )
    assert [len(row["drafts"]) for row in rows] == [n if name == "flow-mdlm" else 0 for n in calls for _ in range(3)]
    found = {r["contract"]["nfe"]: r["value"] for r in quality(rows, None, "s") if r["metric"] == "tokens_per_forward"}
    assert found.keys() == set(calls)
    assert leaplm.main(["sample", run, "--num", "1", "--new", "4", "--prompt-tokens", "6"]) == 0  # of its held-out text
    assert "nfe" in capsys.readouterr().out


@pytest.mark.parametrize("name", KINDS)
def test_a_row_is_the_same_in_any_batch(runs, name):
    run = load_flow(str(runs / f"{name}-suite"))
    assert type(run.model) is KINDS[name] and run.subject == name
    start = [0, *run.tokenizer.encode("the hand is")]
    how = samplings(run, (2,))[0]
    whole, parts = ([row for rows in write_all(run, [start] * 6, how, n) for row in rows.texts] for n in (6, 4))
    assert whole == parts and len({tuple(row) for row in whole}) > 1
    assert torch.tensor(whole).max() < len(run.tokenizer)


@pytest.mark.parametrize(
    "name, words, what",
    [
        ("flow-ar", ["probe", "--suite", "poker", "--sampler", "euler"], "knows causal"),
        ("flow-mdlm", ["sample", "--sampler", "pushforward"], "knows ancestral, even"),
        ("flow-mdlm", ["perplexity", "--estimator", "ode"], "has nelbo"),
    ],
)
def test_what_does_not_apply_is_one_line(runs, name, words, what, capsys):
    assert leaplm.main([words[0], str(runs / f"{name}-suite"), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1


def test_a_model_of_another_kind_is_no_flow(runs, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="llama"):
        load_flow(str(tmp_path))
    with pytest.raises(ValueError, match="probe and sample"):
        load_run(str(runs / "flow-ar-suite"))


def scored(run, out, *more):
    code = leaplm.main(["perplexity", str(run), "--json", str(out), *more])
    return code, {r["metric"]: r for r in json.loads(out.read_text())["results"]}


def test_likelihoods_of_the_baselines_are_exact_and_a_bound_and_pass_their_certificates(runs, tmp_path, capsys):
    out = tmp_path / "a.json"
    (_, exact), (_, bound) = (
        scored(runs / f"{name}-suite", out, "--calls", "256") for name in ("flow-ar", "flow-mdlm")
    )
    entropy = math.log(6) / 2
    assert (
        exact["nll"]["kind"] == "exact" and exact["nll"]["contract"]["calls"] == 1 and exact["nll"]["monte_carlo"] == 0
    )
    assert entropy < exact["nll"]["value"] < entropy + 0.1
    assert bound["nll"]["kind"] == "bound" and bound["nll"]["contract"]["estimator"] == "nelbo"
    assert entropy - 3 * bound["nll"]["monte_carlo"] < bound["nll"]["value"] < entropy + 0.2
    for name in KINDS:
        code, found = scored(runs / f"{name}-text", out)
        assert code == 0 and found["bits_per_byte"]["value"] > 0 and found["nll"]["n"] > 100
        capsys.readouterr()
        assert leaplm.main(["perplexity", str(runs / f"{name}-text"), "--certify", "--calls", "64"]) == 0
        said = capsys.readouterr().out
        assert "passed" in said and "NOT" not in said
        if name == "flow-ar":
            assert "= 1.0000 ±" in said
    assert leaplm.main(["perplexity", str(runs / "flow-ar-suite"), "--estimator", "vlb"]) == 2
    assert "flow-ar-suite has exact" in capsys.readouterr().err
