import dataclasses

import pytest

from training.config import RunConfig, difference, known_keys, load_preset, override, preset_names, to_dict, validate


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name):
    assert isinstance(load_preset(name), RunConfig)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"training": {"step": 3}}, ["training.step", "training.steps"]),
        ({"trainin": {"steps": 3}}, ["trainin"]),
        ({"head": {"blocksize": 3}}, ["head.blocksize", "head.block_size"]),
        ({"training": {"steps": "3"}}, ["training.steps", "'3'", "integer"]),
        ({"training": {"steps": 2.5}}, ["training.steps", "2.5"]),
        ({"optimizer": {"decay": "cosin"}}, ["optimizer.decay", "'cosine'"]),
        ({"data": {"streaming": 1}}, ["data.streaming", "boolean"]),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_the_mend(values, words):
    with pytest.raises(ValueError) as caught:
        validate(values, "preset x")
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_presets_extend_one_another(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: poker\nhead: {block_size: 3}\ntrunk: {config: {num_hidden_layers: 2}}\n")
    mine, poker = load_preset(str(file)), load_preset("poker")
    assert difference(to_dict(poker), to_dict(mine)) == ["head.block_size", "trunk.config.num_hidden_layers"]


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean poker"):
        load_preset("pokr")


def test_override_changes_that_and_nothing_else():
    base = load_preset("poker")
    changed = override(base, training__steps=7, head__name="independent")
    assert difference(to_dict(base), to_dict(changed)) == ["head.name", "training.steps"]
    assert base.training.steps != 7


def test_known_keys_are_the_leaves():
    keys = known_keys()
    assert "training.steps" in keys and "seed" in keys and "training" not in keys
    assert len(keys) == len(set(keys)) > len(dataclasses.fields(RunConfig))
