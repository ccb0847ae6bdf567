"""One loop: the result depends on the configuration alone, not on ranks, micro-batches or interruptions."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from flowmap.rng import Rng
from mtp import MTPForCausalLM
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
from training.config import OptimizerConfig, load_preset, override
from training.hardware import resolve_precision
from training.loop import train
from training.mtp_task import build
from training.run_dir import RunDir, model_folder
from training.schedules import learning_rate
from training.slices import SliceLoss


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A hundred small documents and the settings of a small trunk on them."""
    file = tmp_path_factory.mktemp("text") / "corpus.txt"
    file.write_text(
        "\n".join(f"the {'abcdefgh'[i % 8] * (i % 5 + 1)} number {i} is {i * i % 97} and no more" for i in range(100))
    )
    return dict(
        data__name=str(file), data__sample_by="line", data__length=16, tokenizer__vocab_size=300,
        trunk__config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        head__name="block-chain", head__block_size=3, head__rank=8,
        training__steps=8, training__batch_size=8, training__checkpoint_every=3, training__evaluate_every=4, **SMALL,
    )  # fmt: skip


def config(settings, **more):
    return override(load_preset("stdlib-trunk"), **{**settings, **more})


def weights(run):
    return MTPForCausalLM.from_pretrained(model_folder(run)).state_dict()


def test_a_run_is_trained_by_one_process_at_a_time(text, tmp_path):
    run, foreign = tmp_path / "run", tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    with RunDir(run).alone():
        with pytest.raises(ValueError, match="trained by another process"):
            train(config(text), run, build, quiet=True)
        assert not (run / "config.yaml").exists()
    assert not run.exists()  # nothing was begun
    with pytest.raises(ValueError, match="holds no run"):
        train(config(text), foreign, build, quiet=True)
    assert [p.name for p in foreign.iterdir()] == ["thesis.tex"]
    train(config(text), run, build, quiet=True)
    assert train(config(text), run, build, quiet=True) == {}  # let go of: there is nothing left to do
    metrics, inode = run / "metrics.jsonl", (run / "metrics.jsonl").stat().st_ino
    with RunDir(run).alone():  # what is finished is nobody's to write
        assert train(config(text), run, build, quiet=True) == {}
    assert metrics.stat().st_ino == inode  # not made again while others read it


def test_a_run_leaves_what_it_promises(text, tmp_path):
    run = tmp_path / "run"
    final = train(config(text), run, build, quiet=True)
    assert {"config.yaml", "command.txt", "provenance.json", "metrics.jsonl", "checkpoints"} <= {
        p.name for p in run.iterdir()
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in lines if r["split"] == "train"] == [2, 3, 4, 6, 8]
    assert [r["step"] for r in lines if r["split"] == "validation"] == [4, 8]
    assert {"loss", "nll_1", "nll_2", "nll_3", "grad_norm", "lr", "train_tokens_per_second"} <= lines[0].keys()
    assert final["nll_1"] == lines[-1]["nll_1"]
    facts = json.loads((run / "provenance.json").read_text())
    assert {"versions", "git", "threads", "precision", "fingerprint", "verbatim_share"} <= facts.keys()
    folder = model_folder(run)
    assert RunDir(run).steps() == [8]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, MTPForCausalLM) and len(tokenizer) == model.get_output_embeddings().weight.shape[0]


def test_what_is_saved_is_the_average_and_what_is_resumed_the_weights(text, tmp_path):
    train(config(text), tmp_path / "a", build, quiet=True)
    saved, kept = weights(tmp_path / "a"), state(tmp_path / "a")
    averaged = {k.removeprefix("module."): v for k, v in kept["average"].items() if k.startswith("module.")}
    assert_equal(saved, averaged)
    assert any(not torch.equal(kept["trainable"][k], averaged[k]) for k in averaged)
    train(config(text, training__ema=None), tmp_path / "b", build, quiet=True)
    assert_equal(weights(tmp_path / "b"), kept["trainable"])


@pytest.mark.parametrize("frozen", [False, True])
def test_accumulation_changes_nothing_but_rounding(text, tmp_path, frozen):
    more = {}
    if frozen:
        train(config(text, head__name=None), tmp_path / "trunk", build, quiet=True)
        more = {"trunk__pretrained": str(tmp_path / "trunk"), "trunk__frozen": True, "head__anchor_fraction": 0.5}
    for accumulation in (1, 4):
        run = tmp_path / str(accumulation)
        train(config(text, training__accumulation=accumulation, **more), run, build, quiet=True)
    assert_equal(state(tmp_path / "1")["trainable"], state(tmp_path / "4")["trainable"], 2e-5)


