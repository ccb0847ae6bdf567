"""Acceptance estimates: fitted to what is known in closed form, scored against double loops."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import leaplm
from eval import acceptance, calibration, calibration_picture
from eval.calibration import Drafts, chances, fit
from eval.reliability import Scored, score
from eval.samples import split_measured
from flowmap.warp import Warp
from mtp.decoding.confidence import FEATURES
from mtp.heads.base import Draft
from tests.eval.test_acceptance import trained_run  # noqa: F401  a fixture


def test_chances_are_the_token_rules():
    g = torch.Generator().manual_seed(0)
    logits, log_p = (
        [torch.randn(6, 5, generator=g) for _ in range(3)],
        torch.randn(6, 3, 5, generator=g).log_softmax(-1),
    )
    tokens = torch.randint(5, (6, 3), generator=g)
    before, after = chances(Draft(tokens, torch.zeros(6, 3), logits, Warp(0.8)), log_p)
    for row, k in itertools.product(range(6), (1, 2)):
        p, q = log_p[row, k - 1].exp(), torch.softmax(logits[k][row] / 0.8, 0)
        x = tokens[row, k]
        assert float(before[row, k - 1]) == pytest.approx(
            sum(min(float(p[v]), float(q[v])) for v in range(5)), abs=1e-5
        )
        assert float(after[row, k - 1]) == pytest.approx(min(1.0, float(p[x] / q[x])), rel=1e-4)


def made(n, seed):
    """Drafts whose chances are logistic in the features, at each of two positions in its own way."""
    g = np.random.default_rng(seed)
    x = g.normal(size=(n, 2, len(FEATURES)))
    slope = np.array([[1.0, -0.5, 0, 0.3, 1.0], [-0.7, 0, 0.8, 0, 0.5]])
    after = 1 / (1 + np.exp(-(x * slope).sum(-1) - [0.2, -0.4]))
    before = 1 / (1 + np.exp(-(x * slope)[..., :-1].sum(-1) - [0.2, -0.4]))
    weight = np.concatenate([np.ones((n, 1)), after[:, :1]], 1)
    return Drafts(x, before, after, weight, np.arange(n) % 50)


def test_a_fit_finds_chances_that_are_logistic():
    one = fit(made(20_000, 0), Warp())
    held_out = made(5_000, 1)
    x = torch.tensor(held_out.x).float()
    for estimate, chance in ((one.after(x), held_out.after), (one.before(x[..., :-1]), held_out.before)):
        assert np.abs(estimate.numpy() - chance).mean() < 0.02
    scored = score(one, held_out)
    assert scored["after"].calibration_error(scored["after"].weight) < 0.01
    assert scored["raw"].calibration_error(scored["raw"].weight) > 0.1
    assert scored["exact"].calibration_error(scored["exact"].weight) == 0


def test_the_map_mends_what_is_not_logistic():
    """Chances that are a step of a feature: no logistic curve is calibrated, its monotone map is."""
    drafts = made(8_000, 0)
    step = np.where(drafts.x[..., 0] > 0.5, 0.9, 0.3)
    bent = Drafts(drafts.x, step, step, np.ones_like(step), drafts.prompt)
    one = score(fit(bent, Warp()), bent)["after"]
    assert one.calibration_error(one.weight) < 0.01 and one.brier(one.weight) < 0.01


def test_drafts_that_are_all_alike_can_be_fitted():
    alike = Drafts(*(np.ones(shape) for shape in ((30, 2, len(FEATURES)), (30, 2), (30, 2), (30, 2))), np.arange(30))
    assert np.allclose(fit(alike, Warp()).after(torch.ones(1, 2, len(FEATURES))), 1)


def example(n=400, seed=0):
    g = np.random.default_rng(seed)
    position, prompt = g.integers(2, 4, n), g.integers(0, 20, n)
    return Scored(g.random(n), g.random(n), g.random(n), position, prompt)


def test_calibration_error_by_hand():
    one = Scored(
        np.array([0.1, 0.2, 0.9]), np.array([0.3, 0.3, 0.8]), np.array([1.0, 1.0, 2.0]), np.full(3, 2), np.arange(3)
    )
    assert np.allclose(one.reliability(one.weight, bins=2), [[0.15, 0.3, 0.5], [0.9, 0.8, 0.5]])
    # fifteen bins and three examples: each has a bin of its own
    assert one.calibration_error(one.weight) == pytest.approx(0.25 * 0.2 + 0.25 * 0.1 + 0.5 * 0.1)
    assert one.brier(one.weight) == pytest.approx(0.25 * 0.04 + 0.25 * 0.01 + 0.5 * 0.01)


def test_the_picture_shows_the_bins_and_the_diagonal(monkeypatch):
    drawn = {}
    monkeypatch.setattr(calibration_picture, "plot", lambda series, x, y: drawn.update(series) or "<svg/>")
    scored = score(fit(made(2_000, 0), Warp()), made(2_000, 1))
    common = {"on": "text", "subject": "x", "kind": "estimate", "contract": {"block": 3, "temperature": 1.0}}
    records = acceptance._scores(scored, 3, common)
    [section] = calibration_picture.sections(records)
    assert set(drawn) == {*calibration_picture.SHOWN.values(), "told as it is"}
    line = drawn[calibration_picture.SHOWN["after"]]
    table = scored["after"].reliability(scored["after"].weight)
    assert np.allclose([(p.x, p.y) for p in line], table[:, :2], atol=1e-6)
    assert all(p.x == p.y for p in drawn["told as it is"]) and [row[0] for row in section.table][-1] == "exact"
    without = [{key: value for key, value in r.items() if key != "details"} for r in records]  # as older files are
    assert calibration_picture.sections(without) == []


def test_bins_hold_equal_mass():
    one = example(20_000)
    assert np.allclose(one.reliability(one.weight)[:, 2], 1 / 15, atol=1e-3)


def test_auroc_is_the_share_of_pairs_in_order():
    one = example(60)
    kept, fell = one.weight * one.chance, one.weight * (1 - one.chance)
    pairs = itertools.product(range(60), range(60))
    won = sum(kept[i] * fell[j] * (0.5 if i == j else float(one.estimate[i] > one.estimate[j])) for i, j in pairs)
    assert one.auroc(one.weight) == pytest.approx(won / (kept.sum() * fell.sum()))


def test_an_error_over_prompts_is_that_of_a_mean():
    """One example a prompt and weights alike: the standard deviation over √n, to the bootstrap's own 5%."""
    g = np.random.default_rng(1)
    one = Scored(g.random(500), np.zeros(500), np.ones(500), np.full(500, 2), np.arange(500))
    expected = np.std(one.estimate**2, ddof=1) / 500**0.5
    assert one.error(one.brier) == pytest.approx(expected, rel=0.25)
    assert Scored(*(part[:1] for part in vars(one).values())).error(one.brier) is None


