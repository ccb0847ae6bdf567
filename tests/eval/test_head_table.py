"""The heads' table: what each column takes from records of every kind, and what it leaves to a dash."""

import json
import re
import types

import pytest

from benchmarks import table
from benchmarks.head_rates import RATES, TUNED, UNTUNED
from eval import joined
from eval.head_table import ROWS, columns, filled, head_rows, markdown, wide
from eval.records import record, write_records
from mtp.heads import NAMES, family


def one(metric, value, subject, on="toy", kind="exact", contract=None, **more):
    return record(metric, value, on=on, subject=subject, kind=kind, unit="x", contract=contract or {}, **more)


def direct(value, subject, block=4, **more):
    return one("direct_nll", value, subject, contract={"block": block}, **more)


def cell(rows, subject, group, title=""):
    (found,) = [c for c in rows[subject] if (c.column.group, c.column.title) == (group, title)]
    return found.text()


def accepted(value, rule="block", temperature=1.0, block=4, **more):
    contract = {"block": block, "verify": rule, "temperature": temperature, "top_p": 1.0} | more.pop("option", {})
    return one("accepted_length", value, "block-chain", kind="estimate", contract=contract, **more)


def test_seeds_are_averaged_and_what_nobody_measured_is_a_dash():
    records = [direct(3.0, "tree", train_seed=0), direct(4.0, "tree", train_seed=1), direct(9.0, "tree", train_seed=1)]
    rows = head_rows(records, "toy", 4)
    assert tuple(rows) == ROWS
    assert cell(rows, "tree", "direct NLL") == "3.500 ± 0.5000"
    assert cell(rows, "tree", "block NLL") == cell(rows, "mixture", "direct NLL") == "–"
    assert list(filled(rows)) == ["tree"]
    assert cell(head_rows(records, "toy", 8), "tree", "direct NLL") == "–"
    assert cell(head_rows(records, "other", 4), "tree", "direct NLL") == "–"


def test_marks_tell_bounds_unsteady_speeds_and_rates_that_were_not_swept():
    speed = {"block": 4, "verify": "none", "temperature": 1.0, "batch": 8}
    records = [
        table.marked(direct(3.0, "flow-map", kind="bound")),
        table.marked(direct(3.0, "block-chain")),
        one("tokens_per_second", 1234.4, "block-chain", contract=speed, kind="estimate", stable=False),
    ]
    rows = filled(head_rows(records, "toy", 4))
    assert cell(rows, "flow-map", "direct NLL") == "3.000 (bound)"
    assert cell(rows, "block-chain", "direct tokens/s", "batch 8") == "1,234 (?)"
    assert [line[0] for line in wide(rows)] == ["head", "block-chain", "flow-map †"]
    assert "| flow-map † |" in markdown(rows) and "| block-chain |" in markdown(rows)


def test_every_head_has_a_rate_that_is_either_swept_or_marked():
    assert set(RATES) == set(NAMES) and not set(TUNED) & set(UNTUNED)
    for name in NAMES:
        assert ("tuned" in table.marked(direct(1.0, name))) == (name in UNTUNED)
    assert table.marked(direct(1.0, "tree"))["lr"] == UNTUNED["tree"]


@pytest.mark.parametrize(
    "stranger",
    [
        accepted(9.0, rule="token"), accepted(9.0, temperature=0.7), accepted(9.0, block=8), accepted(9.0, split="test"),
        accepted(9.0, option={"top_p": 0.9}), accepted(9.0, option={"threshold": 0.5}), accepted(9.0, stratum="rest"),
    ],
)  # fmt: skip
def test_a_column_takes_only_what_it_says(stranger):
    rows = head_rows([stranger, accepted(2.5)], "toy", 4)
    assert cell(rows, "block-chain", "accepted, block rule", "T = 1") == "2.500"


def test_flops_are_per_token_and_the_trunk_stands_in_its_own_terms():
    records = [
        one("flops", 8e6, "tree", contract={"block": 4}),
        one("flops", 5e6, "trunk", contract={"block": 4}),
        one("nll", 2.5, "trunk", contract={"block": 1}),
        one("nll", 2.4, "trunk", contract={"block": 4}, positions="2-4"),
        one("block_nll", 2.6, "trunk", contract={"block": 4}),
        one("judge_nll", 1.5, "data", kind="estimate", contract={"new": 64}),
        one("validity", 0.9, "tree", on="poker", contract={"block": 2, "temperature": 1.0, "verify": "none"}),
        one("validity", 0.1, "trunk", on="poker", contract={"block": 1, "temperature": 1.0, "verify": "none"}, beside="x"),
    ]  # fmt: skip
    rows = head_rows(records, "toy", 4)
    assert cell(rows, "tree", "MFLOP a token") == "2.000" and cell(rows, "trunk", "MFLOP a token") == "5.000"
    assert cell(rows, "trunk", "direct NLL") == "2.500" and cell(rows, "trunk", "block NLL") == "2.600"
    assert cell(rows, "tree", "validity", "poker") == "0.9000" and cell(rows, "trunk", "validity", "poker") == "–"
    assert cell(rows, "data", "judge NLL", "T = 0") == cell(rows, "data", "judge NLL", "T = 1") == "1.500"


