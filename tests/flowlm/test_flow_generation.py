"""`generate`: windows, prompts and gaps; what transformers' users expect of its configuration, output and streamers."""

import pytest
import torch
from transformers import AutoModel, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from flowlm import FlowGenerationConfig
from tests.flowlm.test_token_map import N, V, build


class Listener(BaseStreamer):
    def __init__(self):
        self.drafts, self.put_, self.ended = [], [], False

    def put(self, value):
        self.put_.append(value)

    def put_draft(self, value):
        self.drafts.append(value)

    def end(self):
        self.ended = True


@pytest.fixture(scope="module")
def model():
    return build()


def test_a_prompt_begins_every_row_and_of_each_are_written_as_many_as_asked(model):
    prompt = torch.tensor([[1, 2], [3, 4]])
    rows = model.generate(prompt, do_sample=True, num_return_sequences=3)
    assert rows.shape == (6, N) and torch.equal(rows[:, :2], prompt.repeat_interleave(3, 0))
    assert model.generate(num_return_sequences=4).shape == (4, N)


def test_gaps_are_filled_and_the_rest_stays(model):
    window = torch.tensor([[1, 0, 0, 4, 2]])
    known = torch.tensor([[True, False, False, True, True]])
    rows = model.generate(window, known=known, do_sample=True, num_return_sequences=50)
    assert (rows[:, [0, 3, 4]] == torch.tensor([1, 4, 2])).all() and len(set(rows[:, 1].tolist())) > 1


def test_seeds_are_torchs_own_and_greedy_reads_the_likeliest(model):
    def draw(**how):
        torch.manual_seed(3)
        return model.generate(num_return_sequences=20, **how)

    assert torch.equal(draw(do_sample=True), draw(do_sample=True))
    assert torch.equal(draw(do_sample=True, top_k=1), draw()) and not torch.equal(draw(do_sample=True), draw())
    assert not torch.equal(draw(num_steps=3), draw(num_steps=1))


def test_rows_end_at_their_first_written_end_token():
    model = build(eos_token_id=2, pad_token_id=6)
    prompt = torch.tensor([[2, 0]])  # one that was given ends nothing
    out = model.generate(prompt, do_sample=True, num_return_sequences=200, return_dict_in_generate=True, num_steps=2)
    lengths = []
    for row in out.sequences.tolist():
        ends = [i for i in range(2, N) if row[i] == 2]
        lengths.append(ends[0] + 1 if ends else N)
        assert all(token == 6 for token in row[lengths[-1] :])
    assert out.nfe == 2 and out.tokens_per_forward == pytest.approx((sum(lengths) / 200 - 2) / 2)
    assert len(set(lengths)) > 1
    short = model.generate(prompt, max_new_tokens=1)
    assert short.shape == (1, 3)


def test_an_end_token_inside_a_gap_ends_nothing():
    model = build(eos_token_id=2, pad_token_id=6)
    window, known = torch.tensor([[1, 0, 3, 4, 5]]), torch.tensor([[True, False, True, True, True]])
    out = model.generate(window, known=known, do_sample=True, num_return_sequences=300, return_dict_in_generate=True)
    assert 2 in out.sequences[:, 1] and (out.sequences[:, 2:] == torch.tensor([3, 4, 5])).all()
    assert out.tokens_per_forward == 1
    rows = torch.tensor([[1, 0, 0], [1, 3, 4]])
    told = model.generate(rows, known=torch.tensor([[True, False, False], [True] * 3]), max_new_tokens=1)
    assert told.shape == (2, 4) and told[1, :3].tolist() == [1, 3, 4]


def test_a_plain_configuration_and_a_tokenizers_mask_are_understood(model):
    torch.manual_seed(0)
    rows = model.generate(torch.tensor([[1]]), generation_config=GenerationConfig(do_sample=True))
    torch.manual_seed(0)
    same = model.generate(input_ids=torch.tensor([[1]]), attention_mask=torch.tensor([[1]]), do_sample=True)
    assert torch.equal(rows, same)


def test_drafts_are_streamed_and_the_end_is_told(model):
    listener = Listener()
    rows = model.generate(torch.tensor([[1]]), num_steps=4, streamer=listener)
    assert len(listener.drafts) == 4 and listener.ended
    assert [part.tolist() for part in listener.put_] == [
        [[1]],
        rows[0, 1:].tolist(),
    ]  # first the prompt, as streamers expect
    assert all(draft.shape == (1, N - 1) for draft in listener.drafts)  # of what is not settled yet
    assert torch.equal(listener.drafts[-1], rows[:, 1:])


def test_configuration_is_kept_beside_the_weights(model, tmp_path):
    model.generation_config = FlowGenerationConfig(num_steps=4, sampler="euler", do_sample=True)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert (again.generation_config.num_steps, again.generation_config.sampler) == (4, "euler")
    assert again.generate(return_dict_in_generate=True).nfe == 4
    model.save_pretrained(tmp_path / "inner" / "model")
    nested = AutoModel.from_pretrained(tmp_path / "inner", subfolder="model")
    assert nested.generation_config.sampler == "euler"
    model.generation_config = FlowGenerationConfig()


@pytest.mark.parametrize(
    "ids, how, what",
    [
        (None, {"num_steps": 0}, "1 at least"),
        (None, {"num_steps": 2.5}, "whole number"),
        (None, {"sampler": "leap"}, "unknown sampler"),
        (None, {"stepz": 2}, "no stepz"),
        (None, {"known": torch.tensor([[True]])}, "give them too"),
        (torch.ones(1, 3, dtype=torch.long), {"known": torch.tensor([[True]])}, "one place for each token"),
        (torch.ones(1, N + 1, dtype=torch.long), {}, f"windows of {N}"),
        (torch.ones(1, 3, dtype=torch.long), {"max_new_tokens": 3}, f"have {N} tokens"),
        (None, {"streamer": Listener(), "num_return_sequences": 2}, "one row"),
        (None, {"num_return_sequences": 0}, "1 or above"),
        (None, {"num_beams": 4}, "no num_beams"),
        (None, {"max_length": 3}, "no max_length"),
        (None, {"guidance_scale": 2.0}, "no guidance_scale"),
        (torch.ones(1, 2, dtype=torch.long), {"attention_mask": torch.tensor([[0, 1]])}, "different lengths"),
        (torch.ones(3, dtype=torch.long), {}, "batch, tokens"),
        (torch.ones(1, 3), {}, "whole numbers"),
        ([[1, 2]], {}, "must be a tensor"),
        (torch.tensor([[-1, 2]]), {}, "hold -1"),
    ],
)
def test_what_cannot_be_is_one_line(model, ids, how, what):
    with pytest.raises(ValueError, match=what):
        model.generate(ids, **how)


def test_ids_out_of_the_vocabulary_are_refused(model):
    with pytest.raises(ValueError, match=f"below {V}"):
        model.generate(torch.tensor([[V]]))
