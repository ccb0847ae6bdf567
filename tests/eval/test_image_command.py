"""`leaplm sample` of an image run: pictures, scores, and one-line errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import leaplm
from eval.images.drawing import draw_images, load_image_run
from imm.data import load_images
from tests.training.test_image_task import config
from training.loop import train
from training.tasks import build


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "run"
    train(config(), folder, build, quiet=True)
    return str(folder)


def test_an_image_is_the_same_in_any_batch(run):
    model = load_image_run(run).model
    whole = draw_images(model, 12, 2)
    parts = draw_images(model, 12, 2, batch=5)
    assert np.array_equal(whole.pixels, parts.pixels) and whole.nfe == parts.nfe == 2
    assert whole.pixels.shape == (12, 8, 8, 1) and whole.labels.tolist() == [*range(10), 0, 1]
    assert not np.array_equal(whole.pixels, draw_images(model, 12, 2, seed=1).pixels)
    assert draw_images(model, 4, 2, guidance=2.0).nfe == 4
    assert set(draw_images(model, 4, 1, label=7).labels) == {7}


def test_sample_writes_a_grid_for_every_number_of_steps_and_scores_them(run, tmp_path, capsys):
    file = tmp_path / "scores.json"
    command = ["sample", run, "--steps", "1,2", "--num", "64", "--score", "--out", str(tmp_path / "a.png")]
    assert leaplm.main([*command, "--json", str(file)]) == 0
    pictures = sorted(p.name for p in tmp_path.glob("*.png"))
    assert pictures == ["a-run-1.png", "a-run-2.png"]
    assert Image.open(tmp_path / "a-run-1.png").size == (10 * 9 - 1, 7 * 9 - 1)
    records = json.loads(file.read_text())["results"]
    mine = [r for r in records if r["subject"] == "imm" and r["metric"] == "classifier_fid"]
    assert [r["contract"]["nfe"] for r in mine] == [1, 2] and all(r["kind"] == "estimate" for r in mine)
    assert {"train", "test", "train-resampled"} <= {r["subject"] for r in records}


class Moments(torch.nn.Module):
    """In Inception's place: it takes what that file takes."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert x.dtype == torch.uint8 and x.shape[1] == 3 and return_features
        return x.float().flatten(2).mean(2) / 255


def test_a_network_by_path_gives_the_inception_fid(run, tmp_path):
    file, scores = tmp_path / "inception.pt", tmp_path / "scores.json"
    torch.jit.script(Moments()).save(file)
    command = ["sample", run, "--steps", "1", "--num", "64", "--score", "--inception", str(file)]
    assert leaplm.main([*command, "--json", str(scores)]) == 0
    found = [r for r in json.loads(scores.read_text())["results"] if r["metric"] == "inception_fid"]
    pixels, test = draw_images(load_image_run(run).model, 64, 1).pixels, load_images("digits").test
    means = [torch.from_numpy(images / 255).mean((1, 2, 3)).double().numpy() for images in (pixels, test)]
    # three equal features: three times the squared distance of means and of deviations
    expected = 3 * ((means[0].mean() - means[1].mean()) ** 2 + (means[0].std(ddof=1) - means[1].std(ddof=1)) ** 2)
    assert found[0]["value"] == pytest.approx(expected, rel=1e-3) and found[0]["inception"]
    assert [r["subject"] for r in found] == ["imm", "train"]


def test_a_file_that_is_no_network_is_one_line(run, tmp_path, capsys):
    other = tmp_path / "other.pt"
    other.write_text("weights")
    for path in (other, tmp_path / "missing.pt"):
        assert leaplm.main(["sample", run, "--num", "16", "--score", "--inception", str(path)]) == 2
        error = capsys.readouterr().err
        assert path.name in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "more, message",
    [
        (["--inception", "network.pt"], "--score too"),
        (["--label", "11"], "classes 0 to 9"),
        (["--steps", "0"], "--steps must be"),
        (["--sampler", "jump"], "jump"),
    ],
)
def test_wrong_input_is_one_line(run, capsys, more, message):
    assert leaplm.main(["sample", run, "--num", "4", *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
