"""Flow language models measured: answers of a suite, samples with their drafts, and what is refused."""

import json

import pytest
import torch

import leaplm
from eval.flow import Sampling, load_flow, write_all
from eval.quality import quality
from eval.samples import read_samples
from eval.validity.flow_probe import probe_flow
from eval.validity.suites import load_suite
from tests.training.harness import SMALL
from training.config import load_preset, override
from training.loop import train
from training.tasks import build


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One of a suite whose answers have one length, and one whose answers end with the end token."""
    folder = tmp_path_factory.mktemp("flow")
    tiny = {"flow__width": 16, "flow__depth": 1, "flow__heads": 2, "training__steps": 30, **SMALL}
    for suite in ("poker", "poker-frequency"):
        config = override(load_preset("flow-poker"), data__suite=suite, training__batch_size=32, **tiny)
        train(config, folder / suite, build, quiet=True)
    return folder


@pytest.mark.parametrize("suite", ["poker", "poker-frequency"])
def test_every_answer_is_counted_as_the_suite_says(runs, suite):
    run, law = load_flow(str(runs / suite)), load_suite(suite)
    done = probe_flow(run, law, Sampling(2), num=500, batch=200)
    (counts,) = done.counts.values()
    assert sum(counts.values()) == 500
    value = next(r for r in done.records if r["metric"] == "validity")
    assert value["value"] == pytest.approx(sum(counts[text] for text in next(iter(law.laws.values()))) / 500)
    assert value["contract"]["nfe"] == 2 and value["contract"]["end_token"] == (suite == "poker-frequency")
    assert value["subject"] == "flow-poker" and value["train_seed"] == 0
    if suite == "poker":
        assert all(len(text.split()) == 2 for text in counts)
    else:  # texts that end have their words, those that do not are invalid
        ended = [text for text in counts if not text.endswith("(unfinished)")]
        assert ended and all("endoftext" not in text for text in ended)


def test_a_row_is_the_same_in_any_batch(runs):
    run = load_flow(str(runs / "poker"))
    start = [0, *run.tokenizer.encode("the hand is")]
    whole, parts = ([row for rows in write_all(run, [start] * 6, Sampling(2), n) for row in rows.texts] for n in (6, 4))
    assert whole == parts and len({tuple(row) for row in whole}) > 1
    with pytest.raises(ValueError, match="windows of 6"):
        list(write_all(run, [start * 2], Sampling(), 4))


def test_blocks_and_tokens_that_start_apart_by_command(tmp_path, capsys):
    """Prompts are four tokens of twelve; blocks of two make four of what is left."""
    tiny = {
        "flow__width": 16,
        "flow__depth": 1,
        "flow__heads": 2,
        "training__steps": 6,
        "training__batch_size": 16,
        **SMALL,
    }
    for name in ("block", "forcing"):
        train(override(load_preset(f"flow-{name}-brackets-8"), **tiny), tmp_path / name, build, quiet=True)
    found = {}
    for words in (["block"], ["block", "--block", "2"], ["forcing"], ["forcing", "--delay", "2", "--order", "random"]):
        out = str(tmp_path / "p.json")
        run = ["probe", str(tmp_path / words[0]), *words[1:], "--suite", "brackets-8", "--steps", "2", "--num", "40"]
        assert leaplm.main([*run, "--json", out]) == 0
        found[" ".join(words)] = json.loads((tmp_path / "p.json").read_text())["results"][0]["contract"]
    assert {name: contract["nfe"] for name, contract in found.items()} == {
        "block": 2, "block --block 2": 8, "forcing": 2, "forcing --delay 2 --order random": 2 + 2 * 7,
    }  # fmt: skip
    assert found["block"]["block"] == 12 and found["block --block 2"]["block"] == 2
    assert found["forcing --delay 2 --order random"]["order"] == "random" and "block" not in found["forcing"]
    how = ["--num", "2", "--steps", "1", "--block", "4", "--out", str(tmp_path / "s.jsonl")]
    assert leaplm.main(["sample", str(tmp_path / "block"), *how]) == 0
    for row in read_samples(tmp_path / "s.jsonl"):
        words = [len(part.split()) for part in row["blocks"]]
        assert row["contract"]["nfe"] == 2 and sum(words) == row["tokens"] and max(words) <= 4
        assert [len(draft.split()) for draft in row["drafts"]] == [4, 8]
    capsys.readouterr()
    assert leaplm.main(["probe", str(tmp_path / "block"), "--suite", "brackets-8", "--block", "3"]) == 2
    assert "trained with 1, 2, 4, 12" in capsys.readouterr().err


def test_probe_and_sample_by_command(runs, tmp_path, capsys):
    run = str(runs / "poker")
    assert (
        leaplm.main(
            ["probe", run, "--suite", "poker", "--steps", "1,3", "--num", "60", "--json", str(tmp_path / "p.json")]
        )
        == 0
    )
    records = json.loads((tmp_path / "p.json").read_text())["results"]
    assert {r["contract"]["nfe"] for r in records if r["metric"] == "validity"} == {1, 3}
    assert "flow-poker pushforward, nfe 3" in capsys.readouterr().out
    assert (
        leaplm.main(
            ["sample", run, "--num", "2", "--steps", "3", "--sampler", "euler", "--out", str(tmp_path / "s.jsonl")]
        )
        == 0
    )
    rows = read_samples(tmp_path / "s.jsonl")
    assert len(rows) == 2 and all(len(row["drafts"]) == row["contract"]["nfe"] == 3 for row in rows)
    both = [row | {"contract": row["contract"] | {"steps": n, "nfe": n}} for n in (1, 8) for row in rows]
    found = [r for r in quality(both, None, "s") if r["metric"] == "tokens_per_forward"]
    assert [(r["contract"]["nfe"], r["value"]) for r in found] == [(1, 2.0), (8, 0.25)]  # never pooled
    assert rows[0]["contract"]["new"] == 2
    assert leaplm.main(["quality", str(tmp_path / "s.jsonl")]) == 0
    capsys.readouterr()
    assert leaplm.main(["sample", run, "--num", "1", "--steps", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith("nfe 3") and shown[1].startswith("   1: ") and shown[3].startswith("the hand is|")


@pytest.mark.parametrize(
    "words, what",
    [
        (["probe", "--suite", "poker", "--block", "2"], "--block"),
        (["sample", "--block", "2"], "--block"),
        (["probe", "--suite", "poker", "--steps", "0"], "1 at least"),
        (["perplexity", "--length", "3"], "windows of 6"),
        (["speed"], "flow language model"),
    ],
)
def test_what_does_not_apply_is_one_line(runs, words, what, capsys):
    assert leaplm.main([words[0], str(runs / "poker"), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1


def test_probes_that_were_asked_otherwise_are_kept_beside_each_other(runs):
    how = ["--suite", "poker", "--steps", "3", "--num", "20", "--sampler", "restart"]
    folder = runs / "poker" / "records"
    before = set(folder.glob("*restart*"))
    for more in ([], ["--renoise", "0.5"], ["--score-temperature", "0.5"]):
        assert leaplm.main(["probe", str(runs / "poker"), *how, *more]) == 0
    made = [json.loads(file.read_text())["results"] for file in sorted(set(folder.glob("*restart*")) - before)]
    contracts = [found[0]["contract"] for found in made]
    told = {(contract.get("renoise"), contract.get("score_temperature")) for contract in contracts}
    assert len(made) == 3 and told == {(None, None), (0.5, None), (None, 0.5)}


def test_a_broken_checkpoint_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "leaplm-flow"}))
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="did not load"):
        load_flow(str(tmp_path))


def test_written_tokens_are_the_vocabularys(runs):
    run = load_flow(str(runs / "poker"))
    (rows,) = write_all(run, [[0]] * 3, Sampling(1, "ddpm"), 8, drafts=True)
    assert torch.tensor(rows.texts).shape == (3, 5) and torch.tensor(rows.drafts).shape == (1, 3, 5)
    assert torch.tensor(rows.texts).max() < len(run.tokenizer)


def test_decoders_by_command(runs, tmp_path, capsys):
    """The calls of the map and those of the decoder stand apart in every record; what has none refuses."""
    tiny = {"flow__width": 16, "flow__depth": 1, "flow__heads": 2, "training__steps": 6, **SMALL}
    train(
        override(load_preset("flow-poker-codar"), training__batch_size=16, flow__prompt_dropout=0.2, **tiny),
        tmp_path / "run",
        build,
        quiet=True,
    )
    run, out = str(tmp_path / "run"), tmp_path / "p.json"
    how = ["--suite", "poker", "--steps", "2", "--num", "40", "--json", str(out)]
    found = []
    for words in ([], ["--decoder", "softmax", "contextual"]):
        assert leaplm.main(["probe", run, *how, *words]) == 0
        rows = [
            r
            for r in json.loads(out.read_text())["results"]
            if r["metric"] == "validity" and r["subject"] == "flow-poker-codar"
        ]
        found += [
            (r["contract"]["nfe"], r["contract"].get("decoder_calls"), r["contract"].get("decoder")) for r in rows
        ]
    assert found == [(2, 2, "contextual"), (2, None, "softmax"), (2, 2, "contextual")]
    assert leaplm.main(["sample", run, "--num", "1", "--steps", "2", "--decoder", "contextual"]) == 0
    assert "nfe 2 + 2 of its decoder" in capsys.readouterr().out
    assert leaplm.main(["probe", run, *how, "--guidance", "2"]) == 0
    guided = json.loads(out.read_text())["results"][0]["contract"]
    assert (guided["nfe"], guided["decoder_calls"], guided["guidance"]) == (4, 2, 2.0)
    assert leaplm.main(["sample", run, "--num", "1", "--steps", "2", "--guidance", "2"]) == 0
    assert "nfe 4 + 2 of its decoder" in capsys.readouterr().out
    for argv, what in (
        (["probe", str(runs / "poker"), *how, "--decoder", "contextual"], "trained without it"),
        (["sample", str(runs / "poker"), "--guidance", "2"], "never trained with its prompts dropped"),
        (["probe", run, *how, "--decoder", "verified"], "of --decoder take softmax or contextual"),
    ):
        assert leaplm.main(argv) == 2 and what in capsys.readouterr().err
