"""What can be asked for, what it does, and how nonsense is refused."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest

import deepcabac
from deepcabac import OptionError, Options, UnsupportedError


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


NUMPY_2 = np.lib.NumpyVersion(np.__version__) >= "2.0.0"
W = {"layer.weight": normal(60, 70), "layer.bias": normal(70), "head.weight": normal(40, 50, seed=1)}


def sqnr(name, restored):
    w = W[name].astype(np.float64)
    return 10 * math.log10((w**2).sum() / ((w - restored[name]) ** 2).sum())


BAD = [
    {"sqnr": 0}, {"sqnr": -1}, {"sqnr": 121}, {"sqnr": math.nan}, {"sqnr": math.inf}, {"sqnr": "30"}, {"sqnr": True},
    {"bits": 0}, {"bits": 65}, {"bits": "3"}, {"size": 0}, {"size": -5}, {"size": "1MB"},
    {"step": 0}, {"step": -0.1}, {"step": math.inf}, {"step": math.nan},
    {"rate_distortion": -1}, {"rate_distortion": 101}, {"rate_distortion": math.nan}, {"rate_distortion": "1"},
    {"threads": 0}, {"threads": -2}, {"threads": True},
    {"quantizer": "vector"}, {"quantizer": None}, {"states": 4}, {"states": 12}, {"states": "8"}, {"states": True},
    {"sqnr": 20, "bits": 3}, {"size": 100, "step": 1}, {"sqnr": 1, "bits": 1, "size": 1, "step": 1},
    {"overrides": 5}, {"overrides": [("*", {"exact": True})]}, {"overrides": {3: {"exact": True}}},
    {"overrides": {"*": True}}, {"overrides": {"*": {}}}, {"overrides": {"*": {"exact": 1}}},
    {"overrides": {"*": {"sqnr": 0}}}, {"overrides": {"*": {"sqnr": 500}}}, {"overrides": {"*": {"step": -1}}},
    {"overrides": {"*": {"offset": "3"}}}, {"overrides": {"*": {"offset": float("nan")}}},
    {"overrides": {"*": {"bits": 3}}}, {"overrides": {"*": {"sqnr": 3, "step": 1}}},
]  # fmt: skip


@pytest.mark.parametrize("settings", BAD, ids=str)
def test_nonsense_is_refused_before_any_work(settings, tmp_path):
    with pytest.raises(OptionError) as caught:
        Options(**settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(OptionError):
        deepcabac.compress(W, **settings)
    with pytest.raises(OptionError):
        deepcabac.save_file(W, tmp_path / "m.dcb", **settings)
    assert list(tmp_path.iterdir()) == []


def test_unknown_options_are_refused_and_the_known_ones_named():
    with pytest.raises(OptionError, match=r"unknown option 'fineness'.*sqnr.*overrides"):
        deepcabac.compress(W, fineness=5)
    with pytest.raises(TypeError):
        Options(30)


def test_an_option_error_is_a_value_error_too():
    with pytest.raises(ValueError):
        Options(sqnr=-1)


def test_options_are_frozen_and_keywords_go_over_them():
    options = Options(sqnr=20)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.sqnr = 30
    assert deepcabac.compress(W, options=options) == deepcabac.compress(W, sqnr=20)
    assert deepcabac.compress(W, options=options, sqnr=10) == deepcabac.compress(W, sqnr=10)
    with pytest.raises(OptionError, match="sqnr and bits"):
        deepcabac.compress(W, options=options, bits=3)


def test_a_quality_of_thirty_is_the_default():
    assert deepcabac.compress(W) == deepcabac.compress(W, quality=30) == deepcabac.compress(W, options=Options())


def test_overrides_go_by_pattern_and_the_last_match_wins():
    overrides = {"*": {"sqnr": 15}, "head.*": {"sqnr": 35}, "layer.weigh?": {"exact": True}}
    restored = deepcabac.decompress(deepcabac.compress(W, overrides=overrides))
    assert (restored["layer.weight"] == W["layer.weight"]).all()
    assert sqnr("head.weight", restored) == pytest.approx(35, rel=0.01)
    turned = dict(reversed(overrides.items()))
    restored = deepcabac.decompress(deepcabac.compress(W, overrides=turned))
    for name in ("layer.weight", "head.weight"):
        assert sqnr(name, restored) == pytest.approx(15, rel=0.01)


def test_patterns_respect_case_and_need_not_match():
    assert deepcabac.compress(W, overrides={"LAYER.*": {"exact": True}, "x": {"sqnr": 3}}) == deepcabac.compress(W)


def test_a_step_can_be_given_for_one_tensor():
    with_step = deepcabac.compress(W, overrides={"head.weight": {"step": 0.25}}, rate_distortion=0, quantizer="scalar")
    restored = deepcabac.decompress(with_step)["head.weight"]
    assert np.abs(restored - W["head.weight"]).max() <= 0.125 * 1.001
    assert np.abs(restored / 0.25 - np.rint(restored / 0.25)).max() < 1e-3


def test_small_vectors_are_exact_unless_asked_for_by_name():
    vectors = {"bias": normal(2000)}
    assert (deepcabac.decompress(deepcabac.compress(vectors))["bias"] == vectors["bias"]).all()
    for settings in ({"exact": False}, {"sqnr": 30}):
        restored = deepcabac.decompress(deepcabac.compress(vectors, overrides={"bias": settings}))["bias"]
        assert not (restored == vectors["bias"]).all()


@pytest.mark.parametrize("target", [{"sqnr": 20}, {"step": 0.5}, {"bits": 12}])
def test_offsets_are_from_the_common_quality(target):
    rng = np.random.default_rng(8)
    tensors = {name: rng.standard_normal((64, 256)).astype(np.float32) for name in ("a", "b", "c", "d")}
    overrides = {"[ab]": {"offset": 6}, "b": {"offset": -3}, "d": {"exact": True}}
    restored = deepcabac.decompress(deepcabac.compress(tensors, overrides=overrides, **target))
    noise = {name: np.mean((tensors[name] - restored[name]) ** 2) for name in "abc"}
    found = {name: -10 * np.log10(noise[name]) for name in noise}
    assert found["a"] - found["c"] == pytest.approx(6, abs=0.3)
    assert found["b"] - found["c"] == pytest.approx(-3, abs=0.3)
    assert np.array_equal(restored["d"], tensors["d"])


def test_overrides_hold_while_a_size_is_sought():
    overrides = {"layer.*": {"exact": True}, "head.weight": {"sqnr": 20}}
    tensors = W | {"more": normal(200, 200, seed=2)}
    data = deepcabac.compress(tensors, size=45_000, overrides=overrides)
    restored = deepcabac.decompress(data)
    assert len(data) == pytest.approx(45_000, rel=0.01)
    assert (restored["layer.weight"] == W["layer.weight"]).all()
    assert sqnr("head.weight", restored) == pytest.approx(20, rel=0.01)


def test_a_better_sqnr_takes_more_bytes():
    sizes = [len(deepcabac.compress(W, sqnr=db)) for db in (5, 10, 20, 30, 40, 60, 80)]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


def test_a_report_says_what_became_of_every_tensor(tmp_path):
    tied = W | {"again": W["head.weight"], "n": np.arange(3)}
    report = deepcabac.save_file(tied, tmp_path / "m.dcb", sqnr=20)
    assert [t.method for t in report.tensors] == ["quantized", "exact", "quantized", "tied", "exact"]
    assert report.file_bytes == (tmp_path / "m.dcb").stat().st_size
    assert report.raw_bytes == sum(w.nbytes for w in W.values()) + 24
    assert report.bits_per_weight == pytest.approx(8 * report.file_bytes / (4200 + 70 + 2000 + 3))
    assert report.tensors[0].sqnr == pytest.approx(20, rel=0.01)
    with deepcabac.open_file(tmp_path / "m.dcb") as file:
        assert [file.info(t.name).coded_bytes for t in report.tensors] == [t.coded_bytes for t in report.tensors]


def test_what_cannot_be_reached_is_noted():
    report = deepcabac.dcb.writer.compress(
        deepcabac.source.Arrays({"w": normal(50, 50)}), io.BytesIO(), Options(step=1e-35)
    )
    assert report.tensors[0].method == "exact"
    assert "w: stored exactly" in report.notes[0]


def test_progress_runs_from_nothing_to_all(tmp_path):
    seen = []
    deepcabac.save_file(W, tmp_path / "m.dcb", progress=lambda done, total: seen.append((done, total)))
    total = sum(w.nbytes for w in W.values())
    assert [t for _, t in seen] == [total] * len(seen)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen) and seen[-1][0] == total


@pytest.mark.parametrize(
    ("tensors", "error", "says"),
    [
        ([normal(2)], OptionError, "mapping"),
        ({3: normal(2)}, OptionError, "strings"),
        ({"w": np.zeros(2, "M8[s]")}, UnsupportedError, "datetime64"),
        ({"w": ["a"]}, UnsupportedError, "'w'"),
        ({"w": [None]}, UnsupportedError, "object"),
        ({"\ud800": np.zeros(1)}, UnsupportedError, "surrogate"),
        # numpy itself allowed 32 dimensions before version 2.
        *([({"w": np.zeros((1,) * 33)}, UnsupportedError, "33 dimensions")] if NUMPY_2 else []),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_a_file_cannot_hold_is_refused_by_name(tensors, error, says, tmp_path):
    with pytest.raises(error, match=says):
        deepcabac.compress(tensors)
    with pytest.raises(error, match=says):
        deepcabac.save_file(tensors, tmp_path / "m.dcb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_bytes", [-1, 1.5, "1", True])
def test_max_bytes_that_is_no_number_of_bytes_is_refused(max_bytes):
    for call, data in ((deepcabac.decompress, deepcabac.compress({})), (deepcabac.decode, deepcabac.encode([1]))):
        with pytest.raises(OptionError, match="max_bytes"):
            call(data, max_bytes=max_bytes)


def test_max_bytes_bounds_all_tensors_of_load_and_each_of_open(tmp_path):
    path = tmp_path / "m.dcb"
    deepcabac.save_file({"a": normal(100, 100), "b": normal(100, 100, seed=1)}, path)
    with pytest.raises(deepcabac.LimitError, match=r"80,?000 bytes"):
        deepcabac.load_file(path, max_bytes=79_999)
    assert len(deepcabac.load_file(path, max_bytes=80_000)) == 2
    with deepcabac.open_file(path, max_bytes=40_000) as file:
        assert file["a"].nbytes + file["b"].nbytes == 80_000
    with deepcabac.open_file(path, max_bytes=39_999) as file, pytest.raises(deepcabac.LimitError, match="'b'"):
        file["b"]


def test_an_sqnr_is_that_of_every_tensor():
    rng = np.random.default_rng(5)
    tensors = {"depthwise": rng.normal(size=(400, 1, 3, 3)), "dense": 9 * rng.normal(size=(60, 60))}
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}

    def reached(**settings):
        restored = deepcabac.decompress(deepcabac.compress(tensors, **settings))
        return [
            10 * np.log10((tensor**2).sum() / ((tensor - restored[name]) ** 2).sum())
            for name, tensor in tensors.items()
        ]

    assert np.allclose(reached(sqnr=20), [20, 20], rtol=0.01)
    assert np.allclose(reached(sqnr=20, overrides={"depth*": {"sqnr": 25}}), [25, 20], rtol=0.01)


@pytest.mark.parametrize("preset", ["fast", "default", "small"])
def test_every_level_keeps_the_quality_asked_for(preset):
    rng = np.random.default_rng(4)
    shapes = {"w": (300, 200), "k": (64, 8, 3, 3)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    data = deepcabac.compress(tensors, sqnr=20, preset=preset)
    restored = deepcabac.decompress(data)
    for name, tensor in tensors.items():
        error = float(np.square(restored[name] - tensor).sum() / np.square(tensor).sum())
        assert abs(10 * np.log10(error) + 20) < 0.2


def test_an_unknown_level_is_refused():
    with pytest.raises(deepcabac.DeepCabacError, match="preset must be one of fast, default, small"):
        deepcabac.Options(preset="faster")
    with pytest.raises(deepcabac.DeepCabacError, match="preset must be one of"):
        deepcabac.encode([1, 2], preset=3)
