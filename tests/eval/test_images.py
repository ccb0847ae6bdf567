"""Image metrics stand on closed forms and double loops; the records on laws whose score is known."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from eval.images import ImageScorer, score_images, write_grid
from eval.images import classifier as classifiers
from eval.images.classifier import load_classifier
from eval.images.distances import (
    bootstrap,
    histogram_entropy,
    inside,
    mean_of,
    nearest,
    negative_distance,
    polynomial,
    sliced_w2,
    squared_mmd,
    squared_w2,
)
from eval.images.metrics import Frechet, inception_score, kid
from eval.records import METRICS
from imm.data import load_images


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniform(seed, *shape):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- distances against their definitions


def test_fid_is_the_closed_form():
    x, y = normal(0, 300, 6) @ normal(1, 6, 6), 0.5 + normal(2, 250, 6) @ normal(3, 6, 6)
    means, covariances = zip(*((v.mean(0).numpy(), np.cov(v.numpy().T)) for v in (x, y)), strict=True)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert Frechet(y)(x) == pytest.approx(expected, rel=1e-9)


def test_fid_of_a_shift_and_of_a_scale_is_known():
    x, shift = normal(0, 200, 5), torch.tensor([1.0, 0, -2, 0, 0.5], dtype=torch.float64)
    frechet = Frechet(x)
    assert frechet(x) == pytest.approx(0, abs=1e-6)
    assert frechet(x + shift) == pytest.approx(float(shift @ shift), rel=1e-6)
    centred = x - x.mean(0)  # Σ → 9Σ: tr(Σ + 9Σ − 2·3Σ) = 4 tr Σ
    assert Frechet(centred)(3 * centred) == pytest.approx(4 * float(x.var(0).sum()), rel=1e-6)
    assert frechet(x) == pytest.approx(0, abs=1e-6)  # what was scored before leaves nothing behind


def brute_mmd(kernel, x, y):
    n, m = len(x), len(y)
    own = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel():
    x, y = normal(0, 20, 4), normal(1, 20, 4) + 0.3
    expected = float(brute_mmd(lambda a, b: (a @ b / 4 + 1) ** 3, x, y))
    assert kid(x, y, seed=0).value == pytest.approx(expected, rel=1e-9)
    assert squared_mmd(polynomial, x, y).value == pytest.approx(expected, rel=1e-9)


def test_kid_of_two_halves_is_noise_about_zero_and_its_error_is_right():
    found = [kid(normal(2 * s, 100, 3), normal(2 * s + 1, 100, 3), s).value for s in range(40)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 40**0.5 and min(found) < 0
    y = normal(99, 2000, 3)
    shifted = [squared_mmd(polynomial, normal(s, 100, 3) + 0.5, y) for s in range(60)]
    spread = np.std([e.value for e in shifted], ddof=1)
    assert np.mean([e.stderr for e in shifted]) == pytest.approx(spread, rel=0.35)  # 60 draws know it to 9%


def test_kid_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, two = (kid(normal(0, 60, 3), normal(1, 50, 3), 5).value for _ in range(2))
    assert one == two and torch.equal(torch.random.get_rng_state(), before)


def test_energy_distance_is_the_double_loop(monkeypatch):
    monkeypatch.setattr("eval.images.distances.ROWS", 7)
    x, y = normal(0, 23, 3), normal(1, 17, 3) + 1
    expected = float(brute_mmd(lambda a, b: -(a - b).norm(), x, y))
    assert squared_mmd(negative_distance, x, y).value == pytest.approx(expected, rel=1e-6)
    known = -float(torch.cdist(y, y).sum()) / (17 * 16)
    assert squared_mmd(negative_distance, x, y, known).value == pytest.approx(expected, rel=1e-6)


def test_w2_on_the_line_is_the_distance_of_sorted_points():
    a, b = normal(0, 12, 3).sort(0).values, normal(1, 8, 3).sort(0).values
    copied = (a.repeat_interleave(2, 0) - b.repeat_interleave(3, 0)).square().mean(0)  # 24 quantiles of each
    assert torch.allclose(squared_w2(a, b), copied, rtol=1e-12)
    assert torch.allclose(squared_w2(a, a + 2), torch.full((3,), 4.0, dtype=torch.float64))
    prime = normal(2, 7, 1).sort(0).values
    copied = (a[:, :1].repeat_interleave(7, 0) - prime.repeat_interleave(12, 0)).square().mean(0)
    assert torch.allclose(squared_w2(a[:, :1], prime), copied, rtol=1e-12)


def test_sliced_w2_of_a_shift_is_its_mean_projection():
    x, shift = normal(0, 400, 3), torch.tensor([3.0, 0, 0], dtype=torch.float64)
    directions = torch.nn.functional.normalize(normal(1, 3, 2000), dim=0)
    found = sliced_w2(x + shift, x, directions, uniform(2, 5, 400))
    assert found.value == pytest.approx(float((shift @ directions).square().mean().sqrt()), rel=1e-9)
    assert found.value == pytest.approx(3 / 3**0.5, rel=0.05)  # E cos² = 1/d; 2,000 directions know it to 1%


def test_the_bootstrap_knows_the_error_of_a_mean():
    x = normal(0, 400)
    assert bootstrap(lambda i: float(x[i].mean()), uniform(1, 200, 400)) == pytest.approx(mean_of(x).stderr, rel=0.2)


def test_the_manifold_is_a_union_of_balls(monkeypatch):
    monkeypatch.setattr("eval.images.distances.ROWS", 11)
    x, y, k = normal(0, 40, 2), normal(1, 30, 2), 3
    expected = []
    radii = [sorted(float((y[j] - y[i]).norm()) for i in range(30) if i != j)[k - 1] for j in range(30)]
    for point in x:
        expected.append(any(float((point - y[j]).norm()) <= radii[j] for j in range(30)))
    assert inside(x, y, k).tolist() == expected and 0 < sum(expected) < 40


def test_the_nearest_point_is_found_exactly():
    x, y = normal(0, 50, 20).float(), normal(1, 70, 20).float()
    assert torch.allclose(nearest(x, y), torch.cdist(x.double(), y.double()).min(1).values.float(), rtol=1e-5)
    assert (nearest(y[10:20], y) == 0).all()


def test_entropy_and_inception_score_count_classes():
    found = histogram_entropy(torch.arange(40) % 4, 10)
    assert found.value == pytest.approx(math.log(4)) and found.stderr == pytest.approx(0, abs=1e-7)
    assert histogram_entropy(torch.zeros(5, dtype=torch.long), 10).value == 0
    sure = 50 * torch.nn.functional.one_hot(torch.arange(40) % 4, 10).double()
    assert inception_score(sure).value == pytest.approx(4, rel=1e-6)
    assert inception_score(torch.zeros(40, 10)).value == pytest.approx(1)
    p = normal(0, 60, 5).softmax(1)
    kl = (p * (p.log() - p.mean(0).log())).sum(1).mean()
    assert inception_score(p.log()).value == pytest.approx(float(kl.exp()), rel=1e-9)


# ---------------------------------------------------------------- scores of laws that are known


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture(scope="module")
def scorer(digits):
    return ImageScorer(digits, seed=0, classifier=load_classifier(digits, steps=60))


def values(records, subject=None):
    return {r["metric"]: r["value"] for r in records if subject in (None, r["subject"])}


def test_the_classifier_is_learned_kept_and_named_by_its_weights(digits, scorer, monkeypatch):
    assert scorer.classifier.accuracy > 0.9  # chance is 0.1
    monkeypatch.setattr(classifiers, "train_network", lambda *_: pytest.fail("it is in the cache"))
    again = load_classifier(digits, steps=60)
    assert again.digest == scorer.classifier.digest and again.accuracy == scorer.classifier.accuracy
    features, logits = again(digits.test[:3])
    assert features.shape == (3, 64) and logits.shape == (3, 10)
    assert torch.allclose(again(digits.test)[0][:3], features, rtol=1e-5, atol=1e-6)  # images are scored alone
    monkeypatch.undo()
    network = classifiers.train_network(digits, seed=1, steps=2)
    same = classifiers.train_network(digits, seed=1, steps=2)
    assert classifiers.weights_digest(network) == classifiers.weights_digest(same) != again.digest


def test_copies_of_training_images_score_well_and_are_found_out(digits, scorer):
    found, floors = values(scorer.score(digits.train[:359])), scorer.floors(359)
    assert found["nearest_train_distance"] == 0 < 0.5 < values(floors, "test")["nearest_train_distance"]
    floor = values(floors, "train")
    assert found["classifier_fid"] < 3 * floor["classifier_fid"] and found["precision"] > 0.8 and found["recall"] > 0.6


def test_the_test_split_itself_is_at_distance_zero(digits, scorer):
    found = values(scorer.score(digits.test))
    assert found["classifier_fid"] == pytest.approx(0, abs=1e-5) and found["precision"] == found["recall"] == 1
    assert found["sliced_w2"] == pytest.approx(0, abs=1e-6)


def test_noise_has_no_precision_and_missing_classes_no_recall(digits, scorer):
    real = values(scorer.score(digits.train[:300]))
    spoiled = digits.train[:300].copy()
    spoiled[:150] = np.random.default_rng(0).integers(0, 256, spoiled[:150].shape)
    noisy = values(scorer.score(spoiled))
    assert noisy["precision"] < real["precision"] - 0.3 and noisy["nearest_train_distance"] > 0.5
    few = values(scorer.score(digits.train[digits.train_labels < 3][:300]))
    assert few["recall"] < 0.5 * real["recall"] and few["precision"] > real["precision"] - 0.2
    assert few["entropy"] < math.log(4) < real["entropy"] and few["inception_score"] < 4 < real["inception_score"]
    for metric, factor in (("classifier_fid", 3), ("kid", 3), ("energy_distance", 3), ("sliced_w2", 2)):
        assert min(noisy[metric], few[metric]) > factor * real[metric], metric


def test_pixels_and_states_of_the_model_score_the_same(digits, scorer):
    pixels = digits.train[100:200]
    assert scorer.fid(digits.scaling.to_model(pixels)) == scorer.fid(pixels)
    assert scorer.fid(pixels) == values(scorer.score(pixels))["classifier_fid"]


def test_the_order_of_samples_and_the_run_change_nothing(digits, scorer):
    one = scorer.score(digits.train[:50])
    assert one == ImageScorer(digits, 0, scorer.classifier).score(digits.train[:50])
    other = values(scorer.score(digits.train[:50][::-1].copy()))
    assert all(values(one)[m] == pytest.approx(other[m], rel=1e-5) for m in other)


def test_every_record_says_how_it_was_made(digits, monkeypatch):
    tiny = load_classifier(digits, steps=60)
    monkeypatch.setattr("eval.images.scorer.load_classifier", lambda images: tiny)
    contract = {"steps": 1, "nfe": 1}
    records = score_images(digits.train[:400], digits, 3, "flow-matching", run="runs/x", contract=contract)
    mine = [r for r in records if r["subject"] == "flow-matching"]
    assert [r["metric"] for r in mine] == [
        "classifier_fid", "kid", "inception_score", "energy_distance", "sliced_w2", "precision", "recall", "entropy",
        "nearest_train_distance",
    ]  # fmt: skip
    for r in records:
        assert r["metric"] in METRICS and r["on"] == "digits" and r["split"] == "test" and math.isfinite(r["value"])
        assert r["kind"] == "estimate" and r["data"] == digits.fingerprint and r["stderr_over"] == "samples"
        assert (r["metric"] in ("energy_distance", "sliced_w2", "nearest_train_distance")) == ("classifier" not in r)
    assert all(r["n"] == 400 and r["contract"] == contract and r["run"] == "runs/x" for r in mine)
    floors = {(r["subject"], r["metric"]): r["n"] for r in records if r not in mine}
    assert floors["train", "classifier_fid"] == 400 and floors["train-resampled", "classifier_fid"] == 400
    assert floors["test", "nearest_train_distance"] == len(digits.test) and ("test", "entropy") in floors


@pytest.mark.parametrize(
    "samples, line",
    [
        (np.zeros((5, 8, 8, 1), np.uint8), "too few"),
        (np.zeros((20, 28, 28, 1), np.uint8), r"digits has uint8 \(8, 8, 1\)"),
        (np.zeros((20, 8, 8, 1)), "float64"),
        (torch.full((20, 1, 8, 8), torch.nan), "not finite"),
    ],
)
def test_samples_that_cannot_be_scored_are_one_line(scorer, samples, line):
    with pytest.raises(ValueError, match=line):
        scorer.score(samples)


def test_a_grid_is_read_row_by_row(tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    write_grid(tmp_path / "deep" / "grid.png", images, columns=2)
    page = np.asarray(Image.open(tmp_path / "deep" / "grid.png"))
    assert page.shape == (8, 7) and page[0, 0] == 0 and page[1, 4] == 1 and page[3, 0] == 2 and page[7, 2] == 4
    assert page[2, 0] == 128 and page[7, 6] == 128  # between tiles, and where none is left
    write_grid(tmp_path / "colour.png", images.repeat(3, 3), columns=5, zoom=4)
    assert Image.open(tmp_path / "colour.png").size == (5 * 13 - 1, 8)
    with pytest.raises(ValueError, match="columns"):
        write_grid(tmp_path / "none.png", images, columns=0)
