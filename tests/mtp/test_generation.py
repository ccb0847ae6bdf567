"""transformers' generate writes what our decoders write, with its own processors, criteria and streamers."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from flowmap.warp import Warp
from mtp import MTPForCausalLM, joint_generate
from mtp.decoding.direct import decode, pad_left
from mtp.decoding.speculative import decode_verified
from tests.mtp.test_confidence import confidence

PROMPTS = [[3, 7, 1], [5], [2, 9, 4, 4, 8]]


@pytest.fixture
def model(trunk):
    trunk.generation_config.eos_token_id = None
    trunk.generation_config.pad_token_id = 0
    made = MTPForCausalLM.from_trunk(trunk, "block-chain", 3).eval()
    torch.manual_seed(2)
    for parameter in made.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def batch():
    ids, mask = pad_left(PROMPTS, 0)
    return {"inputs": ids, "attention_mask": mask, "max_new_tokens": 9}


@pytest.mark.parametrize("verify", ["token", "block", "gumbel", "jacobi"])
def test_greedy_is_the_trunks_own_generate(model, verify):
    expected = model.trunk.generate(**batch(), do_sample=False)
    assert torch.equal(model.generate(**batch(), do_sample=False, verify=verify), expected)
    lent = model.trunk.generate(
        **batch(), do_sample=False, custom_generate=joint_generate, joint=model, verify=verify, use_cache=False
    )
    assert torch.equal(lent, expected)


def test_direct_decoding_is_ours_and_says_its_tokens_per_pass(model):
    out = model.generate(**batch(), do_sample=False, verify="none", return_dict_in_generate=True)
    ids, mask = pad_left(PROMPTS, 0)
    expected = decode(model, ids, mask, max_new_tokens=9, warp=Warp(0.0))
    assert torch.equal(out.sequences[:, ids.shape[1] :], expected.tokens) and out.tokens_per_forward == 3


@pytest.mark.parametrize(
    "more", [{"repetition_penalty": 1.5}, {"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 2}]
)
def test_processors_bend_the_law_that_is_kept_to(model, more):
    """Greedy under them is the trunk's own generate under them."""
    for prompt in PROMPTS:
        options = {"inputs": torch.tensor([prompt]), "max_new_tokens": 12, "do_sample": False}
        expected = model.trunk.generate(**options, **more)
        assert torch.equal(model.generate(**options, **more), expected)
    given = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(3.0)])
    own = model.trunk.generate(**options, logits_processor=given)
    assert torch.equal(model.generate(**options, logits_processor=given), own)


def test_processors_that_cannot_be_kept_to_are_refused(model):
    with pytest.raises(ValueError, match=r"direct decoding takes.*RepetitionPenalty"):
        model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=9, repetition_penalty=2.0, verify="none")
    with pytest.raises(ValueError, match="one prompt at a time"):
        model.generate(**batch(), repetition_penalty=2.0)


def test_sampling_follows_torchs_seed(model):
    def drawn(seed):
        torch.manual_seed(seed)
        return model.generate(**batch(), do_sample=True, temperature=0.8, top_p=0.9, verify="block")

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))


class Collect(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], False

    def put(self, value):
        self.pieces.append(value.flatten().tolist())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("verify", ["token", "none"])
def test_a_streamer_hears_the_prompt_and_every_pass(model, verify):
    heard = Collect()
    ids = torch.tensor([PROMPTS[0]])
    out = model.generate(ids, max_new_tokens=9, do_sample=False, verify=verify, streamer=heard)
    said = [token for piece in heard.pieces for token in piece]
    assert heard.pieces[0] == PROMPTS[0] and said == out[0].tolist() and heard.ended
    assert all(1 <= len(piece) <= 3 for piece in heard.pieces[1:])
    for stop in (int(out[0, 4]), int(out[0, 7])):  # an end inside a block is the last that is heard
        heard = Collect()
        ended = model.generate(ids, max_new_tokens=8, do_sample=False, verify=verify, streamer=heard, eos_token_id=stop)
        assert [token for piece in heard.pieces for token in piece] == ended[0].tolist()
    with pytest.raises(ValueError, match="one row"):
        model.generate(**batch(), streamer=Collect())


