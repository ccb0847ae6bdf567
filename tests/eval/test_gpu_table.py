"""The large table's script at a tiny size: what it writes, and what it may import."""

import json
import subprocess
import sys

import numpy as np

from benchmarks.gpu import table
from benchmarks.gpu.text import beginning, read
from eval.head_table import filled, head_rows
from training.data.store import TokenStore


def test_a_beginning_cuts_the_last_document():
    store = TokenStore(np.arange(10, dtype=np.uint16), np.array([0, 4, 7, 10]), 0)
    assert beginning(store, 5).offsets.tolist() == [0, 4, 5] and beginning(store, 5).tokens.tolist() == [0, 1, 2, 3, 4]
    assert beginning(store, 7).offsets.tolist() == [0, 4, 7] and beginning(store, 99).offsets.tolist() == [0, 4, 7, 10]


def test_every_record_of_the_table_is_there(tmp_path, monkeypatch):
    text = (np.arange(3000) * np.arange(3000) % 17).astype(np.uint16)
    np.savez(tmp_path / "toy.npz", name="toy", vocab=17, train=text, train_offsets=np.array([0, 900, 3000]),
             validation=text[:500], validation_offsets=np.array([0, 200, 500]))  # fmt: skip
    name, vocab, stores = read(tmp_path / "toy.npz")
    assert (name, vocab) == ("toy", 17) and stores["train"].offsets.tolist() == [0, 900, 3000]
    monkeypatch.setattr(table, "BATCHES", (1,))
    out = tmp_path / "out.json"
    small = "--steps 20 --width 16 --depth 1 --length 32 --batch 2 --scored 200 --prompts 2 --new 8 --rounds 1"
    arguments = ["--data", str(tmp_path / "toy.npz"), "--out", str(out), "--heads", "independent", "flow-map"]
    monkeypatch.setattr(sys, "argv", ["table", *arguments, *small.split()])
    table.main()
    found = json.loads(out.read_text())
    assert found["schema"] == "leaplm/1"
    rows = filled(head_rows(found["results"], "toy (trunk 1×16)", 4))
    assert list(rows) == ["trunk", "independent", "flow-map"]
    groups = {c.column.group for c in rows["flow-map"] if c.record is not None}
    assert groups >= {"parameters", "MFLOP a token", "training tokens/s", "block NLL", "direct NLL"}
    assert groups >= {"accepted, token rule", "accepted, block rule", "direct tokens/s", "verified tokens/s"}
    assert all(c.record is not None for c in rows["flow-map"] if c.column.metric == "accepted_length")
    assert all(r["tuned"] is False for r in found["results"] if r["subject"] == "flow-map")
    chain = next(r["value"] for r in found["results"] if r["metric"] == "nll" and r["subject"] == "trunk")
    assert chain < np.log(17) + 0.5  # tokens were scored in their own vocabulary
    heads = [r for r in found["results"] if r["metric"] == "block_nll" and r["subject"] == "trunk"]
    assert len({round(r["value"], 3) for r in heads if r["contract"]["block"] == 2}) == 1  # one trunk under both


def test_the_scripts_need_no_more_than_they_say():
    told = "import sys, benchmarks.gpu.table, benchmarks.gpu.speed; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded and not {"datasets", "pydantic", "tyro", "matplotlib", "sklearn"} & set(loaded)
