"""lm-eval's requests to models of windows: closed forms, double loops and enumeration are the oracles."""

import itertools
import math

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'leaplm[eval]'")

from eval.certificate import certify
from eval.harness.flow import LeapFlow
from eval.harness.records import harness_records
from eval.harness.scoring import Span
from eval.harness.windows import Windows
from flowlm import FlowLM, FlowLMConfig
from flowlm.discrete.likelihood import nelbo_in_full
from flowlm.discrete.model import AutoregressiveConfig, AutoregressiveLM, MaskedDiffusionConfig, MaskedDiffusionLM
from flowmap.warp import Warp
from tests.eval.harness_models import loud, request, save
from tests.training.harness import SMALL
from training.config import load_preset, override
from training.data.tokenizer import word_tokenizer
from training.loop import train
from training.tasks import build

WORDS = "a b c d e"
BACKBONE = {"width": 16, "depth": 1, "heads": 2}
BLOCKS = {"block_lengths": [1, 2, 4], "noise": "block"}
KINDS = {
    "flow": (FlowLM, FlowLMConfig, {}),
    "two-pass": (FlowLM, FlowLMConfig, {"self_conditioning": 0.5}),
    "causal": (FlowLM, FlowLMConfig, {"causal": True, "noise": "token"}),
    "k-step": (FlowLM, FlowLMConfig, {"grids": {"0": [0.0], "2": [0.0, 1.0, 4.0]}}),
    "blocks": (FlowLM, FlowLMConfig, BLOCKS),
    "autoregressive": (AutoregressiveLM, AutoregressiveConfig, {}),
    "masked": (MaskedDiffusionLM, MaskedDiffusionConfig, {}),
    "masked-in-time": (MaskedDiffusionLM, MaskedDiffusionConfig, {"time_conditioning": True}),
    "masked-blocks": (MaskedDiffusionLM, MaskedDiffusionConfig, {"block_lengths": [1, 2, 4]}),
}  # fmt: skip
HOW = {"blocks": {"block": 2}, "masked-blocks": {"block": 2}}


