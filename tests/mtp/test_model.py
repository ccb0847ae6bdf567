import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from mtp import MTPForCausalLM
from mtp.heads import NAMES


def scramble(head):
    torch.manual_seed(1)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def test_heads_read_the_logits_the_trunk_itself_gives(trunk):
    model = MTPForCausalLM.from_trunk(trunk, "block-chain", 3, rank=4)
    ids = torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(0))
    hidden, _ = model.states(ids)
    assert torch.allclose(
        model.context(hidden.flatten(0, 1)).first_logits(), trunk(ids).logits.flatten(0, 1), atol=1e-6
    )


@pytest.mark.parametrize("name", [*NAMES, None])
def test_save_and_load_are_bit_equal_also_by_auto_class(trunk, name, tmp_path):
    model = MTPForCausalLM.from_trunk(trunk, name, 3)
    if name:
        scramble(model.head)
    model.save_pretrained(tmp_path)
    for loaded in (MTPForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert isinstance(loaded, MTPForCausalLM)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for key, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[key]), key
        tied = trunk.config.tie_word_embeddings
        weights = loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight
        assert (weights[0].data_ptr() == weights[1].data_ptr()) == tied


def test_a_trunk_that_bends_its_logits_is_refused():
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        MTPForCausalLM.from_trunk(AutoModelForCausalLM.from_config(config), "independent", 2)


def test_a_model_that_sees_the_future_is_refused():
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(
        BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    with pytest.raises(ValueError, match="causal"):
        MTPForCausalLM.from_trunk(model, "independent", 2)