def test_cached_states_train_the_same_head(text, tmp_path):
    train(config(text, head__name=None), tmp_path / "trunk", build, quiet=True)
    for cached in (False, True):
        settings = config(
            text, trunk__pretrained=str(tmp_path / "trunk"), trunk__frozen=True, trunk__cache_states=cached
        )
        train(settings, tmp_path / f"cached-{cached}", build, quiet=True)
    assert_equal(state(tmp_path / "cached-True")["trainable"], state(tmp_path / "cached-False")["trainable"], 2e-5)
    trunk = weights(tmp_path / "trunk")
    assert_equal(trunk, {k: v for k, v in weights(tmp_path / "cached-True").items() if k in trunk})


@pytest.mark.parametrize("muon", [False, True])
def test_a_run_stopped_between_checkpoints_ends_bit_identical(text, tmp_path, muon):
    text = {**text, "optimizer__muon": muon}
    train(config(text), tmp_path / "whole", build, quiet=True)
    # after the checkpoint of step 3, before that of step 6
    stopped(lambda: train(config(text), tmp_path / "broken", build, quiet=True))
    (tmp_path / "broken" / "checkpoints" / "step-6.partial").mkdir()
    with open(tmp_path / "broken" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "spl')  # killed in the middle of a line
    train(config(text), tmp_path / "broken", build, quiet=True)
    assert_equal(state(tmp_path / "whole")["trainable"], state(tmp_path / "broken")["trainable"])
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


@pytest.mark.parametrize("accumulation", [1, 4])
def test_two_processes_give_the_parameters_of_one(text, tmp_path, accumulation):
    train(config(text), tmp_path / "one", build, quiet=True)
    preset = write_preset(tmp_path / "p.yaml", {**text, "training__accumulation": accumulation})
    process = launch([preset, "--run-dir", str(tmp_path / "two")], processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert json.loads((tmp_path / "two" / "provenance.json").read_text())["processes"] == 2
    assert_equal(state(tmp_path / "one")["trainable"], state(tmp_path / "two")["trainable"], 2e-5)
    for (step, split, loss), other in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert (step, split) == other[:2] and loss == pytest.approx(other[2], abs=1e-4)


def test_a_killed_process_started_again_ends_bit_identical(text, tmp_path):
    settings = {**text, "training__steps": 60, "training__checkpoint_every": 1, "training__evaluate_every": 60}
    train(config(settings), tmp_path / "whole", build, quiet=True)
    killed_and_started_again(write_preset(tmp_path / "p.yaml", settings), tmp_path / "killed")
    assert_equal(state(tmp_path / "whole")["trainable"], state(tmp_path / "killed")["trainable"])
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_another_configuration_in_the_same_folder_is_refused_and_nothing_lost(text, tmp_path):
    train(config(text), tmp_path / "run", build, quiet=True)
    before = weights(tmp_path / "run")
    with pytest.raises(ValueError, match=r"another optimizer.lr.*--run-dir"):
        train(config(text, optimizer__lr=0.5), tmp_path / "run", build, quiet=True)
    assert_equal(before, weights(tmp_path / "run"))


def test_a_run_killed_before_it_began_starts_anew_and_a_strange_folder_is_left_alone(text, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "command.txt").write_text("leaplm train")
    (tmp_path / "run" / "config.yaml.partial-1").write_text("seed:")
    train(config(text), tmp_path / "run", build, quiet=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="holds no run"):
        train(config(text), tmp_path / "mine", build, quiet=True)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_bf16_autocast_keeps_weights_and_likelihoods_in_fp32(text, tmp_path):
    for precision in ("float32", "bfloat16"):
        train(config(text, training__precision=precision), tmp_path / precision, build, quiet=True)
    kept = state(tmp_path / "bfloat16")["trainable"]
    assert all(v.dtype == torch.float32 for v in kept.values())
    assert json.loads((tmp_path / "bfloat16" / "provenance.json").read_text())["precision"] == "bfloat16"
    pairs = list(zip(losses(tmp_path / "float32"), losses(tmp_path / "bfloat16"), strict=True))
    assert all(one[2] == pytest.approx(other[2], rel=0.02) for one, other in pairs)
    assert any(one[2] != other[2] for one, other in pairs)


@pytest.mark.parametrize(
    "length, precision, fused", [(16, "bfloat16", False), (512, "bfloat16", True), (16, "float32", True)]
)
def test_short_bf16_windows_on_cpus_leave_fused_attention_out(length, precision, fused):
    """Of a trunk of transformers too, which knows nothing of it."""
    trunk = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )

    def objective(model, batch, *, teacher, rng, step):
        model(batch.tokens).logits.sum().backward()

    batch = SimpleNamespace(tokens=torch.zeros(1, length, dtype=torch.long))
    with torch.profiler.profile() as profile:
        SliceLoss(trunk, objective, precision)(batch, Rng(0), 0)
    assert any("scaled_dot_product" in event.name for event in profile.events()) == fused


@pytest.mark.parametrize(
    "amx, avx, expected", [(True, True, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")]
)
def test_auto_precision_is_what_the_processor_is_good_at(monkeypatch, amx, avx, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert resolve_precision("auto", torch.device("cpu")) == expected
    assert resolve_precision("float32", torch.device("cpu")) == "float32"
    assert resolve_precision("auto", torch.device("cuda")) == "bfloat16"


def test_a_first_attempt_that_failed_does_not_block_its_folder(text, tmp_path):
    with pytest.raises(ValueError, match="block-chain"):
        train(config(text, head__name="blok-chain"), tmp_path / "run", build, quiet=True)
    with pytest.raises(ValueError, match="not finite"):
        train(
            config(text, optimizer__lr=1e38, optimizer__warmup=0, training__precision="bfloat16"),
            tmp_path / "run",
            build,
            quiet=True,
        )
    train(config(text), tmp_path / "run", build, quiet=True)
    assert RunDir(tmp_path / "run").provenance()["precision"] == "float32"
    assert RunDir(tmp_path / "run").steps() == [8]


def test_a_run_whose_inputs_have_changed_is_not_continued(text, tmp_path):
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"prompt": "go", "texts": ["left now", "right now"]}')
    settings = override(
        load_preset("probe-cases"), **SMALL, data__cases=str(cases), training__steps=2, training__batch_size=8
    )
    train(settings, tmp_path / "run", build, quiet=True)
    cases.write_text('{"prompt": "go", "texts": ["left now", "right now", "up now"]}')
    with pytest.raises(ValueError, match="another data"):
        train(settings, tmp_path / "run", build, quiet=True)
    train(config(text, head__name=None), tmp_path / "trunk", build, quiet=True)
    head = config(text, trunk__pretrained=str(tmp_path / "trunk"), trunk__frozen=True)
    train(head, tmp_path / "head", build, quiet=True)
    longer = config(text, head__name=None, training__steps=9)
    shutil.rmtree(tmp_path / "trunk")
    train(longer, tmp_path / "trunk", build, quiet=True)
    with pytest.raises(ValueError, match="another trunk"):
        train(head, tmp_path / "head", build, quiet=True)


def test_every_text_begins_with_a_token_the_trunk_can_see(text, tmp_path):
    train(config(text), tmp_path / "run", build, quiet=True)
    model = MTPForCausalLM.from_pretrained(model_folder(tmp_path / "run"))
    begin = AutoTokenizer.from_pretrained(model_folder(tmp_path / "run")).bos_token_id
    assert model.get_input_embeddings().weight[begin].norm() > 0
    assert model.get_input_embeddings().padding_idx is None


def test_a_batch_that_does_not_divide_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="8 does not divide into 1 processes × 3"):
        train(config(text, training__accumulation=3), tmp_path / "run", build, quiet=True)


def test_a_loss_that_blows_up_stops_the_run_and_says_so(text, tmp_path):
    with pytest.raises(ValueError, match=r"not finite at step .* lower optimizer.lr"):
        train(config(text, optimizer__lr=1e38, optimizer__warmup=0), tmp_path / "run", build, quiet=True)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_any_architecture_trains_from_a_config(text, tmp_path, architecture):
    sizes = text["trunk__config"]
    if architecture == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    # the preset's sizes are another architecture's: start from none
    settings = override(load_preset("poker"), **SMALL, training__steps=4, training__batch_size=32)
    settings.trunk.architecture, settings.trunk.config = architecture, sizes
    train(settings, tmp_path / architecture, build, quiet=True)
    assert MTPForCausalLM.from_pretrained(model_folder(tmp_path / architecture)).trunk.config.model_type == architecture


def test_a_pretrained_trunk_by_path_with_its_own_tokenizer(text, tmp_path):
    train(config(text, head__name=None), tmp_path / "run", build, quiet=True)
    run = MTPForCausalLM.from_pretrained(model_folder(tmp_path / "run"))
    run.trunk.save_pretrained(tmp_path / "plain")  # what transformers itself would have saved
    AutoTokenizer.from_pretrained(model_folder(tmp_path / "run")).save_pretrained(tmp_path / "plain")
    settings = config(text, trunk__pretrained=str(tmp_path / "plain"), tokenizer__kind="pretrained", trunk__frozen=True)
    train(settings, tmp_path / "head", build, quiet=True)
    trained = weights(tmp_path / "head")
    assert_equal(
        {f"trunk.{k}": v for k, v in run.trunk.state_dict().items()},
        {k: v for k, v in trained.items() if k.startswith("trunk.")},
    )


@pytest.mark.parametrize("decay, last", [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)])
def test_the_learning_rate_is_a_function_of_the_step(decay, last):
    c = OptimizerConfig(lr=2.0, min_lr_ratio=0.1, warmup=10, decay=decay)
    rates = [learning_rate(step, 110, c) for step in range(111)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0)
    assert rates[110] == pytest.approx(2.0 * last) and max(rates) == pytest.approx(2.0)
