import pytest
import torch
from torch import nn

from flowmap.codebook import CODEBOOKS, Bits, Codebook, Embedding, OneHot, Table
from flowmap.maps import FlowMap
from flowmap.path import CosinePath, LinearPath

V = 11


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def every_kind() -> dict[str, Codebook]:
    torch.manual_seed(0)
    return {
        "one-hot": OneHot(V).double(),
        "embedding": Embedding(V, 4).double(),
        "embedding, norm √d": Embedding(V, 4, norm=2.0).double(),
        "bits": Bits(V).double(),
        "unequal norms": Table(normal(V, 3) * torch.linspace(0.3, 2, V, dtype=torch.float64)[:, None]),
    }


KINDS = every_kind()
every = pytest.mark.parametrize("codebook", KINDS.values(), ids=KINDS.keys())
TOKENS = torch.arange(2 * V).reshape(2, V) % V


@every
def test_every_token_comes_back_from_its_code(codebook):
    states = codebook.encode(TOKENS)
    assert states.shape == (2, V, codebook.state_size) and states.dtype == torch.float64
    assert torch.equal(codebook.decode(states), TOKENS)
    near = 0.05 * normal(*states.shape) * torch.cdist(codebook.codes(), codebook.codes()).fill_diagonal_(9).min()
    assert torch.equal(codebook.decode(states + near), TOKENS)


@every
def test_decoding_finds_the_nearest_code(codebook):
    states = 2 * normal(50, 3, codebook.state_size, seed=1)
    distance = (states[:, :, None] - codebook.codes()).square().sum(-1)
    assert torch.equal(codebook.decode(states), distance.argmin(-1))


@every
def test_the_expected_code_is_a_mean_of_codes_and_the_code_itself_where_the_logits_are_sure(codebook):
    sure = torch.where(nn.functional.one_hot(TOKENS, V).bool(), 0.0, -torch.inf).double()
    assert torch.allclose(codebook.expected(sure), codebook.encode(TOKENS))
    logits = normal(2, 3, V)
    mean = sum(logits.softmax(-1)[..., v, None] * codebook.codes()[v] for v in range(V))
    assert torch.allclose(codebook.expected(logits), mean)


@every
@pytest.mark.parametrize("path", [LinearPath(), LinearPath(noise_scale=0.5), CosinePath()], ids=repr)
def test_prior_logits_are_the_posterior_of_one_token_alone(codebook, path):
    """Bayes by densities, with and without a prior over tokens, one time a sample or a position."""
    x_t, log_prior = normal(4, 2, codebook.state_size, seed=2), normal(V, seed=3).log_softmax(-1)
    for t in (torch.tensor([0.2, 0.5, 0.9, 1.0]).double(), torch.rand(4, 2).double() * 0.8 + 0.2):
        at = t if t.ndim == 2 else t[:, None].expand(4, 2)
        alpha, sigma = path.alpha(at)[..., None, None], path.noise_scale * path.sigma(at)[..., None, None]
        density = torch.distributions.Normal(alpha * codebook.codes(), sigma).log_prob(x_t[:, :, None]).sum(-1)
        for prior in (None, log_prior):
            logits = codebook.prior_logits(x_t, path.alpha(t), path.sigma(t), path.noise_scale, prior)
            expected = (density if prior is None else density + prior).softmax(-1)
            assert torch.allclose(logits.softmax(-1), expected)


def test_learned_codes_keep_their_length_through_an_optimizer():
    codebook = Embedding(V, 4)
    optimizer = torch.optim.SGD(codebook.parameters(), lr=3.0)
    before = codebook.codes().detach().clone()
    codebook.encode(TOKENS).sum().backward()
    optimizer.step()
    after = codebook.codes()
    assert torch.allclose(after.norm(dim=-1), torch.ones(V)) and not torch.allclose(after, before, atol=0.1)


def test_bits_are_binary_digits():
    assert Bits(4).codes().tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]
    assert Bits(5).state_size == 3 and Bits(2).state_size == 1


@every
def test_codes_are_saved(codebook):
    other = type(codebook)(*((normal(V, 3, seed=5),) if type(codebook) is Table else (V,)), *(
        (4, codebook.norm) if isinstance(codebook, Embedding) else ()
    )).double()  # fmt: skip
    other.load_state_dict(codebook.state_dict())
    assert torch.equal(other.codes(), codebook.codes())


@pytest.mark.parametrize("codebook", [OneHot(V), Embedding(V, 4), Bits(V)], ids=["one-hot", "embedding", "bits"])
def test_half_precision_logits_are_averaged_in_full(codebook):
    logits = normal(2, 3, V).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        g = codebook.expected(logits)
        states = codebook.encode(TOKENS)
    assert g.dtype == states.dtype == torch.float32
    exact = logits.double().softmax(-1) @ codebook.codes().double()
    assert torch.allclose(g.double(), exact, atol=1e-6)
    assert codebook.bfloat16().encode(TOKENS).dtype == torch.float32


def test_a_map_with_a_codebook_heads_for_the_expected_code():
    class Fixed(nn.Module):
        def forward(self, x, t, s, context=None):
            return context

    codebook, logits, x_t = KINDS["unequal norms"], normal(2, 4, V), normal(2, 4, 3)
    flow = FlowMap(Fixed(), LinearPath(), codebook=codebook)
    t, s = torch.tensor([0.5, 0.9]).double(), torch.tensor([0.0, 0.3]).double()
    g = codebook.expected(logits)
    assert torch.allclose(flow.endpoint(x_t, t, s, logits), g)
    ratio = (s / t)[:, None, None]
    assert torch.allclose(flow.jump(x_t, t, s, logits), ratio * x_t + (1 - ratio) * g)


def test_what_is_no_codebook_is_refused():
    with pytest.raises(ValueError, match="shape"):
        Table(torch.zeros(3))
    with pytest.raises(ValueError, match="at least 2"):
        OneHot(1)
    assert set(CODEBOOKS) == {"one-hot", "embedding", "sphere", "bits", "table"}