def test_both_forms_of_the_table_are_rectangles():
    records = [direct(3.0, "tree"), accepted(2.5), accepted(2.0, rule="token", temperature=0.0)]
    rows = filled(head_rows(records, "toy", 4))
    assert {len(line) for line in wide(rows)} == {4}
    lines = markdown(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and "– / – / 2.500" in lines[2]


def test_what_is_written_down_draws_the_same_table():
    shares = [
        one("conditional_acceptance", v, "block-chain", kind="estimate", position=2, train_seed=seed,
            contract={"block": 4, "verify": "block", "temperature": 1.0, "top_p": 1.0})
        for seed, v in enumerate((0.4, 0.6))
    ]  # fmt: skip
    records = [accepted(2.5, train_seed=0), accepted(3.5, train_seed=1), direct(3.0, "tree"), direct(2.0, "tree", 8)]
    kept = table.joined([*records, *shares, direct(1.0, "tree", on="other")], "toy", (4, 8))
    for block in (4, 8):
        again, before = (head_rows(r, "toy", block) for r in (kept, records))
        assert [[c.text() for c in again[row]] for row in ROWS] == [[c.text() for c in before[row]] for row in ROWS]
    assert [r["value"] for r in kept if r["metric"] == "conditional_acceptance"] == [0.5]
    assert len(kept) == 4


def test_what_is_missing_is_a_command_in_the_order_of_who_reads_whom():
    absent = {
        "acceptance": {"tree": [0, 1], "mixture": [0, 1], "independent": [1]}, "M": {"tree": []},
        "poker": {"tree": [2]}, "rates": {"tree": []}, "training": {"trunk": [0]}, "speed": {"tree": [0]}, "heads": {"tree": [2]},
    }  # fmt: skip
    lines = table.commands_for("stdlib", absent)
    assert lines[:5] == [
        "python -m benchmarks.rates --heads tree",
        "python -m benchmarks.heads --on stdlib --heads tree --seeds 2",
        "python -m benchmarks.heads --on poker --heads tree --seeds 2",
        "python -m benchmarks.acceptance --on stdlib --heads tree mixture --seeds 0 1",
        "python -m benchmarks.acceptance --on stdlib --heads independent --seeds 1",
    ]
    assert lines[5:7] == [
        "python -m benchmarks.table --measure --on stdlib --seeds 0",
        "python -m benchmarks.table --measure --on stdlib --heads tree --seeds 0",
    ]
    assert lines[7].startswith("leaplm speed --reference M --heads tree") and len(lines) == 8
    assert table.commands_for("stdlib", {}) == []


def test_speeds_of_the_reference_trunk_are_read_from_every_file_and_count_once(tmp_path):
    way = {"block": 4, "verify": "none", "temperature": 1.0, "batch": 1}
    first, later = (one("tokens_per_second", v, "tree", on="M", kind="estimate", contract=way) for v in (1.0, 2.0))
    strangers = [
        one("tokens_per_second", 3.0, "tree", on="S", kind="estimate", contract=way),
        one("speedup", 4.0, "tree", on="M", kind="estimate", contract={"block": 4, "batch": 1}),
    ]
    write_records(tmp_path / "M.json", ["x"], [first, *strangers])
    write_records(tmp_path / "M-heads.json", ["x"], [later])
    assert table.reference_speeds(tmp_path) == [first]  # M.json comes after M-heads.json
    rows = head_rows([first], "toy", 4)
    assert cell(rows, "tree", "direct tokens/s on M", "batch 1") == "1"


def test_speeds_of_other_heads_and_of_other_machines_do_not_stand_in_one_table(tmp_path):
    def speed(value, subject):
        way = {"block": 4, "verify": "none", "temperature": 1.0, "batch": 1}
        return one("tokens_per_second", value, subject, on="M", kind="estimate", contract=way)

    kept = [speed(1.0, "tree"), speed(2.0, "mixture")]
    write_records(tmp_path / "M-a.json", ["leaplm", "speed"], kept)
    write_records(tmp_path / "M-narrow.json", ["leaplm", "speed", "--options", "width=8"], [speed(9.0, "tree")])
    write_records(tmp_path / "M-b.json", ["leaplm", "speed"], [speed(5.0, "tree")])
    made = json.loads((tmp_path / "M-b.json").read_text())
    made["provenance"]["hardware"] = "another"
    (tmp_path / "M-b.json").write_text(json.dumps(made))
    assert table.reference_speeds(tmp_path) == kept
    assert table.reference_speeds(tmp_path / "none") == []


def test_the_report_shows_one_row_a_head(tmp_path):
    records = [
        direct(3.0, "tree"),
        direct(3.2, "medusa"),
        accepted(2.5),
        direct(2.9, "block-chain"),
        direct(2.0, "tree", 8),
    ]
    write_records(tmp_path / "a.json", ["x"], [table.marked(r) for r in records])
    out = tmp_path / "page.html"
    joined.run(types.SimpleNamespace(runs=(str(tmp_path / "a.json"),), out=out, title="t", json=None), [])
    page = out.read_text()
    start = page.index("Heads side by side: toy, K = 4")
    part = page[start : page.index("</table>", start)]
    assert re.findall(r"<tr><td>(.*?)</td>", part) == ["block-chain", "medusa †", "tree †"]
    assert "Heads side by side: toy, K = 8" not in page  # one way of measuring needs no joining


def test_columns_are_told_apart_by_their_titles():
    titles = [(c.group, c.title) for c in columns("toy", 4)]
    assert len(titles) == len(set(titles))
    assert {name for name in NAMES if not family(name).exact} == {"flow-map", "noise"}
