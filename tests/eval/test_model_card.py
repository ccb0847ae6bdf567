"""What stands in the README.md of an exported model: what is known of the run, its records as they are, nothing of the machine."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import leaplm
from eval.model_card import data_licence, data_name, model_card, table, trunk_name
from eval.records import keep_records, record
from tests.training.test_image_task import config as image_config
from training.loop import train
from training.tasks import build

QUICK = ["--training.steps", "2", "--training.batch-size", "4", "--training.threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "poker"
    assert leaplm.main(["train", "poker", "--run-dir", str(folder), *QUICK]) == 0
    (folder / "command.txt").write_text(
        f"{folder}/bin/leaplm train {folder}/poker.yaml --quiet\n"
    )  # as a shell starts it
    return folder


def cells(card, name):
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith(f"| {name} ")
    ]


def loaded_as(card, folder):
    """What the card's own program leaves, run as it tells to."""
    names: dict = {}
    exec(card.split("```python\n")[1].split("```")[0].replace("DIR", str(folder)), names)
    return names


def test_a_card_tells_what_was_trained_and_measured_and_how_to_load_it(run, tmp_path):
    records = [
        record("nll", 1.25, on="toy", subject="trunk", kind="exact", unit="nats/token", stderr=0.125, stderr_over="documents"),
        record("validity", 0.5, on="poker", subject="first-order-chain", kind="estimate", unit="fraction",
               contract={"block": 2, "temperature": 1.0, "hash": "x"}),
    ]  # fmt: skip
    keep_records(str(run), "toy", ["leaplm"], records)
    out = tmp_path / "out"
    assert leaplm.main(["export", str(run), "--format", "hf", "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert cells(card, "nll") == [["nll", "toy", "trunk", "1.25 ± 0.12 (documents)", "nats/token", "exact", ""]]
    assert cells(card, "validity")[0][3:] == ["0.5", "fraction", "estimate", "block 2, temperature 1.0"]
    assert cells(card, "preset") == [["preset", "poker"]] and cells(card, "steps, seed")[0][1] == "2, 0"
    assert cells(card, "data")[0][1] == "the suite poker, generated"
    commit = json.loads((run / "provenance.json").read_text())["git"]
    assert commit is None or commit in card
    assert f"torch {torch.__version__}" in card and str(run.parent) not in card and str(tmp_path) not in card
    names = loaded_as(card, out)
    assert (
        type(names["model"]) is type(AutoModelForCausalLM.from_pretrained(out)) and names["tokenizer"].eos_token_id == 0
    )


def test_every_format_has_its_card(run, tmp_path):
    from eval.loading import load_run

    out = tmp_path / "head"
    words = ["--format", "speculators", "--verifier", "some/trunk", "--out", str(out)]
    loaded = load_run(str(run))
    if loaded.subject.endswith("-chain"):
        assert leaplm.main(["export", str(run), *words]) == 0
        card = (out / "README.md").read_text()
        names = loaded_as(card, out)
        assert names["head"].name == loaded.subject
    assert "use_mtp=True" in model_card(loaded, "use-mtp")


def test_what_is_not_known_is_said(tmp_path):
    assert data_licence({"name": "wikitext2"}) == "CC BY-SA" and data_licence({"name": "stdlib"}) == "PSF"
    assert data_licence({"name": "texts/mine.txt"}).startswith("unknown")
    assert data_licence({"suite": "poker"}).startswith("none needed")
    assert data_licence({"cases": "mine.jsonl", "name": "stdlib"}).startswith("unknown")
    assert data_name({"name": str(tmp_path / "mine.txt")}) == "mine.txt (local)"
    assert trunk_name({"pretrained": "org/name", "frozen": True}) == "org/name, frozen"
    assert table(("a",), [("x|y",)]).splitlines()[-1] == "| x\\|y |"


def test_a_model_of_no_run_says_so(run, tmp_path):
    from eval.loading import load_run

    out = tmp_path / "out"
    assert leaplm.main(["export", str(run), "--out", str(out)]) == 0
    card = model_card(load_run(str(out)), "hf")
    assert "belongs to no run directory" in card and "None were measured" in card


@pytest.mark.parametrize(
    "preset, kind",
    [("flow-poker", "FlowLM"), ("flow-poker-mdlm", "MaskedDiffusionLM"), ("flow-poker-ar", "AutoregressiveLM")],
)
def test_a_flow_language_model_is_exported_whole(tmp_path, capsys, preset, kind):
    trained, out = tmp_path / "run", tmp_path / "out"
    small = ["--flow.width", "16", "--flow.depth", "1", "--flow.heads", "2"]
    assert leaplm.main(["train", preset, "--run-dir", str(trained), *small, *QUICK]) == 0
    told = record("validity", 0.5, on="poker", subject="flow", kind="estimate", unit="fraction",
                  contract={"sampler": "pushforward", "nfe": 2})  # fmt: skip
    keep_records(str(trained), "poker", ["leaplm"], [told])
    assert leaplm.main(["export", str(trained), "--format", "use-mtp"]) == 2
    assert "take --format hf" in capsys.readouterr().err
    assert leaplm.main(["export", str(trained), "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert cells(card, "validity")[0][-1] == "sampler pushforward, nfe 2"
    assert len(cells(card, "objective")) == 1 and not cells(card, "head") and str(tmp_path) not in card
    names = loaded_as(card, out)
    assert type(names["model"]).__name__ == kind and names["text"][0]
    [folder] = sorted(trained.glob("checkpoints/*/model"))[-1:]
    saved = type(names["model"]).from_pretrained(folder).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in names["model"].state_dict().items())
    assert leaplm.main(["probe", str(out), "--suite", "poker", "--num", "20", "--steps", "1"]) == 0  # as any run


def test_an_image_model_is_exported_whole(tmp_path):
    train(image_config(), tmp_path / "run", build, quiet=True)
    assert leaplm.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert cells(card, "objective")[0][1] == "imm" and cells(card, "data")[0][1] == "images: digits"
    names = loaded_as(card, tmp_path / "out")
    assert names["model"].num_parameters() > 0
