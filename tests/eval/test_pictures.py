import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from eval.pictures import _ticks, bars, heat_maps, lines, standalone

SPACE = "{http://www.w3.org/2000/svg}"


def test_a_heat_map_shades_by_probability_and_leaves_zeros_blank():
    panel = np.array([[0.5, 0.0], [0.1, 0.4]])
    root = ElementTree.fromstring(heat_maps({"a & b": panel}, ["x", "y"], ["u", "v"]))
    shades = [float(r.get("fill-opacity")) for r in root.iter(f"{SPACE}rect") if r.get("fill") != "none"]
    assert len(shades) == 3 and max(shades) == shades[0] == 1.0 and shades[1] == min(shades)
    assert {"a & b", "x", "v", "50.0"} <= {t.text for t in root.iter(f"{SPACE}text")}


def test_bars_are_as_long_as_their_values():
    root = ElementTree.fromstring(bars({"one": (1.0, 0.0), "half": (0.5, 0.01)}, chance=0.25))
    widths = [float(r.get("width")) for r in root.iter(f"{SPACE}rect") if r.get("rx")]
    assert widths[1] == pytest.approx(widths[0] / 2)


def test_lines_go_down_where_values_go_up():
    root = ElementTree.fromstring(lines({"s": [1.0, 2.0, 3.0]}, "k", "nats"))
    heights = [float(c.get("cy")) for c in root.iter(f"{SPACE}circle")]
    assert heights[0] > heights[1] > heights[2]


@pytest.mark.parametrize("low, high", [(3.1, 5.7), (0.0, 1.0), (4.83, 4.86), (-2.0, 300.0)])
def test_ticks_are_few_and_inside(low, high):
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 7 and all(low <= t <= high for t in ticks)


def test_a_picture_of_its_own_has_its_own_ground():
    alone = standalone(bars({"one": (1.0, 0.0)}))
    assert "currentColor" not in alone
    assert ElementTree.fromstring(alone)[0].get("fill") == "#fff"
