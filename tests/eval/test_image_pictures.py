"""Few-step images in the report."""

import pytest

from eval.images.pictures import sections
from eval.records import record


def scored(value, steps, seed, metric="classifier_fid", subject="imm", sampler="pushforward", **more):
    contract = {"steps": steps, "nfe": steps, "sampler": sampler}
    return record(metric, value, on="digits", subject=subject, unit="FID", kind="estimate", split="test", train_seed=seed,
                  contract=contract, **more)  # fmt: skip


def floor(metric, subject, value):
    return record(metric, value, on="digits", subject=subject, unit="FID", kind="estimate", split="test")


def test_a_set_has_a_picture_and_a_table_of_fid_by_steps_with_its_floors():
    records = [
        *(scored(v, n, seed) for n, both in {1: (4.0, 6.0), 4: (1.0, 2.0)}.items() for seed, v in enumerate(both)),
        *(scored(v, n, 0, subject="flow-matching", sampler="euler") for n, v in ((1, 200.0), (50, 1.5))),
        scored(1.1, 1, 0, "nearest_train_distance"), scored(0.9, 4, 0, "nearest_train_distance"),
        floor("classifier_fid", "train", 0.5), floor("classifier_fid", "train-resampled", 1.08),
        floor("nearest_train_distance", "test", 1.06),
    ]  # fmt: skip
    (section,) = sections(records)
    assert section.title == "Few-step images: digits, test" and "<svg" in section.picture
    assert section.table[0] == [
        "objective, sampler",
        "FID, 1 step",
        "FID, 4 steps",
        "FID, 50 steps",
        "nearest training image, by steps",
    ]
    assert section.table[1] == ["imm, pushforward", "5 ± 1", "1.5 ± 0.5", "–", "1.1 at 1 / 0.9 at 4"]
    assert section.table[2] == ["flow-matching, euler", "200", "–", "1.5", "–"]
    for told in ("training images score 0.5", "by heart, 1.08", "lie 1.06"):
        assert told in section.text.lower()


@pytest.mark.parametrize("records", [[], [scored(1.0, 1, 0)]])
def test_without_two_numbers_of_steps_there_is_nothing_to_draw(records):
    assert sections(records) == []
