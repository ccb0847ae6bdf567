"""What a user types: the main job, and every wrong input as one line with exit code 2."""

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import leaplm
from training.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--training.steps", "3", "--training.batch-size", "16", "--training.threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "poker"
    assert leaplm.main(["train", "poker", "--run-dir", str(run), *QUICK]) == 0
    return run


def fails(capsys, *arguments):
    assert leaplm.main(list(arguments)) == 2
    out = capsys.readouterr().err
    assert out.startswith("leaplm: ") and out.count("\n") == 1 and "Traceback" not in out
    return out


def test_help_answers_at_once_and_loads_nothing_heavy():
    script = "import sys, leaplm; leaplm.main(['--help']); assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "train" in done.stdout and time.perf_counter() - start < 5


def test_importing_mtp_loads_neither_modeling_code_nor_datasets():
    script = "import sys, mtp; assert not {'transformers', 'datasets', 'torch'} & set(sys.modules); mtp.JointHead; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_train_then_probe_writes_records_and_a_page(trained, tmp_path, capsys):
    out, page, picture = tmp_path / "p.json", tmp_path / "p.html", tmp_path / "p.svg"
    written = ["--json", str(out), "--report", str(page), "--picture", str(picture)]
    assert leaplm.main(["probe", str(trained), "--suite", "poker", "--num", "200", *written]) == 0
    assert "recurrent-chain" in capsys.readouterr().out
    envelope = json.loads(out.read_text())
    assert envelope["schema"] == "leaplm/1" and envelope["command"][:2] == ["leaplm", "probe"]
    assert {"git", "versions", "hardware"} <= envelope["provenance"].keys()
    validity = next(r for r in envelope["results"] if r["metric"] == "validity")
    assert validity["subject"] == "recurrent-chain" and validity["on"] == "poker" and validity["kind"] == "estimate"
    assert {"block", "steps", "nfe", "temperature", "top_p", "batch", "dtype", "verify"} <= validity["contract"].keys()
    assert picture.read_text().startswith("<svg") and "currentColor" not in picture.read_text()
    text = page.read_text()
    assert "<svg" in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_perplexity_of_a_head_and_its_baseline_on_a_file(tmp_path, capsys):
    text = tmp_path / "t.txt"
    text.write_text("\n".join(f"row {i} holds {i * i % 17} and {i % 5}" for i in range(300)))
    small = [
        "--data.name",
        str(text),
        "--data.sample-by",
        "line",
        "--data.length",
        "16",
        "--tokenizer.vocab-size",
        "300",
    ]
    small += [
        "--trunk.config",
        "hidden_size",
        "16",
        "intermediate_size",
        "16",
        "num_hidden_layers",
        "1",
        "num_attention_heads",
        "2",
    ]
    runs = []
    for head in (None, "independent", "first-order-chain"):
        run = str(tmp_path / str(head))
        more = ["--head.name", str(head)] + (["--trunk.pretrained", runs[0], "--trunk.frozen"] if head else [])
        assert leaplm.main(["train", "stdlib-trunk", "--run-dir", run, *small, *more, *QUICK]) == 0
        runs.append(run)
    out = tmp_path / "p.json"
    assert leaplm.main(["perplexity", *runs, "--json", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    value = {(r["run"], r["subject"], r["metric"], r.get("positions")): r["value"] for r in results}
    nll = value[runs[0], "trunk", "nll", None]
    assert value[runs[0], "trunk", "perplexity", None] == pytest.approx(math.exp(nll))
    assert value[runs[1], "trunk", "nll", None] == pytest.approx(nll, rel=1e-5)  # the same frozen trunk
    assert value[runs[2], "first-order-chain", "nll", "2"] > 0
    assert [r["subject"] for r in results if r["metric"] == "gap_closed"] == ["first-order-chain"] * 2
    assert "bits_per_byte" in capsys.readouterr().out


def test_probe_cases_learns_a_file_and_takes_its_block_from_it(tmp_path):
    cases = tmp_path / "cases.jsonl"
    cases.write_text(
        '{"prompt": "turn", "texts": ["left", "far right"], "p": [1, 3]}\n{"prompt": "say", "texts": ["yes please sir"]}\n'
    )
    run = tmp_path / "run"
    small = ["--training.steps", "120", "--training.batch-size", "128", "--training.threads", "1", "--quiet"]
    assert leaplm.main(["train", "probe-cases", "--data.cases", str(cases), "--run-dir", str(run), *small]) == 0
    assert json.loads((run / "provenance.json").read_text())["block_size"] == 4
    out = tmp_path / "p.json"
    assert leaplm.main(["probe", str(run), "--suite", str(cases), "--num", "2000", "--json", str(out)]) == 0
    results = {r["metric"]: r for r in json.loads(out.read_text())["results"] if r["subject"] == "recurrent-chain"}
    assert results["validity"]["value"] > 0.98 and results["total_variation_exact"]["value"] < 0.05


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["trian"], "did you mean train"),
        (["train", "pokr"], "did you mean poker"),
        (["train", "--seed", "3"], "preset first"),
        (["train", "poker", "--training.step", "3"], "--training.steps"),
        (["train", "poker", "--training.steps", "many"], "--training.steps"),
        (["train", "poker", "--optimizer.decay", "cosin"], "cosine"),
        (["train", "poker", "--head.name", "blok-chain", "--run-dir", "{tmp}/a"], "did you mean 'block-chain'"),
        (["train", "poker", "--head.block-size", "17", "--run-dir", "{tmp}/b"], "between 2 and 16"),
        (["train", "poker", "--data.suite", "pokr", "--run-dir", "{tmp}/c"], "did you mean poker"),
        (["train", "probe-cases", "--data.cases", "{tmp}/none.jsonl", "--run-dir", "{tmp}/d"], "does not exist"),
        (["train", "stdlib-head", "--trunk.pretrained", "{tmp}/none", "--run-dir", "{tmp}/e"], "did not load"),
        (["train", "stdlib-trunk", "--data.name", "{tmp}/none", "--run-dir", "{tmp}/f"], "no local file"),
        (["train", "poker", "--trunk.architecture", "lama", "--run-dir", "{tmp}/g"], "lama"),
        (["train", "poker", "--training.log-every", "0"], "training.log_every"),
        (["train", "poker", "--head.anchor-fraction", "0"], "anchor_fraction"),
        (["train", "poker", "--head.rank", "0"], "rank"),
        (["train", "poker", "--trunk.config", "hidden_size", "--run-dir", "{tmp}/h"], "pairs"),
        (["train", "poker", "--trunk.config", "hiden_size", "8", "--run-dir", "{tmp}/i"], "did you mean 'hidden_size'"),
        (["train", "poker", "--trunk.config", "hidden_size", "30", "num_attention_heads", "4", "--run-dir", "{tmp}/j"], "llama"),
        (["train", "poker", "--trunk.architecture", "bert", "--trunk.config", "hidden_size", "16", "num_attention_heads", "2", "--run-dir", "{tmp}/k"], "causal"),
        (["probe", "--suite", "poker"], "at least one run"),
        (["probe", "{tmp}/none", "--suite", "poker"], "no run directory"),
        (["probe", "{run}", "--suite", "pokr"], "did you mean poker"),
        (["probe", "{run}", "--suite", "pairs-4"], "another suite"),
        (["probe", "{run}", "--suite", "poker", "--block", "3"], "at most 2"),
        (["probe", "{run}", "--suite", "poker", "--temperature", "-1"], "temperature"),
        (["probe", "{run}"], "--suite"),
        (["perplexity"], "at least one run"),
        (["perplexity", "{run}"], "leaplm probe"),
        (["perplexity", "{run}", "--data", "{tmp}/none"], "no local file"),
        (["demo", "--fastt"], "--fast"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_with_the_mend(trained, tmp_path, capsys, arguments, words):
    filled = [a.format(tmp=tmp_path, run=trained) for a in arguments]
    assert words in fails(capsys, *filled)


def test_a_broken_checkpoint_is_one_line(trained, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in next(trained.glob("checkpoints/step-*/model")).iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[:50] if file.suffix == ".safetensors" else file.read_bytes())
    assert "did not load" in fails(capsys, "probe", str(folder), "--suite", "poker")


def test_what_is_made_is_told_as_json_too(trained, tmp_path):
    told = [tmp_path / name for name in ("train.json", "export.json")]
    run = tmp_path / "run"
    assert leaplm.main(["train", "poker", "--run-dir", str(run), *QUICK, "--json", str(told[0])]) == 0
    assert leaplm.main(["export", str(trained), "--out", str(tmp_path / "model"), "--json", str(told[1])]) == 0
    trained_, exported = (json.loads(file.read_text()) for file in told)
    assert {trained_["schema"], exported["schema"]} == {"leaplm/1"} and trained_["command"][:2] == ["leaplm", "train"]
    assert trained_["validation"]["loss"] > 0 and trained_["run"] == str(run)
    assert (
        exported["results"][0]["value"] > 1000
        and "config.json" in exported["files"]
        and "README.md" in exported["files"]
    )


def test_a_broken_state_is_one_line_and_says_how_to_go_on(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    state = next(run.glob("checkpoints/step-*/state.pt"))
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match="remove its folder, and the run goes on from the one before"):
        RunDir(run).load()


def test_a_missing_run_beside_others_is_no_name_on_the_hub(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent.parent)
    told = fails(capsys, "probe", f"{trained.parent.name}/tpyo", "--suite", "poker")
    assert "no run directory" in told


@pytest.mark.parametrize(
    "words, told",
    [
        (["speed"], "needs a run or a reference"),
        (["speed", "--reference", "S", "--batch-sizes", "0"], "--batch-sizes must be"),
        (["speed", "--reference", "S", "--new", "10"], "multiple of every block"),
        (["speed", "--reference", "S", "--heads", "blok-chain"], "did you mean 'block-chain'"),
        (["sample"], "at least one run"),
        (["sample", "RUN", "--num", "0"], "must be 1 or above"),
        (["quality"], "at least one file"),
        (["quality", "none.jsonl"], "does not exist"),
        (["report", "none"], "is no run directory"),
        (["report", "RUN", "--out", "tests"], "is a folder"),
        (["report", "RUN", "--out", "/dev/null/page.html"], "/dev/null"),
        (["speed", "--reference", "S", "--rank", "0"], "must be 1 or above"),
        (["data", "get"], "needs a name"),
        (["completion", "csh"], "bash, zsh, fish"),
        (["export", "RUN", "--format", "use-mtp"], "head.name sequential"),
        (["export", "RUN", "--verifier", "some/trunk"], "hf names none"),
        (["export", "RUN", "--out", "tests"], "not empty"),
        (["probe", "RUN", "--suite", "python"], "no held-out source"),
        (["probe", "RUN", "--suite", "poker", "--block", "3"], "blocks of at most 2"),
        (["probe", "RUN", "--suite", "dates"], "does not know the words"),
        (["perplexity", "RUN"], "was trained on a suite"),
    ],
)
def test_every_wrong_word_is_one_line_with_the_mend(trained, capsys, words, told):
    assert told in fails(capsys, *(str(trained) if word == "RUN" else word for word in words))


def test_sample_quality_and_report_go_hand_in_hand(trained, tmp_path, capsys):
    samples, page, numbers = tmp_path / "s.jsonl", tmp_path / "r.html", tmp_path / "q.json"
    drawn = ["--num", "3", "--new", "2", "--temperatures", "0", "1", "--out", str(samples)]
    assert leaplm.main(["sample", str(trained), *drawn]) == 0
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 6 and all(row["prompt"] == "the hand is" and len(row["blocks"]) == 1 for row in rows)
    assert len({row["text"] for row in rows if row["contract"]["temperature"] == 0}) == 1
    assert leaplm.main(["quality", str(samples), "--judge", str(trained), "--json", str(numbers)]) == 0
    assert {r["metric"] for r in json.loads(numbers.read_text())["results"]} >= {"judge_nll", "entropy", "distinct_n"}
    assert leaplm.main(["report", str(trained), str(numbers), str(samples), "--out", str(page)]) == 0
    assert "Samples" in page.read_text() and "judge_nll" in page.read_text()
    assert leaplm.main(["sample", str(trained), "--prompt", "the hand is", "--new", "2", "--num", "1"]) == 0
    assert "the hand is|" in capsys.readouterr().out


def test_sequential_modules_train_decode_and_leave_for_transformers(tmp_path, capsys):
    run, out = str(tmp_path / "run"), tmp_path / "model"
    words = ["--head.name", "sequential", "--head.block-size", "3"]
    assert leaplm.main(["train", "skip-64", "--run-dir", run, *words, *QUICK]) == 0
    assert leaplm.main(["probe", run, "--suite", "skip-64", "--num", "64"]) == 0
    assert leaplm.main(["export", run, "--format", "use-mtp", "--out", str(out)]) == 0
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= {file.name for file in out.iterdir()}
