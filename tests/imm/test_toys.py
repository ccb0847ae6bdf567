import importlib.util
import math
from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from scipy.stats import chisquare

from flowmap.maps import FlowMap
from flowmap.objectives.base import derivative
from flowmap.rng import Rng
from imm.toys import DATA_SCALE, LAWS, Checkerboard, EightGaussians, PointNetwork, coverage, histogram_kl, off_support
from tests.flowmap.oracles import GaussianMap, Mixture

ROOT = Path(__file__).resolve().parents[2]
COUNT = 20_000
COARSE = torch.linspace(-1.6, 1.6, 25, dtype=torch.float64)


def goodness(law, x):
    """p of a chi-square test of the samples' cells; cells that expect fewer than five, and the outside, are pooled."""
    p = law.cells(COARSE).flatten().numpy()
    seen = np.histogram2d(*x.double().T.numpy(), bins=COARSE.numpy())[0].flatten()
    often = p * len(x) >= 5
    expected = np.append(p[often], 1 - p[often].sum()) * len(x)
    counts = np.append(seen[often], len(x) - seen[often].sum())
    if expected[-1] < 1e-6:  # the rest is impossible
        if counts[-1]:
            return 0.0
        expected, counts = expected[:-1], counts[:-1]
    return chisquare(counts, expected).pvalue


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_samples_follow_the_stated_density_and_those_of_a_narrower_one_do_not(law):
    x = law.sample(COUNT, Rng(3))
    assert goodness(law, x) > 1e-3
    assert goodness(law, law.sample(COUNT, Rng(4)) * 0.95) < 1e-10


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_a_named_sample_is_the_same_in_every_slice(law):
    whole = law.sample(8, Rng(0, torch.arange(8), 5))
    assert torch.equal(whole[4:], law.sample(4, Rng(0, torch.arange(4, 8), 5)))


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_cells_are_the_integral_of_the_density_and_have_the_stated_moments(law):
    edges = torch.linspace(-1.6, 1.6, 9, dtype=torch.float64)
    fine = 400
    middle = (torch.arange(fine, dtype=torch.float64) + 0.5) / fine * 3.2 - 1.6
    points = torch.cartesian_prod(middle, middle)
    mass = (law.density(points) * (3.2 / fine) ** 2).reshape(8, fine // 8, 8, fine // 8).sum((1, 3))
    # an edge of a square that falls inside a fine cell moves at most that cell's mass
    assert torch.allclose(mass, law.cells(edges), atol=2e-3)
    line = torch.linspace(-2, 2, 1001, dtype=torch.float64)
    along = law.cells(line).sum(1)
    place = (line[1:] + line[:-1]) / 2
    assert along.sum() == pytest.approx(1, abs=1e-9)
    assert along @ place == pytest.approx(0, abs=1e-9)
    assert (along @ place**2).sqrt() == pytest.approx(DATA_SCALE, abs=1e-4)


def test_cells_along_the_squares_are_one_eighth_or_nothing():
    board = Checkerboard()
    cells = board.cells(torch.linspace(-board.half, board.half, 5, dtype=torch.float64))
    dark = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    assert torch.allclose(cells, dark.double() / 8)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_every_part_holds_its_mass_and_points_between_parts_none(law):
    x = law.sample(COUNT, Rng(1))
    shares = torch.bincount(law.part(x) + 1, minlength=9)[1:] / COUNT
    assert (shares - law.part_mass()).abs().max() < 4.5 * (0.11 / COUNT) ** 0.5
    between = torch.tensor([[0.0, 0.0], [1.5, 1.5]]) + torch.tensor([0.1, -0.1])
    assert not law.inside(between).any()
    assert (law.density(between) < 1e-6).all()


def centres(law):
    if isinstance(law, EightGaussians):
        return law.centres.float()
    corners = torch.tensor([(2 * (k % 2) + (k // 2) % 2, k // 2) for k in range(8)])
    return (corners + 0.5) * law.side - law.half


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_coverage_and_support_on_cases_made_by_hand(law):
    at = centres(law)
    assert law.part(at).tolist() == list(range(8))
    assert (coverage(law, at), off_support(law, at)) == (1, 0)
    assert coverage(law, at[:3]) == 3 / 8
    far = torch.full((8, 2), 5.0)
    assert off_support(law, torch.cat([at, far])) == 0.5
    # 15 of 800 in one part is less than half of what belongs there, 70 of 800 in another is more
    counts = [15, 70, 119, 119, 119, 119, 119, 120]
    assert coverage(law, at.repeat_interleave(torch.tensor(counts), 0)) == 7 / 8


def test_histogram_kl_on_a_case_made_by_hand():
    edges = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    p = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    x = torch.tensor([[-0.5, -0.5], [0.5, 0.5], [0.5, -0.5], [3.0, 0.5]])  # one in a cell of no mass, one outside
    assert histogram_kl(p, x, edges, smoothing=0.0) == pytest.approx(math.log(2))
    mixed = 0.9 * 0.25 + 0.1 / 4
    assert histogram_kl(p, x, edges, smoothing=0.1) == pytest.approx(math.log(0.5 / mixed))
    empty = histogram_kl(p, x[:1], edges, smoothing=0.1)
    assert empty == pytest.approx(0.5 * math.log(0.5 / 0.925) + 0.5 * math.log(0.5 / 0.025))


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_histogram_kl_of_the_law_itself_is_its_sampling_error(law):
    """About (occupied cells − 1)/2n; a law with one mode missing is far off."""
    x = law.sample(50_000, Rng(2))
    assert 0 < histogram_kl(law.cells(), x) < 0.025
    assert histogram_kl(law.cells(), x[law.part(x) != 0]) > 0.4


def test_exact_transport_between_samples_of_two_gaussians_is_near_the_closed_form():
    """W₂² = ‖m − m'‖² + tr(S + S' − 2(S^½ S' S^½)^½). Both samples are finite, which adds O(n^−½) to the distance."""
    rng = Rng(0)
    m, S = torch.tensor([2.0, -1.0]), torch.tensor([[0.6, 0.2], [0.2, 0.4]])
    x = rng.normal("x", 1000, 2, dtype=torch.float64)
    y = m + rng.normal("y", 1000, 2, dtype=torch.float64) @ torch.linalg.cholesky(S).double().T
    roots = torch.linalg.eigvalsh(S).sqrt()
    exact = float(m.square().sum() + 2 + torch.trace(S) - 2 * roots.sum())
    cost = ot.emd2([], [], torch.cdist(x, y).square().numpy(), numItermax=10**7)
    assert cost == pytest.approx(exact, rel=0.06)


def test_the_exact_map_in_one_dimension_is_optimal_transport():
    """A flow cannot cross itself on a line, so X_{1→0} is monotone and moves mass at the least possible cost."""
    x_1 = Rng(0).normal("x", 2000, 1, dtype=torch.float64)
    affine = GaussianMap()
    one, zero = torch.ones(2000, dtype=torch.float64), torch.zeros(2000, dtype=torch.float64)
    mixture = Mixture(weights=(0.3, 0.7), means=(-1.0, 0.8), deviations=(0.2, 0.4))
    for x_0 in (affine.jump(x_1, one, zero).detach(), mixture.flow(x_1, 1.0, 1e-3)):
        moved = (x_1 - x_0).square().mean()
        assert ot.emd2_1d(x_1[:, 0].numpy(), x_0[:, 0].numpy()) == pytest.approx(float(moved), rel=1e-9)


def test_an_affine_map_in_the_plane_is_optimal_if_it_scales_and_not_if_it_turns():
    x_1 = Rng(0).normal("x", 400, 2, dtype=torch.float64)
    one, zero = torch.ones(400, dtype=torch.float64), torch.zeros(400, dtype=torch.float64)
    x_0 = GaussianMap().jump(x_1, one, zero).detach()
    turned = x_1 @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    for y, optimal in ((x_0, True), (turned, False)):
        moved = float((x_1 - y).square().sum(1).mean())
        cost = ot.emd2([], [], torch.cdist(x_1, y).square().numpy())
        assert cost == pytest.approx(moved, rel=1e-9) if optimal else cost < 0.1 * moved


def test_a_fresh_point_network_moves_nothing_and_one_not_told_s_cannot_know_it():
    torch.manual_seed(0)
    x, t, s = torch.randn(16, 2), torch.rand(16) / 2 + 0.5, torch.rand(16) / 2
    assert torch.equal(FlowMap(PointNetwork()).jump(x, t, s), x)
    for use_s in (True, False):
        network = PointNetwork(use_s=use_s)
        torch.nn.init.normal_(network.write.weight)
        assert torch.equal(network(x, t, s), network(x, t, 0 * s)) != use_s


def test_derivatives_pass_through_the_point_network():
    torch.manual_seed(0)
    network = PointNetwork().double()
    torch.nn.init.normal_(network.write.weight)
    model = FlowMap(network)
    x, t, s = torch.randn(16, 2).double(), torch.rand(16).double() / 2 + 0.5, torch.rand(16).double() / 2
    dx, h = torch.randn(16, 2).double(), 1e-5
    _, dv = derivative(model, (x, t, s), (dx, 1.0, -2.0))
    ahead, behind = (model.velocity(x + k * dx, t + k, s - 2 * k) for k in (h, -h))
    assert torch.allclose(dv, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)


def test_the_benchmark_has_a_recipe_for_every_objective_and_each_trains():
    from benchmarks.toy_training import RECIPES, REFERENCE, counts_of, draw, train
    from flowmap.objectives import OBJECTIVES

    assert set(RECIPES) == set(OBJECTIVES)
    assert counts_of("energy") == (1,) and counts_of("flow-matching")[-1] == REFERENCE
    for name in RECIPES:
        model, count = train("checkerboard", name, seed=0, steps=8), counts_of(name)[:2][-1]
        x, nfe = draw(model, OBJECTIVES[name].sampler, count, seed=0, num_samples=100)
        assert nfe == count and torch.isfinite(x).all(), name
        assert x.std() < 1.5, name


def test_the_example_runs_from_start_to_picture(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("toy", ROOT / "examples" / "toy.py")
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    scores = toy.main(["--steps", "20", "--out", str(tmp_path / "toy.png")])
    assert (tmp_path / "toy.png").stat().st_size > 1000
    assert "exact flow, 64 steps" in capsys.readouterr().out
    assert scores["data"][0] < 0.1 and scores["exact flow, 64 steps"][0] < 0.2
    assert scores["not told s, 1 step"][0] > 1
    x = torch.linspace(-1, 1, 6).reshape(3, 2)
    assert toy.cells().sum() == pytest.approx(1, abs=1e-6)
    # near t = 1 the data are forgotten, E[x_0 | x_1] = E x_0 = 0
    assert torch.allclose(toy.exact_velocity(x, torch.ones(3)), x, atol=1e-6)
