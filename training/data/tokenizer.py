"""Tokenizers: a byte-level BPE trained here, 27 characters, one token per word for suites, or any pretrained one."""

from collections.abc import Iterable
from pathlib import Path

END = "<|endoftext|>"
"""Begins and ends every document."""
LETTERS = " abcdefghijklmnopqrstuvwxyz"
"""The 27 symbols that text is often cut down to."""


def train_bpe(texts: Iterable[str], vocab_size: int):
    """Byte-level BPE: no text is out of vocabulary, decoding is lossless."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise ValueError(f"tokenizer.vocab_size {vocab_size}: a byte-level vocabulary needs at least 257")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


def character_tokenizer():
    """One token a character of the 27-symbol form: text in lower case, whose every stretch outside a–z (digits and accented
    letters too, which text8 spells or drops) is one space. What is decoded is that form, not the text."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    tokenizer = Tokenizer(models.BPE({END: 0} | {letter: i for i, letter in enumerate(LETTERS, 1)}, []))
    folded = [normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z]+"), " ")]
    tokenizer.normalizer = normalizers.Sequence(folded)  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return _wrap(tokenizer)


def word_tokenizer(texts: Iterable[str]):
    """One token per white-space separated word, decoded with single spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for text in texts for word in text.split()})
    vocab = {END: 0, "<unk>": 1} | {word: i for i, word in enumerate(words, 2)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(tokenizer, unk_token="<unk>")


def load_tokenizer(name: str | Path):
    """A pretrained tokenizer by name or path; it must have an end-of-text token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except Exception as error:  # a broken file fails in as many ways as there are formats
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"tokenizer {str(name)!r} did not load: {first_line}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {str(name)!r} has no end-of-text token (eos_token), which documents end with")
    return tokenizer


def encode_document(tokenizer, text: str) -> list[int]:
    """begin, text, end: the first real token is a target like any other."""
    return [start_token(tokenizer), *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


def start_token(tokenizer) -> int:
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def _wrap(tokenizer, **special: str):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        **special,
    )
