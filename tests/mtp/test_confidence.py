"""Estimates of acceptance, and drafts that end by them: the trunk's law stays, and the head's where nothing is judged."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flowmap.warp import Warp
from mtp.decoding.confidence import FEATURES, Confidence, Estimate, Watch, features, file_name, load_confidence
from mtp.decoding.direct import decode, pad_left
from mtp.decoding.speculative import RULES, decode_verified
from mtp.heads import NAMES
from mtp.heads.base import Draft
from tests.mtp.test_speculative import PROMPTS, alone, build

TEXTS = torch.tensor(list(itertools.product(range(4), repeat=4)))


def draft(n=50, k=4, vocabulary=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = [2 * torch.randn(n, vocabulary, generator=g) for _ in range(k)]
    tokens = torch.randint(vocabulary, (n, k), generator=g)
    return Draft(tokens, torch.zeros(n, k), logits, Warp(0.5))


def confidence(n=3, bias=2.0, warp=None):
    """Estimates that turn on every feature, between 0.1 and 1; the bias brings their logits about 0."""
    weight = torch.tensor([-1.5, 1.0, 0.5, 0.3, 0.8]) * torch.linspace(1, 0.8, n)[:, None]
    line = torch.tensor([-3.0, -1.0, 0.0, 2.0]), torch.tensor([0.1, 0.4, 0.8, 1.0])
    before, after = (
        Estimate(weight[:, :f], torch.full((n,), more * bias), *line)
        for f, more in ((len(FEATURES) - 1, 1.0), (len(FEATURES), 1.3))
    )
    return Confidence(before, after, warp or Warp())


def test_features_are_those_of_the_law_before_the_warp():
    one = draft()
    found = features(one)
    for row, k in itertools.product(range(50), range(1, 4)):
        law = torch.softmax(one.logits[k][row].double(), 0).tolist()
        before = torch.softmax(one.logits[k - 1][row].double(), 0)[one.tokens[row, k - 1]]
        expected = [
            -sum(q * math.log(q) for q in law), math.log(max(law)), math.log(sum(q * q for q in law)),
            math.log(before), math.log(law[one.tokens[row, k]]),
        ]  # fmt: skip
        assert found[row, k - 1].tolist() == pytest.approx(expected, abs=1e-5)


def test_words_of_probability_zero_make_no_feature_infinite():
    one = draft()
    logits = [x.masked_fill(torch.arange(7) > 2, -torch.inf) for x in one.logits]
    assert features(Draft(one.tokens, one.log_q, logits, Warp())).isfinite().all()


def test_an_estimate_is_the_line_between_its_knots():
    one, x = confidence(bias=4.0).after, features(draft())
    logit = sum(x[..., i] * one.weight[:, i] for i in range(len(FEATURES))) + one.bias
    assert np.allclose(one(x), np.interp(logit, one.knots, one.values), atol=1e-6)
    assert torch.equal(one(x)[:, :2], one(x[:, :2]))  # a shorter block is its beginning


@pytest.mark.parametrize("drawn", [False, True])
def test_a_draft_ends_before_the_first_position_below_the_threshold(drawn):
    one, made = confidence(bias=4.0), draft(400)
    before, after = (part.tolist() for part in one.estimates(made))
    found = one.submitted(made, 0.4, drawn)
    lengths = []
    for row in range(400):
        length, kept = 0, 1.0
        while length < 3 and kept * (after if drawn else before)[row][length] >= 0.4:
            kept *= after[row][length]
            length += 1
        assert found[row].tolist() == [k < length for k in range(3)]
        lengths.append(length)
    assert set(lengths) == {0, 1, 2, 3}


def test_where_it_ends_does_not_turn_on_the_token_there():
    one, made = confidence(bias=4.0), draft(400)
    for k in range(1, 4):
        other = made.tokens.clone()
        other[:, k:] = (other[:, k:] + 3) % 7
        changed = one.submitted(Draft(other, made.log_q, made.logits, made.warp), 0.4)
        assert torch.equal(changed[:, :k], one.submitted(made, 0.4)[:, :k])


def test_an_estimate_is_kept_by_its_warp(tmp_path):
    one = confidence(warp=Warp(0.7, 0.9))
    one.save(tmp_path)
    again = load_confidence(tmp_path, Warp(0.7, 0.9))
    assert torch.equal(again.submitted(draft(), 0.3), one.submitted(draft(), 0.3)) and again.warp == one.warp
    assert torch.equal(again.after(features(draft())), one.after(features(draft())))
    with pytest.raises(ValueError, match=r"--calibrate --temperatures 0\.7 --top-p 1"):
        load_confidence(tmp_path, Warp(0.7))
    with pytest.raises(ValueError, match="at most 4"):
        one.estimates(draft(k=5))


@pytest.fixture(scope="module")
def tiny(four_words):
    return build(four_words, "recurrent-chain")


class ByTheTokenDrawn(Confidence):
    """The wrong variant: whether x_k is judged turns on x_k, and p is drawn from where it is not."""

    def within(self, x, threshold, drawn=False):
        return super().within(x, threshold, drawn=True)

    def to(self, device):
        return self


def pvalue(tiny, expected, **options):
    """χ² over all texts of four tokens after [1, 2]; expected: (256,) probabilities."""
    n = 20_000
    out = decode_verified(tiny, *pad_left([[1, 2]] * n, 0), max_new_tokens=4, seed=3, **options)
    assert len(set(out.read[out.read > 0].tolist())) > 1  # drafts of several lengths, side by side
    observed = torch.bincount((out.tokens * torch.tensor([64, 16, 4, 1])).sum(1), minlength=256).double()
    expected, big = expected * n, expected * n > 5
    rest = torch.tensor([n - observed[big].sum(), n - expected[big].sum()]).clamp_min(1e-9)
    return stats.chisquare(torch.cat([observed[big], rest[:1]]), torch.cat([expected[big], rest[1:]])).pvalue


@torch.no_grad()
def trunk_law(tiny, warp):
    logits = tiny.trunk(torch.cat([torch.tensor([[1, 2]]).expand(256, -1), TEXTS], 1)).logits[:, 1:-1]
    return warp.log_prob(logits).gather(-1, TEXTS[..., None])[..., 0].double().sum(1).exp()


@pytest.mark.parametrize("verify", RULES)
@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, 0.9)])
def test_shorter_drafts_leave_the_trunks_law(tiny, verify, warp):
    options = {"verify": verify, "warp": warp, "threshold": 0.45, "confidence": confidence(2)}
    assert pvalue(tiny, trunk_law(tiny, warp), **options) > 1e-3


@pytest.mark.parametrize("verify", RULES)
def test_ending_by_the_token_drawn_is_biased(tiny, verify):
    one = confidence(2)
    wrong = ByTheTokenDrawn(one.before, one.after, one.warp)
    assert pvalue(tiny, trunk_law(tiny, Warp()), verify=verify, threshold=0.45, confidence=wrong) < 1e-10


@torch.no_grad()
def adaptive_law(tiny, one, threshold, drawn):
    """Of every text of four: whole blocks enumerated with what the estimates let stand of each."""
    blocks = torch.tensor(list(itertools.product(range(4), repeat=3)))

    def follow(text):
        """{what a pass adds to text: its probability}, cut to four tokens in all."""
        context = tiny.context(tiny.states(torch.tensor([[1, 2, *text]]))[0][:, -1].expand(64, -1))
        first = context.first_logits().log_softmax(-1)
        rest = tiny.head.law(context, blocks)
        laws = torch.cat([first[:, None], rest], 1)
        log_q = laws.gather(-1, blocks[..., None])[..., 0].double()
        stands = 1 + one.submitted(Draft(blocks, log_q, laws.unbind(1), Warp()), threshold, drawn).sum(1)
        found = {}
        for block, share, kept in zip(blocks.tolist(), log_q.sum(1).exp().tolist(), stands.tolist(), strict=True):
            said = (*text, *block[:kept])[:4]
            found[said] = found.get(said, 0.0) + share
        return found

    open_texts, ended = {(): 1.0}, {}
    while open_texts:
        text, chance = open_texts.popitem()
        for said, share in follow(text).items():
            where = ended if len(said) == 4 else open_texts
            where[said] = where.get(said, 0.0) + chance * share
    return torch.tensor([ended[tuple(text)] for text in TEXTS.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("drawn", [False, True])
def test_unjudged_drafts_follow_the_law_that_their_ends_leave(tiny, drawn):
    one = confidence(2)
    options = {"verify": "none", "threshold": 0.45, "confidence": one, "drawn": drawn}
    assert pvalue(tiny, adaptive_law(tiny, one, 0.45, drawn), **options) > 1e-3
    assert pvalue(tiny, adaptive_law(tiny, one, 0.45, not drawn), **options) < 1e-10


def test_unjudged_whole_drafts_are_direct_decoding(trunk):
    model, (ids, mask) = build(trunk), pad_left(PROMPTS, 0)
    greedy = decode_verified(model, ids, mask, max_new_tokens=10, warp=Warp(0.0), verify="none")
    assert torch.equal(greedy.tokens, decode(model, ids, mask, max_new_tokens=10, warp=Warp(0.0)).tokens)
    assert greedy.accepted_length == 3 and greedy.read_per_token == 1


@pytest.mark.parametrize("verify", ["token", "block", "gumbel", "none"])
def test_drafts_of_nothing_are_the_trunk_alone(trunk, verify):
    model, (ids, mask) = build(trunk), pad_left(PROMPTS, 0)
    out = decode_verified(
        model, ids, mask, max_new_tokens=8, warp=Warp(0.0), verify=verify, confidence=confidence(2), threshold=1.1
    )
    assert torch.equal(out.tokens, decode(model, ids, mask, max_new_tokens=8, warp=Warp(0.0), block_size=1).tokens)
    assert out.accepted_length == out.read_per_token == 1 and out.trunk_passes == 9


@pytest.mark.parametrize("verify", ["gumbel", "inverse-cdf"])
def test_shared_noise_writes_the_same_words_wherever_drafts_end(trunk, verify):
    model = build(trunk)
    out = decode_verified(
        model,
        *pad_left(PROMPTS, 0),
        max_new_tokens=11,
        seed=9,
        verify=verify,
        confidence=confidence(2, 6.0),
        threshold=0.7,
    )
    with torch.inference_mode():
        for row, prompt in enumerate(PROMPTS):
            assert out.tokens[row].tolist() == alone(model, prompt, row, 11, Warp(), 9, verify)
    assert len(set(out.read[out.accepted > 0].tolist())) > 1 and (out.read >= out.accepted).all()


@pytest.mark.parametrize("verify", ["token", "block", "none"])
def test_a_row_is_the_same_text_in_any_batch(trunk, verify):
    """A pass over one row alone is as narrow as its own draft."""
    model, (ids, mask) = build(trunk, block_size=4), pad_left([[3, 7]] * 6, 0)
    options = {"max_new_tokens": 9, "seed": 4, "verify": verify, "confidence": confidence(3, 6.0), "threshold": 0.5}
    whole = decode_verified(model, ids, mask, **options)
    for row in range(6):
        one = decode_verified(model, ids[:1], mask[:1], rows=torch.tensor([row]), **options)
        assert torch.equal(whole.tokens[row], one.tokens[0])
        passes = one.accepted.shape[1]
        assert torch.equal(whole.read[row, :passes], one.read[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_head_that_stops_with_the_draft_writes_the_same_text(trunk, name, monkeypatch):
    """Heads that draw token by token draw one token beyond the longest row's end and no more."""
    model, (ids, mask) = build(trunk, name, block_size=5), pad_left(PROMPTS, 0)
    options = {"max_new_tokens": 9, "seed": 4, "verify": "token", "confidence": confidence(4, 6.0), "threshold": 0.6}
    drafted = []

    def watch(draft, log_p, count):
        drafted.append((draft.tokens.shape[1], log_p.shape[1]))

    out = decode_verified(model, ids, mask, watch=watch, **options)
    if model.head.stops_early:
        assert all(length == min(5, read + 1) for length, read in drafted)
    else:
        assert all(length == 5 for length, _ in drafted)
    monkeypatch.setattr(type(model.head), "stops_early", False)
    assert torch.equal(out.tokens, decode_verified(model, ids, mask, **options).tokens)


