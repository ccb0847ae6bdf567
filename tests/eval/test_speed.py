import time
import types

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from eval.speed import command
from eval.speed.command import _subjects
from eval.speed.decoding import Setting, contenders, measure, pass_work
from eval.speed.floor import Machine, Work, measure_machine, measure_work
from eval.speed.memory import peak_memory
from eval.speed.timing import interleaved, pair_ratio
from eval.speed.training import measure_training
from mtp import MTPForCausalLM
from mtp.heads import NAMES

V, D, F = 50, 16, 24


def trunk():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=True
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def test_contenders_take_turns_and_the_first_round_is_not_kept():
    order = []
    work = {"a": lambda: (order.append("a"), time.sleep(0.002)), "b": lambda: order.append("b")}
    seconds = interleaved(work, 3, "t", quiet=True)
    assert "".join(order) == "abbaabba"
    assert len(seconds["a"]) == 3 and (seconds["a"] > 0.002).all()


def test_a_ratio_is_the_median_of_pairs_and_says_when_it_is_no_result():
    steady = pair_ratio(np.array([2.0, 4.0, 6.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0, 1.0, 1.0]))
    assert steady.value == steady.low == steady.high == 2 and steady.stable
    rng = np.random.default_rng(0)
    assert not pair_ratio(rng.lognormal(0, 1, 15), np.ones(15)).stable


def test_work_is_the_bytes_and_flops_of_products():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    work = measure_work(lambda: (a @ b).relu())
    assert work == Work(4 * (15 + 35 + 21), 2 * 3 * 5 * 7)
    assert Machine(10.0, 100.0).seconds(Work(50, 200)) == 5.0
    found = measure_machine(torch.float32, torch.device("cpu"))
    assert found.bandwidth > 1e8 and found.throughput > 1e8


def test_peak_memory_sees_what_is_held_for_a_while_and_let_go():
    peak = peak_memory(lambda: (torch.ones(2**25).mul_(2), time.sleep(0.02)), torch.device("cpu"))
    assert peak is None or 100e6 < peak < 400e6


def test_a_pass_reads_every_weight_of_the_trunk_once_and_the_chain_its_readout_for_every_token():
    model = MTPForCausalLM.from_trunk(trunk(), "first-order-chain", 4, rank=8).eval()
    setting = Setting("toy", 1, prompt=8)
    alone = pass_work(MTPForCausalLM.from_trunk(model.trunk), 1, setting)
    layers = 2 * (4 * D * D + 3 * D * F) + V * D
    assert alone.flops >= 2 * layers and alone.bytes >= 4 * layers
    two, four = pass_work(model, 2, setting), pass_work(model, 4, setting)
    readout = 2 * V * 8  # a token's low-rank product
    assert four.flops - two.flops >= 2 * readout


@pytest.mark.parametrize("batch", [1, 3])
def test_every_contender_writes_what_it_is_asked_and_is_recorded(batch, monkeypatch):
    """On a clock of our own: transformers takes two seconds a token where any other takes one."""

    def clocked(parts, rounds, title, quiet):
        for part in parts.values():
            part()
        seconds = {name: (2.0 if name.startswith("transformers") else 1.0) for name in parts}
        return {name: np.full(rounds, s * (3 if name.endswith("long") else 1)) for name, s in seconds.items()}

    monkeypatch.setattr("eval.speed.decoding.interleaved", clocked)
    base = trunk()
    model = MTPForCausalLM.from_trunk(base, "recurrent-chain", 4, rank=8).eval()
    setting = Setting("toy", batch, prompt=8, new=8, rounds=2)
    parts = contenders(base, [(model, 2), (model, 4)], setting, compiled=False)
    names = [
        "trunk",
        "transformers",
        *(["prompt-lookup"] if batch == 1 else []),
        "recurrent-chain K=2",
        "recurrent-chain K=4",
    ]
    assert [c.name for c in parts] == names
    for c in parts:
        out = c.write(8)
        tokens = getattr(out, "tokens", out)
        assert tokens.shape == (batch, 8 if hasattr(out, "tokens") else 16)
    records = measure(parts, setting, Machine(1e9, 1e9), "float32", torch.device("cpu"), quiet=True)
    assert [r["metric"] for r in records[:3]] == ["tokens_per_second", "speedup", "latency"]
    assert all(r["value"] >= 0 for r in records if r["metric"] == "peak_memory")
    trunk_gain = records[1]
    assert trunk_gain["value"] == 1 and trunk_gain["interval"] == [1, 1] and trunk_gain["stable"]
    theirs = next(r for r in records if r["metric"] == "speedup" and r["subject"] == "transformers")
    assert theirs["value"] == 0.5 and "times_transformers" not in theirs
    assert trunk_gain["times_transformers"] == 2 and trunk_gain["times_transformers_interval"] == [2, 2]
    assert all(r["contract"]["batch"] == batch and r["kind"] == "estimate" for r in records)
    assert records[0]["floor_bytes"] > 0 and records[0]["floor_share"] > 0


