import json

import pytest

import leaplm


@pytest.mark.slow
def test_the_fast_demo_tells_its_story(tmp_path, capsys):
    assert leaplm.main(["demo", "--fast", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "summary.json").read_text())["results"]
    value = {(r["metric"], r["on"], r["subject"]): r["value"] for r in results}
    assert abs(value["validity", "poker", "independent"] - 10 / 36) < 0.03
    assert value["validity", "poker", "block-chain"] > 0.99
    assert value["validity", "skip-64", "first-order-chain"] < 0.05
    assert value["validity", "skip-64", "block-chain"] > 0.9
    assert value["gap_closed", "stdlib", "block-chain"] > 0.5
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") >= 4 and len(page) < 6e6
