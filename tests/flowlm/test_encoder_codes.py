"""Codes from an encoder: which rows, which directions, how long; and what is not this encoder's vocabulary."""

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, T5Config, T5Model

from flowlm.encoder_codes import encoder_codes, principal
from training.data.tokenizer import word_tokenizer

WORDS = word_tokenizer(["one two three four five six seven"])
V, H = len(WORDS), 12


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("bert"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=V + 3, hidden_size=H, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(folder)
    WORDS.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("states", ["input", "hidden"])
@torch.no_grad()
def test_at_full_size_codes_have_the_encoders_angles_around_its_mean(bert, states):
    codes = encoder_codes(bert, WORDS, H, states)
    model = AutoModel.from_pretrained(bert).eval()
    rows = model.get_input_embeddings().weight[:V]
    if states == "hidden":
        rows = torch.stack([model(input_ids=torch.tensor([[v]])).last_hidden_state[0, 0] for v in range(V)])
    expected = torch.nn.functional.normalize(rows - rows.mean(0), dim=-1)
    assert torch.allclose(codes @ codes.T / H, expected @ expected.T, atol=1e-5)
    assert codes.dtype == torch.float32 and torch.allclose(codes.norm(dim=-1), torch.tensor(H**0.5))


def test_fewer_dimensions_are_those_of_largest_variance(bert):
    vectors = torch.randn(50, H, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.arange(
        1, H + 1
    )
    found = principal(vectors, 3)
    centred = vectors - vectors.mean(0)
    kept = torch.linalg.svdvals(centred)[:3].square()
    assert torch.allclose(found.T @ found, torch.diag(kept), atol=1e-8 * float(kept[0]))
    assert encoder_codes(bert, WORDS, 4).shape == (V, 4)


def test_another_vocabulary_is_read_as_text(bert):
    """Two words in one token have the mean of both."""
    other = word_tokenizer(["two one"])
    other.add_tokens(["three four"])
    both = encoder_codes(bert, other, 2)
    table = AutoModel.from_pretrained(bert).get_input_embeddings().weight.detach()
    ids = WORDS.get_vocab()
    pieces = [[ids[word] for word in other.decode([v]).split()] for v in range(len(other))]
    expected = principal(torch.stack([table[part].mean(0) for part in pieces]), 2)
    assert len(pieces[-1]) == 2
    assert torch.allclose(both, 2**0.5 * torch.nn.functional.normalize(expected, dim=-1).float(), atol=1e-5)


def test_of_an_encoder_with_a_decoder_the_encoder_is_read(tmp_path):
    torch.manual_seed(0)
    config = T5Config(vocab_size=V, d_model=H, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(tmp_path)
    WORDS.save_pretrained(tmp_path)
    assert encoder_codes(str(tmp_path), WORDS, 5, "hidden").isfinite().all()


def test_what_gives_no_codes_is_refused_in_a_line(bert, tmp_path):
    with pytest.raises(ValueError, match="did not load"):
        encoder_codes(str(tmp_path / "nothing"), WORDS, 4)
    with pytest.raises(ValueError, match=f"have {H} dimensions"):
        encoder_codes(bert, WORDS, H + 1)
    strangers = word_tokenizer(["eins zwei drei"])  # all unknown to it
    with pytest.raises(ValueError, match="read the same"):
        encoder_codes(bert, strangers, 2)
    larger = word_tokenizer([" ".join(map(str, range(40)))])
    larger.save_pretrained(tmp_path)
    AutoModel.from_pretrained(bert).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no token 41"):
        encoder_codes(str(tmp_path), larger, 4)
