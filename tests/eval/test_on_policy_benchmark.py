"""What the on-policy comparison holds equal, and its exact gradients against every outcome summed by hand."""

from pathlib import Path

import pytest
import torch

from benchmarks.on_policy import ARMS, config_of
from benchmarks.on_policy_gradients import Place
from mtp.losses.on_policy import KINDS
from tests.mtp.test_heads import context, head
from tests.mtp.test_on_policy import exact_energy, exact_value, gradient, trunk
from training.config import difference, to_dict


def test_arms_differ_in_their_objective_alone():
    plain = to_dict(config_of("cross-entropy", 0, 5, Path("runs")))
    for arm in ARMS:
        changed = set(difference(plain, to_dict(config_of(arm, 0, 5, Path("runs")))))
        assert changed <= {"head.on_policy", "head.samples", "head.anchor_fraction", "head.distill"}
        assert (arm == "cross-entropy") == (not changed)
        assert arm in KINDS or "head.on_policy" not in changed


@pytest.mark.parametrize("what", ["overlap", "kl", "energy"])
def test_the_exact_gradient_of_one_position_is_the_sum_over_its_outcomes(what, monkeypatch):
    monkeypatch.setattr("tests.mtp.test_on_policy.K", 2)
    made, ctx, y = head("block-chain", 2), context(anchors=1), torch.tensor([1, 3])
    place = Place(made, ctx, y[None], lambda blocks: trunk(blocks))
    expected = exact_energy(made, ctx, y, 1) if what == "energy" else exact_value(what, made, ctx, 1)
    wanted = gradient(expected, made)  # the kernel holds distances at 1e-4 or above
    assert torch.allclose(place.exact(what), wanted, atol=1e-4) and wanted.abs().max() > 0.01
