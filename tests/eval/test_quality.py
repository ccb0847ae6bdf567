import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from eval.loading import LoadedRun
from eval.quality import judge_nll, quality, ratio_error
from eval.records import written_by
from eval.sample_command import way
from eval.samples import read_samples, write_samples
from eval.text_laws import distinct, repetition, unigram_entropy
from mtp import MTPForCausalLM
from training.data.tokenizer import word_tokenizer

WORDS = "a b c d e f g h"


def row(text, prompt="a b", temperature=1.0, subject="trunk", real=""):
    contract = {"block": 1, "temperature": temperature, "top_p": 1.0, "new": 4}
    return {
        "subject": subject, "run": "r", "train_seed": 0, "prompt": prompt, "text": text, "blocks": text.split(),
        "real": real, "contract": contract, "sample_seed": 0,
    }  # fmt: skip


@pytest.fixture
def judge():
    torch.manual_seed(0)
    tokenizer = word_tokenizer([WORDS])
    trunk = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )  # fmt: skip
    return LoadedRun("judge", MTPForCausalLM.from_trunk(trunk).eval(), tokenizer, "trunk", 0, None, {})


def test_statistics_of_hand_made_samples():
    assert unigram_entropy([1, 1, 1]) == 0 and unigram_entropy([1, 2, 3, 4]) == pytest.approx(math.log(4))
    assert repetition([1, 2, 3, 4, 5]) == 0 and repetition([1, 1, 1, 1, 1]) == pytest.approx(0.5)
    assert distinct([[1, 2, 1, 2], [1, 2]], 1) == pytest.approx(2 / 6)
    assert distinct([[1, 2, 1, 2], [1, 2]], 2) == pytest.approx(2 / 4)  # 12 21 12 | 12
    value, error = ratio_error(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert value == 2 and error == pytest.approx(0)


@torch.no_grad()
def test_the_judge_scores_each_sample_alone_and_only_its_own_tokens(judge):
    encode = lambda text: judge.tokenizer.encode(text)  # noqa: E731
    pairs = [(encode("a b"), encode("c d e")), (encode("a"), encode("f")), (encode("a b c d"), encode("g h a b"))]
    sums, count = judge_nll(judge, pairs, batch=2)
    assert count.tolist() == [3, 1, 4]
    for (prompt, text), total in zip(pairs, sums, strict=True):
        ids = torch.tensor([[judge.tokenizer.bos_token_id, *prompt, *text]])
        log_p = judge.model.trunk(ids).logits[0].log_softmax(-1)
        at = range(len(prompt), len(prompt) + len(text))
        assert total == pytest.approx(-sum(float(log_p[i, ids[0, i + 1]]) for i in at), abs=1e-4)


def test_samples_are_scored_by_temperature_beside_the_real_text(judge, tmp_path):
    rows = [
        row("a a a a", temperature=0.0, real="c d e f"),
        row("c d e f", real="c d e f"),
        row("g h a b", real="a c e g"),
    ]
    file = tmp_path / "s.jsonl"
    write_samples(file, rows)
    assert read_samples(file) == rows
    records = quality(read_samples(file), judge, "toy")
    by = {(r["metric"], r["subject"], r["contract"].get("temperature"), r.get("ngram")): r for r in records}
    assert by["entropy", "trunk", 0.0, None]["value"] == 0
    assert by["entropy", "trunk", 1.0, None]["value"] == pytest.approx(math.log(4))
    assert by["distinct_n", "trunk", 0.0, 1]["value"] == 0.25 and by["judge_nll", "data", None, None]["n"] == 2
    alone = quality(rows, None, "toy")
    assert not [r for r in alone if r["metric"] == "judge_nll"] and len(alone) > 6


@pytest.mark.parametrize("text, words", [("nonsense", "not JSON"), ('{"text": "x"}', "lacks"), ("", "empty")])
def test_a_broken_sample_file_is_named_by_its_line(tmp_path, text, words):
    file = tmp_path / "s.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_samples(file)


def test_distances_from_the_real_text_stand_beside_the_floor_of_its_halves(judge):
    real = ["c d e f", "g h a b", "e f g h", "a b c d"]
    rows = [row(text, prompt=f"p {i}", real=text) for i, text in enumerate(real) for _ in range(2)]
    rows += [
        row("a a a a", prompt=f"p {i}", real=text, subject="dull") for i, text in enumerate(real) for _ in range(2)
    ]
    found = {(r["subject"], r["metric"], r.get("ngram")): r for r in quality(rows, judge, "test")}
    assert found["trunk", "ngram_kl", 1]["value"] == pytest.approx(0, abs=1e-9)
    assert found["dull", "ngram_kl", 1]["value"] > 1 and ("data", "ngram_kl", 1) in found
    assert found["trunk", "brier_lm", None]["value"] == pytest.approx(100)
    assert found["trunk", "brier_lm", None]["n"] == 4 and found["dull", "brier_lm", None]["value"] == 0
    assert ("data", "brier_lm", None) not in found
    alone = quality(rows[::2], judge, "test")  # one sample a prompt
    assert not [r for r in alone if r["metric"] == "brier_lm"]


def test_mauve_tells_samples_of_the_law_from_dull_ones(judge):
    pytest.importorskip("mauve", reason="the extra mauve is not here")
    rng, words = np.random.default_rng(0), WORDS.split()
    text = lambda: " ".join(rng.choice(words, 4))  # noqa: E731
    rows = [row(text(), prompt=f"p {i}", real=text()) for i in range(200)]
    rows += [row("a a a a", prompt=r["prompt"], real=r["real"], subject="dull") for r in rows]
    found = {r["subject"]: r["value"] for r in quality(rows, judge, "test", with_mauve=True) if r["metric"] == "mauve"}
    assert found["trunk"] > 0.7 > 0.2 > found["dull"]
    with pytest.raises(ValueError, match="name one with --judge"):
        quality(rows, None, "test", with_mauve=True)
    with pytest.raises(ValueError, match="20 samples of each"):
        quality(rows[:5], judge, "test", with_mauve=True)


def test_samples_that_were_written_otherwise_are_scored_apart():
    """A contextual decoder's and the nearest codes, two passes a step and one: never one mean, nor one another's seeds."""
    ways = (
        {"decoder": "contextual"},
        {"decoder": "nearest"},
        {"self_conditioning": False},
        {"guidance": 2.0},
        {"grid": "clock"},
        {"order": "random"},
        {"delay": 1},
        {"renoise": 0.5},
        {"score_temperature": 0.5},
    )
    rows = [row("a b c d" if n else "a a a a", subject="flow", real="a b") for n in range(len(ways)) for _ in range(2)]
    for n, one in enumerate(rows):
        one["contract"] |= {"sampler": "ddim", "steps": 4, "nfe": 4, **ways[n // 2]}
    found = [r for r in quality(rows, None, "words") if r["metric"] == "entropy" and r["subject"] == "flow"]
    assert len(found) == len(ways) and all(r["n"] == 2 for r in found)
    assert len({written_by(r) for r in found}) == len({way(r) for r in found}) == len(ways)