class Says(StoppingCriteria):
    """Ends a row whose last token is this one: what is not asked after every token is missed."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.token


@pytest.mark.parametrize("verify", ["token", "jacobi", "none"])
def test_criteria_are_asked_after_every_token(model, verify):
    whole = model.generate(**{**batch(), "max_new_tokens": 20}, do_sample=False, verify=verify)
    lengths = set()
    for place in range(5, 14):
        token = int(whole[0, place])
        criteria = StoppingCriteriaList([Says(token)])
        out = model.generate(
            **{**batch(), "max_new_tokens": 20}, do_sample=False, verify=verify, stopping_criteria=criteria
        )
        for row, text in zip(out, whole, strict=True):
            new = text[5:].tolist()
            length = new.index(token) + 1 if token in new else 20
            assert row[5 : 5 + length].tolist() == new[:length] and (row[5 + length :] == 0).all()
            lengths.add(length % 3)
    assert len(lengths) > 1  # inside blocks too


@pytest.mark.parametrize("verify", ["token", "inverse-cdf"])
def test_processors_keep_transformers_order(model, verify):
    """min_p after temperature and top-k: what transformers would never draw is not drawn."""
    ids = torch.tensor([PROMPTS[2]])
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        out = model.generate(ids, max_new_tokens=3, do_sample=True, temperature=3.0, min_p=0.5, verify=verify)[0]
        for place in range(5, 8):
            p = (model.trunk(out[None, :place]).logits[0, -1] / 3.0).softmax(-1)
            assert p[out[place]] >= 0.5 * p.max() - 1e-6
        seen.add(tuple(out.tolist()))
    assert len(seen) > 5
    own = LogitsProcessorList([TemperatureLogitsWarper(1e-3)])  # one's own is kept to
    cold = model.generate(ids, max_new_tokens=6, do_sample=True, logits_processor=own, verify=verify)
    assert torch.equal(cold, model.generate(ids, max_new_tokens=6, do_sample=False))


@pytest.mark.parametrize(
    "options", [{"num_beams": 2}, {"output_scores": True, "return_dict_in_generate": True}, {"guidance_scale": 2.0}]
)
def test_what_is_not_done_is_refused(model, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=4, **options)


def test_padding_is_seen_without_a_mask(model):
    ids, mask = pad_left([[3, 7], [2, 9, 4, 4, 8]], 0)
    told = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), told)


@pytest.mark.parametrize("verify", ["token", "none"])
def test_end_tokens_end_a_row(model, verify):
    free = model.generate(**batch(), do_sample=False, verify=verify)
    stop = int(free[0, 7])
    out = model.generate(**batch(), do_sample=False, verify=verify, eos_token_id=stop, pad_token_id=0)
    for row, whole in zip(out, free, strict=True):
        new = whole[5:].tolist()
        length = new.index(stop) + 1 if stop in new else 9
        assert row[5 : 5 + length].tolist() == new[:length] and (row[5 + length :] == 0).all()


def test_a_model_without_a_head_generates_as_its_trunk(trunk):
    trunk.generation_config.eos_token_id, trunk.generation_config.pad_token_id = None, 0
    model = MTPForCausalLM.from_trunk(trunk).eval()
    assert torch.equal(model.generate(**batch(), do_sample=False), trunk.generate(**batch(), do_sample=False))


@pytest.mark.parametrize("verify", ["none", "block"])
def test_drafts_end_where_they_are_not_likely_to_stand_by_what_lies_beside_the_weights(model, tmp_path, verify):
    one = confidence(2, warp=Warp(0.0))
    how = {**batch(), "do_sample": False, "verify": verify, "return_dict_in_generate": True}
    with pytest.raises(ValueError, match="no acceptance estimate"):
        model.generate(**how, threshold=0.45)
    model.save_pretrained(tmp_path)
    one.save(tmp_path)
    again = MTPForCausalLM.from_pretrained(tmp_path).eval()
    found, given = again.generate(**how, threshold=0.45), model.generate(**how, threshold=0.45, confidence=one)
    assert torch.equal(found.sequences, given.sequences)
    ids, mask = pad_left(PROMPTS, 0)
    options = {"max_new_tokens": 9, "warp": Warp(0.0), "verify": verify, "threshold": 0.45, "confidence": one}
    assert torch.equal(given.sequences[:, ids.shape[1] :], decode_verified(model, ids, mask, **options).tokens)
    whole = model.generate(**how)
    if verify == "block":  # greedy is the trunk's own, however long the drafts
        assert torch.equal(given.sequences, whole.sequences)
    else:
        assert given.tokens_per_forward < whole.tokens_per_forward
