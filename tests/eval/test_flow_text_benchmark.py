"""The benchmark of flow language models of text: bounds and judged samples in one cell, kept."""

import gzip
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from benchmarks import flow_runs, flow_text, orderings
from eval.flow import load_flow
from eval.flow_samples import starts_of
from eval.records import record
from flowlm import FlowLM, FlowLMConfig
from flowmap.rng import Rng
from flowmap.warp import Warp
from training.config import load_preset, override
from training.tasks import build

SMALL = {"training__steps": 4, "training__batch_size": 4, "training__evaluate_every": 4}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A WikiText-2 of one sentence, every preset at the size of a second."""
    (tmp_path / "wikitext2").mkdir()
    for split in ("train", "valid", "test"):
        with gzip.open(tmp_path / "wikitext2" / f"{split}.txt.gz", "wt") as file:
            file.write(" = Dogs = \n the quick brown fox jumps over the lazy dog and the dog sleeps on\n" * 80)
    monkeypatch.setenv("LEAPLM_DATA", str(tmp_path))
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}

    def shrunk(name):
        config = load_preset(name)
        if config.flow is None:
            return override(config, **SMALL, trunk__config={**config.trunk.config, **tiny})
        return override(config, **SMALL, flow__width=16, flow__depth=1, flow__heads=2)

    for module in (flow_text, flow_runs):
        monkeypatch.setattr(module, "load_preset", shrunk)
    monkeypatch.setattr(flow_text, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(flow_text, "NUM", 4)
    monkeypatch.setattr(flow_text, "BUDGET", {"characters": 16})
    monkeypatch.setattr(flow_text, "BOUND", SimpleNamespace(**{**vars(flow_text.BOUND), "windows": 4, "fit": 4}))
    return tmp_path


def test_a_cell_has_a_bound_and_judged_samples_of_every_number_of_calls(small, monkeypatch, capsys):
    words = ["flow_text", "--seeds", "0", "--runs", str(small / "runs")]
    monkeypatch.setattr("sys.argv", [*words, "--presets", "flow-ar", "flow-fmlm", "flow-mdlm"])
    flow_text.main()
    told = capsys.readouterr().out
    runs = {folder.name for folder in (small / "runs" / "characters").iterdir() if folder.is_dir()}
    assert runs == {"judge", "flow-ar-0", "flow-flm-0-steps-2", "flow-fmlm-0", "flow-mdlm-0"}  # two stages, one budget
    found = json.loads((small / "results" / "characters-flow-fmlm-0.json").read_text())["results"]
    assert {(r["subject"], r["kind"]) for r in found if r["metric"] == "nll"} == {("flow-fmlm", "bound")}
    judged = [r for r in found if r["metric"] == "judge_nll" and r["subject"] != "data"]
    assert {(r["contract"]["sampler"], r["contract"]["nfe"], r["contract"]["temperature"]) for r in judged} == {
        (sampler, nfe, temperature)
        for sampler in ("pushforward", "euler")
        for nfe in flow_text.CALLS
        for temperature in flow_text.TEMPERATURES
    }
    (real,) = [r for r in found if r["metric"] == "judge_nll" and r["subject"] == "data"]
    assert real["n"] == 4 and real["value"] > 0
    assert "exact, exact" in told and "nelbo, bound" in told and "(nfe 128)" in told
    monkeypatch.setattr(flow_runs, "train", None)  # what is kept is not trained again
    monkeypatch.setattr(flow_text, "train", None)
    flow_text.main()
    assert told.endswith(capsys.readouterr().out)


def test_a_window_of_text_begins_anywhere_and_a_suite_s_with_the_start_token(small):
    run = load_flow(str(_trained(small, "flow-mdlm")))
    assert starts_of(run, [("", ""), ("ab", "")]) == [[], run.tokenizer.encode("ab", add_special_tokens=False)]
    suite = load_flow(str(_trained(small, "flow-poker-mdlm")))
    assert starts_of(suite, [("", "")]) == [[suite.tokenizer.bos_token_id]]


def _trained(folder, preset):
    return flow_runs.Planned(preset, folder / "runs" / "small", 0, {}, {}).train()[0]


def test_nearest_codes_are_taken_once_where_nothing_is_drawn():
    backbone = {"width": 16, "depth": 1, "heads": 2}
    told = {"vocab_size": 5, "length": 3, "codebook": "embedding", "state_size": 4, "backbone": backbone}
    decoders = {}
    for rounding in (None, {"depth": 1}):
        run = SimpleNamespace(name="run", model=FlowLM(FlowLMConfig(rounding=rounding, **told)))
        for temperature in (0.0, 1.0):
            ways = flow_runs.by_calls(run, (1, 2), 0, Warp(temperature))
            decoders[bool(rounding), temperature] = {way.options.get("decoder") for way in ways}
    own = decoders.pop((True, 0.0))
    assert own == {None, "nearest"} and all(found == {None} for found in decoders.values())


def test_a_preset_and_those_before_it_read_one_budget_and_what_is_set_is_set_in_the_preset_alone(tmp_path):
    planned = flow_runs.Planned(
        "flow-fmlm", tmp_path, 0, {}, {"flow__objective": "lsd"}, {"flow__width": 64}, 1200 * 64
    )
    (teacher,) = {one.name: one for one in planned.earlier().values()}.values()
    assert planned.config().training.steps == teacher.config().training.steps == 600
    assert teacher.name == "flow-flm-0-width-64-steps-600" and teacher.config().flow.objective == "cross-entropy"
    assert planned.config().flow.objective == "lsd" and teacher.config().flow.width == planned.config().flow.width == 64
    alone = flow_runs.Planned("flow-block-flow", tmp_path, 0, {}, {}, {}, 1200 * 64)
    assert alone.config().training.steps == 2400 and alone.config().training.batch_size == 32
    scratch = flow_runs.Planned("flow-adapt", tmp_path, 0, {}, {"flow__start": None}, {}, 1200 * 64)
    assert scratch.config().training.steps == 1200 and not scratch.earlier()
    assert flow_runs.Planned("flow-elf", tmp_path, 0, {}, {}).named() == {"encoder": "flow-mdlm"}
    assert flow_runs.largest(["flow-flm", "flow-fmlm"]) == 2400 * 64


@pytest.mark.parametrize("preset", flow_text.OF_SUBWORDS)
def test_presets_of_the_plan_take_subwords(preset, small):
    tiny = {**flow_text.FIELDS["wikitext2"], "tokenizer__vocab_size": 300, "flow__width": 16}
    config = flow_runs.Planned(preset, small, 0, tiny, {}, {}, 16).config()
    task = build(config, Accelerator(cpu=True))
    assert task.model.codebook.state_size == 64 and config.tokenizer.kind == "bpe"
    batch = task.train.batch(0, torch.arange(4))
    teacher = task.model if task.objective.teacher_decay else None
    loss = task.objective(task.model, batch, teacher=teacher, rng=Rng(0, torch.arange(4), 0, 4), step=0)
    assert torch.isfinite(loss.sum)


@pytest.mark.parametrize("one", list(orderings.needed()), ids=lambda one: orderings.subject_of(one))
def test_every_ablation_can_be_built(one, small):
    preset, variant = one
    config = override(flow_text.load_preset(preset), **{**variant, "flow__start": None, "flow__teacher": None})
    task = build(config, Accelerator(cpu=True))
    batch = task.train.batch(0, torch.arange(4))
    teacher = task.model if task.objective.teacher_decay else None
    loss = task.objective(task.model, batch, teacher=teacher, rng=Rng(0, torch.arange(4), 0, 4), step=0)
    assert torch.isfinite(loss.sum)


def test_an_ordering_is_reproduced_where_two_errors_tell_the_sides_apart(capsys):
    def cell(subject, values, **contract):
        told = {"on": "t", "unit": "nats/token", "kind": "bound"}
        contract = {"temperature": 1.0, **contract}
        metric = "judge_nll" if "nfe" in contract else "nll"
        return [
            record(metric, v, subject=subject, train_seed=seed, contract=contract, **told)
            for seed, v in enumerate(values)
        ]

    rows = [
        *cell("flow-flm", (2.0, 2.1), nfe=16, sampler="ddim"), *cell("flow-flm, objective endpoint", (3.0, 3.1), nfe=16, sampler="ddim"),
        *cell("flow-ar", (2.0, 2.1)), *cell("flow-bd3lm", (0.1, 0.1), block=1), *cell("flow-bd3lm", (1.0, 1.1), block=16),
        *cell("flow-mdlm", (1.0, 1.2)), *cell("flow-plaid", (3.0,)), *cell("flow-plaid, prior False", (2.0,)),
        *(one for decoder, nll, other in (("contextual", 2.0, 3.0), ("nearest", 3.0, 1.0)) for temperature, value in ((0.0, nll), (1.0, other))
          for one in cell("flow-codar", (value, value + 0.1), nfe=16, sampler="ddim", decoder=decoder, temperature=temperature)),
    ]  # fmt: skip
    orderings.print_orderings(rows)
    told = [line.split(" | ")[1::4] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(claim, verdict.rstrip(" |")) for claim, verdict in told] == [
        ("cross-entropy before regression of the endpoint", "yes"),
        ("the matched filter before none", "one seed, not so there"),
        ("a contextual decoder before the nearest code", "yes"),  # both without a draw
        ("blocks before whole windows", "not told apart"),
        ("autoregressive before blocks", "no"),
    ]
