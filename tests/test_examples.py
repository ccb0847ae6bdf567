import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_head_attached_by_hand_learns_what_no_independent_head_can_say(capsys):
    assert load("attach_a_head").main() > 0.95
    assert "2 tokens a pass" in capsys.readouterr().out


def test_one_backbone_serves_images_tokens_and_head_blocks():
    found = load("one_backbone").main(150)
    assert found["tokens"] > 0.9 and found["head"] > 0.95 and found["images"] < 0.5
