"""lm-eval's requests to our models: the harness's own HF model, double loops and enumeration are the oracles."""

import itertools

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'leaplm[eval]'")

from eval.certificate import certify
from eval.harness.base import Writing, batches
from eval.harness.mtp import LeapMTP
from eval.likelihood import DRAWS
from flowmap.rng import Rng
from flowmap.warp import Warp
from mtp import MTPForCausalLM
from tests.eval.harness_models import TEXTS, bpe_model, loud, request, save, tiny_trunk, word_model
from training.data.tokenizer import train_bpe

LONG = " ".join(TEXTS) * 2
PAIRS = [
    ("The quick", " brown fox"), ("The quick ", " brown fox"), ("a  ", "b c"), ("", " the lazy dog"), ("", TEXTS[0]),
    (TEXTS[1], " mind"), (TEXTS[1], " dog"), (TEXTS[1], " cat is"), (LONG, " and more"), (LONG, " question"),
    ("x", "<|endoftext|>"), ("", "<|endoftext|> a b"), ("<|endoftext|>To be", " or not"),
]  # fmt: skip
SIZES = (1, 3, 64, "auto")
HEADS = ("recurrent-chain", "block-chain", "tree", "sequential")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return bpe_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def theirs(plain):
    from lm_eval.models.huggingface import HFLM

    return HFLM(plain, device="cpu", batch_size=2, dtype="float32")


def pairs():
    return [request(*pair, at=i) for i, pair in enumerate(PAIRS)]


def texts():
    return [request(text, kind="loglikelihood_rolling", at=i) for i, text in enumerate([*TEXTS, LONG, ""])]


@pytest.mark.parametrize("size", SIZES)
def test_a_trunk_scores_as_the_harness_own_model_does_at_any_batch_size(plain, theirs, size):
    ours = LeapMTP(plain, batch_size=size)
    wanted, got = theirs.loglikelihood(pairs(), disable_tqdm=True), ours.loglikelihood(pairs(), disable_tqdm=True)
    assert [value for value, _ in got] == pytest.approx([value for value, _ in wanted], abs=1e-4)
    context = ours.tok_encode("The quick")
    (greedy,) = ours.write([context], Writing(3, Warp(0.0), ()), [0])
    tokens = [(None, context, list(some)) for some in itertools.product(*zip(greedy, (5, 6, 7), strict=True))]
    wanted, got = wanted + theirs._loglikelihood_tokens(tokens, True), got + ours._loglikelihood_tokens(tokens, True)
    assert [hit for _, hit in got] == [hit for _, hit in wanted] and sum(hit for _, hit in got[len(PAIRS) :]) == 1
    assert ours.loglikelihood_rolling(texts(), True) == pytest.approx(
        theirs.loglikelihood_rolling(texts(), True), abs=1e-4
    )


def test_the_trunk_of_a_model_with_a_head_scores_as_the_trunk(plain, theirs, tmp_path):
    joint = LeapMTP(bpe_model(tmp_path, "recurrent-chain", rank=8), batch_size=4)
    own = LeapMTP(plain, batch_size=4)
    own.model, own.run = joint.model, joint.run
    theirs_on_trunk = type(theirs)(joint.model.trunk, tokenizer=joint.tokenizer, batch_size=1)
    wanted = [value for value, _ in theirs_on_trunk.loglikelihood(pairs(), disable_tqdm=True)]
    assert [value for value, _ in joint.loglikelihood(pairs(), True)] == pytest.approx(wanted, abs=1e-4)


ASKED = [
    ("The quick", {"until": ["o"], "max_gen_toks": 20}),
    ("To be", {"until": ["\n", " the"], "max_gen_toks": 20, "do_sample": False}),
    (LONG, {"until": ["e"], "max_gen_toks": 20, "temperature": 0.0}),
    (TEXTS[2], {"until": ["e"], "max_gen_toks": 20, "temperature": 0.0}),
    ("a b", {"until": [], "max_gen_toks": 33}),
]


