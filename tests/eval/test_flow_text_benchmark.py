"""The benchmark of flow language models of text: bounds and judged samples in one cell, kept."""

import gzip
import json
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from benchmarks import flow_runs, flow_text, flow_text_tables, orderings
from benchmarks.samplers import SCORE_TEMPERATURES, TEMPERATURES, grids_of, knobs_of
from eval import flow_samples
from eval.flow import Rows, Sampling, load_flow
from eval.flow_samples import starts_of
from eval.frontier import knobs
from eval.quality import quality
from eval.records import record, written_by
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
    judged = [r for r in found if r["metric"] == "judge_nll" and r["subject"] == "flow-fmlm"]
    taught = [r for r in found if r["metric"] == "judge_nll" and r["subject"] == "flow-fmlm: teacher"]
    ways = [
        {(r["contract"]["sampler"], r["contract"]["nfe"], knobs(r)) for r in records} for records in (taught, judged)
    ]
    assert ways[0] == {("ddim", 16, turned) for turned in SCORE_TEMPERATURES}
    maps = ("pushforward", "euler")
    several = set(product(maps, flow_text.CALLS[1:], SCORE_TEMPERATURES))
    assert ways[1] == several | set(product(maps, [1], TEMPERATURES))  # in one call nothing is headed for
    masked = json.loads((small / "results" / "characters-flow-mdlm-0.json").read_text())["results"]
    assert {knobs(r) for r in masked if r["metric"] == "judge_nll" and r["subject"] != "data"} == set(TEMPERATURES)
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


def test_a_text_that_ends_at_once_is_an_empty_one(small, monkeypatch):
    run = load_flow(str(_trained(small, "flow-mdlm")))
    end = run.tokenizer.eos_token_id
    monkeypatch.setattr(flow_samples, "write_all", lambda *_, **__: [Rows(slice(0, 2), [[end, 5], [5, end]], [], 1)])
    none, one = flow_samples.draw_flow(run, [("", ""), ("", "")], Sampling(sampler="even"), new=2)
    assert (none["text"], none["tokens"]) == ("", 0) and one["tokens"] == 1 and none["blocks"] == [""]


def _trained(folder, preset):
    return flow_runs.Planned(preset, folder / "runs" / "small", 0, flow_runs.as_it_is, {}).train()[0]


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


def test_a_block_is_written_in_no_more_steps_than_it_has_tokens():
    told = {
        "vocab_size": 5,
        "length": 8,
        "codebook": "embedding",
        "state_size": 4,
        "block_lengths": [1, 4],
        "noise": "block",
    }
    run = SimpleNamespace(
        name="run", model=FlowLM(FlowLMConfig(backbone={"width": 16, "depth": 1, "heads": 2}, **told))
    )
    ways = flow_runs.by_calls(run, (1, 2, 4, 8, 16), 0)
    found = [(way.sampler, way.options["block_length"], way.steps) for way in ways]
    assert found == [("pushforward", *way) for way in ((1, 1), (4, 1), (4, 2), (4, 4))]


def test_tokens_with_times_of_their_own_are_written_one_a_step_too(small):
    run = load_flow(str(_trained(small, "flow-forcing")))
    ways = [way for way in flow_runs.by_calls(run, (2,), 0, score=0.8) if way.options.get("delay")]
    (way,) = ways
    assert (way.steps, way.sampler, way.options["score_temperature"]) == (4, "pushforward", 0.8)
    (row,) = flow_samples.draw_flow(run, [("", "")], way, new=128)
    assert row["contract"]["nfe"] == 4 + 127 and row["contract"]["delay"] == 1


def test_a_map_that_was_taught_its_jumps_is_written_by_restarts_of_more_than_one_step(small):
    run = load_flow(str(_trained(small, "flow-leap")))
    ways = list(flow_runs.by_calls(run, (1, 2), 0))
    made = {(way.sampler, way.steps, way.options.get("renoise"), way.options["grid"]) for way in ways}
    few = [(1, None), (2, None)]
    assert made == {(s, *n, "closing") for s in ("pushforward", "euler") for n in few} | {
        ("restart", 2, 0.7, "closing")
    }
    prompts = [("", "")]
    told = [flow_samples.draw_flow(run, prompts, way, new=128)[0] for way in ways if way.sampler == "restart"]
    told += [row | {"contract": {**row["contract"], "renoise": 0.2}} for row in told]
    scored = quality(told, None, "characters")
    assert len({r["contract"]["renoise"] for r in scored}) == 2  # not pooled
    assert {written_by(r) for r in scored} == {
        "flow-leap, grid closing, renoise 0.7",
        "flow-leap, grid closing, renoise 0.2",
    }