def test_what_cannot_be_is_refused(trunk):
    model = build(trunk)
    with pytest.raises(ValueError, match="jacobi has none"):
        decode_verified(model, torch.tensor([[1]]), max_new_tokens=2, verify="jacobi", confidence=confidence(2))
    with pytest.raises(ValueError, match="biased with verify token"):
        decode_verified(model, torch.tensor([[1]]), max_new_tokens=2, confidence=confidence(2), drawn=True)


@pytest.mark.parametrize("kept", ["", "{}", "[1]", '{"features": ["entropy"], "after": {}}'])
def test_a_damaged_estimate_is_one_line(tmp_path, kept):
    (tmp_path / file_name(Warp())).write_text(kept)
    with pytest.raises(ValueError, match=r"^[^\n]*fit it again[^\n]*$"):
        load_confidence(tmp_path, Warp())


@pytest.mark.parametrize("drawn", [False, True])
def test_a_draft_watched_as_it_grows_ends_where_the_whole_one_does(drawn):
    one, whole, asked = confidence(bias=4.0), draft(400), []

    class Law(Tensor):
        """Counts how often it is made one of probabilities."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            asked.extend([1] * (func is Tensor.log_softmax))
            return super().__torch_function__(func, types, args, kwargs)

    logits, watch = [x.as_subclass(Law) for x in whole.logits], Watch(one, 0.4, drawn)
    for k in range(2, 5):
        grown = Draft(whole.tokens[:, :k], whole.log_q[:, :k], logits[:k], whole.warp)
        expected = one.submitted(Draft(grown.tokens, grown.log_q, whole.logits[:k], whole.warp), 0.4, drawn)
        assert torch.equal(watch.submitted(grown).as_subclass(Tensor), expected)
        assert watch.ended(grown) == (not expected[:, -1].any())
    assert len(asked) == 2 * 3  # each position's own, and the one before it