@pytest.mark.parametrize("size", [1, 4])
def test_greedy_text_is_the_harness_own_up_to_the_same_stop(plain, size):
    from lm_eval.models.huggingface import HFLM

    asked = [request(*pair, kind="generate_until", at=i) for i, pair in enumerate(ASKED)]
    wanted = HFLM(plain, device="cpu", batch_size=1, dtype="float32").generate_until(asked, True)
    assert LeapMTP(plain, batch_size=size).generate_until(asked, True) == wanted
    assert all(stop not in text for (_, how), text in zip(ASKED, wanted, strict=True) for stop in how["until"])


@pytest.mark.parametrize("head", HEADS)
def test_blocks_are_scored_from_the_contexts_end_as_a_double_loop_does(tmp_path, head):
    """Each block from a pass over the text before it and nothing else, so that no later token can have been seen."""
    lm = LeapMTP(bpe_model(tmp_path, head, 3), decoder="block", batch_size=5)
    wanted = []
    for context, continuation in PAIRS[:8]:
        if context:
            before, after = lm._encode_pair(context, continuation)
        else:
            before, after = [lm.prefix_token_id], lm.tok_encode(continuation, add_special_tokens=False)
        total = 0.0
        for low in range(0, len(after), 3):
            tokens = torch.tensor([before + after[:low]])
            hidden, _ = lm.model.states(tokens)
            last = torch.zeros_like(tokens, dtype=torch.bool)
            last[:, -1] = True
            block = torch.tensor([after[low : low + 3]])
            ctx = lm.model.anchored(hidden, tokens, last, own_block=False)
            total += lm.model.head.log_prob(ctx, block).sum().item()
        wanted.append(total)
    got = lm.loglikelihood(pairs()[:8], True)
    assert [value for value, _ in got] == pytest.approx(wanted, abs=1e-4)
    assert wanted != pytest.approx([v for v, _ in LeapMTP(lm.run.name).loglikelihood(pairs()[:8], True)], abs=1e-2)


@pytest.mark.parametrize("head", HEADS)
def test_greedy_of_blocks_is_what_direct_decoding_writes_at_temperature_0(tmp_path, head):
    lm = LeapMTP(word_model(tmp_path, ["a b c d e"], head), decoder="block", batch_size=2)
    lm.stops, context = (), lm.tok_encode("a b")
    (written,) = lm.write([context], Writing(7, Warp(0.0), ()), [0])
    assert len(written) == 7  # two blocks and a short one
    kept = [(None, context, written[:n]) for n in range(1, 8)]
    changed = [(None, context, [*tokens[:-1], (tokens[-1] + 1) % 7]) for _, _, tokens in kept]
    assert [hit for _, hit in lm._loglikelihood_tokens(kept + changed, True)] == [True] * 7 + [False] * 7


def test_a_law_that_is_a_mean_over_noise_is_a_bound_with_its_noise_addressed_by_the_text(tmp_path):
    folder = word_model(tmp_path, ["a b c d e"], "noise", std=0.2)
    asked = [request("a", " b c d e"), request("a b", " c d"), request("a", " b c d e", at=5)]
    one, other, seeded = (
        LeapMTP(folder, decoder="block", batch_size=size, seed=seed) for size, seed in ((1, 3), (3, 3), (3, 4))
    )
    first, again = one.loglikelihood(asked, True), other.loglikelihood(asked, True)
    assert [v for v, _ in first] == pytest.approx([v for v, _ in again], abs=1e-5) and first[0] == first[2]
    assert seeded.loglikelihood(asked, True)[0][0] != pytest.approx(first[0][0], abs=1e-6)
    assert one.get_model_info()["leaplm"]["kind"] == "bound"
    # at one anchor it is the head's own estimate
    hidden, _ = one.model.states(torch.tensor([one.tok_encode("a b")]))
    from eval.harness.scoring import Span

    span = Span.of(one.tok_encode("a b"), one.tok_encode(" c d", False), 64)
    rng = Rng(3, torch.tensor([span.address]), torch.tensor([1]))
    block = torch.tensor([one.tok_encode(" c d", False)])
    wanted = one.model.head.estimate_log_prob(one.model.context(hidden[:, -1]), block, rng, DRAWS).log_prob
    assert first[1][0] == pytest.approx(float(wanted), abs=1e-4)


