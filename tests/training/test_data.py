"""Documents, tokens, windows: nothing lost, nothing leaked across a boundary."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.validity.families import poker
from eval.validity.suites import load_suite
from training.config import DataConfig, TokenizerConfig
from training.data.cases import case_rows, encode_suite
from training.data.corpus import load_corpus
from training.data.sources import SPLITS, dataset_documents, split_documents, split_of, stdlib, verbatim_share
from training.data.store import read_store, write_store
from training.data.tokenizer import END, train_bpe, word_tokenizer
from training.data.windows import TextWindows

TEXTS = ["def f(x):\n    return x\n", "naïve café 汉字 \U0001f600", "a" * 50, "x = 1\n" * 20]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXTS, 300)


def test_byte_level_bpe_loses_nothing_even_of_unseen_text(bpe):
    for text in [*TEXTS, "Ωμέγα\t\x00 end"]:
        assert bpe.decode(bpe.encode(text)) == text


def test_words_are_one_token_each():
    tokenizer = word_tokenizer(["full house", "high card"])
    assert len(tokenizer.encode("full house card")) == 3
    assert tokenizer.decode(tokenizer.encode("full house")) == "full house"
    assert tokenizer.encode("nothing")[0] == tokenizer.unk_token_id


def test_the_store_keeps_every_document_between_its_end_tokens(bpe, tmp_path):
    write_store(tmp_path / "s", TEXTS, bpe, progress=False)
    store = read_store(tmp_path / "s")
    assert isinstance(store.tokens, np.memmap)
    assert store.num_bytes == sum(len(text.encode()) for text in TEXTS)
    for i, text in enumerate(TEXTS):
        tokens = store.tokens[store.offsets[i] : store.offsets[i + 1]].tolist()
        assert tokens[0] == tokens[-1] == bpe.convert_tokens_to_ids(END)
        assert bpe.decode(tokens[1:-1]) == text
    assert store.documents_of(store.offsets[:-1]).tolist() == [0, 1, 2, 3]
    assert store.documents_of(store.offsets[1:] - 1).tolist() == [0, 1, 2, 3]


def test_windows_cover_every_token_once_an_epoch_and_targets_stay_in_their_document(bpe, tmp_path):
    write_store(tmp_path / "s", TEXTS, bpe, progress=False)
    store = read_store(tmp_path / "s")
    windows = TextWindows(store, length=8, reach=3, batch_size=4, seed=5)
    epoch = [i for n in range(windows.num_windows) for i in windows.order(n, torch.arange(4))][
        : 2 * windows.num_windows
    ]
    first, second = epoch[: windows.num_windows], epoch[windows.num_windows :]
    assert sorted(first) == sorted(second) == list(range(windows.num_windows)) and first != second
    seen = []
    for i in range(windows.num_windows):
        batch = windows.windows([i])
        seen += batch.tokens[0, :8][batch.document[0, :8] >= 0].tolist()
        targets, mask = batch.blocks(3)
        for p in range(8):
            for k in range(3):
                here, there = i * 8 + p, i * 8 + p + k + 1
                same = there < len(store.tokens) and store.documents_of(np.array([here])) == store.documents_of(
                    np.array([there])
                )
                assert bool(mask[0, p, k]) == bool(same)
                if same:
                    assert targets[0, p, k] == int(store.tokens[there])
    assert seen == store.tokens.tolist()


def test_a_slice_of_a_batch_is_that_slice_of_the_whole(bpe, tmp_path):
    write_store(tmp_path / "s", TEXTS, bpe, progress=False)
    text = TextWindows(read_store(tmp_path / "s"), 8, 3, 12, 5)
    cases = case_rows(encode_suite(poker(), word_tokenizer(["the hand is", *poker().laws["the hand is"]])), 2, 12, 5)
    for data in (text, cases):
        whole = data.batch(7, torch.arange(12)).tokens
        parts = [data.batch(7, torch.arange(low, low + 3)).tokens for low in range(0, 12, 3)]
        assert torch.equal(whole, torch.cat(parts))
        assert not torch.equal(whole, data.batch(8, torch.arange(12)).tokens)


def test_cases_follow_the_law_and_score_only_the_answer(tmp_path):
    file = tmp_path / "cases.jsonl"
    file.write_text(
        '{"prompt": "go", "texts": ["left", "far right"], "p": [3, 1]}\n{"prompt": "", "texts": ["stay"]}\n'
    )
    suite = load_suite(str(file))
    tokenizer = word_tokenizer(["go left far right stay"])
    rows = case_rows(encode_suite(suite, tokenizer), 3, 20_000, 0)
    batch = rows.batch(0, torch.arange(20_000))
    drawn = [tuple(row[inside].tolist()) for row, inside in zip(batch.tokens, batch.scored, strict=True)]
    end = tokenizer.eos_token_id
    ids = {w: tokenizer.convert_tokens_to_ids(w) for w in ("left", "far", "right", "stay")}
    expected = {(ids["left"], end): 0.375, (ids["far"], ids["right"], end): 0.125, (ids["stay"], end): 0.5}
    assert set(drawn) == set(expected)
    for answer, p in expected.items():
        assert abs(drawn.count(answer) / 20_000 - p) < 4 * (p * (1 - p) / 20_000) ** 0.5


def test_starts_are_where_decoding_hangs_its_blocks():
    suite = load_suite("skip-3")
    encoded = encode_suite(suite, word_tokenizer(text for p, law in suite.laws.items() for text in (p, *law)))
    batch = case_rows(encoded, 2, 4, 0, starts_only=True).batch(0, torch.arange(4))
    prompt = len(encoded.starts["the triple is"])
    assert batch.starts.nonzero()[:, 1].unique().tolist() == [prompt - 1, prompt + 1]
    assert case_rows(encoded, 2, 4, 0).batch(0, torch.arange(4)).starts is None


def test_the_end_token_follows_from_tokens_not_words(bpe):
    # two words each, but of different numbers of subword tokens: without an end token none could be read off
    encoded = encode_suite(poker(), bpe)
    answers = encoded.answers["the hand is"]
    assert len({len(a) for a in answers.values()}) > 1 and encoded.closed and not encoded.one_token_per_word
    assert all(a[-1] == bpe.eos_token_id for a in answers.values())
    words = encode_suite(poker(), word_tokenizer(["the hand is", *poker().laws["the hand is"]]))
    assert not words.closed and words.one_token_per_word and words.longest == 2


def test_a_split_does_not_depend_on_how_the_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_text("\n".join(f"line {i}" for i in range(200)))
    monkeypatch.chdir(tmp_path)
    one, other = (split_documents(dataset_documents(n, sample_by="line")) for n in ("t.txt", str(tmp_path / "t.txt")))
    assert one == other and all(one.values())


def test_the_standard_library_is_split_by_module_and_shares_few_lines():
    documents = list(stdlib())
    splits = split_documents(documents)
    groups = {name: {d.group for d in documents if split_of(d.group) == name} for name in SPLITS}
    assert not groups["train"] & groups["validation"] and not groups["train"] & groups["test"]
    assert sum(map(len, splits.values())) == len(documents) > 200
    assert verbatim_share(splits["train"], splits["validation"]) <= 0.10
    assert verbatim_share(splits["train"], splits["test"]) <= 0.10


def test_verbatim_share_counts_long_lines_that_stand_in_train():
    line = "this line is long enough to count\n"
    assert verbatim_share([line], [line + "short\n"]) == pytest.approx(len(line) / (len(line) + 6))


@pytest.mark.parametrize("streaming", [False, True])
def test_local_text_and_jsonl_plain_or_gzipped_file_or_folder(tmp_path, streaming):
    rows = [{"body": f"document {i}"} for i in range(3)]
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text(text)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(text)
    (tmp_path / "c.txt").write_text("one document\nof two lines")
    for name in ("folder", "b.jsonl.gz"):
        found = dataset_documents(str(tmp_path / name), text_column="body", streaming=streaming)
        assert [d.text for d in found] == [row["body"] for row in rows]
    assert [d.text for d in dataset_documents(str(tmp_path / "c.txt"), streaming=streaming)] == [
        "one document\nof two lines"
    ]
    by_line = dataset_documents(str(tmp_path / "c.txt"), sample_by="line", streaming=streaming)
    assert [d.text for d in by_line] == ["one document", "of two lines"]


def test_bad_sources_are_one_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(ValueError, match=r"data.text_column 'text' is not a column .* body"):
        list(dataset_documents(str(tmp_path / "a.jsonl")))
    with pytest.raises(ValueError, match="no local file"):
        list(dataset_documents("no/such-set"))
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\nnot json\n')
    (tmp_path / "c.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "d.jsonl").write_text("")
    for name, words in (("b", "could not be read"), ("c", "holds int, not text"), ("d", "could not be read")):
        with pytest.raises(ValueError, match=words):
            list(dataset_documents(str(tmp_path / f"{name}.jsonl")))
    typo = DataConfig(name=str(tmp_path / "b.jsonl"), validation="typo.jsonl")
    with pytest.raises(ValueError, match=r"'typo\.jsonl' is no local file"):
        load_corpus(typo, TokenizerConfig(vocab_size=280), progress=False)
    (tmp_path / "a.bin").write_text("x")
    with pytest.raises(ValueError, match="suffix"):
        list(dataset_documents(str(tmp_path / "a.bin")))


def test_a_corpus_is_built_once_and_again_when_its_text_changes(tmp_path):
    file = tmp_path / "c.txt"
    data, tokenizer = DataConfig(name=str(file), sample_by="line"), TokenizerConfig(vocab_size=280)
    file.write_text("\n".join(f"line number {i} of the text" for i in range(200)))
    one, again = (load_corpus(data, tokenizer, progress=False) for _ in range(2))
    assert one.facts == again.facts and len(one.stores["train"].tokens) > 0
    file.write_text(file.read_text() + "\nanother")
    assert load_corpus(data, tokenizer, progress=False).facts["fingerprint"] != one.facts["fingerprint"]


@pytest.mark.skipif("LEAPLM_DATA" not in os.environ, reason="LEAPLM_DATA names no folder of public sets")
def test_a_public_set_with_its_own_validation_file():
    root = Path(os.environ["LEAPLM_DATA"]) / "wikitext2"
    data = DataConfig(
        name=str(root / "pages_valid.jsonl.gz"), validation=str(root / "pages_test.jsonl.gz"), text_column="page"
    )
    corpus = load_corpus(data, TokenizerConfig(vocab_size=1000), progress=False)
    assert corpus.facts["train_tokens"] > 100_000 and corpus.facts["validation_tokens"] > 100_000
