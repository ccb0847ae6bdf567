"""transformers' generate writes what our decoders write, with its own processors, criteria and streamers."""

import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from mtp import MTPForCausalLM, joint_generate
from mtp.decoding.direct import decode, pad_left
from mtp.decoding.warp import Warp

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
    with pytest.raises(ValueError, match="direct decoding takes no RepetitionPenalty"):
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
    assert heard.pieces[0] == PROMPTS[0] and said[: out.shape[1]] == out[0].tolist() and heard.ended
    assert all(1 <= len(piece) <= 3 for piece in heard.pieces[1:])
    with pytest.raises(ValueError, match="one row"):
        model.generate(**batch(), streamer=Collect())


class After(StoppingCriteria):
    """Ends a row once it is so long."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


@pytest.mark.parametrize("verify", ["token", "none"])
def test_criteria_are_asked_after_every_pass(model, verify):
    criteria = StoppingCriteriaList([After(8)])
    ids = torch.tensor([PROMPTS[0]])
    out = model.generate(ids, max_new_tokens=20, do_sample=False, verify=verify, stopping_criteria=criteria)
    whole = model.generate(ids, max_new_tokens=20, do_sample=False, verify=verify)
    assert 8 <= out.shape[1] <= 10 and torch.equal(out, whole[:, : out.shape[1]])


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
