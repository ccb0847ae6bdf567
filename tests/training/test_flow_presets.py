"""Published systems as presets: each trains, is saved, and writes, at a size of a few seconds."""

import pytest
import torch
from transformers import AutoModel

import flowlm  # noqa: F401  # registers the models
from eval.flow import load_flow, samplings
from tests.training.harness import SMALL
from training.config import load_preset, override, preset_names
from training.loop import train
from training.run_dir import model_folder
from training.tasks import build

CHARACTERS = sorted(
    name for name in preset_names() if name.startswith("flow-") and load_preset(name).tokenizer.kind == "characters"
)

TWO_TIMES = {"flow-block-flow", "flow-cfm", "flow-dfm-esd", "flow-dfm-psd", "flow-fmlm", "flow-forcing", "flow-leap"}
"""Those whose network is told where a jump lands."""
TAUGHT_THEIR_JUMPS = {"flow-leap", "flow-block-flow"}
"""Those that write by the jumps that they were taught unless told another grid."""
STAGES = {"flow-dfm": 0.85, "flow-dfm-psd": 0.15, "flow-dfm-esd": 0.15}
"""Of one training in two stages, the share of each."""
OF_BLOCKS = {"flow-bd3lm", "flow-block-flow"}
"""Those that read every window twice, and as many as fit into the same minutes."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog and the dog sleeps on\n" * 80)
    small = {"flow__width": 16, "flow__depth": 1, "flow__heads": 2, "training__batch_size": 8, "training__steps": 4}
    return {"data__name": str(file), "data__length": 128, **small, **SMALL}


@pytest.fixture(scope="module")
def earlier(tiny, tmp_path_factory):
    """A run of a preset, trained when it is asked for."""
    folder = tmp_path_factory.mktemp("earlier")

    def run(name):
        if not (folder / name).exists():
            train(override(load_preset(name), **tiny), folder / name, build, quiet=True)
        return str(folder / name)

    return run


@pytest.mark.parametrize("name", CHARACTERS)
def test_every_preset_of_characters_trains_and_writes(name, tiny, earlier, tmp_path):
    config = override(load_preset(name), **tiny)
    assert config.flow.name == name
    for part in ("start", "teacher", "encoder"):
        if default := getattr(config.flow, part):
            assert default.startswith("runs/flow-")
            setattr(config.flow, part, earlier(default.removeprefix("runs/")))
    if config.flow.encoder:
        config.flow.state_size = 8  # of the 16 of this small encoder
    loss = train(config, tmp_path / "run", build, quiet=True)["loss"]
    if config.flow.teacher:  # where it begins
        assert abs(loss) < 1e-3
    else:
        assert loss > 0
    model = AutoModel.from_pretrained(model_folder(tmp_path / "run"), dtype=torch.float32)
    told = {"flow-ar": "causal", **dict.fromkeys(("flow-mdlm", "flow-bd3lm", "flow-k-step"), "ancestral")}
    assert model.generation_config.sampler == told.get(name, "pushforward" if name in TWO_TIMES else "ddim")
    grid = "closing" if name in TAUGHT_THEIR_JUMPS else None
    assert getattr(model.generation_config, "grid", None) == grid
    (how,) = samplings(load_flow(str(tmp_path / "run")), (2,))
    assert how.options.get("grid") == grid
    out = model.generate(torch.zeros(1, 1, dtype=torch.long), max_new_tokens=8, return_dict_in_generate=True)
    assert out.sequences.shape[1] <= 9 and out.nfe >= 1


def test_presets_differ_in_nothing_but_what_they_are():
    """One network, one text, one budget of tokens: else a table of them says nothing."""
    shared = ("data", "tokenizer", "optimizer", "seed")
    first = load_preset("flow-flm")
    for name in CHARACTERS:
        config = load_preset(name)
        if name in STAGES:  # a short one warms up for as much shorter
            config.optimizer.warmup = first.optimizer.warmup
        assert all(getattr(config, part) == getattr(first, part) for part in shared), name
        size = ("width", "depth", "heads", "positions")
        assert all(getattr(config.flow, part) == getattr(first.flow, part) for part in size), name
        windows = config.training.steps * config.training.batch_size
        share = 1 / 3 if name in OF_BLOCKS else STAGES.get(name, 1)
        assert windows == pytest.approx(share * first.training.steps * first.training.batch_size)


@pytest.mark.parametrize("name", CHARACTERS)
def test_maps_have_smooth_times_and_flows_spread_theirs(name):
    flow = load_preset(name).flow
    assert name not in TWO_TIMES or flow.time_scale == 10
    assert name in ("flow-ar", "flow-k-step") or flow.options["low_discrepancy"] is True
