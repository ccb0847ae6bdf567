"""What the baselines write: the law they say, what is known, calls, and `generate`."""

import itertools

import pytest
import torch
from scipy import stats
from transformers import AutoModel

from flowlm import Known
from flowlm.discrete.likelihood import exact_nll
from flowlm.discrete.model import MaskedDiffusionGenerationConfig
from flowlm.discrete.writing import write_causal, write_masked
from flowmap.objectives.tokens import TokenStates
from flowmap.rng import Rng
from flowmap.warp import Warp
from tests.flowlm.windows_law import TableLaw, every_window, network
from tests.flowmap.six_hands import TOKENS, WORDS

V, N, ROWS = 3, 3, 20_000
ALL = every_window(V, N)


def nothing(rows=ROWS, length=N):
    return Known(torch.zeros(rows, length, dtype=torch.long), torch.zeros(rows, length, dtype=torch.bool))


def counts(tokens):
    return torch.bincount((tokens * V ** torch.arange(N - 1, -1, -1)).sum(1), minlength=V**N).double()


def chance(tokens, law):
    """p of the χ² test of whole windows against a law (V^N,); rare cells are one."""
    seen, expected = counts(tokens), law.double() * len(tokens)
    rare = expected < 8
    seen, expected = (torch.cat([part[~rare], part[rare].sum()[None]]) for part in (seen, expected))
    keep = expected > 0
    assert seen[~keep].sum() == 0
    value = ((seen - expected).square() / expected.clamp_min(1e-9))[keep].sum()
    return stats.chi2.sf(float(value), int(keep.sum()) - 1)


def table():
    p = torch.rand(V**N, generator=torch.Generator().manual_seed(3)).double().pow(3)
    p[[0, 5]] = 0
    return TableLaw(p, V, N)


def law_of_turns(map_, turns):
    """(V^N,): of windows whose places are filled in these passes, by enumeration; turns: place → pass."""
    total = torch.ones(V**N, dtype=torch.float64)
    for step in set(turns):
        before = torch.tensor([turn < step for turn in turns])
        now = torch.tensor([turn == step for turn in turns])
        with torch.no_grad():
            z = map_.denoise(ALL.masked_fill(~before, V), torch.ones(V**N)).double().log_softmax(-1)
        total *= (z.gather(-1, ALL[..., None])[..., 0].exp() * now + ~now).prod(1)
    return total.nan_to_num(0)


def mean(laws):
    laws = list(laws)
    return sum(laws) / len(laws)


@pytest.mark.parametrize("map_", [table(), network("masked").map], ids=["table", "network"])
def test_each_sampler_has_the_law_of_its_passes(map_):
    """Ancestral: all K^N ways to fall into passes alike; even, K = N: all orders; and not each other's."""
    even = mean(law_of_turns(map_, order) for order in itertools.permutations(range(N)))
    laws = {
        ("ancestral", steps): mean(law_of_turns(map_, turns) for turns in itertools.product(range(steps), repeat=N))
        for steps in (1, 2, 3)
    }
    laws[("even", N)] = even
    laws[("even", 1)] = laws[("ancestral", 1)]
    for (sampler, steps), law in laws.items():
        assert float(law.sum()) == pytest.approx(1, abs=1e-5)
        tokens = write_masked(map_, nothing(), Rng(11, torch.arange(ROWS)), steps=steps, sampler=sampler).tokens
        assert chance(tokens, law) > 1e-3, (sampler, steps)
    if isinstance(map_, TableLaw):  # exact conditionals one by one are the law itself; two at once are not
        torch.testing.assert_close(even, map_.p, rtol=0, atol=1e-6)
        tokens = write_masked(map_, nothing(), Rng(11, torch.arange(ROWS)), steps=N, sampler="ancestral").tokens
        wrong = counts(tokens)[[0, 5]].sum() > 0 or chance(tokens, map_.p) < 1e-10
        assert wrong


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_two_words_are_valid_as_often_as_they_are_not_drawn_at_once(steps):
    """Six hands: 10/36 of the pairs of independent words are hands, and both words fall into one pass with chance 1/K."""
    p = torch.zeros(len(WORDS) ** 2)
    p[TOKENS[:, 0] * len(WORDS) + TOKENS[:, 1]] = 1 / 6
    law, hands = TableLaw(p, len(WORDS), 2), {tuple(hand) for hand in TOKENS.tolist()}

    def valid(sampler):
        known = nothing(4000, 2)
        rows = write_masked(law, known, Rng(1, torch.arange(4000)), steps=steps, sampler=sampler).tokens.tolist()
        return sum(tuple(row) in hands for row in rows) / 4000

    expected = 1 - 26 / 36 / steps
    assert valid("ancestral") == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 4000) ** 0.5)
    assert valid("even") == (1 if steps > 1 else pytest.approx(10 / 36, abs=0.03))


