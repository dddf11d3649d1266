"""The curves of bench/equal_accuracy.py: what it reads off points whose answer is known by hand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import equal_accuracy
from equal_accuracy import Point, best, bytes_at, worst

# At 300 bytes no better than at 200; at 400 the metric falls; two of 500.
POINTS = [
    Point(500, 0.90),
    Point(100, 0.50),
    Point(300, 0.80),
    Point(200, 0.80),
    Point(400, 0.70),
    Point(500, 0.88),
]


def falling(points):
    """The same as a metric of which less is better."""
    return [Point(point.bytes, -point.metric) for point in points]


def test_best_keeps_what_no_point_beats_in_bytes_and_metric():
    assert best(POINTS, True) == [Point(100, 0.50), Point(200, 0.80), Point(500, 0.90)]


def test_worst_keeps_what_beats_no_point():
    assert worst(POINTS, True) == [Point(100, 0.50), Point(400, 0.70), Point(500, 0.88)]


@pytest.mark.parametrize("envelope", [best, worst])
def test_a_metric_of_which_less_is_better_is_the_mirror_image(envelope):
    assert envelope(falling(POINTS), False) == falling(envelope(POINTS, True))


def test_a_point_twice_is_kept_once():
    assert best([Point(1, 0.5)] * 2, True) == worst([Point(1, 0.5)] * 2, True) == [Point(1, 0.5)]


def test_between_two_points_the_metric_is_linear_in_the_logarithm_of_bytes():
    curve = [Point(100, 0.5), Point(400, 0.75), Point(800, 1.0)]
    assert bytes_at(curve, 0.625) == pytest.approx(200)  # half way in the logarithm of 100 and 400
    assert bytes_at(curve, 0.875) == pytest.approx(400 * math.sqrt(2))
    assert bytes_at(falling(curve), -0.625) == pytest.approx(200)


def test_a_point_at_the_target_gives_its_own_bytes():
    curve = [Point(100, 0.5), Point(400, 0.75), Point(800, 1.0)]
    assert [bytes_at(curve, point.metric) for point in curve] == pytest.approx([100, 400, 800])


@pytest.mark.parametrize("target", [0.49, 1.01])
def test_a_target_beyond_the_points_gives_nothing(target):
    assert bytes_at([Point(100, 0.5), Point(400, 1.0)], target) is None
    assert bytes_at([], target) is None


def test_targets_are_absolute_for_accuracies_and_relative_for_perplexities():
    targets = {case.name: case.target(0.9 if case.higher_is_better else 5.0) for case in equal_accuracy.CASES}
    assert targets == pytest.approx(
        {"resnet20": 0.897, "resnet56": 0.897, "lite0": 0.89, "minilm": 0.895, "stories260k": 5.1}
    )


def test_baselines_are_grouped_by_network_and_setting(tmp_path):
    peer = {"model": "a", "codec": "nncodec 2.1.3", "qp": -32, "dq": True}
    rows = [
        {"model": "a", "codec": "fp32", "bytes": 1000, "metric": 0.9},
        peer | {"lambda_scale": 0.0, "bytes": 90, "metric": 0.8},
        peer | {"lambda_scale": 1.0, "bytes": 80, "metric": 0.7},
        {"model": "b", "codec": "fp32", "bytes": 2000, "metric": 5.0},
    ]
    file = tmp_path / "baselines.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = equal_accuracy.read_baselines(file)
    assert found["a"].original == 0.9 and found["a"].bytes == 1000
    assert found["a"].points == {
        "nncodec 2.1.3, DQ, lambda_scale 0": [Point(90, 0.8)],
        "nncodec 2.1.3, DQ, lambda_scale 1": [Point(80, 0.7)],
    }
    assert found["b"].points == {}


def test_baselines_that_cannot_be_read_are_said_so(tmp_path):
    with pytest.raises(SystemExit, match="no baselines"):
        equal_accuracy.read_baselines(tmp_path / "none.jsonl")
