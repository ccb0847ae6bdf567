"""The 27-symbol form of text: what it keeps, what it counts, and where it is refused."""

import gzip
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from training.config import DataConfig, TokenizerConfig, load_preset, override
from training.data.corpus import load_corpus
from training.data.known import KNOWN, KnownSet, get, read_known, stretches
from training.data.tokenizer import LETTERS, character_tokenizer, load_tokenizer
from training.tasks import build

TEXT = "Senjō no 3 : <unk> \n\n Don't; <b>AB</b>\tÀ la carte — 27%"
CHARACTERS = TokenizerConfig(kind="characters")


def folded(text):
    """The form, said by another hand."""
    return re.sub("[^a-z]+", " ", text.lower())


@pytest.fixture
def tokenizer():
    return character_tokenizer()


def test_text_comes_back_as_its_27_symbol_form_one_token_a_character(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for own in (tokenizer, load_tokenizer(tmp_path)):
        assert len(own) == 28 and own.eos_token_id == 0
        for text in (TEXT, "", "  ", "a", " the quick brown fox ", LETTERS):
            ids = own.encode(text, add_special_tokens=False)
            assert own.decode(ids) == folded(text) and len(ids) == len(folded(text)) and 0 not in ids
    assert tokenizer.encode(LETTERS, add_special_tokens=False) == list(range(1, 28))


def test_text_that_is_in_27_symbols_already_is_lossless(tokenizer):
    text = " anarchism originated as a term of abuse"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"{TEXT} Page {i}.\n" * (20 + i))
    return DataConfig(name=str(folder))


def test_a_corpus_counts_the_characters_that_its_tokens_tell(corpus):
    """Not the bytes of the text they came from: bits per byte are bits per character."""
    loaded = load_corpus(corpus, CHARACTERS, progress=False)
    store = loaded.stores["train"]
    documents = len(store.offsets) - 1
    assert store.num_bytes == len(store.tokens) - 2 * documents and store.tokens.max() <= 27
    assert (np.asarray(store.tokens) == 0).sum() == 2 * documents
    first = loaded.tokenizer.decode(store.tokens[: store.offsets[1]].tolist(), skip_special_tokens=True)
    assert first == folded(first) and "page" in first
    again = load_corpus(corpus, TokenizerConfig(kind="pretrained", name=str(_saved(loaded))), progress=False)
    assert (
        again.facts["fingerprint"] == loaded.facts["fingerprint"] and again.stores["train"].num_bytes == store.num_bytes
    )


def _saved(loaded):
    folder = Path(os.environ["LEAPLM_CACHE"]) / "saved"
    loaded.tokenizer.save_pretrained(folder)
    return folder


def test_a_text_without_documents_is_cut_and_nothing_is_lost():
    text = "".join(LETTERS[i * i % 27] for i in range(1000))
    parts = list(stretches([text], 300))
    assert "".join(parts) == text and [len(part) for part in parts] == [300, 300, 300, 100]


def test_a_zip_is_fetched_unpacked_and_cut(tmp_path):
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as packed:
        packed.writestr("text", " abc" * 100)
    home = {"all": ((tmp_path / "text.zip").as_uri(), {"characters": "90"})}
    known = KnownSet("toy", "a toy", "none", {"all": "toy/t.txt.gz"}, home, lambda lines: stretches(lines, 10))
    (tmp_path / "root").mkdir()
    path = get(known, str(tmp_path / "root"))["all"]
    assert gzip.decompress(path.read_bytes()).decode() == (" abc" * 100)[:90] + "\n"
    splits = read_known(known, str(tmp_path / "root"))
    assert "".join(part for texts in splits.values() for part in texts) == (" abc" * 100)[:90]


def test_the_prefix_of_text8_is_its_own_27_symbol_form():
    root = os.environ.get("LEAPLM_DATA")
    if not root or not (Path(root) / "text8_prefix").is_dir():
        pytest.skip("LEAPLM_DATA holds no text8_prefix")
    splits = read_known(KNOWN["text8-prefix"], root)
    whole = "".join(part for split in ("train", "validation", "test") for part in splits[split])
    assert len(whole) == 3_000_000 and set(whole) == set(LETTERS) and folded(whole) == whole
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [90, 5, 5]


def test_characters_are_refused_where_they_would_lose_what_is_asked(corpus):
    with pytest.raises(ValueError, match="a suite takes words"):
        config = override(load_preset("flow-poker"), tokenizer__kind="characters")
        build(config, Accelerator(cpu=True))
    with pytest.raises(ValueError, match="leave out 'gpt2'"):
        load_corpus(corpus, TokenizerConfig(kind="characters", name="gpt2"), progress=False)