def model(folder, kind, words=WORDS, length=8, std=0.3, prepare=None, **more):
    """std: of its weights; 0: as built, certain of nothing. prepare: what is done to it before it is saved."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer([words])
    model_class, config_class, fields = KINDS[kind]
    fields = {"codebook": "embedding", "state_size": 4, **fields, **more}
    config = config_class(
        vocab_size=len(tokenizer), length=length, bos_token_id=0, eos_token_id=0, backbone=BACKBONE, **fields
    )
    made = model_class(config)
    if prepare:
        prepare(made)
    return save(folder, loud(made, std) if std else made, tokenizer)


def clocked(made):
    made.generation_config.grid = "clock"


def asked(*pairs):
    return [request(*pair, at=i) for i, pair in enumerate(pairs)]


PAIRS = [
    ("a b", " c d e"), ("a", " b"), ("", "a b c"), ("a b", " c d a"), ("e d c b a e d c b a", " b c"), ("a b c d", " e"),
    ("", "a b c d e a b c"),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_has_the_same_bits_in_any_batch_and_order_and_on_any_process(tmp_path, kind):
    folder = model(tmp_path, kind)
    one, many, other = (
        LeapFlow(folder, batch_size=size, seed=seed, calls=8, **HOW.get(kind, {}))
        for size, seed in ((1, 1), (5, 1), (5, 2))
    )
    wanted = one.loglikelihood(asked(*PAIRS), True)
    order = [4, 2, 6, 0, 5, 1, 3]
    shuffled = many.loglikelihood(asked(*(PAIRS[i] for i in order)), True)
    assert shuffled == [wanted[i] for i in order]
    assert many.loglikelihood(asked(*PAIRS)[1::2], True) == wanted[1::2]
    same = [v for v, _ in other.loglikelihood(asked(*PAIRS), True)] == [v for v, _ in wanted]
    assert same == (kind == "autoregressive") and all(value < 0 for value, _ in wanted)


def total(folder, kind, seeds, length=2, calls=48, prepare=None):
    """Σ exp(loglikelihood) over all continuations of a context, through text, of each seed."""

    def score(store):
        rows = store.tokens.reshape(-1, length + 1)[:, 1:]
        found = []
        for seed in seeds:
            lm = LeapFlow(folder, seed=seed, calls=calls, batch_size=16, **HOW.get(kind, {}))
            if prepare:
                prepare(lm)
            vocab = lm.tokenizer.convert_ids_to_tokens(range(len(lm.tokenizer)))
            spans = [lm.span(lm.tok_encode("a b"), row.tolist()) for row in rows]
            texts = asked(*(("a b", " " + " ".join(vocab[t] for t in row)) for row in rows))
            values = [value for value, _ in lm.loglikelihood(texts, True)]
            assert values == [value for value, _ in lm.score(spans, False)]
            found.append([-value for value in values])
        return np.array(found)

    return certify(score, 4, length)


def softened(lm):
    """Weights at which no bound is far from what it bounds."""
    with torch.no_grad():
        for parameter in lm.run.model.parameters():
            parameter.mul_(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_universal_certificate_holds_through_the_harness(tmp_path, kind):
    folder = model(tmp_path, kind, words="a b", length=4)
    seeds = [0] if kind == "autoregressive" else range(3)
    found = total(folder, kind, seeds, prepare=softened)
    assert found.holds, found
    assert kind != "autoregressive" or found.exact


@pytest.mark.parametrize("kind", ["flow", "causal", "k-step", "blocks", "masked", "masked-blocks", "autoregressive"])
def test_a_network_that_is_fed_the_answer_breaks_the_certificate(tmp_path, kind):
    def cheat(lm):
        lay = lm.windows.lay

        def telling(span):
            laid = lay(span)
            sure = 9.0 * torch.nn.functional.one_hot(laid.states.tokens.clamp_max(3), 4).float()
            ask = lambda x, *_, **__: sure[:, -x.shape[1] :].expand(len(x), -1, -1)  # noqa: E731
            lm.run.model.map.answer = lm.run.model.map.denoise = lm.run.model.map.ahead = ask
            return laid

        lm.windows = type("Telling", (), {"lay": staticmethod(telling), "begins": False})()

    assert not total(model(tmp_path, kind, words="a b", length=4), kind, [0], prepare=cheat).holds


def test_where_a_text_stands_in_its_windows():
    span = Span((5, 6, 7), 2)

    def laid(unit, begins=False, block=None, blank=None):
        found = Windows(8, unit, 0, begins, block, blank).lay(span)
        known = found.states.context.known
        assert found.states.tokens[0, found.places].tolist() == [7] and torch.equal(known.at, found.context.at)
        scored = found.states.scored
        assert not (scored & known.at).any() and int(scored[0, found.places].sum()) == 1
        return found.states.tokens[0].tolist(), known.at[0].int().tolist(), int(scored.sum())

    assert laid(1) == ([5, 6, 7], [1, 1, 0], 1)
    assert laid(8) == ([0, 0, 0, 0, 0, 5, 6, 7], [1] * 7 + [0], 1)  # a text ends a block
    assert laid(8, begins=True) == ([5, 6, 7, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], 6)  # it begins a window
    assert laid(2, block=2) == ([0, 5, 6, 7], [1, 1, 1, 0], 1)
    assert laid(2, begins=True, block=2) == ([5, 6, 7, 0], [1, 1, 0, 0], 2)
    assert laid(1, blank=9) == ([5, 6, 7, 9, 9, 9, 9, 9], [1, 1, 0, 0, 0, 0, 0, 0], 1)


def test_certain_of_nothing_every_token_costs_log_v(tmp_path):
    """Read at once from noise, by a fresh network: exactly that, over whole windows of a long text too."""
    lm = LeapFlow(model(tmp_path, "k-step", std=0), steps=1)
    assert [v for v, _ in lm.loglikelihood(asked(*PAIRS), True)] == pytest.approx(
        [-math.log(7) * len(x.split()) for _, x in PAIRS], abs=1e-5
    )
    text = request(" ".join(WORDS.split() * 5), kind="loglikelihood_rolling")
    assert lm.loglikelihood_rolling([text], True)[0] == pytest.approx(-25 * math.log(7), abs=1e-4)
    lm.windows = Windows(8, 8, 0, begins=True)  # with end tokens to the window's end
    assert lm.loglikelihood(asked(("a b", " c")), True)[0][0] == pytest.approx(-6 * math.log(7), abs=1e-5)


def test_the_autoregressive_model_is_scored_as_a_double_loop_does(tmp_path):
    lm = LeapFlow(model(tmp_path, "autoregressive"))
    context, continuation = lm.tok_encode("a b c"), lm.tok_encode("d e a")

    def cost(tokens, start):
        window = torch.tensor([tokens + [0] * (8 - len(tokens))])
        log_p = lm.run.model(window).log_softmax(-1)[0]
        return sum(float(log_p[place, tokens[place]]) for place in range(start, len(tokens)))

    with torch.no_grad():
        (found, _), *_ = lm.loglikelihood(asked(("a b c", " d e a")), True)
        assert found == pytest.approx(cost(context + continuation, 3), abs=1e-5)
        long = lm.tok_encode(
            " ".join(WORDS.split() * 4)
        )  # 20 tokens: two windows of 8, then 4 behind 4 that were scored
        rolled = lm.loglikelihood_rolling([request(lm.tokenizer.decode(long), kind="loglikelihood_rolling")], True)[0]
        assert rolled == pytest.approx(cost(long[:8], 0) + cost(long[8:16], 0) + cost(long[12:], 4), abs=1e-4)


def test_masked_diffusion_is_scored_by_its_bound_with_blanks_behind(tmp_path):
    """The mean over many draws is the sum over all sets of blank places of the continuation."""
    lm = LeapFlow(model(tmp_path, "masked"), calls=3000)
    ((found, _),) = lm.loglikelihood(asked(("a b", " c d e")), True)
    tokens = torch.tensor([lm.tok_encode("a b c d e")])
    logits = lm.run.model.map.denoise
    wanted = 0.0
    with torch.no_grad():
        for k in range(1, 4):
            for places in itertools.combinations((2, 3, 4), k):
                x = torch.full((1, 8), 7)
                x[:, :5] = tokens
                x[0, list(places)] = 7
                log_p = logits(x, torch.zeros(1)).log_softmax(-1)[0]
                wanted += sum(float(log_p[p, tokens[0, p]]) for p in places) / (k * math.comb(3, k))
    assert found == pytest.approx(wanted, abs=0.1)
    laid = lm.windows.lay(lm.span(lm.tok_encode("a b"), lm.tok_encode("c d e")))
    with pytest.raises(AssertionError):  # a window whose places behind must be filled costs more
        assert -float(nelbo_in_full(lm.run.model.map, laid.states).nats) == pytest.approx(wanted - 1, abs=0.1)


@pytest.mark.parametrize("kind", ["flow", "k-step", "blocks", "masked", "autoregressive"])
def test_greedy_is_what_the_model_writes_at_temperature_0(tmp_path, kind):
    lm = LeapFlow(model(tmp_path, kind), batch_size=9, calls=8, **HOW.get(kind, {}))
    context = lm.tok_encode("a b")
    spans = [lm.span(context, tail) for tail in itertools.product(range(7), repeat=2)]
    hits = [span.tokens[2:] for span, (_, hit) in zip(spans, lm.score(spans, True), strict=True) if hit]
    assert len(hits) == 1
    if kind == "autoregressive":
        (wanted,) = lm.write([context], _writing(2, 0.0), [0])
        assert list(hits[0]) == wanted
    assert not any(hit for _, hit in lm.score(spans, False))


def _writing(new, temperature=1.0, until=()):
    from eval.harness.base import Writing

    return Writing(new, Warp(temperature), until)


def drawn(lm, contexts, every=1, **how):
    how = {"until": [], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0, **how}
    wanted = [request(c, how, kind="generate_until", at=i) for i, c in enumerate(contexts)]
    return lm.generate_until(wanted[::every], True)


@pytest.mark.parametrize("kind", ["flow", "blocks", "masked", "masked-blocks", "autoregressive"])
def test_writing_follows_the_request_and_the_seed_and_goes_on_behind_a_window(tmp_path, kind):
    folder = model(tmp_path, kind, std=0.1)
    one, many, other = (
        LeapFlow(folder, steps=None if kind == "autoregressive" else 2, batch_size=n, seed=s, **HOW.get(kind, {}))
        for n, s in ((1, 1), (5, 1), (5, 2))
    )
    contexts = ["a b", "c", "a b c d e a b c d e", "c"] * 8
    for new in (3, 20):  # 20: more than a window holds
        texts = drawn(one, contexts, max_gen_toks=new)
        assert texts == drawn(many, contexts, max_gen_toks=new) and texts != drawn(other, contexts, max_gen_toks=new)
        assert drawn(many, contexts, every=2, max_gen_toks=new) == texts[::2]
        assert len(set(texts)) > 3 and max(len(text.split()) for text in texts) <= new
    assert max(len(text.split()) for text in texts) > 8
    stopped = drawn(many, contexts, max_gen_toks=20, until=["a"])
    assert stopped == [text.split("a")[0] for text in texts] and any("a" in text for text in texts)
    cold = drawn(many, ["c"] * 6, max_gen_toks=3, temperature=0.0, do_sample=False)
    assert kind != "autoregressive" or len(set(cold)) == 1
    begun = LeapFlow(folder, **HOW.get(kind, {}))
    begun.windows = Windows(8, 8, 0, begins=True)
    assert all(len(text.split()) <= 7 for text in drawn(begun, ["c"] * 4, max_gen_toks=20))  # one window


def test_what_cannot_be_written_is_refused_before_the_first_request(tmp_path, monkeypatch):
    lm = LeapFlow(model(tmp_path, "flow"))
    monkeypatch.setattr(lm, "write", lambda *_: pytest.fail("written"))
    fine = request("a", {"max_gen_toks": 2}, kind="generate_until")
    wrong = request("a", {"max_gen_toks": 2, "repetition_penalty": 1.3}, kind="generate_until", at=1)
    with pytest.raises(ValueError, match=r"repetition_penalty=1\.3"):
        lm.generate_until([fine, wrong], True)


def test_long_contexts_are_cut_from_the_left_and_long_continuations_refused(tmp_path):
    lm = LeapFlow(model(tmp_path, "flow"), calls=8)
    whole, cut = lm.loglikelihood(asked(("e d c b a e d c b a", " b c"), ("a e d c b a", " b c")), True)
    assert whole == cut
    with pytest.raises(ValueError, match="continuation of 9 tokens is longer than the 8"):
        lm.loglikelihood(asked(("a", " b" * 9)), True)


def test_what_has_no_likelihood_says_so_in_one_line(tmp_path):
    folder = model(tmp_path, "flow", rounding={"depth": 1})
    with pytest.raises(ValueError, match="the decoder contextual, whose law has no bound here") as caught:
        LeapFlow(folder).loglikelihood(asked(("a", " b")), True)
    assert "\n" not in str(caught.value)
    assert LeapFlow(folder, decoder="softmax", calls=8).loglikelihood(asked(("a", " b")), True)[0][0] < 0
    encoder = MaskedDiffusionLM(
        MaskedDiffusionConfig(vocab_size=7, length=8, codebook="embedding", state_size=4, backbone=BACKBONE)
    ).config.to_dict()
    lm = LeapFlow(model(tmp_path / "codes", "flow", codebook="contextual", encoder=encoder, state_size=16))
    with pytest.raises(ValueError, match="no bound over a table of codes") as caught:
        lm.loglikelihood(asked(("a", " b")), True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("flow", {"estimator": "magic"}, "estimator 'magic'"),
        ("flow", {"estimator": "exact"}, "--estimator exact"),
        ("autoregressive", {"estimator": "vlb"}, "has exact"),
        ("flow", {"steps": 0}, "steps 0"),
        ("flow", {"calls": 2}, "calls 2"),
        ("flow", {"block": 2}, "trained on whole windows"),
        ("blocks", {"block": 3}, "blocks of 1, 2, 4"),
        ("flow", {"decoder": "contextual"}, "decoder contextual: this model was trained without it"),
        ("flow", {"decoder": "best"}, "unknown decoder 'best'"),
        ("masked", {"decoder": "nearest"}, "draws from its softmax"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, kind, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        LeapFlow(model(tmp_path, kind), **options)
    assert "\n" not in str(caught.value)


def test_a_bound_that_is_fitted_needs_text_and_a_trained_number_of_steps(tmp_path):
    with pytest.raises(ValueError, match="fitted on that: name a text"):
        LeapFlow(model(tmp_path / "a", "flow"), estimator="k-step").loglikelihood(asked(("a", " b")), True)
    lm = LeapFlow(model(tmp_path / "b", "k-step"))
    assert (lm.steps, lm.sampling.sampler, lm.estimator) == (3, "ancestral", "k-step")


def test_records_say_what_was_scored_and_whether_it_is_a_bound(tmp_path):
    for kind, wanted in (("flow", "bound"), ("blocks", "bound"), ("masked", "bound"), ("autoregressive", "exact")):
        lm = LeapFlow(model(tmp_path / kind, kind), calls=9, seed=3, **HOW.get(kind, {}))
        (made,) = harness_records(
            {"config": {**lm.get_model_info(), "batch_size": 2}, "results": {"t": {"acc,none": 0.5}}}
        )
        assert made["kind"] == wanted and made["sample_seed"] == 3
        assert made["contract"]["estimator"] == lm.estimator and made["contract"]["calls"] == 9


def test_nearest_codes_are_written_without_a_contextual_decoder_and_said(tmp_path):
    folder = model(tmp_path, "flow", std=0.1)
    near, drawn_from = (LeapFlow(folder, steps=2, batch_size=8, decoder=name) for name in ("nearest", None))
    assert [lm.get_model_info()["leaplm"]["decoder"] for lm in (near, drawn_from)] == ["window, nearest", "window"]
    texts = [drawn(lm, ["c"] * 8, temperature=1.0) for lm in (near, drawn_from)]
    assert texts[0] != texts[1] and texts[0] == drawn(near, ["c"] * 8, temperature=0.5)  # nothing is drawn
    with pytest.raises(ValueError, match="the decoder nearest, whose law has no bound here"):
        near.loglikelihood(asked(("a", " b")), True)


def test_jumps_end_where_training_taught_them_to(tmp_path):
    """With and without an option of one's own beside; what is written at other times is another text."""
    plain = LeapFlow(model(tmp_path / "even", "flow", clock=[0.0, 0.02, 0.05, 1.0]), steps=3)
    taught = LeapFlow(model(tmp_path / "clock", "flow", clock=[0.0, 0.02, 0.05, 1.0], prepare=clocked), steps=3)
    beside = LeapFlow(str(tmp_path / "clock"), steps=3, decoder="softmax")
    assert plain.sampling.options.get("grid") is None
    assert taught.sampling.options["grid"] == beside.sampling.options["grid"] == "clock"
    even, clock, again = (drawn(lm, ["a b"] * 20) for lm in (plain, taught, beside))
    assert clock == again != even


