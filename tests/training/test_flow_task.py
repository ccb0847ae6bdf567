"""Flow language models on the same loop: known tokens, teachers and codes change nothing of what it promises."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from flowlm import FlowLM, Known
from flowlm.blocks import Blocks
from flowmap.codebook import OneHot
from flowmap.objectives.tokens import TOKEN_OBJECTIVES, TokenStates
from flowmap.path import LinearPath
from tests.training.harness import (
    SMALL,
    assert_equal,
    killed_and_started_again,
    launch,
    losses,
    state,
    stopped,
    write_preset,
)
from training.block_watch import cost_by_block, in_blocks
from training.config import load_preset, override
from training.data.tokenizer import word_tokenizer
from training.loop import train
from training.run_dir import model_folder
from training.tasks import build

TINY = dict(
    flow__width=16, flow__depth=1, flow__heads=2, flow__state_size=4, training__batch_size=16, training__steps=8,
    training__checkpoint_every=3, training__evaluate_every=4, optimizer__warmup=2, **SMALL,
)  # fmt: skip
KINDS = {
    "suite": {"flow__codebook": "embedding"},
    "teacher": {"flow__options": {"teacher_decay": 0.9, "boundary": 0.5}},
    "two stages": {
        "flow__objective": "trajectory", "flow__denoiser_first": 0.5,
        "flow__options": {"teacher_decay": 0.9, "num_steps": 4, "jumps": 2, "times": "running"},
    },
    "carried": {
        "flow__objective": "trajectory", "flow__denoiser_first": 0.5,
        "flow__options": {"num_steps": 4, "jumps": 2, "boundary": 1.0, "carry": True, "memory": 4},
    },
    "two passes": {"flow__options": {"self_conditioning": 0.5, "fixed_point": 0.5}},
    "projected": {"flow__project": True},
    "blocks": {
        "data__suite": "brackets-8", "flow__block_lengths": [1, 4, 12], "flow__noise": "block",
        "flow__codebook": "embedding",
    },
    "tokens": {"flow__noise": "token", "flow__causal": True},
    "decoder": {"flow__decoder": "contextual", "flow__decoder_depth": 1, "flow__options": {"teacher_decay": 0.9}},
    "text": {"data__suite": None, "data__length": 12, "flow__prompts": 0.5, "tokenizer__kind": "bpe"},
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(6):
        (folder / f"{i}.txt").write_text("".join(f"row {j} of page {i} says {j * i % 7}\n" for j in range(40)))
    return str(folder)


@pytest.fixture
def config(text):
    def make(kind="suite", **more):
        where = {"data__name": text, "tokenizer__vocab_size": 300} if kind == "text" else {}
        return override(load_preset("flow-poker"), **{**TINY, **KINDS[kind], **where, **more})

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_nothing_but_rounding(config, tmp_path, kind):
    for accumulation in (1, 4):
        train(config(kind, training__accumulation=accumulation), tmp_path / str(accumulation), build, quiet=True)
    assert_equal(state(tmp_path / "1")["trainable"], state(tmp_path / "4")["trainable"], 5e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_between_checkpoints_ends_bit_identical(config, tmp_path, kind):
    train(config(kind), tmp_path / "whole", build, quiet=True)
    stopped(lambda: train(config(kind), tmp_path / "broken", build, quiet=True))
    train(config(kind), tmp_path / "broken", build, quiet=True)
    whole, broken = state(tmp_path / "whole"), state(tmp_path / "broken")
    for part in ("trainable", *(["teacher"] if kind in ("teacher", "decoder") else [])):
        assert_equal(whole[part], broken[part])
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


def test_a_killed_process_started_again_ends_bit_identical(config, tmp_path):
    more = {"training__steps": 60, "training__checkpoint_every": 1, "training__evaluate_every": 60}
    train(config("teacher", **more), tmp_path / "whole", build, quiet=True)
    preset = write_preset(tmp_path / "p.yaml", {**TINY, **KINDS["teacher"], **more}, extends="flow-poker")
    killed_and_started_again(preset, tmp_path / "killed")
    for part in ("trainable", "teacher"):
        assert_equal(state(tmp_path / "whole")[part], state(tmp_path / "killed")[part])
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


@pytest.mark.parametrize("kind", ["teacher", "projected", "decoder", "carried"])
def test_two_processes_give_the_parameters_of_one(config, tmp_path, kind):
    train(config(kind), tmp_path / "one", build, quiet=True)
    preset = write_preset(tmp_path / "p.yaml", {**TINY, **KINDS[kind]}, extends="flow-poker")
    process = launch([preset, "--run-dir", str(tmp_path / "two")], processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert json.loads((tmp_path / "two" / "provenance.json").read_text())["processes"] == 2
    assert_equal(state(tmp_path / "one")["trainable"], state(tmp_path / "two")["trainable"], 5e-5)


@pytest.mark.parametrize("preset", ["flow-block-brackets-8", "flow-forcing-brackets-8"])
def test_two_processes_draw_the_blocks_and_the_times_of_one(tmp_path, preset):
    """Lengths of blocks and the times of blocks and tokens are a sample's, whichever process has it."""
    settings = override(load_preset(preset), **TINY)
    train(settings, tmp_path / "one", build, quiet=True)
    written = write_preset(tmp_path / "p.yaml", TINY, extends=preset)
    process = launch([written, "--run-dir", str(tmp_path / "two")], processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert json.loads((tmp_path / "two" / "provenance.json").read_text())["processes"] == 2
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    assert_equal(one["trainable"], two["trainable"], 5e-5)
    fresh = {name: part.clone() for name, part in built(settings).model.state_dict().items()}
    assert any((fresh[name] - part).abs().max() > 1e-3 for name, part in one["trainable"].items())
    for (step, split, loss), other in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert other[:2] == (step, split) and other[2] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("kind", ["suite", "carried", "two passes", "text"])
def test_what_is_saved_loads_bit_equal_by_auto_class_and_writes(config, tmp_path, kind):
    final = train(config(kind), tmp_path / "run", build, quiet=True)
    assert {"loss", "cross_entropy", "few_step_kl"} <= set(final)
    model = AutoModel.from_pretrained(model_folder(tmp_path / "run"))
    assert isinstance(model, FlowLM) and model.config.length == (12 if kind == "text" else 6)
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert_equal(model.state_dict(), again.state_dict())
    torch.manual_seed(1)
    texts = model.generate(torch.tensor([[0, 3]]), num_steps=2, do_sample=True)
    torch.manual_seed(1)
    assert torch.equal(texts, again.generate(torch.tensor([[0, 3]]), num_steps=2, do_sample=True))


def test_prompts_of_a_suite_are_known_and_of_text_as_often_as_asked(config, tmp_path):
    def batch(kind, **more):
        from accelerate import Accelerator

        return build(config(kind, **more), Accelerator(cpu=True)).train.batch(0, torch.arange(400))

    hand = batch("suite")
    assert hand.scored.sum(1).tolist() == [2] * 400 and (hand.context.at == ~hand.scored).all()
    told = batch("text").context.at
    share = (told.sum(1) > 0).float().mean()
    assert 0.38 < share < 0.54  # half of the windows, one in twelve of which is told nothing after all
    assert (told.long().diff(dim=1) <= 0).all() and not told.all(1).any()  # beginnings, never whole windows
    assert batch("text", flow__prompts=0.0).context is None


@pytest.mark.parametrize("name", TOKEN_OBJECTIVES)
def test_every_objective_trains_a_flow_language_model(config, tmp_path, name):
    settings = override(config(), flow__objective=name)
    settings.flow.options.clear()
    assert train(settings, tmp_path / "run", build, quiet=True)["loss"] > 0


LAWS = ["uniform", "logit-normal", "decode-error", "decode-error-mixed", "running", "gumbel", "learned"]


def with_law(config, law, objective="cross-entropy", **more):
    """20 steps by this law, times spread evenly."""
    settings = config(flow__codebook="one-hot", flow__objective=objective, training__steps=20, **more)
    settings.flow.options.clear()
    settings.flow.options.update(times=law, low_discrepancy=True)
    return settings


@pytest.mark.parametrize("law", LAWS)
def test_every_law_of_time_trains_and_a_run_stopped_on_the_way_ends_bit_identical(config, tmp_path, law):
    settings = with_law(config, law, "vlb" if law == "learned" else "cross-entropy")
    assert train(settings, tmp_path / "whole", build, quiet=True)["loss"] > 0
    stopped(lambda: train(settings, tmp_path / "broken", build, quiet=True), step=15)
    train(settings, tmp_path / "broken", build, quiet=True)
    whole, broken = state(tmp_path / "whole"), state(tmp_path / "broken")
    for part in ("trainable", "objective"):
        assert_equal(whole[part], broken[part])
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    learns = law in ("running", "gumbel", "learned")
    assert bool(whole["objective"]) == learns


def assert_alike(one, other, tolerance=1e-3):
    """Each part to a share of its largest number: nats and tokens of some hundred, and their squares."""
    assert_equal(*({name: a / one[name].abs().max() for name, a in part.items()} for part in (one, other)), tolerance)


@pytest.mark.parametrize("law, objective", [("running", "kl-psd"), ("gumbel", "vlb"), ("learned", "vlb")])
def test_a_clock_hears_the_whole_batch_under_accumulation(config, tmp_path, law, objective):
    for accumulation in (1, 4):
        settings = with_law(config, law, objective, training__accumulation=accumulation)
        train(settings, tmp_path / str(accumulation), build, quiet=True)
    one, four = state(tmp_path / "1"), state(tmp_path / "4")
    assert_equal(one["trainable"], four["trainable"], 1e-4)
    assert_alike(one["objective"], four["objective"])
    if law != "learned":
        told = one["objective"]["times.told" if objective == "kl-psd" else "signal.times.told"]
        kept = sum(0.995**n for n in range(20)) * 16 * 2  # two scored tokens a hand
        share = 0.5 if objective == "kl-psd" else 1.0
        assert told[1].sum() == pytest.approx(share * kept, rel=0.15 if share < 1 else 1e-9)


@pytest.mark.parametrize("law, objective", [("running", "kl-psd"), ("learned", "vlb")])
def test_a_clock_of_two_processes_is_that_of_one(config, tmp_path, law, objective):
    more = {
        "flow__objective": objective,
        "flow__options": {"times": law, "low_discrepancy": True},
        "training__steps": 20,
    }
    if objective == "vlb":
        more["flow__options"] |= {"diagonal": None, "boundary": None}
    train(config(**more), tmp_path / "one", build, quiet=True)
    preset = write_preset(tmp_path / "p.yaml", {**TINY, **KINDS["suite"], **more}, extends="flow-poker")
    process = launch([preset, "--run-dir", str(tmp_path / "two")], processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    assert_equal(one["trainable"], two["trainable"], 1e-4)
    assert_alike(one["objective"], two["objective"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Of words that are not the suite's own, but hold them."""
    folder = str(tmp_path_factory.mktemp("encoder"))
    torch.manual_seed(0)
    words = word_tokenizer(["the hand is a high card one two pair full house straight royal flush"])
    size = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small_runs(tmp_path_factory):
    """A trunk and a masked diffusion model of the suite's words, trained here."""
    folder, tiny = tmp_path_factory.mktemp("small"), {"training__steps": 4, "training__batch_size": 8, **SMALL}
    masked = {**TINY, "flow__objective": "masked", "flow__codebook": "embedding"}
    settings = override(load_preset("flow-poker"), **masked)
    settings.flow.options.clear()
    train(settings, folder / "masked", build, quiet=True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    trunk = override(load_preset("poker"), trunk__config=sizes, head__name=None, **tiny)
    train(trunk, folder / "trunk", build, quiet=True)
    return folder


@pytest.mark.parametrize("kind", ["masked", "trunk"])
def test_codes_of_an_encoder_trained_here_survive_a_stop_and_never_move(config, small_runs, tmp_path, kind):
    more = {"flow__objective": "decoded", "flow__codebook": "contextual", "flow__encoder": str(small_runs / kind)}
    settings = config(**more, flow__noise_scale=2.0)
    settings.flow.options = {"self_conditioning": 0.5}
    final = train(settings, tmp_path / "whole", build, quiet=True)
    assert {"endpoint", "cross_entropy"} <= set(final)
    stopped(lambda: train(settings, tmp_path / "broken", build, quiet=True))
    train(settings, tmp_path / "broken", build, quiet=True)
    whole, broken = state(tmp_path / "whole"), state(tmp_path / "broken")
    assert_equal(whole["trainable"], broken["trainable"])
    model = AutoModel.from_pretrained(model_folder(tmp_path / "whole"))
    fresh = built(settings).model.codebook
    assert_equal(model.map.codebook.state_dict(), fresh.state_dict())
    tokens = torch.tensor([[0, 3, 4, 5, 6, 7]])
    assert torch.equal(model.map.codebook.encode(tokens), fresh.encode(tokens)) and fresh.encode(tokens).std() > 0.1
    out = model.generate(tokens[:, :2], num_steps=2, sampler="ddim", return_dict_in_generate=True)
    assert out.sequences.shape == (1, 6) and out.nfe == 5


def test_encoders_that_cannot_serve_are_one_line(config, encoder, earlier, tmp_path):
    for name, what in (
        (encoder, "has other tokens than this run"),
        (earlier, "is leaplm-flow: take a run of a trunk or of masked diffusion"),
        (str(tmp_path), "no run directory"),
    ):
        settings = config(flow__objective="decoded", flow__codebook="contextual", flow__encoder=name)
        settings.flow.options.clear()
        with pytest.raises(ValueError, match=what):
            train(settings, tmp_path / "run", build, quiet=True)


PRIOR = {"flow__prior": True, "flow__prior_ramp": 0.5, "training__steps": 20}


@pytest.mark.parametrize("kind", ["sphere", "table", "ramp", "ramp, teacher"])
def test_codes_and_ramps_survive_a_stop(config, encoder, tmp_path, kind):
    more = {
        "sphere": {"flow__codebook": "sphere", "flow__path": "slerp", "flow__objective": "cross-entropy", **PRIOR},
        "table": {"flow__codebook": "table", "flow__encoder": encoder, "flow__encoder_states": "hidden"},
        "ramp": PRIOR,
        "ramp, teacher": {**PRIOR, **KINDS["teacher"]},
    }[kind]
    settings = config(**more)
    if kind == "sphere":
        settings.flow.options.clear()
    train(settings, tmp_path / "whole", build, quiet=True)
    stopped(lambda: train(settings, tmp_path / "broken", build, quiet=True), step=6)
    train(settings, tmp_path / "broken", build, quiet=True)
    whole, broken = state(tmp_path / "whole"), state(tmp_path / "broken")
    for part in ("trainable", *(["teacher"] if "teacher" in kind else [])):
        assert_equal(whole[part], broken[part])
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    model = AutoModel.from_pretrained(model_folder(tmp_path / "whole"))
    assert not any("prior_share" in name for name in model.state_dict())
    if kind == "table":  # frozen, and saved with the model
        codes = model.map.codebook.codes()
        assert torch.equal(codes, whole["trainable"]["codebook.table"]) and not codes.requires_grad
        assert torch.allclose(codes.norm(dim=-1), torch.tensor(2.0))
    else:
        assert whole["trainable"]["prior_share"] == 1 and model.config.prior and model.map.prior_share is None


def test_the_filter_comes_in_over_the_ramp_and_is_whole_behind_it(config):
    from accelerate import Accelerator

    task = build(config(**PRIOR), Accelerator(cpu=True))
    x, t, shares = torch.randn(2, 6, 4), torch.tensor([0.3, 0.6]), []
    with torch.no_grad():
        for step in range(20):
            task.begin(step)
            shares.append(float(task.model.prior_share))
            own = task.model.codebook.prior_logits(x, 1 - t, t)
            assert torch.allclose(
                task.model.logits(x, t, t), shares[-1] * own, atol=1e-5
            )  # a fresh network adds nothing
    assert shares == pytest.approx([min(1, (n + 1) / 10) for n in range(20)])
    at_once = build(config(**{**PRIOR, "flow__prior_ramp": 0.0}), Accelerator(cpu=True))
    assert at_once.model.prior_share is None


def test_prompts_are_dropped_as_often_as_asked_and_what_is_scored_stays(config, tmp_path):
    def batch(kind, **more):
        return built(config(kind, **more)).train.batch(0, torch.arange(400))

    for kind in ("suite", "text"):
        plain, some = batch(kind), batch(kind, flow__prompt_dropout=0.25)
        assert plain.context.hidden is None and torch.equal(some.scored, plain.scored)
        assert torch.equal(some.context.at, plain.context.at)
        told = some.context.at.any(1)
        hidden = some.context.hidden[told]
        assert (hidden.any(1) == (hidden == some.context.at[told]).all(1)).all()  # all of a prompt, or nothing
        assert 0.17 < hidden.any(1).float().mean() < 0.33
    settings = config(flow__prompt_dropout=0.25)
    train(settings, tmp_path / "run", build, quiet=True)
    model = AutoModel.from_pretrained(model_folder(tmp_path / "run"))
    out = model.generate(torch.tensor([[0, 3]]), guidance=2.0, num_steps=2, return_dict_in_generate=True)
    assert out.nfe == 4
    for more, what in (
        ({"kind": "text", "flow__prompts": 0.0}, "set flow.prompts too"),
        ({"kind": "blocks"}, "always shown"),
    ):
        with pytest.raises(ValueError, match=what):
            built(config(flow__prompt_dropout=0.25, **more))


def test_block_lengths_are_drawn_for_each_sample_and_levels_follow_them(config):
    def batch(rows, **more):
        from accelerate import Accelerator

        return build(config("blocks", **more), Accelerator(cpu=True)).train.batch(3, rows)

    rows = torch.arange(600)
    whole = batch(rows)
    assert torch.equal(whole.context.tokens, whole.tokens) and (whole.context.known.at == ~whole.scored).all()
    often = torch.bincount(whole.context.size, minlength=13)
    assert often[[1, 4, 12]].min() > 160 and often.sum() == 600
    assert torch.equal(whole.levels, torch.arange(12) // whole.context.size[:, None])
    assert torch.equal(batch(rows[7:9]).context.size, whole.context.size[7:9])
    assert batch(rows, flow__noise="sample").levels is None
    assert (batch(rows, flow__noise="token").levels == torch.arange(12)).all()


@pytest.mark.parametrize("objective", ["cross-entropy", "masked"])
def test_blocks_are_watched_by_their_place(config, tmp_path, objective):
    none = {f"flow__options__{name}": None for name in ("diagonal", "boundary", "t_min")}
    train(config("blocks", flow__objective=objective, **none), tmp_path, build, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held = [row for row in rows if row["split"] == "validation"]
    watched = [{k: v for k, v in row.items() if "_block_" in k} for row in held]
    assert len(watched) == 2 and watched[0].keys() == watched[1].keys()  # blocks of prompts alone are not among them
    assert {f"{split}_block_2" for split in ("train", "held")} <= watched[0].keys()
    assert all(0 < v < 20 for row in watched for v in row.values())


def test_blocks_are_watched_on_as_many_windows_as_there_are(config, tmp_path):
    settings = config(
        "text", flow__block_lengths=[2, 4], flow__noise="block", training__batch_size=64, flow__prompts=0.0
    )
    assert train(settings, tmp_path, build, quiet=True)["held_block_1"] > 0


def test_a_block_that_is_known_by_heart_shows():
    """A model that says what the training windows hold, but nothing of their last block."""
    tokens = torch.randint(0, 5, (32, 6))
    place = torch.arange(6).expand_as(tokens)
    known = Known(tokens, torch.zeros_like(tokens, dtype=torch.bool))
    states = TokenStates(tokens, Blocks(tokens, torch.full((32,), 6), known), torch.ones_like(tokens, dtype=torch.bool))
    shown = in_blocks(states, [2, 6])
    assert torch.equal(shown.levels, place // 2) and shown.context.size.tolist() == [2] * 32
    learned = torch.nn.functional.one_hot(tokens, 5) * 20.0 * (place < 4)[..., None]

    class ByHeart(torch.nn.Module):
        path, codebook = LinearPath(), OneHot(5)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def logits(self, x_t, t, s, context):
            return learned

    other = in_blocks(replace(states, tokens=(tokens + 1) % 5), [2, 6])
    found = cost_by_block(ByHeart(), {"train": shown, "held": other})
    assert found["train_block_1"] < 0.01 < 15 < found["held_block_1"]
    assert (
        found["train_block_3"] == pytest.approx(found["held_block_3"]) == pytest.approx(torch.tensor(5.0).log().item())
    )


def test_wrong_options_are_one_line(config, tmp_path):
    with pytest.raises(ValueError, match="has no option 'boundary'; it has times, t_min"):
        settings = config(flow__objective="cross-entropy")  # which takes none of what the preset says
        settings.flow.options = {"boundary": 0.5}
        train(settings, tmp_path / "run", build, quiet=True)
    with pytest.raises(ValueError, match="cross-entropy, endpoint, kl-psd do not"):
        settings = config("tokens", flow__objective="vlb")
        settings.flow.options.clear()
        train(settings, tmp_path / "run", build, quiet=True)
    with pytest.raises(ValueError, match="objective decoded go together"):
        settings = config(flow__objective="decoded")
        settings.flow.options.clear()
        train(settings, tmp_path / "run", build, quiet=True)
    with pytest.raises(ValueError, match=r"flow\.denoiser_first needs a few-step objective"):
        settings = config(flow__objective="cross-entropy", flow__denoiser_first=0.5)
        settings.flow.options.clear()
        train(settings, tmp_path / "run", build, quiet=True)
    for more, what in (
        ({"flow__objective": "leap"}, "known are cross-entropy"),
        ({"flow__options": {"boundry": 1}}, "no option 'boundry'"),
        (
            {"flow__codebook": "one-hot", "flow__options": {"times": "noon"}},
            "known are uniform, logit-normal, running, gumbel, decode-error, decode-error-mixed$",
        ),
        (
            {"flow__codebook": "embedding", "flow__options": {"times": "decode-error"}},
            "known are uniform, logit-normal, running, gumbel$",
        ),
        ({"flow__options": {"low_discrepancy": 2}}, "true or false"),
        ({"flow__codebook": "table"}, "give both or neither"),
        ({"flow__codebook": "contextual"}, "give both or neither"),
        ({"flow__noise_scale": 2.0, "flow__codebook": "sphere", "flow__path": "slerp"}, "leave it at 1"),
        ({"flow__codebook": "sphere"}, "set the path slerp"),
        ({"flow__objective": "kl-psd", "flow__path": "cosine"}, "identities of the linear path, not of CosinePath"),
        ({"flow__options": {"diagonal": "x"}}, "must be a number"),
        ({"head__name": "independent"}, "exclude each other"),
        ({"flow__block_lengths": [4]}, r"4 does not divide a window of 6: \[1, 2, 3, 6\] do"),
        ({"flow__noise": "block"}, "needs block lengths"),
        ({"flow__learn_codes": False, "flow__codebook": "bits"}, "codes of bits are never learned"),
        ({"flow__decoder": "contextual", "flow__block_lengths": [3]}, "reads whole windows"),
    ):
        with pytest.raises(ValueError, match=what):
            train(config(**more), tmp_path / "run", build, quiet=True)


def test_codes_are_held_where_they_are_not_to_be_learned(config, tmp_path):
    found = {}
    for learn in (True, False):
        settings = config(flow__learn_codes=learn)
        before = built(settings).model.codebook.weight.clone()
        train(settings, tmp_path / str(learn), build, quiet=True)
        after = FlowLM.from_pretrained(model_folder(tmp_path / str(learn))).map.codebook.weight
        found[learn] = (after - before).abs().max()
    assert found[False] == 0 < found[True]


def test_a_training_may_begin_with_the_denoiser_alone(config, tmp_path):
    settings = config(flow__denoiser_first=0.5, training__steps=4, training__log_every=1)
    train(settings, tmp_path / "run", build, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    few = [line["few_step_kl"] for line in lines if line["split"] == "train"]
    assert few[:2] == [0, 0] and min(few[2:]) > 0


def test_a_run_that_was_begun_without_a_share_for_the_denoiser_goes_on(config, tmp_path):
    """Configurations once said 0.0 where they say nothing today."""
    train(config(training__steps=2), tmp_path / "run", build, quiet=True)
    file = tmp_path / "run" / "config.yaml"
    assert "denoiser_first: null" in file.read_text()
    file.write_text(file.read_text().replace("denoiser_first: null", "denoiser_first: 0.0"))
    train(config(training__steps=2), tmp_path / "run", build, quiet=True)
    assert config(flow__denoiser_first=0.0).flow.denoiser_first is None


def test_a_run_does_not_go_on_under_other_rules(config, tmp_path, monkeypatch):
    train(config(training__steps=4), tmp_path / "run", build, quiet=True)
    monkeypatch.setattr(TOKEN_OBJECTIVES[config().flow.objective], "version", 99)
    with pytest.raises(ValueError, match="version of its objective"):
        train(config(training__steps=4), tmp_path / "run", build, quiet=True)


# What is learned from besides data.


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier") / "run"
    train(override(load_preset("flow-poker"), **TINY), folder, build, quiet=True)
    return str(folder)


def built(settings):
    from accelerate import Accelerator

    return build(settings, Accelerator(cpu=True))


def test_a_run_may_begin_with_the_weights_of_another_and_a_second_passs_input_begins_at_nothing(config, earlier):
    ours, fresh = built(config(flow__start=earlier)).model, built(config()).model
    theirs = FlowLM.from_pretrained(model_folder(earlier)).map
    assert_equal(ours.state_dict(), theirs.state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(ours.parameters(), fresh.parameters(), strict=True))
    told = built(config("two passes", flow__start=earlier)).model
    assert not told.network.read_self.weight.any()
    x, t = torch.randn(3, 6, 4), torch.full((3,), 0.5)
    assert torch.equal(told.logits(x, t, t, self_cond=torch.ones_like(x)), theirs.logits(x, t, t))


def test_a_frozen_teacher_gives_its_codes_and_neither_moves(config, earlier, tmp_path):
    settings = config(flow__teacher=earlier, flow__options={"boundary": 0.5})
    train(settings, tmp_path / "run", build, quiet=True)
    theirs, ours = (FlowLM.from_pretrained(model_folder(run)).map for run in (earlier, tmp_path / "run"))
    assert torch.equal(theirs.codebook.weight, ours.codebook.weight)
    assert not torch.equal(theirs.network.write.weight, ours.network.write.weight)
    task = built(settings)
    before = [p.clone() for p in task.objective.frozen[0].parameters()]
    assert not list(task.objective.parameters()) and all(
        not p.requires_grad for p in task.objective.frozen[0].parameters()
    )
    assert all(torch.equal(a, b) for a, b in zip(before, theirs.parameters(), strict=True))


def test_a_projected_gradient_does_not_fight_the_denoisers(config):
    """Against a double backward over the same batch, as the definition says."""
    from accelerate import Accelerator

    from flowmap.rng import Rng
    from training.projection import Projection

    task = built(config(flow__options={"diagonal": 0.5, "boundary": 0.5}))
    accelerator, parameters = Accelerator(cpu=True), list(task.model.parameters())
    for part in parameters:
        part.data += 0.3 * torch.randn(part.shape, generator=torch.Generator().manual_seed(3))

    def loss(low, high):
        rows = torch.arange(low, high)
        return task.objective(task.model, task.train.batch(0, rows), rng=Rng(0, rows, 0), step=0)

    def flat(total):
        found = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
        )

    whole = loss(0, 64)
    local, few = flat(whole.sum - whole.few_step), flat(whole.few_step)
    for sign in (1.0, -1.0):  # one of the two fights
        projection = Projection(parameters)
        for low in (0, 16, 32, 48):
            part = loss(low, low + 16)
            projection.add(type(part)(part.sum + (sign - 1) * part.few_step, part.count, few_step=sign * part.few_step))
        projection.settle(lambda part: accelerator.reduce(part, "sum"))
        found = torch.cat([p.grad.flatten() for p in parameters]) - local
        against = min(0.0, float(sign * local @ few))
        assert torch.allclose(found, sign * few - against / (local @ local) * local, atol=1e-3 * float(few.abs().max()))
        assert found @ local > -1e-3 * local.norm() * few.norm()


def test_what_cannot_be_learned_from_is_one_line(config, earlier, tmp_path):
    for more, what in (
        ({"flow__start": earlier, "flow__width": 32}, r"flow.start .* sizes differ"),
        ({"flow__start": earlier, "flow__time_scale": 7.0}, r"flow.start .* has time_scale .*, here 7.0: they must"),
        ({"flow__start": str(tmp_path)}, "no run directory"),
        ({"flow__teacher": earlier, "flow__noise_scale": 2.0}, "has noise_scale 1.0, this run 2.0"),
        ({"flow__teacher": earlier, "data__suite": "brackets-8"}, "has other tokens"),
        (
            {"flow__teacher": earlier, "flow__objective": "cross-entropy", "flow__options": {}},
            "needs a few-step objective",
        ),
        ({"flow__project": True, "flow__objective": "vlb", "flow__options": {}}, "flow.project needs an objective"),
    ):
        with pytest.raises(ValueError, match=what):
            settings = config(**{k: v for k, v in more.items() if k != "flow__options"})
            settings.flow.options = more.get("flow__options", settings.flow.options)
            train(settings, tmp_path / "run", build, quiet=True)


def test_a_weight_that_carries_is_left_alone_while_the_denoiser_is_trained_alone(config, tmp_path):
    """No decay, and no second moment of zeros, behind which its first gradient would be a leap."""
    moved = {}
    for share in (0.5, 0.95):
        settings = config("carried", flow__denoiser_first=share, training__steps=4)
        before = built(settings).model.network.read_self.weight.clone()
        train(settings, tmp_path / str(share), build, quiet=True)
        moved[share] = (state(tmp_path / str(share))["trainable"]["network.read_self.weight"] - before).abs().max()
    assert moved[0.95] == 0 < moved[0.5]