def certificate(lm, length):
    """Σ exp(loglikelihood) over all continuations of a context, through text."""
    vocab = lm.tokenizer.convert_ids_to_tokens(range(len(lm.tokenizer)))

    def score(store):
        rows = store.tokens.reshape(-1, length + 1)[:, 1:]
        asked = [request("a", " " + " ".join(vocab[t] for t in row), at=i) for i, row in enumerate(rows)]
        return -torch.tensor([value for value, _ in lm.loglikelihood(asked, True)]).numpy()

    return certify(score, len(vocab), length)


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("decoder", ["trunk", "block", "verified"])
def test_the_universal_certificate_holds_through_the_harness(tmp_path, decoder, length):
    head = LeapMTP(word_model(tmp_path, ["a b c"], "recurrent-chain", 2, rank=4), decoder=decoder, batch_size=64)
    assert certificate(head, length).exact


@pytest.mark.parametrize("decoder", ["trunk", "block"])
def test_a_network_that_is_fed_the_next_token_breaks_the_certificate(tmp_path, decoder, monkeypatch):
    lm = LeapMTP(word_model(tmp_path, ["a b c"], "recurrent-chain", 2, rank=4), decoder=decoder, batch_size=64)
    real = lm.model.states

    def cheating(ids):
        hidden, cache = real(torch.nn.functional.pad(ids, (0, 1)))
        return hidden[:, 1:], cache  # the state that has read one token more

    monkeypatch.setattr(lm.model, "states", cheating)
    assert not certificate(lm, 3).exact


def sampled(lm, contexts, every=1, **how):
    """every: of the documents, as one process of several has them."""
    how = {"until": [], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0, **how}
    asked = [request(c, how, kind="generate_until", at=i) for i, c in enumerate(contexts)]
    return lm.generate_until(asked[::every], True)


@pytest.mark.parametrize("decoder", ["trunk", "block", "verified"])
def test_draws_follow_the_request_and_the_seed_and_not_the_batch(tmp_path, decoder):
    folder = word_model(tmp_path, ["a b c d e"], "recurrent-chain", rank=4)
    contexts = ["a", "a b c", "a", "b a", "e d c b a"] * 6
    one, seven, other = (LeapMTP(folder, decoder, batch_size=n, seed=s) for n, s in ((1, 1), (7, 1), (7, 2)))
    drawn = sampled(one, contexts)
    assert drawn == sampled(seven, contexts) and drawn != sampled(other, contexts)
    assert sampled(seven, contexts, every=2) == drawn[::2]
    assert len({drawn[i] for i in range(0, 30, 5)}) > 3  # one context, other documents
    repeats = [request("a", {"max_gen_toks": 6, "do_sample": True, "temperature": 1.0}, kind="generate_until")] * 8
    assert len(set(seven.generate_until(repeats, True))) > 3


@pytest.mark.parametrize("decoder", ["trunk", "verified"])
def test_temperature_and_top_p_set_the_law_that_is_drawn_from(tmp_path, decoder):
    lm = LeapMTP(word_model(tmp_path, ["a b c d e"], "recurrent-chain", rank=4), decoder, batch_size=256)
    hidden = lm.model.states(torch.tensor([lm.tok_encode("a")]))[0].detach()
    logits = lm.model.context(hidden[:, -1]).first_logits()[0].detach()
    for how, law in (
        ({"temperature": 0.5}, (logits / 0.5).softmax(-1)),
        ({"top_p": 0.6}, None),
    ):
        drawn = sampled(lm, ["a"] * 1500, max_gen_toks=1, **how)
        for word in "bcde":
            share = sum(text.strip() == word for text in drawn) / 1500
            p = float(logits.softmax(-1)[lm.tokenizer.convert_tokens_to_ids(word)])
            if law is not None:
                p = float(law[lm.tokenizer.convert_tokens_to_ids(word)])
                assert abs(share - p) < 4 * (p * (1 - p) / 1500) ** 0.5 + 1e-3
            elif p == min(float(logits.softmax(-1)[lm.tokenizer.convert_tokens_to_ids(w)]) for w in "bcde"):
                assert share == 0


