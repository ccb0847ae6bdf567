"""Our tasks under lm-eval: the same requests as the stock tasks, draws that follow the law, and the command as typed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'leaplm[eval]'")

import leaplm
from eval.harness.mtp import LeapMTP
from eval.tasks.local import documents
from eval.tasks.suites import total_variation, words
from eval.validity.suites import load_suite
from tests.eval.harness_models import TEXTS, bpe_flow, bpe_model, word_model

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "eval" / "tasks"
DATA = os.environ.get("LEAPLM_DATA")
STOCK = {
    "local_piqa": "piqa/piqa", "local_arc_easy": "arc/arc_easy", "local_arc_challenge": "arc/arc_challenge",
    "local_openbookqa": "openbookqa/openbookqa", "local_winogrande": "winogrande/default",
    "local_lambada_openai": "lambada/lambada_openai", "local_lambada_standard": "lambada/lambada_standard",
    "local_gsm8k": "gsm8k/gsm8k",
}  # fmt: skip
needs_data = pytest.mark.skipif(DATA is None, reason="LEAPLM_DATA names no folder of public sets")


@pytest.fixture(scope="module")
def ours():
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS), include_defaults=False)


def stock(name, mine, **more):
    """lm-eval's own task on the same files; splits that are not here left out."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / f"{name}.yaml")
    here = mine.config.dataset_kwargs["local_files"]
    for split in ("training_split", "validation_split", "test_split"):
        if config.get(split) not in (None, *here):
            config[split] = None
    config.pop("tag", None)
    return ConfigurableTask(
        config={**config, "custom_dataset": documents, "dataset_kwargs": {"local_files": here}, **more}
    )


def asked(task, limit):
    task.set_fewshot_seed(1234)
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return [(r.request_type, r.args, r.doc_id, r.idx) for r in task.instances]


@needs_data
@pytest.mark.parametrize("limit", [40, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STOCK)
def test_local_tasks_ask_what_the_stock_tasks_ask_document_by_document(ours, name, limit):
    mine = ours.load([name])["tasks"][name]
    theirs = stock(STOCK[name], mine)
    wanted = asked(theirs, limit)
    assert asked(mine, limit) == wanted and len(wanted) >= (limit or 1000)
    for doc in list(mine.eval_docs)[:40]:
        assert mine.doc_to_target(doc) == theirs.doc_to_target(doc)
    assert mine.config.metric_list == theirs.config.metric_list
    assert mine.config.filter_list == theirs.config.filter_list


@needs_data
@pytest.mark.parametrize("limit", [10, pytest.param(None, marks=pytest.mark.slow)])
def test_every_stock_phenomenon_of_blimp_is_a_task_and_all_are_a_group(ours, limit):
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.__file__).parent / "tasks" / "blimp"
    named = sorted({load_yaml(file).get("dataset_name") for file in folder.glob("*.yaml")} - {None})
    file = load_yaml(TASKS / "local_blimp.yaml")
    group, (rule,) = file["task"], file["aggregate_metric_list"]
    assert (rule["metric"], rule["weight_by_size"]) == ("acc", False)
    assert sorted(group) == [f"local_blimp_{name}" for name in named] and len(group) == 67
    assert {file.stem for file in (TASKS / "blimp").glob("*.yaml")} == set(named)
    for name in named if limit is None else named[::33]:
        mine = ours.load([f"local_blimp_{name}"])["tasks"][f"local_blimp_{name}"]
        theirs = stock(f"blimp/{name}", mine)
        assert asked(mine, limit) == asked(theirs, limit) and len(mine.eval_docs) == 1000


@needs_data
def test_hellaswag_asks_what_the_stock_task_makes_of_the_context_but_for_white_space_and_case(ours):
    from lm_eval.tasks.hellaswag.utils import preprocess

    task = ours.load(["local_hellaswag"])["tasks"]["local_hellaswag"]
    docs = list(task.eval_docs)
    assert len(docs) == 10_042
    bare = lambda text: re.sub(r"\s", "", text).lower()  # noqa: E731
    for doc in docs:
        assert bare(preprocess(f"{doc['activity_label']}: {doc['ctx']}")) == bare(task.doc_to_text(doc))
        assert [bare(preprocess(choice)) for choice in doc["choices"]] == [bare(c) for c in task.doc_to_choice(doc)]
    (first, *_), mine = docs, asked(task, 1)
    assert [args for _, args, _, _ in mine] == [(first["query"], f" {choice}") for choice in first["choices"]]


