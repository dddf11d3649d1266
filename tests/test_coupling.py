"""Quantising by measured curvature: error feedback, steps, scales. Curvatures are made by hand: no torch is needed."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from functools import partial

import ml_dtypes
import numpy as np
import pytest

import deepcabac
from deepcabac import Curvature, OptionError, _core
from deepcabac.curvature import Factors
from deepcabac.options import Options
from deepcabac.quantize import coupling

HOWS = {"scalar": Options(quantizer="scalar").quantizations[0], "trellis": Options(states=8).quantizations[0]}
both = pytest.mark.parametrize("quantizer", HOWS)


def at_once(calls):
    return [call() for call in calls]


def mixing(rng, size, strength=1.0):
    """A matrix that makes inputs of ``size`` correlated, and unlike in size."""
    mixed = np.eye(size) + strength * rng.normal(size=(size, size)) / np.sqrt(size)
    return np.exp(rng.normal(size=size) / 3)[:, None] * mixed


def halves(rng, mix, count=2000):
    """Second moments of ``count`` samples for each of two halves, and the true ones."""
    samples = rng.normal(size=(2, count, len(mix))) @ mix.T
    return np.einsum("hni,hnj->hij", samples, samples).astype(np.float32), mix @ mix.T


def layer(seed, shape, groups=1, rows="full", count=2000):
    """Weights, their factors, and the true A of each group and G."""
    rng = np.random.default_rng(seed)
    width = math.prod(shape[1:])
    columns, truth = zip(*(halves(rng, mixing(rng, width), count) for _ in range(groups)), strict=True)
    measured, g = halves(rng, mixing(rng, shape[0]), count)
    if rows == "diagonal":
        measured = np.einsum("hii->i", measured).copy()
        g = np.diag(np.diag(g))
    weights = (rng.normal(size=shape) / 8).astype(np.float32)
    return weights, Factors(np.stack(columns, axis=1), measured, 1.0, None), (np.stack(truth), g)


def restored(result, shape):
    """What a reader makes of a coded tensor."""
    flat = np.empty(math.prod(shape), np.float32)
    each = _core.chunk_levels(result.params)
    parts = [flat[start : start + each] for start in range(0, flat.size, each)]
    jobs = [_core.Job(result.params, code, part, result.step) for code, part in zip(result.codes, parts, strict=True)]
    assert all(_core.decode(jobs))
    values = flat.reshape(shape[0], -1)
    if result.row_scales.size:
        values = values * 2 ** (result.row_scales.astype(np.float64) / 4)[:, None]
    if result.column_scales.size:
        values = values * 2 ** (result.column_scales.astype(np.float64) / 4)
    return values.reshape(shape)


def loss(errors, truth):
    """trace(G E A E^T), the rows being in groups with an A of their own."""
    a, g = truth
    errors = errors.reshape(len(errors), -1).astype(np.float64)
    each = len(errors) // len(a)
    spread = np.concatenate([errors[k * each : (k + 1) * each] @ np.linalg.cholesky(a[k]) for k in range(len(a))])
    if len(a) > 1:  # rows of different groups have different inputs
        return float(np.einsum("i,ij->", np.diag(g), spread**2))
    return float(np.trace(g @ spread @ spread.T))


def compress(tensors, curvature, **settings):
    """Compress, and restore."""
    data = deepcabac.compress(tensors, curvature=curvature, **settings)
    return data, deepcabac.decompress(data)


def curvature_of(**factors):
    return Curvature(factors, samples=100, loss="custom")


# What error feedback brings -------------------------------------------------------------------------------------------

SHAPES = [
    pytest.param((60, 80), 1, "full", 0.5, id="matrix"),
    pytest.param((60, 80), 1, "diagonal", 0.6, id="matrix, rows apart"),
    pytest.param((40, 150), 1, "full", 0.5, id="rows of several blocks"),
    pytest.param((32, 6, 3, 3), 1, "full", 0.6, id="convolution"),
    pytest.param((64, 1, 3, 3), 64, "diagonal", 0.85, id="depthwise"),
    pytest.param((48, 10, 1, 1), 4, "diagonal", 0.97, id="groups"),
]


@both
@pytest.mark.parametrize("step", [0.03, 0.12])
@pytest.mark.parametrize(("shape", "groups", "rows", "at_most"), SHAPES)
def test_levels_make_up_for_each_others_errors(quantizer, step, shape, groups, rows, at_most):
    weights, factors, truth = layer(1, shape, groups, rows)
    plan = coupling.plan(weights, factors)
    assert (plan.rows is not None) == (rows == "full")
    assert plan.columns.shape[0] == groups
    alone = replace(plan, columns=np.zeros_like(plan.columns) + np.eye(plan.columns.shape[-1]), rows=None)
    alone = replace(alone, columns=alone.columns.astype(np.float32))
    found = [coupling.quantize(weights, chosen, step, HOWS[quantizer], at_once) for chosen in (plan, alone)]
    losses = [loss(weights - restored(result, shape), truth) for result in found]
    bits = [8 * sum(map(len, result.codes)) / weights.size for result in found]
    # Targets are a little larger than weights, which costs bits; a bit divides the loss by four.
    assert bits[0] < bits[1] + (0.2 if step < 0.05 else 0.6)
    assert losses[0] * 4 ** (bits[0] - bits[1]) < at_most * losses[1]


@both
def test_stacked_matrices_have_factors_of_their_own(quantizer):
    matrices, factors, truth = layer(1, (120, 80), 4, "diagonal")
    weights = matrices.reshape(4, 30, 80)
    alone = Factors(None, None, factors.total, np.ones((4, 30, 80), np.float32))
    losses, bits = [], []
    for chosen in (factors, alone):
        plan = coupling.plan(weights, chosen)
        result = coupling.quantize(weights, replace(plan, importance=1.0), 0.12, HOWS[quantizer], at_once)
        losses.append(loss(matrices - restored(result, (120, 80)), truth))
        bits.append(8 * sum(map(len, result.codes)) / weights.size)
    assert losses[0] * 4 ** (bits[0] - bits[1]) < 0.9 * losses[1]
    data = deepcabac.compress({"w": weights}, curvature=curvature_of(w=factors), sqnr=20)
    assert deepcabac.decompress(data)["w"].shape == (4, 30, 80)
    with pytest.raises(OptionError, match="shape"):
        deepcabac.compress({"w": weights.reshape(4, 40, 60)}, curvature=curvature_of(w=factors))


@both
def test_the_sums_of_the_report_are_those_of_what_is_restored(quantizer):
    weights, factors, _ = layer(2, (30, 40))
    result = coupling.quantize(weights, coupling.plan(weights, factors), 0.05, HOWS[quantizer], at_once)
    assert result.energy == pytest.approx(float((weights.astype(np.float64) ** 2).sum()))
    assert result.error == pytest.approx(float(((weights - restored(result, (30, 40))) ** 2).sum()), rel=1e-3)


# The core against plain numpy -----------------------------------------------------------------------------------------


def slow_levels(weights, columns, rows):
    """Nearest levels with error feedback, and how near to a tie any target was: sums as in the head of the core."""
    height, width = weights.shape
    each = height // len(columns)
    errors, levels, nearest_tie = np.zeros((height, width)), np.zeros((height, width), np.int32), 1.0
    for i in range(height):
        u = columns[i // each].astype(np.float64)
        for j in range(width):
            target = float(weights[i, j]) + errors[i, :j] @ u[:j, j]
            if rows is not None:
                target += sum(float(rows[k, i]) * (errors[k] @ columns[k // each][:, j]) for k in range(i))
            levels[i, j] = np.rint(target)
            nearest_tie = min(nearest_tie, abs(target - math.floor(target) - 0.5))
            errors[i, j] = weights[i, j] - levels[i, j]
    return levels, nearest_tie


def unit_upper(rng, *shape):
    return (np.triu(rng.normal(size=shape), 1) / math.sqrt(shape[-1]) + np.eye(shape[-1])).astype(np.float32)


@pytest.mark.parametrize(
    ("height", "width", "groups", "coupled", "chunk_rows"),
    [
        (7, 11, 1, True, 100),
        (7, 11, 1, False, 100),
        (8, 9, 4, False, 100),
        (8, 9, 2, True, 3),
        (6, 130, 1, True, 2),
        (5, 70, 5, False, 1),
        (20, 1, 1, True, 7),
        (1, 20, 1, True, 1),
    ],
)
def test_the_core_does_what_a_slow_computation_does(height, width, groups, coupled, chunk_rows):
    rng = np.random.default_rng(height * width)
    weights = (3 * rng.normal(size=(height, width))).astype(np.float32)
    columns = unit_upper(rng, groups, width, width)
    rows = unit_upper(rng, height, height) if coupled else None
    expected, nearest_tie = slow_levels(weights, columns, rows)
    assert nearest_tie > 1e-5  # else float32 decides: take another seed
    errors = np.zeros((height, width), np.float32) if coupled else None
    coupled_by = _core.Coupling(columns[:, None], None, rows, errors, height)
    params = bytes([0, 96]) + bytes([*([width & 127 | 128, width >> 7] if width > 127 else [width]), chunk_rows])
    levels = np.empty(height * width, np.int32)
    for first in range(0, height, chunk_rows):
        part = slice(first * width, min(first + chunk_rows, height) * width)
        code, sums = _core.quantize_coupled(params, weights.reshape(-1)[part], first, coupled_by, 0.0, levels[part])
        decoded = np.empty(part.stop - part.start, np.int32)
        assert _core.decode([_core.Job(params, code, decoded)]) == [True]
        assert np.array_equal(decoded, levels[part])
        off = weights.reshape(-1)[part].astype(np.float64) - levels[part]
        assert sums.error == pytest.approx(float((off**2).sum()))
    assert np.array_equal(levels.reshape(height, width), expected)


@both
def test_rows_of_later_chunks_make_up_for_those_of_earlier_ones(quantizer):
    shape = (400, 500)
    weights, factors, truth = layer(3, shape, count=300)
    plan = coupling.plan(weights, factors)
    whole = coupling.quantize(weights, plan, 0.1, HOWS[quantizer], at_once)
    assert len(whole.codes) > 1
    apart = coupling.quantize(weights, replace(plan, rows=None), 0.1, HOWS[quantizer], at_once)
    second = _core.chunk_levels(whole.params) // shape[1]
    losses = []
    for result in (whole, apart):
        errors = weights - restored(result, shape)
        losses.append((loss(errors, truth), loss(errors * (np.arange(shape[0]) < second)[:, None], truth)))
    assert losses[0][0] < 0.9 * losses[1][0]
    # The first chunk alone is no better for what comes after it than the whole: errors cross the border.
    assert losses[0][0] / losses[0][1] < losses[1][0] / losses[1][1] + 0.05


# Whole files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    """Tensors of several kinds and their curvature; ``unknown`` and ``unknown.depthwise`` have none."""
    rng = np.random.default_rng(4)
    tensors, factors = {}, OrderedDict()
    for number, (name, shape, groups, rows) in enumerate(
        [
            ("fc", (50, 70), 1, "full"),
            ("wide", (40, 90), 1, "diagonal"),
            ("conv", (24, 8, 3, 3), 1, "full"),
            ("depthwise", (32, 1, 3, 3), 32, "diagonal"),
        ]
    ):
        tensors[name], known, _ = layer(5 + number, shape, groups, rows)
        factors[name] = replace(known, total=10.0**number)
    tensors["bias"] = rng.normal(size=300).astype(np.float32)
    factors["bias"] = Factors(None, None, 5.0, rng.random(300).astype(np.float32))
    tensors["unknown"] = rng.normal(size=(60, 60)).astype(np.float32)
    tensors["unknown.depthwise"] = rng.normal(size=(60, 1, 3, 3)).astype(np.float32)
    tensors["tied"] = tensors["fc"]
    tensors["steps"] = np.arange(100)
    return tensors, curvature_of(**factors)


@both
def test_files_decode_to_what_the_report_says(network, quantizer, tmp_path):
    tensors, curvature = network
    report = deepcabac.save_file(tensors, tmp_path / "a.dcb", curvature=curvature, sqnr=25, quantizer=quantizer)
    found = deepcabac.load_file(tmp_path / "a.dcb")
    assert list(found) == list(tensors)
    for said in report.tensors:
        assert found[said.name].dtype == tensors[said.name].dtype
        if said.method == "exact":
            assert np.array_equal(found[said.name], tensors[said.name])
        elif said.method == "quantized":
            energy, off = (
                float((x.astype(np.float64) ** 2).sum())
                for x in (tensors[said.name], found[said.name] - tensors[said.name])
            )
            assert said.sqnr == pytest.approx(10 * math.log10(energy / off), abs=0.05)
    assert found["tied"] is found["fc"]


@both
def test_regression_goes_with_a_curvature(quantizer, tmp_path):
    rng = np.random.default_rng(5)
    _, factors, _ = layer(6, (400, 40), 1, "full")
    hidden = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 40))
    weights = (hidden + 0.5 * rng.normal(size=hidden.shape)).astype(np.float32)
    how = {"curvature": curvature_of(w=factors), "sqnr": 20, "quantizer": quantizer}
    made = {deepcabac.compress({"w": weights}, preset="small", threads=threads, **how) for threads in (1, 4)}
    (data,) = made
    said = deepcabac.save_file({"w": weights}, tmp_path / "a.dcb", preset="small", **how).tensors[0]
    assert (tmp_path / "a.dcb").read_bytes() == data
    with deepcabac.open_file(tmp_path / "a.dcb") as file:
        assert file.info("w").coder == "regression"
        found = file["w"]
    assert len(data) < 0.95 * len(deepcabac.compress({"w": weights}, **how))
    off = float(((found - weights) ** 2).sum())
    assert said.sqnr == pytest.approx(10 * math.log10(float((weights**2).sum()) / off), abs=0.05)


@both
@pytest.mark.parametrize("wanted", [{"size": 6000}, {"size": 12_000}, {"bits": 5.0}, {"bits": 8.0}])
def test_sizes_are_met(network, quantizer, wanted):
    tensors, curvature = network
    data, _ = compress(tensors, curvature, quantizer=quantizer, **wanted)
    elements = sum(array.size for name, array in tensors.items() if name != "tied")
    size = wanted.get("size") or wanted["bits"] * elements / 8
    assert len(data) == pytest.approx(size, rel=0.0101)


@both
def test_bytes_do_not_depend_on_threads_nor_change_from_run_to_run(network, quantizer):
    tensors, curvature = network
    made = {deepcabac.compress(tensors, curvature=curvature, quantizer=quantizer, threads=n) for n in (1, 2, 5, 1)}
    assert len(made) == 1


def test_bytes_are_those_of_a_curvature_from_a_file(network, tmp_path):
    tensors, curvature = network
    curvature.save(tmp_path / "curvature")
    with Curvature.load(tmp_path / "curvature") as loaded:
        assert deepcabac.compress(tensors, curvature=loaded) == deepcabac.compress(tensors, curvature=curvature)
    plain = {name: curvature[name] for name in curvature}
    assert deepcabac.compress(tensors, curvature=plain) == deepcabac.compress(tensors, curvature=curvature)


def test_tensors_that_the_curvature_does_not_know_are_quantised_as_without_it(network):
    tensors, curvature = network
    _, found = compress(tensors, curvature, sqnr=25)
    without = deepcabac.decompress(deepcabac.compress(tensors, sqnr=25))
    for name in "unknown", "unknown.depthwise", "steps":
        assert np.array_equal(found[name], without[name]), name
    assert not np.array_equal(found["depthwise"], without["depthwise"])


def test_settings_by_name_come_before_the_curvature(network):
    tensors, curvature = network
    overrides = {"fc": {"exact": True}, "conv": {"sqnr": 40}, "wide": {"step": 0.25}}
    _, found = compress(tensors, curvature, overrides=overrides)
    assert np.array_equal(found["fc"], tensors["fc"])
    without = deepcabac.decompress(deepcabac.compress(tensors, overrides=overrides))
    assert np.array_equal(found["conv"], without["conv"]) and np.array_equal(found["wide"], without["wide"])


def test_what_matters_more_gets_more_bits():
    weights, factors, _ = layer(20, (60, 60))
    tensors = {"a": weights, "b": weights[::-1].copy()}
    curvature = curvature_of(a=factors, b=replace(factors, total=64 * factors.total))
    data = deepcabac.compress(tensors, curvature=curvature, sqnr=40)
    opened = deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=1)
    bits = [opened.info(name).bits_per_weight for name in tensors]
    assert bits[1] - bits[0] == pytest.approx(3, abs=0.2)  # log2(64) / 2


# Scales ---------------------------------------------------------------------------------------------------------------


def uneven(size, octaves=6.0):
    """Second moments of independent inputs, some ``octaves`` above others."""
    return np.broadcast_to(np.diag(2.0 ** np.linspace(0, octaves, size)), (2, size, size)).astype(np.float32)


def even(size):
    return np.broadcast_to(np.eye(size), (2, size, size)).astype(np.float32)


@pytest.mark.parametrize(
    ("columns", "rows", "scaled"),
    [
        (even, even, (0, 0)),
        (uneven, even, (0, 64)),
        (even, uneven, (64, 0)),
        (uneven, uneven, (64, 64)),
        (partial(uneven, octaves=0.5), even, (0, 0)),
    ],
)
def test_matrices_get_scales_where_they_are_worth_their_bytes(columns, rows, scaled):
    rng = np.random.default_rng(21)
    weights = rng.normal(size=(64, 64)).astype(np.float32)
    curvature = curvature_of(w=Factors(columns(64)[:, None], rows(64), 1.0, None))
    data, found = compress({"w": weights}, curvature, sqnr=25)
    info = deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=1).info("w")
    assert (info.row_scales, info.column_scales) == scaled
    errors = (weights - found["w"]) ** 2
    if scaled[1]:  # what matters 64 times as much has a 64th of the squared error, within the floor of importance
        assert 8 < errors[:, :16].mean() / errors[:, -16:].mean() < 64
    if scaled[0]:
        assert errors[:16].mean() / errors[-16:].mean() > 4


def test_convolutions_get_no_scales():
    weights = np.random.default_rng(22).normal(size=(64, 16, 2, 2)).astype(np.float32)
    curvature = curvature_of(w=Factors(uneven(64)[:, None], uneven(64), 1.0, None))
    data, _ = compress({"w": weights}, curvature)
    info = deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=1).info("w")
    assert (info.row_scales, info.column_scales) == (0, 0) and info.method == "quantized"


@both
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_variances_get_steps_relative_to_each(quantizer, dtype):
    rng = np.random.default_rng(23)
    variances = np.exp(rng.normal(size=300) * 2).astype(dtype)
    matrix, factors, _ = layer(24, (40, 30))
    matters = Factors(None, None, 5.0, rng.random(300).astype(np.float32))
    tensors = {"w": matrix, "variance": variances}
    data, found = compress(tensors, curvature_of(w=factors, variance=matters), sqnr=10, quantizer=quantizer)
    opened = deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=1)
    info = opened.info("variance")
    assert (info.method, info.row_scales, info.column_scales) == ("quantized", 300, 0)
    ratios = found["variance"].astype(np.float64) / variances.astype(np.float64)
    assert abs(ratios - 1).max() < 0.2


def test_variances_beyond_scales_are_stored_exactly():
    matrix, factors, _ = layer(25, (40, 30))
    for extreme in 1e-12, 1e12:
        variances = np.array([1, 2, 3, extreme] * 50, np.float32)
        matters = Factors(None, None, 5.0, np.ones(200, np.float32))
        _, found = compress({"w": matrix, "variance": variances}, curvature_of(w=factors, variance=matters), sqnr=10)
        assert np.array_equal(found["variance"], variances)


@both
def test_a_value_beyond_its_type_falls_back_to_levels_alone(quantizer, monkeypatch):
    weights, factors, _ = layer(26, (40, 30))
    quantize = coupling.quantize
    monkeypatch.setattr(coupling, "quantize", lambda *given: replace(quantize(*given), error=math.inf))
    data, found = compress({"w": weights}, curvature_of(w=factors), sqnr=30, quantizer=quantizer)
    info = deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=1).info("w")
    assert (info.method, info.row_scales, info.column_scales) == ("quantized", 0, 0)
    assert ((weights - found["w"]) ** 2).mean() < 0.2 * (weights**2).mean()


@both
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_weights_at_the_end_of_their_type_do_not_become_infinite(quantizer, dtype):
    rng = np.random.default_rng(27)
    _, factors, _ = layer(28, (40, 30))
    largest = float(ml_dtypes.finfo(dtype).max)
    weights = (rng.choice([-1.0, 1.0, 0.97], (40, 30)) * largest).astype(dtype)
    variances = (largest * np.exp(-3 * rng.random(400))).astype(dtype)
    variances[::3] = largest
    matters = Factors(None, None, 5.0 / largest, np.ones(400, np.float32))
    for sqnr in 3, 10, 20, 40:
        known = curvature_of(w=factors, v=matters)
        _, found = compress({"w": weights, "v": variances}, known, sqnr=sqnr, quantizer=quantizer)
        assert np.isfinite(found["w"].astype(float)).all() and np.isfinite(found["v"].astype(float)).all()


# Narrow types ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("sqnr", [3, 15, 40])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (np.float64, 1e30),
        (np.float64, 1e-30),
        (np.float16, 60_000),
        (np.float16, 1e-6),
        (ml_dtypes.bfloat16, 1e38),
        (ml_dtypes.float8_e4m3fn, 440),
        (ml_dtypes.float8_e4m3fn, 0.02),
        (ml_dtypes.float8_e5m2, 50_000),
    ],
)
def test_values_stay_finite_in_every_type(quantizer, sqnr, dtype, size):
    weights, factors, _ = layer(23, (40, 30))
    weights = np.clip(weights * (3 * size), -size, size).astype(dtype)
    assert np.isfinite(weights.astype(np.float64)).all()
    _, found = compress({"w": weights}, curvature_of(w=factors), sqnr=sqnr, quantizer=quantizer)
    assert found["w"].dtype == dtype
    values, originals = found["w"].astype(np.float64), weights.astype(np.float64)
    assert np.isfinite(values).all()
    # Errors that hardly show in the outputs may be larger than the weights, where quality is low.
    assert ((values - originals) ** 2).sum() < (0.1 if sqnr == 40 else 10) * (originals**2).sum()


# Poor curvatures ------------------------------------------------------------------------------------------------------


@both
def test_inputs_and_outputs_that_were_never_active(quantizer):
    weights, factors, truth = layer(24, (40, 30))
    columns, rows = factors.columns.copy(), factors.rows.copy()
    for dead in 0, 7, 29:
        columns[..., dead, :] = columns[..., dead] = 0
        rows[:, dead, :] = rows[:, :, dead] = 0
    curvature = curvature_of(w=replace(factors, columns=columns, rows=rows))
    _, found = compress({"w": weights}, curvature, sqnr=25, quantizer=quantizer)
    # They may matter elsewhere: they are coarse, not wild.
    errors = (weights - found["w"]) ** 2
    assert errors[:, [0, 7, 29]].mean() < 150 * errors.mean()
    assert np.isfinite(found["w"]).all() and loss(weights - found["w"], truth) > 0


@pytest.mark.parametrize("which", ["columns", "rows", "both", "one half"])
def test_moments_of_nothing_are_no_feedback(which):
    weights, factors, _ = layer(25, (40, 30))
    columns, rows = factors.columns.copy(), factors.rows.copy()
    if which in ("columns", "both"):
        columns[:] = 0
    if which in ("rows", "both"):
        rows[:] = 0
    if which == "one half":
        columns[0] = rows[1] = 0
    _, found = compress({"w": weights}, curvature_of(w=replace(factors, columns=columns, rows=rows)), sqnr=25)
    assert ((weights - found["w"]) ** 2).mean() < 0.3 * (weights**2).mean()
    _, found = compress({"w": weights}, curvature_of(w=replace(factors, rows=np.zeros(40, np.float32))), sqnr=25)
    assert np.isfinite(found["w"]).all()


@both
def test_few_samples_do_not_hurt_on_others(quantizer):
    shape = (50, 60)
    for count, at_most in (1, 2.0), (2, 1.5), (8, 1.15), (30, 1.0), (100, 0.5):
        weights, factors, truth = layer(26, shape, count=count)
        plan = coupling.plan(weights, factors)
        alone = replace(plan, columns=np.eye(60, dtype=np.float32)[None], rows=None)
        found = [coupling.quantize(weights, chosen, 0.06, HOWS[quantizer], at_once) for chosen in (plan, alone)]
        losses = [loss(weights - restored(result, shape), truth) for result in found]
        assert losses[0] < at_most * losses[1], count


def test_weights_of_zero_and_weights_that_are_not_finite():
    weights, factors, _ = layer(27, (40, 30))
    broken = weights.copy()
    broken[3, 4] = np.nan
    tensors = {"zero": np.zeros_like(weights), "broken": broken, "good": weights}
    data, found = compress(tensors, curvature_of(zero=factors, broken=factors, good=factors))
    assert not found["zero"].any()
    assert np.array_equal(found["broken"], broken, equal_nan=True)
    assert len(data) < broken.nbytes + 2000
    assert not compress({"zero": np.zeros_like(weights)}, curvature_of(zero=factors))[1]["zero"].any()


def test_totals_at_the_ends_of_their_range():
    weights, factors, _ = layer(28, (40, 30))
    for total in 5e-324, 1e-300, 1e300:
        tensors = {"a": weights, "b": weights[::-1].copy()}
        _, found = compress(tensors, curvature_of(a=factors, b=replace(factors, total=total)))
        assert np.isfinite(found["a"]).all() and np.isfinite(found["b"]).all()


# What does not fit ----------------------------------------------------------------------------------------------------


def test_a_curvature_of_another_shape_is_refused_by_name():
    weights, factors, _ = layer(29, (40, 30))
    others = [
        layer(30, (40, 31))[1],
        layer(30, (41, 30))[1],
        layer(30, (30, 40))[1],
        layer(30, (40, 30), groups=3, rows="diagonal")[1],
        replace(factors, columns=factors.columns[:, :0]),
        replace(factors, rows=factors.rows[:, :39, :39]),
        replace(factors, rows=np.ones(39, np.float32)),
        Factors(None, None, 1.0, np.ones((30, 40), np.float32)),
        Factors(None, None, 1.0, np.ones(1200, np.float32)),
    ]
    for other in others:
        with pytest.raises(OptionError, match=r"'layer\.w' is not that of a tensor of shape \(40, 30\)"):
            deepcabac.compress({"layer.w": weights}, curvature={"layer.w": other})


def test_a_curvature_that_is_none_is_refused_by_name():
    weights, factors, _ = layer(31, (40, 30))
    nan, negative = factors.columns.copy(), factors.rows.copy()
    nan[0, 0, 3, 3] = np.nan
    negative[:, 5, 5] *= -1
    indefinite = factors.columns.copy()
    indefinite[..., 2, 3] *= 50
    indefinite[..., 3, 2] *= 50
    bad = [
        replace(factors, columns=nan),
        replace(factors, columns=factors.columns.astype(np.float64)),
        replace(factors, columns=factors.columns[0]),
        replace(factors, columns=factors.columns[..., :29]),
        replace(factors, columns=indefinite),
        replace(factors, rows=negative),
        replace(factors, rows=np.linspace(-1, 1, 40, dtype=np.float32)),
        replace(factors, rows=None),
        replace(factors, total=math.nan),
        replace(factors, total=math.inf),
        replace(factors, total=-1.0),
        Factors(None, None, 1.0, None),
        "not factors",
    ]
    for number, other in enumerate(bad):
        with pytest.raises(OptionError, match=r"'layer\.w'") as caught:
            deepcabac.compress({"layer.w": weights}, curvature={"layer.w": other})
        assert "\n" not in str(caught.value), number


def test_a_curvature_of_other_tensors_and_one_of_zero_are_refused():
    weights, factors, _ = layer(32, (40, 30))
    with pytest.raises(OptionError, match="has none of these tensors"):
        deepcabac.compress({"w": weights}, curvature=curvature_of(v=factors))
    with pytest.raises(OptionError, match="has none of these tensors"):
        deepcabac.compress({"w": weights}, curvature={})
    with pytest.raises(OptionError, match="has none of these tensors"):
        deepcabac.compress({"w": np.arange(1200).reshape(40, 30)}, curvature=curvature_of(w=factors))
    with pytest.raises(OptionError, match="every tensor is zero"):
        deepcabac.compress({"w": weights}, curvature=curvature_of(w=replace(factors, total=0.0)))
    # One of zero among others: it is quantised as if nothing were known of it.
    tensors = {"w": weights, "v": weights[::-1].copy()}
    _, found = compress(tensors, curvature_of(w=factors, v=replace(factors, total=0.0)), sqnr=25)
    assert np.array_equal(found["v"], deepcabac.decompress(deepcabac.compress(tensors, sqnr=25))["v"])


def test_options_that_contradict_a_curvature_are_refused():
    weights, factors, _ = layer(33, (40, 30))
    with pytest.raises(OptionError, match="curvature and step"):
        deepcabac.compress({"w": weights}, curvature=curvature_of(w=factors), step=0.1)
    with pytest.raises(OptionError, match=r"must be a deepcabac\.Curvature"):
        deepcabac.compress({"w": weights}, curvature="model.curvature")


def test_empty_tensors_and_scalars_have_no_say():
    weights, factors, _ = layer(34, (40, 30))
    tensors = {"w": weights, "none": np.zeros((0, 3), np.float32), "scalar": np.float32(2.5)}
    more = {
        "none": Factors(None, None, 1.0, np.zeros((0, 3), np.float32)),
        "scalar": Factors(None, None, 1.0, np.ones((), np.float32)),
    }
    _, found = compress(tensors, curvature_of(w=factors, **more))
    assert found["none"].shape == (0, 3) and found["scalar"] == 2.5