def test_a_function_of_ones_own_scores(tmp_path):
    lm = LeapFlow(
        model(tmp_path, "flow"), estimator=lambda run, spans, seed: [-float(len(s.tokens) - s.start) for s in spans]
    )
    assert lm.loglikelihood(asked(("a", " b c"), ("a", " b")), True) == [(-2.0, False), (-1.0, False)]


def test_a_run_is_scored_by_a_clock_fitted_on_what_it_was_trained_on_with_its_texts_at_the_windows_beginning(tmp_path):
    small = {"flow__width": 16, "flow__depth": 1, "flow__heads": 2, **SMALL, "training__batch_size": 32}
    train(override(load_preset("flow-poker"), **small, training__steps=20), tmp_path, build, quiet=True)
    lm, again = (LeapFlow(str(tmp_path), batch_size=size, add_bos_token=True, fit=64) for size in (1, 4))
    texts = asked(("the hand is", " high card"), ("the hand is", " full house"), ("the hand is", " house"))
    found = lm.loglikelihood(texts, True)
    assert lm.windows.begins and lm.estimators.clock.chance.std() > 0  # not alike in every cell, as without text
    assert again.loglikelihood(texts, True) == found and all(value < 0 for value, _ in found)
    assert lm.estimators.clock.end == again.estimators.clock.end


def test_continuations_that_begin_alike_may_have_their_noise_in_common(tmp_path):
    own, common = (
        LeapFlow(model(tmp_path / name, "flow"), calls=8, **more) for name, more in (("a", {}), ("b", {"common": 2}))
    )
    spans = [common.span([1], tokens) for tokens in ([2, 3, 4], [2, 3, 2], [3, 3, 4])]
    assert [own._address(span) for span in spans] == [span.address for span in spans]
    pair, same, other = map(common._address, spans)
    assert pair == same != other and common._address(common.span([2], [2, 3, 4])) != pair