def test_verified_text_is_the_trunks_own(tmp_path):
    folder = bpe_model(tmp_path, "recurrent-chain", rank=8)
    asked = [request(*pair, kind="generate_until", at=i) for i, pair in enumerate(ASKED)]
    trunk, verified, block = (LeapMTP(folder, decoder, batch_size=3) for decoder in ("trunk", "verified", "block"))
    assert verified.generate_until(asked, True) == trunk.generate_until(asked, True)
    assert block.generate_until(asked, True) != trunk.generate_until(asked, True)
    assert verified.loglikelihood(pairs(), True) == trunk.loglikelihood(pairs(), True)


def test_a_batch_that_does_not_fit_is_made_smaller_and_nothing_else_changes(plain, monkeypatch):
    wanted = LeapMTP(plain, batch_size=2).loglikelihood(pairs(), True)
    lm, sizes = LeapMTP(plain, batch_size="auto", max_batch_size=8), []
    real = lm.score

    def narrow(spans, want_greedy):
        sizes.append(len({span.row for span in spans}))
        if sizes[-1] > 3:
            raise RuntimeError("CUDA out of memory.")
        return real(spans, want_greedy)

    monkeypatch.setattr(lm, "score", narrow)
    assert [v for v, _ in lm.loglikelihood(pairs(), True)] == pytest.approx([v for v, _ in wanted], abs=1e-4)
    assert sizes[0] > 3 and sizes[-1] <= 3


def test_rows_shared_by_several_continuations_are_read_once():
    assert list(batches([1, 2, 3, 4, 5, 6], lambda n: n // 3, 2)) == [[1, 2, 3, 4, 5], [6]]
    assert list(batches([], lambda n: n, 2)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "beam"}, "decoder 'beam'"),
        ({"decoder": "block"}, "no joint head"),
        ({"decoder": "verified"}, "no joint head"),
        ({"batch_size": "many"}, "batch_size 'many'"),
        ({"pretrained": "./nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(plain, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        LeapMTP(**{"pretrained": plain, **options})
    assert "\n" not in str(caught.value)


def test_requests_that_are_not_done_are_refused_by_name(plain):
    lm = LeapMTP(plain)
    with pytest.raises(ValueError, match=r"repetition_penalty=1\.3"):
        sampled(lm, ["a"], repetition_penalty=1.3)
    with pytest.raises(ValueError, match="longer than the 64"):
        lm.loglikelihood([request("a", LONG)], True)


def test_a_bos_token_is_added_where_asked_and_never_twice(tmp_path):
    tokenizer = train_bpe(TEXTS, 300)
    folder = save(tmp_path, tiny_trunk(len(tokenizer)), tokenizer)
    bare, begun = LeapMTP(folder), LeapMTP(folder, add_bos_token=True)
    assert begun.tok_encode("a b") == [0, *bare.tok_encode("a b")]
    assert begun.tok_encode("<|endoftext|>a b") == bare.tok_encode("<|endoftext|>a b")
    assert begun.tok_encode("a b", add_special_tokens=False) == bare.tok_encode("a b")


def test_a_plain_model_drafts_for_itself_under_jacobi(plain):
    asked = [request(*pair, kind="generate_until", at=i) for i, pair in enumerate(ASKED)]
    lm = LeapMTP(plain, decoder="verified", verify="jacobi", batch_size=3)
    assert lm.generate_until(asked, True) == LeapMTP(plain).generate_until(asked, True)


def test_all_heads_that_are_exact_spend_the_whole_probability_in_blocks(tmp_path):
    """A whole block and a short one, by the spans themselves."""
    from eval.harness.scoring import Span, score_spans
    from mtp.heads import NAMES, family

    trunk = tiny_trunk(4, std=0.5)
    for name in (name for name in NAMES if family(name).exact):
        model = loud(MTPForCausalLM.from_trunk(trunk, name, 2), 0.5).eval()
        spans = [Span((1, 2, *text), 2) for text in itertools.product(range(4), repeat=3)]
        total = sum(torch.tensor(value).exp() for value, _ in score_spans(model, spans, 2, want_greedy=False))
        assert float(total) == pytest.approx(1, abs=1e-4), name