def test_acceptance_at_a_position_counts_those_who_came_there():
    one = example()
    at = one.position == 3
    assert one.acceptance(one.weight, 3) == pytest.approx(np.average(one.chance[at], weights=one.weight[at]))


def test_a_run_is_calibrated_and_ends_its_drafts_by_it(trained_run, tmp_path, capsys):  # noqa: F811
    file, samples = tmp_path / "accept.json", tmp_path / "samples.jsonl"
    assert leaplm.main(["sample", trained_run, "--confidence", "0.5"]) == 2
    assert "fit one with leaplm accept RUN --calibrate" in capsys.readouterr().err
    command = ["accept", trained_run, "--calibrate", "--threshold", "0.02", "1", "--temperatures", "1", "--verify"]
    assert leaplm.main([*command, "token", "--num", "64", "--new", "24", "--json", str(file)]) == 0
    records = json.loads(file.read_text())["results"]
    scores = {(r["metric"], r["estimate"]): r for r in records if "estimate" in r}
    assert {name for _, name in scores} == {"raw", "before", "after", "exact"}
    assert scores["calibration_error", "after"]["value"] < scores["calibration_error", "raw"]["value"]
    assert scores["calibration_error", "after"]["stderr"] > 0
    page = tmp_path / "page.html"
    assert leaplm.main(["report", str(file), "--out", str(page)]) == 0
    assert "Acceptance told and measured" in page.read_text() and "told as it is" in page.read_text()
    by_threshold = {r["contract"].get("threshold"): r["value"] for r in records if r["metric"] == "read_per_token"}
    lengths = {r["contract"].get("threshold"): r["value"] for r in records if r["metric"] == "accepted_length"}
    assert lengths[None] == lengths[0.02] and by_threshold[None] == by_threshold[0.02]  # nothing falls so low
    assert lengths[1.0] < lengths[None] and by_threshold[1.0] < by_threshold[None]
    # the rule's exact chances beside its coins
    told = [r for r in records if r["metric"] == "conditional_acceptance" and "threshold" not in r["contract"]]
    exact, counted = ({r["position"]: r for r in told if ("stderr" in r) is with_error} for with_error in (True, False))
    passes = 64 * 24 / lengths[None]
    for k, came in ((2, passes), (3, passes * counted[2]["value"])):
        share = exact[k]["value"]
        error = (share * (1 - share) / came + exact[k]["stderr"] ** 2) ** 0.5
        assert counted[k]["value"] == pytest.approx(share, abs=4 * error)
    [kept] = Path(trained_run).glob("checkpoints/*/model/confidence-*.json")
    assert len(json.loads(kept.read_text())["after"]["bias"]) == 2
    how = ["--confidence", "1", "--new", "8", "--num", "3"]
    assert leaplm.main(["sample", trained_run, *how, "--out", str(samples)]) == 0
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert all(row["contract"]["threshold"] == 1 and len(row["blocks"]) == row["tokens"] for row in rows)
    assert leaplm.main(["quality", str(samples)]) == 0
    assert "> 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command, message",
    [
        (["accept", "--threshold", "0"], "chances above 0"),
        (["accept", "--calibrate", "--verify", "jacobi"], "leave --verify jacobi out"),
        (["sample", "--drawn"], "give a threshold"),
        (["sample", "--confidence", "2"], "up to 1"),
    ],
)
def test_wrong_input_is_one_line(trained_run, capsys, command, message):  # noqa: F811
    assert leaplm.main([command[0], trained_run, *command[1:]]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_nothing_counts_behind_an_end_that_was_drafted(monkeypatch):
    """Rows end there, so that the rule never comes to what follows. Draft and trunk agree: all chances are 1."""
    tokens, logits = torch.tensor([[3, 0, 2], [0, 1, 2], [3, 1, 2], [3, 1, 0]]), torch.zeros(4, 5)
    draft = Draft(tokens, torch.zeros(4, 3), [logits] * 3, Warp())

    def decode(*args, watch, **options):
        watch(draft, torch.zeros(4, 3, 5).log_softmax(-1), torch.full((4,), 3))

    monkeypatch.setattr(calibration, "decode_verified", decode)
    run = SimpleNamespace(model=None, tokenizer=SimpleNamespace(eos_token_id=0))
    found = calibration.draft_at(run, [[1]] * 4, Warp(), 3, new=8, seed=0, batch=4)
    assert found.weight.tolist() == [[1, 0], [0, 0], [1, 1], [1, 1]]


def test_a_fit_without_a_drafted_token_says_so():
    empty = Drafts(*(np.zeros(shape) for shape in ((30, 2, len(FEATURES)), (30, 2), (30, 2), (30, 2))), np.arange(30))
    with pytest.raises(ValueError, match="--new"):
        fit(empty, Warp())


def test_what_is_not_defined_is_no_record():
    """All kept, and position 3 never reached: no order of kept and fallen, no acceptance there, and no NaN in a file."""
    n, weight = 40, np.zeros((40, 2))
    weight[:, 0] = 1
    one = Drafts(made(n, 0).x, np.ones((n, 2)), np.ones((n, 2)), weight, np.arange(n))
    records = acceptance._scores(score(fit(one, Warp()), one), 3, {"on": "text", "subject": "x", "kind": "estimate"})
    assert all(math.isfinite(r["value"]) and math.isfinite(r.get("stderr", 0)) for r in records)
    assert {r["metric"] for r in records} == {"calibration_error", "brier", "conditional_acceptance"}
    assert [r["position"] for r in records if r["metric"] == "conditional_acceptance"] == [2]


@pytest.mark.parametrize(
    "data, split",
    [({"name": "stdlib"}, "validation"), ({"suite": "poker"}, "train"), ({"suite": "poker-draw"}, "validation")],
)
def test_records_say_where_their_prompts_come_from(data, split):
    """The six hands have one prompt, which is trained on."""
    assert split_measured(SimpleNamespace(config={"data": data})) == split