def test_data_that_is_not_there_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("LEAPLM_DATA", raising=False)
    with pytest.raises(ValueError, match=r"LEAPLM_DATA is not set.*piqa/train\.jsonl"):
        documents(local_files={"train": "piqa/train.jsonl"}, version=1.0)
    monkeypatch.setenv("LEAPLM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"holds no piqa/train\.jsonl"):
        documents(local_files={"train": "piqa/train.jsonl"})
    (tmp_path / "a.jsonl").write_text('{"x": "one"}\n\n{"x": "two"}\n')
    (tmp_path / "a.txt").write_text("one\ntwo \n")
    got = documents(local_files={"train": "a.jsonl", "test": "a.txt"})
    assert got["train"]["x"] == ["one", "two"] and got["test"]["text"] == ["one", "two "]


def test_no_task_holds_a_path_of_some_machine():
    for file in TASKS.rglob("*.yaml"):
        assert not re.search(r"(^|[\s{:,])[\"']?(/|~|[A-Z]:\\)", file.read_text()), file


def test_every_suite_builds_its_documents_and_knows_its_valid_answers(ours):
    names = [file.stem for file in TASKS.glob("leaplm_*.yaml") if file.stem != "leaplm_suites"]
    assert len(names) == 8
    for name, task in ours.load(names)["tasks"].items():
        suite, docs = load_suite(task.config.dataset_kwargs["suite"]), list(task.eval_docs)
        assert len(docs) >= 1000 and {doc["prompt"] for doc in docs} <= set(suite.laws), name
        doc = docs[-1]
        valid = next(iter(suite.laws[doc["prompt"]]))
        assert task.process_results(doc, [f" {valid}"])["validity"] == 1
        assert task.process_results(doc, [f" {valid} so"])["validity"] == (words(doc["suite"]) is not None)
        assert task.process_results(doc, [valid[:-1]])["validity"] == 0


def test_total_variation_of_drawn_answers_by_hand():
    suite = load_suite("poker")
    (law,) = suite.laws.values()
    items = [("poker", "the hand is", text) for text in [*law, *list(law)[:3], "high house", "one flush", "x y"]]
    wanted = sum(abs((2 if i < 3 else 1) / 12 - 1 / 6) for i in range(6)) / 2 + 3 / 12 / 2
    assert total_variation(items) == pytest.approx(wanted)


def test_draws_of_a_suite_are_valid_as_often_as_the_model_says(ours, tmp_path):
    from lm_eval import simple_evaluate

    suite = load_suite("poker")
    lm = LeapMTP(word_model(tmp_path, ["the hand is", *suite.laws["the hand is"]], "recurrent-chain", 2, std=0.2, rank=4),
                 decoder="block", batch_size=500, seed=0)  # fmt: skip
    done = simple_evaluate(lm, tasks=["leaplm_poker"], task_manager=ours, bootstrap_iters=10)
    start = torch.tensor([[0, *lm.tok_encode("the hand is")]])  # a suite's prompt begins a document
    hidden, _ = lm.model.states(start)
    answers = torch.tensor([lm.tok_encode(text) for text in suite.laws["the hand is"]])
    context = lm.model.context(hidden[:, -1].expand(len(answers), -1))
    p = lm.model.head.log_prob(context, answers).sum(1).exp().sum().item()
    got = done["results"]["leaplm_poker"]
    assert 0.02 < p < 0.98 and abs(got["validity,none"] - p) < 4 * (p * (1 - p) / 1000) ** 0.5
    assert got["validity_stderr,none"] == pytest.approx((p * (1 - p) / 1000) ** 0.5, rel=0.2)
    assert 0 < got["total_variation,none"] < 1


@pytest.fixture
def small_task(tmp_path, monkeypatch):
    """A folder of tasks of the user's own, with its data."""
    monkeypatch.setenv("LEAPLM_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    rows = [{"text": text} for text in TEXTS * 3]
    (tmp_path / "data" / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "tasks"
    folder.mkdir()
    common = (
        "custom_dataset: !function eval.tasks.local.documents\n"
        "dataset_kwargs: {local_files: {test: mine.jsonl}}\ntest_split: test\ndoc_to_target: '{{text}}'\n"
    )
    metrics = "".join(f"  - {{metric: {m}}}\n" for m in ("word_perplexity", "bits_per_byte"))
    (folder / "mine.yaml").write_text(
        f"task: mine\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\nmetric_list:\n{metrics}{common}"
    )
    sampled = "generation_kwargs: {until: ['.'], do_sample: true, temperature: 1.0, max_gen_toks: 8}\nrepeats: 2\n"
    (folder / "drawn.yaml").write_text(
        f"task: drawn\noutput_type: generate_until\ndoc_to_text: '{{{{text[:9]}}}}'\n{sampled}{common}"
        "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
    )
    return str(folder)


def command(folder, model, *more, kind="leaplm-mtp"):
    args = ["run", "--model", kind, "--model_args", f"pretrained={model}", "--include_path", folder]
    return [*args, "--tasks", "mine,drawn", "--batch_size", "3", *more]


@pytest.fixture
def few_tasks(monkeypatch):
    """lm-eval without its own thousands of tasks, which take it long to look through."""
    from lm_eval.tasks._index import TaskIndex

    real = TaskIndex._iter_yaml_files
    some = staticmethod(lambda root: iter(()) if root.parent.name == "lm_eval" else real(root))
    monkeypatch.setattr(TaskIndex, "_iter_yaml_files", some)


def test_the_command_runs_the_harness_and_keeps_records(small_task, few_tasks, tmp_path, capsys):
    model, file = bpe_model(tmp_path / "model", "recurrent-chain", rank=8), tmp_path / "scores.json"
    args = command(small_task, f"{model},decoder=block", "--json", str(file), "--output_path", str(tmp_path / "out"))
    assert leaplm.main(["lm-eval", *args]) == 0
    assert "word_perplexity" in capsys.readouterr().out
    envelope = json.loads(file.read_text())
    assert envelope["schema"] == "leaplm/1" and envelope["command"][:3] == ["leaplm", "lm-eval", "run"]
    records = {(r["on"], r["score"]): r for r in envelope["results"]}
    (theirs,) = (tmp_path / "out").rglob("results_*.json")
    scores = json.loads(theirs.read_text())["results"]
    bits = records["mine", "bits_per_byte"]
    assert bits["value"] == scores["mine"]["bits_per_byte,none"] and bits["metric"] == "harness_score"
    assert bits["kind"] == "exact" and bits["subject"] == "recurrent-chain" and bits["n"] == 12
    assert {"block": 4, "decoder": "block", "batch": "3", "dtype": "float32"}.items() <= bits["contract"].items()
    assert records["drawn", "exact_match"]["kind"] == "estimate"


def test_wrong_input_is_one_line_with_exit_code_2(small_task, tmp_path, capsys, monkeypatch):
    for argv, message in (
        (["run", "--json"], "--json names a file"),
        (["run", "--json", str(tmp_path)], "is a folder"),
    ):
        assert leaplm.main(["lm-eval", *argv]) == 2
        out = capsys.readouterr().err
        assert message in out and out.startswith("leaplm: ") and out.count("\n") == 1
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    assert leaplm.main(["lm-eval", "run"]) == 2
    assert "pip install 'leaplm[eval]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["leaplm-mtp", "leaplm-flow"])
def test_two_processes_score_and_draw_as_one_does(small_task, tmp_path, kind):
    folder = tmp_path / "model"
    model = bpe_model(folder, "recurrent-chain", rank=8) if kind == "leaplm-mtp" else bpe_flow(folder)
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0", "--standalone"]
        args = command(
            small_task,
            model,
            "--json",
            f"{out}.json",
            "--output_path",
            str(out),
            "--log_samples",
            "--limit",
            "11",
            kind=kind,
        )
        done = subprocess.run(
            [sys.executable, *launch, "-m", "eval.harness", *args], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        rows = {}
        for name in ("mine", "drawn"):
            (file,) = out.rglob(f"samples_{name}_*.jsonl")
            made = [json.loads(line) for line in file.read_text().splitlines()]
            rows[name] = [row["resps"][0] for row in sorted(made, key=lambda row: row["doc_id"])]
        found.append((json.loads(Path(f"{out}.json").read_text())["results"], rows))
    (one, rows), (two, others) = found
    assert [r["value"] for r in one] == pytest.approx([r["value"] for r in two], rel=1e-6) and len(one) == 3
    scores = [[float(first) for first, *_ in some["mine"]] for some in (rows, others)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6) and len(scores[0]) == 11
    # word for word; lm-eval asks a process that is short of documents for its last one again
    assert rows["drawn"] == [texts[:2] for texts in others["drawn"]] and len(rows["drawn"]) == 11