def test_all_block_lengths_share_the_calls_of_one_bound(small, monkeypatch):
    asked = []

    def noted(run, how):
        asked.append((how.blocks, how.calls))
        return [], None

    monkeypatch.setattr(flow_text, "measure_flow", noted)
    monkeypatch.setattr(flow_text, "quality", lambda rows, judge, on: [])
    monkeypatch.setattr(
        "sys.argv", ["flow_text", "--seeds", "0", "--runs", str(small / "runs"), "--presets", "flow-bd3lm", "flow-flm"]
    )
    flow_text.main()
    (lengths, shared), (none, alone) = asked
    assert len(lengths) > 1 and none is None
    assert alone == flow_text.NETWORK_CALLS and shared == alone // len(lengths)


def test_a_preset_and_those_before_it_read_one_budget_and_what_is_set_is_set_in_the_preset_alone(tmp_path):
    planned = flow_runs.Planned(
        "flow-fmlm", tmp_path, 0, flow_runs.as_it_is, {"flow__objective": "lsd"}, {"flow__width": 64}, 1200 * 64
    )
    (teacher,) = {one.name: one for one in planned.earlier().values()}.values()
    assert planned.config().training.steps == teacher.config().training.steps == 600
    assert teacher.name == "flow-flm-0-width-64-steps-600" and teacher.config().flow.objective == "cross-entropy"
    assert planned.config().flow.objective == "lsd" and teacher.config().flow.width == planned.config().flow.width == 64
    alone = flow_runs.Planned("flow-block-flow", tmp_path, 0, flow_runs.as_it_is, {}, {}, 1200 * 64)
    assert alone.config().training.steps == 2400 and alone.config().training.batch_size == 32
    scratch = flow_runs.Planned("flow-adapt", tmp_path, 0, flow_runs.as_it_is, {"flow__start": None}, {}, 1200 * 64)
    assert scratch.config().training.steps == 1200 and not scratch.earlier()
    assert flow_runs.Planned("flow-elf", tmp_path, 0, flow_runs.as_it_is, {}).named() == {"encoder": "flow-mdlm"}
    assert flow_runs.largest(["flow-flm", "flow-fmlm"]) == 2400 * 64


@pytest.mark.parametrize("preset", sorted(set(flow_text.PLAN["characters"]) - {"flow-elf"}))
def test_presets_of_the_plan_take_subwords(preset, small):
    def fields(name):
        return {**flow_text.fields_of("wikitext2", name), "tokenizer__vocab_size": 300, "flow__width": 16}

    config = flow_runs.Planned(preset, small, 0, fields, {"flow__start": None, "flow__teacher": None}, {}, 16).config()
    task = build(config, Accelerator(cpu=True))
    own = load_preset(preset).flow
    assert task.model.codebook.state_size == (64 if own.codebook == "one-hot" else own.state_size)
    assert config.tokenizer.kind == "bpe"
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


def test_an_ablation_is_written_in_the_calls_that_it_is_compared_in(small, monkeypatch):
    jumps, bound = ("flow-fmlm", orderings.ORDERINGS[3].worse[1]), ("flow-plaid", {"flow__prior": False})
    blocks = next(o.better for o in orderings.ORDERINGS if o.source == "bd3lm")
    assert orderings.calls_of(jumps) == (1,) and orderings.calls_of(bound) == orderings.calls_of(blocks) == ()
    assert orderings.calls_of(("flow-langflow", {})) == (16,)
    monkeypatch.setattr(flow_text, "needed", lambda: [jumps, bound, blocks])
    monkeypatch.setattr("sys.argv", ["flow_text", "--orderings", "--seeds", "0", "--runs", str(small / "runs")])
    flow_text.main()
    cells = [json.loads(file.read_text())["results"] for file in (small / "results" / "partial").iterdir()]
    bounds = {r["subject"] for found in cells for r in found if r["metric"] == "nll"}
    judged = [r for found in cells for r in found if r["metric"] == "judge_nll" and r["subject"] in bounds]
    assert len(cells) == len(bounds) == 3
    assert {(r["subject"], r["contract"]["nfe"]) for r in judged} == {(orderings.subject_of(jumps), 1)}


