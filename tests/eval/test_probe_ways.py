"""Any causal LM on anybody's cases: joint, drawn apart, or verified, against enumeration of the model's own law."""

import itertools
import json

import pytest
import torch
from scipy import stats

import leaplm
from eval.loading import load_run
from eval.validity.cases import load_cases
from eval.validity.probe import probe
from eval.validity.suites import Suite
from eval.validity.ways import Way
from tests.eval.harness_models import bpe_model, word_model

HANDS = {"the hand is": ["high card", "one pair", "full house"], "we say": ["one card", "high pair"]}
NUM = 8000


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    file = tmp_path_factory.mktemp("cases") / "cases.jsonl"
    rows = [{"prompt": prompt, "texts": texts} for prompt, texts in HANDS.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def words():
    return [*HANDS, *itertools.chain(*HANDS.values())]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, words):
    return word_model(tmp_path_factory.mktemp("plain"), words, std=0.5)


@torch.no_grad()
def law_of_trunk(run, prompt):
    """(V, V): the trunk's own law of the two words after a prompt."""
    size = len(run.tokenizer)
    start = [0, *run.tokenizer.encode(prompt)]
    first = run.model(torch.tensor([start])).logits[0, -1].softmax(-1)
    second = run.model(torch.tensor([[*start, token] for token in range(size)])).logits[:, -1].softmax(-1)
    return first[:, None] * second


def chance(done, prompt, law, run):
    """p-value of all drawn pairs of words under a law (V, V); rare pairs are counted together."""
    drawn = torch.zeros_like(law)
    for text, count in done.counts[prompt].items():
        first, second = run.tokenizer.encode(text)
        drawn[first, second] += count
    expected = law * drawn.sum()
    often = expected >= 5
    seen = [*drawn[often].tolist(), drawn[~often].sum().item()]
    wanted = [*expected[often].tolist(), expected[~often].sum().item()]
    return stats.chisquare(seen, torch.tensor(wanted).double() * sum(seen) / sum(wanted)).pvalue


@pytest.mark.parametrize("decoder", ["joint", "independent", "verified"])
def test_a_plain_causal_lm_is_drawn_by_every_decoder_as_its_own_law_says(plain, cases, decoder):
    run = load_run(plain)
    done = probe(run, load_cases(cases), num=NUM, way=Way(decoder))
    for prompt in HANDS:
        law = law_of_trunk(run, prompt)
        apart = law.sum(1)[:, None] * law.sum(0)
        right, wrong = (apart, law) if decoder == "independent" else (law, apart)
        assert chance(done, prompt, right, run) > 1e-3 and chance(done, prompt, wrong, run) < 1e-10
    contract = done.records[0]["contract"]
    assert contract["verify"] == ("jacobi" if decoder == "verified" else "none")
    assert done.subject == ("marginals" if decoder == "independent" else "trunk")


@pytest.mark.parametrize(("decoder", "verify"), [("verified", "token"), ("verified", "block"), ("independent", None)])
def test_a_head_is_judged_by_its_trunk_or_drawn_apart(tmp_path, words, cases, decoder, verify):
    run = load_run(word_model(tmp_path, words, "recurrent-chain", 2, std=0.5, rank=4))
    done = probe(run, load_cases(cases), num=NUM, way=Way(decoder, verify))
    for prompt in HANDS:
        law = law_of_trunk(run, prompt)
        if decoder == "independent":
            size = len(run.tokenizer)
            hidden, _ = run.model.states(torch.tensor([[0, *run.tokenizer.encode(prompt)]]))
            blocks = torch.tensor(list(itertools.product(range(size), repeat=2)))
            context = run.model.context(hidden[:, -1].expand(len(blocks), -1))
            own = run.model.head.log_prob(context, blocks).sum(1).exp().view(size, size).detach()
            law = own.sum(1)[:, None] * own.sum(0)
        assert chance(done, prompt, law, run) > 1e-3


def test_answers_drawn_apart_do_not_depend_on_the_batch_and_end_where_a_draw_ends(plain):
    suite = Suite("lengths", {"we say": {"one": 0.5, "full house": 0.5}})
    run = load_run(plain)
    one, other = (probe(run, suite, num=90, batch=batch, way=Way("independent")).counts for batch in (90, 7))
    assert one == other and sum(one["we say"].values()) == 90
    assert not any("endoftext" in text for text in one["we say"])


def test_an_open_ending_reads_the_longest_answer_that_the_text_begins_with(plain, cases):
    suite = Suite("lengths", {"we say": {"one": 0.5, "one pair": 0.5}})
    run = load_run(plain)
    law = law_of_trunk(run, "we say")
    done = probe(run, suite, num=NUM, way=Way(ending="any"))
    one, pair = run.tokenizer.encode("one pair")
    wanted = {"one pair": law[one, pair].item(), "one": (law[one].sum() - law[one, pair]).item()}
    for text, p in wanted.items():
        assert abs(done.counts["we say"][text] / NUM - p) < 4 * (p * (1 - p) / NUM) ** 0.5 + 2e-3
    # two words, of models that split words into pieces: what goes on beyond the answer's last letter is another word
    pieces = load_run(bpe_model(cases.parent / "pieces"))
    assert set(probe(pieces, load_cases(cases), num=200, way=Way(ending="any")).counts) == set(HANDS)


def test_the_command_takes_any_model_and_several_decoders_at_once(plain, cases, tmp_path, capsys):
    out = tmp_path / "p.json"
    argv = ["probe", plain, "--suite", str(cases), "--num", "200", "--json", str(out)]
    assert leaplm.main([*argv, "--decoder", "joint", "independent", "verified", "--ending", "any"]) == 0
    shown = capsys.readouterr().out
    assert "marginals" in shown and "jacobi" in shown
    validity = [r for r in json.loads(out.read_text())["results"] if r["metric"] == "validity"]
    assert [(r["subject"], r["contract"]["verify"]) for r in validity] == [
        ("trunk", "none"), ("marginals", "none"), ("trunk", "jacobi"),
    ]  # fmt: skip
    assert leaplm.main([*argv[:4], "--decoder", "verified", "--verify", "token"]) == 2
    assert "blocks of at least 2 tokens" in capsys.readouterr().err


def test_what_is_no_way_is_refused():
    for options in ({"decoder": "beam"}, {"verify": "vote"}, {"ending": "soon"}):
        with pytest.raises(ValueError, match="known are"):
            Way(**options)
