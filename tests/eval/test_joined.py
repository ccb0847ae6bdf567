"""The joined page, from records of every kind."""

import json
import types

import pytest

from eval import joined
from eval.records import keep_records, over_seeds, record, write_records
from tests.eval.test_quality import row


def made():
    contract = {"block": 4, "temperature": 1.0, "batch": 1}
    alone = {**contract, "block": 1}
    error = {"stderr": 0.01, "stderr_over": "documents"}
    records = []
    for subject, c, nll, gain in (("trunk", alone, 2.6, 1.0), ("block-chain", contract, 3.2, 3.0)):
        records.append(record("speedup", gain, on="M", subject=subject, kind="estimate", unit="×", contract=c))
        metric = "nll" if subject == "trunk" else "direct_nll"
        records.append(
            record(metric, nll, on="stdlib", subject=subject, kind="exact", unit="nats/token", contract=c, **error)
        )
    for k in (2, 4):
        c = {**contract, "block": k}
        records.append(
            record(
                "block_nll",
                2 + k / 4,
                on="stdlib",
                subject="block-chain",
                kind="exact",
                unit="nats/token",
                contract=c,
                **error,
            )
        )
    for stratum in ({}, {"stratum": "trips"}):
        records.append(
            record(
                "validity",
                0.99,
                on="poker-draw",
                subject="block-chain",
                kind="estimate",
                unit="fraction",
                contract=contract,
                stderr=0.01,
                stderr_over="samples",
                **stratum,
            )
        )
    return records  # fmt: skip


def test_any_runs_are_joined_on_one_page_without_network(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    lines = [{"step": s, "split": "train", "loss": 1 / s} for s in range(1, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keep_records(str(run), "a/b", ["x"], made()[:2])
    write_records(tmp_path / "more.json", ["x"], made()[2:])
    (tmp_path / "s.jsonl").write_text(json.dumps(row("c d e <f>")) + "\n")
    out = tmp_path / "page.html"
    runs = (str(run), str(tmp_path / "more.json"), str(tmp_path / "s.jsonl"))
    kept = tmp_path / "all.json"
    joined.run(types.SimpleNamespace(runs=runs, out=out, title="All of it", json=kept), ["leaplm", "report"])
    assert len(json.loads(kept.read_text())["results"]) == len(made())
    page = out.read_text()
    for title in ("Speed against quality", "Likelihood of a block", "Validity: poker-draw", "Training", "Samples"):
        assert title in page, title
    assert "trips" in page and "&lt;f&gt;" in page and "aria-sort" in page and "prefers-color-scheme: dark" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "") and len(page) < 6e6


def test_only_seeds_are_averaged_and_a_record_counts_once(tmp_path):
    contract = {"block": 2}
    made = [
        record("block_nll", value, on="t", subject="x", kind="exact", unit="nats/token", contract=contract, split=split,
               train_seed=seed, stderr=0.5, stderr_over="documents")
        for value, seed, split in ((1.0, 0, "validation"), (3.0, 1, "validation"), (9.0, 0, "test"))
    ]  # fmt: skip
    sections = joined._nll_against_block([*made, made[0]])
    assert [s.title for s in sections] == ["Likelihood of a block: t", "Likelihood of a block: t, test"]
    assert "over seeds" in sections[0].text and "over documents" in sections[1].text
    assert over_seeds([*made[:2], made[0]])["value"] == 2.0


def test_what_is_nothing_to_join_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"schema": "other"}')
    for name, words in (("x.json", "holds no records"), ("none", "is no run directory")):
        with pytest.raises(ValueError, match=words):
            joined.run(types.SimpleNamespace(runs=(str(tmp_path / name),), out=tmp_path / "o", title="", json=None), [])


def test_a_frozen_trunk_of_unknown_seed_is_another_where_its_value_is_and_strata_are_means_too():
    common = {"on": "t", "kind": "exact", "unit": "nats/token", "contract": {"block": 1}}
    trunks = [record("nll", value, subject="trunk", train_seed=None, **common) for value in (2.0, 4.0, 2.0)]
    assert over_seeds(trunks)["value"] == 3.0
    strata = [
        record("validity", value, subject="x", train_seed=seed, stratum="trips", **common)
        for seed, value in enumerate((0.5, 0.7))
    ]
    assert joined._strata_table(strata)[1] == ["trips", "0.6000 ± 0.1000"]