def test_bounds_alone_need_no_judge_and_take_a_whole_cell_where_there_is_one(small, monkeypatch):
    words = ["flow_text", "--runs", str(small / "runs"), "--presets", "flow-mdlm"]
    monkeypatch.setattr("sys.argv", [*words, "--bounds", "--seeds", "0"])
    flow_text.main()
    (part,) = (small / "results" / "partial").iterdir()
    assert {r["metric"] for r in json.loads(part.read_text())["results"]} >= {"nll"}
    assert not (small / "runs" / "characters" / "judge").exists()
    monkeypatch.setattr("sys.argv", [*words, "--seeds", "1"])
    flow_text.main()
    monkeypatch.setattr("sys.argv", [*words, "--bounds", "--seeds", "1"])
    flow_text.main()
    assert [file.name for file in (small / "results" / "partial").iterdir()] == [part.name]


def _judged(subject, lines, **contract):
    """lines: of each seed, (entropy, judge's NLL) by temperature."""
    return [
        record(metric, value, on="t", subject=subject, kind="estimate", unit="nats", train_seed=seed, contract={**contract, "temperature": temperature})
        for seed, line in enumerate(lines)
        for temperature, both in line.items()
        for metric, value in zip(("entropy", "judge_nll"), both, strict=True)
    ]  # fmt: skip


def test_an_ordering_is_reproduced_where_two_errors_over_seeds_tell_the_sides_apart(capsys):
    def bound(subject, values, **contract):
        return [
            record(
                "nll",
                v,
                on="t",
                subject=subject,
                kind="bound",
                unit="nats/token",
                stderr=0.01,
                train_seed=seed,
                contract=contract,
            )
            for seed, v in enumerate(values)
        ]

    flat = [{0.0: (1.0, 0.5), 1.0: (2.0, 2.0 + seed / 10)} for seed in range(2)]
    worse = [{0.0: (1.0, 1.5), 1.0: (2.5, 4.5 + seed / 10)} for seed in range(2)]  # 3.5 at an entropy of 2
    how = {"nfe": 16, "sampler": "ddim"}
    rows = [
        *_judged("flow-flm", flat, **how), *_judged("flow-flm, objective endpoint", worse, **how),
        *_judged("flow-cdcd", [{1.0: (1.0, 1.0)}], **how), *_judged("flow-cdcd, times uniform", [{1.0: (2.0, 1.0)}], **how),
        *bound("flow-ar", (2.0, 2.1)), *bound("flow-bd3lm", (0.1, 0.1), block=1), *bound("flow-bd3lm", (1.0, 1.1), block=16),
        *bound("flow-mdlm", (1.0, 1.2)), *bound("flow-plaid", (3.0,)), *bound("flow-plaid, prior False", (2.0,)),
        *_judged("flow-codar", [{0.0: (1.0, 1.0), 1.0: (2.0, 9.0)}] * 2, **how, decoder="contextual", decoder_calls=8),
        *_judged("flow-codar", [{0.0: (1.5, 6.0)}] * 2, **how, decoder="nearest"),
        *({**r, "on": "other"} for r in (*bound("flow-ar", (1.0,)), *bound("flow-bd3lm", (5.0,), block=16))),
        *_judged("flow-adapt", [{1.0: (1.0, 2.0)}], **{**how, "nfe": 4}), *_judged("flow-langflow", [{1.0: (1.0, 3.0)}], **how),
    ]  # fmt: skip
    orderings.print_orderings(rows)
    told = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    told = [[part.strip() for part in line] for line in told]
    assert [(line[2], *line[4:]) for line in told if line[0] == "t"] == [
        ("cross-entropy before regression of the endpoint", "2 of 2", "2.000", "2.050", "3.533", "1.483 ± 0.017", "yes"),
        ("the matched filter before none", "1 of 1", "", "3.000", "2.000", "-1.000", "one seed, not so there"),
        ("times warped by cross-entropy, and steps that close on them, before even ones", "0 of 1", "", "", "", "", "no entropy in common"),
        ("a contextual decoder before the nearest code", "2 of 2", "1.500", "5.000", "6.000", "1.000 ± 0.000", "yes"),
        ("its four calls before sixteen of the same trained on for as long", "1 of 1", "1.000", "2.000", "3.000", "1.000", "one seed, so there"),
        ("blocks before whole windows", "2 of 2", "", "1.050", "1.100", "0.050 ± 0.050", "not told apart"),
        ("autoregressive before blocks", "2 of 2", "", "2.050", "1.050", "-1.000 ± 0.000", "no"),
    ]  # fmt: skip
    assert "nfe 4 and 16" in told[4][3] and told[5][3] == "bound, nats/token, blocks of 16"
    assert [(line[2], *line[4:]) for line in told if line[0] == "other"] == [
        ("autoregressive before blocks", "1 of 1", "", "1.000", "5.000", "4.000", "one seed, so there")
    ]


