import numpy as np
import pytest
import torch
from scipy import stats

from flowmap import rng as module
from flowmap.rng import Rng, philox4x32, philox4x32_numpy


@pytest.mark.parametrize(
    "counter, key, expected",
    [  # the published known-answer vectors of Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    words = tuple(torch.tensor([word], dtype=torch.int64) for word in counter)
    assert tuple(int(word) for word in philox4x32(words, key)) == expected
    words = tuple(np.array([word], dtype=np.uint64) for word in counter)
    assert tuple(word.item() for word in philox4x32_numpy(words, key)) == expected


@pytest.mark.parametrize("cached", [1, 7, 2**14])
def test_a_cpu_draws_the_words_that_other_devices_draw(cached, monkeypatch):
    monkeypatch.setattr(module, "CACHED", cached)
    samples = torch.tensor([0, 5, 2**33 + 1, 2**40])
    batch, key = torch.tensor([0, 3, 2**35, 7]), (0xFFFFFFFF, 12345)
    assert torch.equal(module._words(samples, batch, 5, key), module._words_numpy(samples, batch, 5, key))


def test_a_slice_draws_what_the_whole_batch_draws():
    whole = Rng(3, torch.arange(12), batch=5)
    for low in (0, 4, 8):
        part = Rng(3, torch.arange(low, low + 4), batch=5)
        assert torch.equal(part.normal("eps", 4, 7, 3), whole.normal("eps", 12, 7, 3)[low : low + 4])
        assert torch.equal(part.uniform("t", 4), whole.uniform("t", 12)[low : low + 4])


def test_names_seeds_and_batches_are_independent_streams():
    draws = [
        Rng(seed, torch.arange(64), batch).uniform(name, 64, 16).flatten()
        for seed in (0, 1)
        for batch in (0, 1)
        for name in ("t", "eps")
    ]
    correlation = torch.corrcoef(torch.stack(draws))
    off_diagonal = correlation[~torch.eye(len(draws), dtype=torch.bool)]
    assert off_diagonal.abs().max() < 5 / 1024**0.5  # five standard errors of independent draws


def test_the_laws_are_uniform_and_normal():
    rng = Rng(11, torch.arange(200))
    assert stats.kstest(rng.uniform("u", 200, 500).flatten(), "uniform").pvalue > 1e-3
    assert stats.kstest(rng.normal("n", 200, 500).flatten(), "norm").pvalue > 1e-3
    assert rng.uniform("u", 200, 500).max() < 1


def test_a_shape_that_does_not_fit_the_slice_is_refused():
    with pytest.raises(ValueError, match="4 samples"):
        Rng(0, torch.arange(4)).uniform("t", 5)