def test_an_autoregressive_model_writes_its_exact_law_through_the_cache():
    map_ = network("causal").map
    law = (-exact_nll(map_, TokenStates(ALL)).nats).exp()
    out = write_causal(map_, nothing(), Rng(4, torch.arange(ROWS)))
    assert chance(out.tokens, law) > 1e-3 and out.nfe == N
    assert chance(out.tokens, law.flip(0)) < 1e-10
    exact = exact_nll(map_, TokenStates(out.tokens)).nats
    torch.testing.assert_close(-out.log_q.double().sum(1), exact, rtol=0, atol=1e-4)


def test_prompts_of_any_length_begin_the_rows_of_an_autoregressive_model():
    map_ = network("causal", length=6).map
    tokens = torch.randint(V, (200, 6), generator=torch.Generator().manual_seed(0))
    at = torch.arange(6) < torch.randint(2, 5, (200, 1), generator=torch.Generator().manual_seed(1))
    known = Known(tokens, at)
    calls = []
    hook = map_.network.register_forward_hook(lambda *_: calls.append(1))
    out = write_causal(map_, known, Rng(4, torch.arange(200)))
    hook.remove()
    assert (out.tokens[at] == tokens[at]).all() and out.nfe == len(calls) == 4
    nll = exact_nll(map_, TokenStates(out.tokens, Known(out.tokens, at), ~at)).nats
    torch.testing.assert_close(-out.log_q.double().sum(1), nll, rtol=0, atol=1e-4)
    part = write_causal(map_, known[torch.tensor([7, 9])], Rng(4, torch.tensor([7, 9])))
    assert torch.equal(part.tokens, out.tokens[[7, 9]])
    with pytest.raises(ValueError, match="cannot fill gaps"):
        write_causal(map_, Known(tokens, ~at), Rng(4, torch.arange(200)))


@pytest.mark.parametrize("sampler", ["ancestral", "even"])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_gaps_are_filled_in_so_many_calls_and_a_row_is_the_same_in_any_batch(sampler, steps):
    map_, heard, calls = network("masked", length=6).map, [], []
    tokens = torch.randint(V, (50, 6), generator=torch.Generator().manual_seed(0))
    at = torch.rand(50, 6, generator=torch.Generator().manual_seed(1)) < 0.4
    known = Known(tokens, at)
    hook = map_.network.register_forward_hook(lambda *_: calls.append(1))
    out = write_masked(map_, known, Rng(4, torch.arange(50)), steps=steps, sampler=sampler, watch=heard.append)
    hook.remove()
    assert (out.tokens[at] == tokens[at]).all() and out.tokens.max() < V and (out.log_q[~at] < 0).all()
    assert out.nfe == len(calls) == len(heard) == steps and (out.log_q[at] == 0).all()
    part = write_masked(map_, known[torch.tensor([7, 9])], Rng(4, torch.tensor([7, 9])), steps=steps, sampler=sampler)
    assert torch.equal(part.tokens, out.tokens[[7, 9]])


