import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from flowmap.warp import MANY, Warp, inverse_cdf


@pytest.mark.parametrize(
    "temperature, top_p, top_k",
    [(0.7, 1.0, 0), (1.0, 0.5, 0), (1.3, 0.9, 0), (0.7, 0.05, 0), (1.0, 1.0, 5), (0.7, 0.8, 7)],
)
def test_the_warped_law_is_transformers_own(temperature, top_p, top_k):
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * 2
    theirs = TemperatureLogitsWarper(temperature)(None, logits)
    theirs = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, theirs) if top_k else theirs)
    assert torch.allclose(Warp(temperature, top_p, top_k).log_prob(logits).exp(), theirs.softmax(-1), atol=1e-6)


def test_temperature_zero_is_greedy_and_certain():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    tokens, log_q = Warp(0.0).draw(logits, torch.tensor([0.99]))
    assert tokens.tolist() == [1] and log_q.tolist() == [0.0]
    assert Warp(0.0).log_prob(logits).exp().tolist() == [[0.0, 1.0, 0.0]]


def test_inverse_cdf_never_draws_an_impossible_token():
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-24])
    tokens = inverse_cdf(probs.expand(5, -1), uniform)
    assert tokens.tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Warp(**bad)


@pytest.mark.parametrize("size", [MANY - 1, MANY, MANY + 1, 32_000, 50_257])
def test_many_tokens_are_searched_piece_by_piece_to_the_same_token(size):
    generator = torch.Generator().manual_seed(size)
    probs = torch.rand(16, size, dtype=torch.float64, generator=generator)
    probs *= torch.rand(16, size, generator=generator) < 0.3  # most are impossible, whole pieces among them
    probs[:, 300:900], probs[:, -3:] = 0, 0
    probs /= probs.sum(-1, keepdim=True)
    cdf = probs.cumsum(-1)
    for uniform in (
        torch.rand(16, dtype=torch.float64, generator=generator),
        torch.zeros(16),
        torch.full((16,), 1 - 2.0**-53).double(),
    ):
        level = torch.minimum(uniform[:, None] * cdf[:, -1:], torch.nextafter(cdf[:, -1:], torch.zeros(1).double()))
        token = inverse_cdf(probs, uniform)
        assert torch.equal(token, torch.searchsorted(cdf, level.contiguous(), right=True)[:, 0])
        assert (probs.gather(1, token[:, None]) > 0).all()
    one = torch.nn.functional.one_hot(torch.arange(16) * 200, size).double()
    assert torch.equal(inverse_cdf(one, torch.full((16,), 0.999)), torch.arange(16) * 200)
    single = probs.float()
    draws = torch.rand(4000, generator=generator)
    tokens = inverse_cdf(single[0].expand(4000, -1), draws)
    assert torch.equal(tokens, inverse_cdf(single[0], draws)) and (single[0][tokens] > 0).all()
    assert (tokens != inverse_cdf(probs[0], draws.double())).sum() < 20