def test_maps_meet_their_teachers_and_themselves_at_an_entropy_of_both(capsys):
    rows = [
        *_judged("map", [{0.0: (1.0, 1.0), 1.0: (2.0, 2.0)}] * 2, nfe=4, sampler="pushforward", grid="clock"),
        *_judged("map", [{1.0: (2.0, 1.0)}], nfe=4, sampler="restart", renoise=0.7, grid="clock"),
        *_judged("map", [{0.0: (1.0, 2.0), 1.0: (3.0, 4.0)}] * 2, nfe=16, sampler="euler", grid="clock"),
        *_judged("map: teacher", [{1.0: (5.0, 1.0)}], nfe=16, sampler="ddim", grid="clock"),
    ]
    flow_text_tables.print_against_teachers(rows)
    told = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    means = [f"{v} ± 0.000" for v in ("2.000", "2.000", "3.000", "-1.000")]
    assert told[0] == ["t", "map, grid clock", "4", "itself", "2 of 2", *means]
    assert told[1][3:6] == ["its teacher", "0 of 1", "none in common"]
    assert told[2][1:] == ["map, grid clock, renoise 0.7", "4", "itself", "1 of 1", "2.000", "1.000", "3.000", "-2.000"]


def test_samples_are_compared_at_the_entropy_of_real_text_and_a_little_below(capsys):
    rows = [
        *_judged("map", [{0.0: (1.0, 1.0), 1.0: (3.0, 2.0)}], nfe=4, sampler="pushforward"),
        *_judged("map", [{0.0: (0.0, 9.0), 1.0: (1.0, 9.0)}], nfe=2, sampler="pushforward"),  # never so varied
        *({**r, "contract": {}} for r in _judged("data", [{1.0: (2.0, 0.5)}])),
    ]
    flow_text_tables.print_at_entropy(rows)
    told = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[cell.strip() for cell in line] for line in told] == [
        ["t", "map", "pushforward", "1.98", "", "", "1.49", "", ""],
        ["t", "map", "pushforward", "2.00", "", "", "1.50", "", ""],
    ]


def test_a_decoder_s_own_temperature_is_the_knob_of_models_that_have_one():
    told = {"vocab_size": 5, "length": 3, "codebook": "embedding", "state_size": 4}
    told["backbone"] = {"width": 16, "depth": 1, "heads": 2}
    plain, decoded = (FlowLM(FlowLMConfig(rounding=rounding, **told)) for rounding in (None, {"depth": 1}))
    assert knobs_of(plain, 2) == SCORE_TEMPERATURES
    assert knobs_of(plain, 1) == knobs_of(decoded, 2) == TEMPERATURES


def test_a_map_that_reads_its_codes_takes_that_call_off_its_steps():
    model = SimpleNamespace(
        map=SimpleNamespace(finishes=True), grids=tuple, config=SimpleNamespace(self_conditioning=0.5)
    )
    assert grids_of(model, (1, 2, 4, 8, 16)) == (1, 3, 7) and grids_of(model, (1, 2, 4), 1) == (1, 3)
    model.map.finishes = False
    assert grids_of(model, (1, 2, 4, 8, 16)) == (1, 2, 4, 8)
