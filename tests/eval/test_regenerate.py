"""Text written by the trunk: where its prompts come from, what it says, that it can go on, that it trains."""

import json

import numpy as np
import pytest
import torch

import leaplm
from eval import regenerate
from eval.loading import load_run
from eval.regenerate import train_prompts
from training.data.corpus import load_corpus

QUICK = ["--training.steps", "3", "--training.batch-size", "8", "--training.threads", "1", "--quiet"]
SIZES = ["hidden_size", "16", "intermediate_size", "16", "num_hidden_layers", "1", "num_attention_heads", "2"]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regenerate")
    words = [f"{i * 7919 % 100003:05d}" + "é" * (i % 2) for i in range(2400)]  # none twice
    lines = [" ".join(words[8 * i : 8 * i + 1 + i % 8]) for i in range(300)]
    (folder / "t.txt").write_text("\n".join(lines))
    small = ["--data.name", str(folder / "t.txt"), "--data.sample-by", "line", "--data.length", "16"]
    small += ["--tokenizer.vocab-size", "300", "--trunk.config", *SIZES]
    assert leaplm.main(["train", "stdlib-trunk", "--run-dir", str(folder / "trunk"), *small, *QUICK]) == 0
    return folder / "trunk"


def write(trunk, out, *more):
    asked = ["--num", "20", "--prompt-tokens", "12", "--new", "6", "--batch", "8", *more]
    return leaplm.main(["regenerate", str(trunk), "--out", str(out), *asked])


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_prompts_stand_in_training_documents_and_nothing_else_is_read(trunk, monkeypatch):
    asked, whole = [], {}

    class Stores(dict):
        def __getitem__(self, split):
            asked.append(split)
            return super().__getitem__(split)

    def watched(*args, **options):
        corpus = load_corpus(*args, **options)
        whole.update(corpus.stores)
        return type(corpus)(corpus.tokenizer, Stores(corpus.stores), corpus.facts)

    monkeypatch.setattr(regenerate, "load_corpus", watched)
    run = load_run(str(trunk))
    prompts = train_prompts(run, 50, 12)
    assert asked == ["train"]
    documents = {
        split: [s.tokens[a:b].tolist() for a, b in zip(s.offsets[:-1], s.offsets[1:], strict=True)]
        for split, s in whole.items()
    }
    end, homes = run.tokenizer.eos_token_id, set()
    for prompt in prompts:
        assert prompt[0] == run.tokenizer.bos_token_id and end not in prompt[1:]
        body = prompt[1:]
        found = [n for n, d in enumerate(documents["train"]) if holds(d, body)]
        assert found and (len(prompt) >= 12 or documents["train"][found[0]][1:-1] == body)
        homes.update(found[:1])
    assert len(homes) > 40  # spread over the split
    held_out = [d for split in ("validation", "test") for d in documents[split]]
    assert not any(holds(d, prompt[1:]) for prompt in prompts for d in held_out)


def holds(document, piece):
    return any(document[i : i + len(piece)] == piece for i in range(len(document) - len(piece) + 1))


def test_what_is_written_is_what_the_trunk_alone_would_say(trunk, tmp_path):
    out = tmp_path / "greedy.jsonl"
    assert write(trunk, out, "--temperature", "0") == 0
    run = load_run(str(trunk))
    for row, prompt in zip(rows(out), train_prompts(run, 20, 12), strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            tokens = run.model.trunk.generate(ids, max_new_tokens=6, do_sample=False)[0]
        assert row["text"] == run.tokenizer.decode(tokens, skip_special_tokens=True).strip("\ufffd")


def test_an_unfinished_file_goes_on_to_the_same_end(trunk, tmp_path, capsys):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert write(trunk, whole, "--json", str(tmp_path / "told.json")) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["documents"] == 20 and told["tokens_written_now"] > 20 and told["file"] == str(whole)
    assert len(rows(whole)) == 20 and len({row["text"] for row in rows(whole)}) > 15
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])  # inside the second batch, inside a row
    assert write(trunk, broken) == 0
    assert broken.read_bytes() == whole.read_bytes()
    assert write(trunk, broken) == 0 and broken.read_bytes() == whole.read_bytes()
    capsys.readouterr()
    assert write(trunk, broken, "--seed", "1") == 2 and "another seed" in capsys.readouterr().err
    assert broken.read_bytes() == whole.read_bytes()
    (tmp_path / "mine.jsonl").write_text('{"text": "years of work"}\n')
    assert write(trunk, tmp_path / "mine.jsonl") == 2 and "not written by" in capsys.readouterr().err
    assert (tmp_path / "mine.jsonl").read_text() == '{"text": "years of work"}\n'


def test_other_seeds_write_other_text(trunk, tmp_path):
    for seed in ("0", "1"):
        assert write(trunk, tmp_path / seed, "--seed", seed) == 0
    one, other = ([row["text"] for row in rows(tmp_path / seed)] for seed in ("0", "1"))
    assert np.mean([a != b for a, b in zip(one, other, strict=True)]) > 0.8


def test_the_file_trains_a_head_with_the_trunks_tokenizer(trunk, tmp_path):
    out, head = tmp_path / "written.jsonl", tmp_path / "head"
    assert write(trunk, out, "--num", "60") == 0
    more = [
        "--data.name",
        str(out),
        "--trunk.pretrained",
        str(trunk),
        "--data.length",
        "16",
        "--head.name",
        "independent",
    ]
    assert leaplm.main(["train", "stdlib-head", "--run-dir", str(head), *more, *QUICK]) == 0
    run = load_run(str(head))
    assert run.tokenizer.get_vocab() == load_run(str(trunk)).tokenizer.get_vocab()
    assert run.block_size == 4


@pytest.mark.parametrize(
    "more, words", [(["--num", "0"], "1 or above"), (["--new", "100000"], "positions"), (["--top-p", "2"], "top_p")]
)
def test_what_cannot_be_written_is_one_line(trunk, tmp_path, capsys, more, words):
    assert write(trunk, tmp_path / "x.jsonl", *more) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "x.jsonl").exists()