@pytest.mark.parametrize("head", NAMES)
def test_every_head_is_timed_at_less_than_its_own_block(head):
    model = MTPForCausalLM.from_trunk(trunk(), head, 4).eval()
    setting = Setting("toy", 2, prompt=6, new=4, verify=("block",))
    parts = [c for c in contenders(model.trunk, [(model, 2)], setting, False) if c.subject == head]
    alone = pass_work(MTPForCausalLM.from_trunk(model.trunk), 1, setting)
    assert [c.verify for c in parts] == ["none", "block"] and parts[0].work.flops > alone.flops
    assert parts[0].write(4).tokens.shape == (2, 4)


def test_decoding_with_either_cache_writes_the_same():
    from mtp import decode

    model = MTPForCausalLM.from_trunk(trunk(), "block-chain", 3, rank=8).eval()
    ids = torch.randint(V, (2, 5))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    out = [decode(model, ids, mask, max_new_tokens=12, static_cache=static) for static in (True, False)]
    assert torch.equal(out[0].tokens, out[1].tokens)
    assert torch.allclose(out[0].log_q, out[1].log_q, atol=1e-4)


def test_the_training_step_counts_flops_of_both_passes_and_a_quarter_of_the_positions_costs_less(capsys):
    base = trunk()
    model = MTPForCausalLM.from_trunk(base, "block-chain", 4, rank=8)
    args = types.SimpleNamespace(rounds=2)
    records = measure_training(
        base, [(model, 2), (model, 4)], "toy", "float32", args, Machine(1e9, 1e9), length=32, batch=2
    )
    by = {(r["metric"], r["subject"], r["contract"]["anchor_fraction"]): r for r in records}
    assert set(by) == {
        (metric, *who)
        for metric in ("train_tokens_per_second", "speedup", "flops", "mfu", "peak_memory")
        for who in (("trunk", 1.0), ("block-chain", 1.0), ("block-chain", 0.25))
    }
    own = by["flops", "trunk", 1.0]["value"]
    # forward, and backward for inputs and for weights; embeddings have none
    layers = 2 * (4 * D * D + 3 * D * F)
    assert own >= 6 * (layers + V * D) * 0.9
    whole, quarter = (by["flops", "block-chain", f]["value"] - own for f in (1.0, 0.25))
    assert whole > 0 and 0.1 * whole < quarter < 0.5 * whole
    assert by["speedup", "trunk", 1.0]["value"] == 1
    assert "training step" in capsys.readouterr().out


def test_verified_decoding_takes_its_turn_with_the_tokens_that_were_measured():
    base = trunk()
    model = MTPForCausalLM.from_trunk(base, "recurrent-chain", 4, rank=8).eval()
    contract = {"block": 4, "verify": "block", "temperature": 1.0, "top_p": 1.0}
    measured = [
        {
            "metric": "conditional_acceptance",
            "subject": "recurrent-chain",
            "position": k,
            "value": v,
            "contract": contract,
        }
        for k, v in ((2, 1.0), (3, 1.0))  # no pass came to 4
    ]
    setting = Setting("toy", 2, prompt=8, new=8, rounds=2, verify=["block"], acceptance=measured)
    parts = contenders(base, [(model, 4)], setting, compiled=False)
    verified = parts[-1]
    assert verified.name == "recurrent-chain K=4 block" and verified.committed == 3
    out = verified.write(9)
    assert (out.accepted == 3).all() and out.trunk_passes == 4
    records = measure(parts, setting, Machine(1e9, 1e9), "float32", torch.device("cpu"), quiet=True)
    mine = [r for r in records if r["contract"]["verify"] == "block"]
    assert {r["metric"] for r in mine} >= {"speedup", "tokens_per_second"}
    assert mine[0]["contract"]["replayed"] and mine[0]["contract"]["accepted_length"] == 3
    with pytest.raises(ValueError, match="no acceptance of recurrent-chain with K = 2"):
        contenders(base, [(model, 2)], setting, compiled=False)


def test_options_reach_the_heads_that_have_them_and_nobody_else_is_asked():
    args = types.SimpleNamespace(
        reference=("S",), heads=("block-chain", "independent"), rank=16, blocks=(4,), runs=(), options=("width=64", "num_layers=1")
    )  # fmt: skip
    [(_, _, [(chain, _), (independent, _)], _)] = _subjects(args, torch.float32, torch.device("cpu"), 1)
    assert chain.head.from_token.out_features == 64 and len(chain.head.layers) == 1
    assert independent.config.head_options == {}
    args.options = ("depth=3",)
    with pytest.raises(ValueError, match="'depth=3': want KEY=VALUE, an option of one of block-chain, independent"):
        list(_subjects(args, torch.float32, torch.device("cpu"), 1))


def test_blocks_that_a_run_was_not_trained_for_are_refused_and_by_default_left_out(monkeypatch):
    model = MTPForCausalLM.from_trunk(trunk(), "independent", 4)
    run = types.SimpleNamespace(model=model, block_size=4)
    monkeypatch.setattr(command, "load_run", lambda name: run)
    args = types.SimpleNamespace(reference=(), runs=("RUN",), blocks=None, new=64, options=(), heads=(), rank=8)
    [(_, _, heads, _)] = _subjects(args, torch.float32, torch.device("cpu"), 1)
    assert [block for _, block in heads] == [4]
    args.blocks = (2, 8)
    with pytest.raises(ValueError, match="--blocks 8: RUN was trained for blocks of at most 4"):
        list(_subjects(args, torch.float32, torch.device("cpu"), 1))
