"""Tiny models with tokenizers in folders, as lm-eval loads them, requests to put to them, and the sum that is at most 1."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from flowlm import FlowLM, FlowLMConfig
from mtp import MTPForCausalLM
from training.data.tokenizer import train_bpe, word_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and nobody minds.",
    "To be, or not to be: that is the question, whether nobler in the mind to suffer.",
    "a b c d e f g h, naïve café — ten words or so; 12 + 30 = 42\n",
    "def f(x):\n    return x + 1\n",
]


def tiny_trunk(vocab_size, seed=0, positions=64, std=0.3):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=positions, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    trunk = AutoModelForCausalLM.from_config(config).eval()
    return loud(trunk, std)


def loud(model, std=0.3):
    """Far from uniform, so that a wrong place or mask shows."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def bpe_model(folder, head=None, block_size=4, **options):
    """A trunk, or a trunk with a head, that reads bytes and their pairs."""
    tokenizer = train_bpe(TEXTS * 4, 300)
    model = tiny_trunk(len(tokenizer))
    if head is not None:
        model = loud(MTPForCausalLM.from_trunk(model, head, block_size, **options))
    return save(folder, model, tokenizer)


def bpe_flow(folder, length=24):
    """A flow of windows over the same bytes and pairs. t_min: late enough for an untrained one to cost a number of nats that a
    perplexity can be made of."""
    tokenizer = train_bpe(TEXTS * 4, 300)
    torch.manual_seed(0)
    config = FlowLMConfig(
        vocab_size=len(tokenizer), length=length, bos_token_id=0, eos_token_id=0, codebook="embedding", state_size=4, t_min=0.3,
        backbone={"width": 16, "depth": 1, "heads": 2},
    )  # fmt: skip
    return save(folder, loud(FlowLM(config)), tokenizer)


def word_model(folder, words, head=None, block_size=3, std=0.5, **options):
    """One token a word, so that all texts can be counted. Token 0 ends, token 1 is unknown."""
    tokenizer = word_tokenizer(words)
    model = tiny_trunk(len(tokenizer), std=std)
    if head is not None:
        model = loud(MTPForCausalLM.from_trunk(model, head, block_size, **options), std)
    return save(folder, model, tokenizer)


def request(*args, kind="loglikelihood", doc=None, at=0):
    from lm_eval.api.instance import Instance

    return Instance(kind, doc or {}, args, 0, metadata=("task", at, 1))
