"""The probe, on heads whose law is known because it was written into their weights."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from eval.loading import LoadedRun
from eval.records import METRICS, record, seeds_mean
from eval.validity.families import poker
from eval.validity.heat import table
from eval.validity.probe import probe, score
from eval.validity.suites import Suite, load_suite
from flowmap.warp import Warp
from mtp import MTPForCausalLM
from training.data.tokenizer import word_tokenizer


def run_for(suite, head, block_size, **options):
    tokenizer = word_tokenizer(t for prompt, law in suite.laws.items() for t in (prompt, *law))
    torch.manual_seed(0)
    trunk = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    model = MTPForCausalLM.from_trunk(trunk, head, block_size, **options).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return LoadedRun("run", model, tokenizer, head or "trunk", 0, None, {})


def value(done, metric, subject=None):
    return next(r["value"] for r in done.records if r["metric"] == metric and r["subject"] == (subject or done.subject))


def test_sampled_numbers_agree_with_the_heads_own_law_by_enumeration():
    suite = poker()
    run = run_for(suite, "recurrent-chain", 2, rank=8)
    done = probe(run, suite, num=40_000)
    ids = torch.tensor([run.tokenizer.encode("high card"), run.tokenizer.encode("full house")])
    start = torch.tensor([[0, *run.tokenizer.encode("the hand is")]])
    hidden, _ = run.model.states(start)
    q = run.model.head.log_prob(run.model.context(hidden[:, -1].expand(2, -1)), ids).sum(1).exp()
    counts = done.counts["the hand is"]
    for text, p in zip(("high card", "full house"), q.tolist(), strict=True):
        assert abs(counts[text] / 40_000 - p) < 4 * (p * (1 - p) / 40_000) ** 0.5 + 1e-4
    drawn, exact = value(done, "total_variation"), value(done, "total_variation_exact")
    assert drawn == pytest.approx(exact, abs=0.02)
    ids = torch.tensor([run.tokenizer.encode(hand) for hand in suite.laws["the hand is"]])
    whole = run.model.head.log_prob(run.model.context(hidden[:, -1].expand(6, -1)), ids).sum(1)
    assert value(done, "kl") == pytest.approx(float((-torch.tensor(6.0).log() - whole.detach()).mean()), rel=1e-5)
    assert sum(counts.values()) == 40_000
    contract = done.records[0]["contract"]
    assert contract["trunk_passes"] == 1 and contract["one_block"]


def test_batch_size_changes_no_draw():
    suite = poker()
    run = run_for(suite, "block-chain", 2, rank=8)
    one, other = (probe(run, suite, num=60, batch=batch).counts for batch in (60, 7))
    assert one == other


def test_answers_of_several_lengths_count_only_when_closed():
    suite = Suite("lengths", {"say": {"yes": 0.5, "not now": 0.5}, "tell": {"yes": 1.0}})
    run = run_for(suite, "recurrent-chain", 3, rank=8)
    done = probe(run, suite, num=4000)
    assert set(done.counts) == {"say", "tell"}
    assert all(sum(c.values()) == 2000 for c in done.counts.values())
    unfinished = sum(n for c in done.counts.values() for text, n in c.items() if text.endswith("(unfinished)"))
    assert unfinished > 0 and not suite.is_valid("say", "yes (unfinished)")
    # the exact law of closed answers agrees with what was drawn
    hidden, _ = run.model.states(torch.tensor([[0, *run.tokenizer.encode("say")]]))
    closed = torch.tensor([[*run.tokenizer.encode("yes"), 0]])
    p = run.model.head.log_prob(run.model.context(hidden[:, -1]), closed).sum().exp().item()
    assert abs(done.counts["say"]["yes"] / 2000 - p) < 4 * (p * (1 - p) / 2000) ** 0.5 + 1e-3


def test_a_long_answer_takes_consecutive_blocks_and_the_record_says_so():
    suite = load_suite("skip-3")
    done = probe(run_for(suite, "block-chain", 2, rank=8), suite, num=100)
    contract = done.records[0]["contract"]
    assert contract["trunk_passes"] == 2 and not contract["one_block"]
    assert not any(r["metric"] == "total_variation_exact" for r in done.records)


def test_greedy_draws_one_answer():
    suite = poker()
    done = probe(run_for(suite, "block-chain", 2, rank=8), suite, num=50, warp=Warp(0.0))
    assert len(done.counts["the hand is"]) == 1


def test_scores_on_a_hand_made_case():
    suite = Suite("toy", {"p": {"a": 0.5, "b": 0.25, "c": 0.25}})
    counts = {"p": Counter({"a": 60, "b": 20, "x": 20})}
    records = {(r["metric"], r["subject"]): r for r in score(suite, counts, 100, {"on": "toy", "subject": "s"})}
    assert records["validity", "s"]["value"] == pytest.approx(0.8)
    assert records["validity", "s"]["stderr"] == pytest.approx((0.8 * 0.2 / 100) ** 0.5, rel=0.02)
    assert records["total_variation", "s"]["value"] == pytest.approx((0.1 + 0.05 + 0.25 + 0.2) / 2)
    assert records["coverage", "s"]["value"] == pytest.approx(2 / 3)
    assert records["entropy", "exact-sampler"]["value"] == pytest.approx(1.04, abs=0.02)
    assert records["coverage", "exact-sampler"]["value"] == 1.0
    certain = score(suite, {"p": Counter({"a": 50, "b": 25, "c": 25})}, 100, {"on": "toy", "subject": "s"})
    assert certain[0]["value"] == 1.0 and 0.005 < certain[0]["stderr"] < 0.02
    own = records["total_variation", "exact-sampler"]
    # E|p̂ − p| of a binomial, to normal approximation
    expected = sum((2 / np.pi * p * (1 - p) / 100) ** 0.5 for p in (0.5, 0.25, 0.25)) / 2
    assert own["value"] == pytest.approx(expected, rel=0.1)


def test_another_suites_words_are_refused():
    run = run_for(poker(), "independent", 2)
    with pytest.raises(ValueError, match="another suite"):
        probe(run, load_suite("pairs-4"), num=10)


def test_the_heat_map_table_is_the_joint_of_first_and_last_word():
    got = table({"a x b": 0.5, "a y c": 0.25, "d c": 0.25, "z b": 1.0}, ["a", "d"], ["b", "c"])
    assert got.tolist() == [[0.5, 0.25], [0.0, 0.25]]


def test_records_are_flat_named_and_serialisable():
    r = record(
        "validity", 0.5, on="poker", subject="x", kind="estimate", unit="fraction", stderr=0.1, stderr_over="samples"
    )
    assert json.loads(json.dumps(r)) == r and r["metric"] in METRICS
    with pytest.raises(ValueError, match="published names"):
        record("goodness", 1.0, on="poker", subject="x", kind="exact", unit="")


def test_the_mean_over_seeds_carries_its_spread():
    rows = [
        record("nll", v, on="t", subject="x", kind="exact", unit="nats/token", train_seed=i)
        for i, v in enumerate((1.0, 2.0, 3.0))
    ]
    mean = seeds_mean(rows)
    assert mean["value"] == 2.0 and mean["stderr"] == pytest.approx(1 / 3**0.5) and mean["seeds"] == [0, 1, 2]
    assert "train_seed" not in mean


def test_the_error_of_validity_is_that_of_all_draws_together():
    suite = load_suite("sums-1")
    counts = {prompt: Counter({next(iter(law)): 2}) for prompt, law in suite.laws.items()}
    records = score(suite, counts, 2, {"on": "sums-1", "subject": "x", "contract": {}})
    validity = next(r for r in records if r["metric"] == "validity")
    assert validity["value"] == 1 and 0.003 < validity["stderr"] < 0.006  # one failure added to 200 draws
    once = score(
        suite, {p: Counter({next(iter(law)): 1}) for p, law in suite.laws.items()}, 1, {"on": "s", "subject": "x"}
    )
    assert all("stderr" not in r for r in once if r["metric"] == "total_variation" and r["subject"] == "x")