def test_the_warp_is_of_every_pass():
    map_ = network("masked", length=6).map
    greedy = [write_masked(map_, nothing(40, 6), Rng(s, torch.arange(40)), warp=Warp(0.0)).tokens for s in (1, 2)]
    assert torch.equal(*greedy) and (greedy[0] == greedy[0][0]).all()
    hot = write_masked(map_, nothing(400, 6), Rng(1, torch.arange(400)), warp=Warp(50.0), steps=2).tokens
    assert len(set(map(tuple, hot.tolist()))) > 250
    first = [
        write_causal(network("causal").map, nothing(9), Rng(s, torch.arange(9)), warp=Warp(0.0)).tokens for s in (1, 2)
    ]
    assert torch.equal(*first)


@pytest.mark.parametrize(
    "how, what", [({"steps": 0}, "1 at least"), ({"sampler": "euler"}, "known are ancestral, even")]
)
def test_wrong_asks_are_refused(how, what):
    with pytest.raises(ValueError, match=what):
        write_masked(network("masked").map, nothing(2), Rng(0, torch.arange(2)), **how)


@pytest.mark.parametrize("codebook", ["one-hot", "embedding", "bits"])
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_saved_models_load_bit_equal_by_auto_class_and_write_the_same(kind, codebook, tmp_path):
    model = network(kind, vocab=5, length=6, codebook=codebook, eos_token_id=4)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    texts = []
    for one in (model, again):
        torch.manual_seed(1)
        texts.append(one.generate(torch.tensor([[0, 3]]), do_sample=True, num_return_sequences=5))
    assert torch.equal(*texts) and (texts[0][:, :2] == torch.tensor([0, 3])).all()


def test_generate_of_an_autoregressive_model_is_a_token_a_pass():
    model = network("causal", length=6)
    out = model.generate(torch.tensor([[0, 1]]), do_sample=True, return_dict_in_generate=True)
    assert out.sequences.shape == (1, 6) and out.nfe == 4 and out.tokens_per_forward == 1
    short = model.generate(torch.tensor([[0, 1]]), max_new_tokens=1, return_dict_in_generate=True)
    assert short.sequences.shape == (1, 3) and short.nfe == 1 and short.tokens_per_forward == 1
    whole = model.generate(torch.tensor([[0, 1, 2, 0, 1, 2]]), return_dict_in_generate=True)
    assert whole.nfe == 0 and whole.sequences.tolist() == [[0, 1, 2, 0, 1, 2]]
    with pytest.raises(ValueError, match="a token a pass"):
        model.generate(num_steps=4)
    with pytest.raises(ValueError, match="known are causal"):
        model.generate(sampler="euler")
    with pytest.raises(ValueError, match="cannot fill gaps"):
        model.generate(torch.tensor([[0, 1]]), known=torch.tensor([[False, True]]))


def test_generate_of_masked_diffusion_fills_gaps_in_as_many_passes_as_asked(tmp_path):
    model = network("masked", length=6)
    window, known = torch.tensor([[1, 0, 0, 2, 0, 0]]), torch.tensor([[True, False, False, True, False, False]])
    how = {"do_sample": True, "return_dict_in_generate": True, "num_return_sequences": 50}
    out = model.generate(window, known=known, num_steps=2, sampler="even", **how)
    assert (out.sequences[:, [0, 3]] == torch.tensor([1, 2])).all() and out.nfe == 2 and out.tokens_per_forward == 2
    assert len(set(out.sequences[:, 1].tolist())) > 1
    model.generation_config = MaskedDiffusionGenerationConfig(num_steps=3, sampler="even")
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert (again.generation_config.num_steps, again.generation_config.sampler) == (3, "even")
    with pytest.raises(ValueError, match="known are ancestral, even"):
        model.generate(sampler="pushforward")
