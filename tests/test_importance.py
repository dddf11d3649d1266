"""Errors that count differently, weight by weight: ``importance=``."""

from __future__ import annotations

import math
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import deepcabac
from deepcabac import OptionError, _core
from deepcabac.options import Options
from deepcabac.quantize.steps import is_pruned

both = pytest.mark.parametrize("quantizer", ["scalar", "trellis"])


def network(seed=0):
    """Weights of a matrix, of kernels and of a bias, and what their errors count."""
    rng = np.random.default_rng(seed)
    weights = {
        "matrix": (rng.laplace(size=(120, 90)) / 20).astype(np.float32),
        "kernels": (rng.laplace(size=(24, 16, 3, 3)) / 20).astype(np.float32),
        "bias": rng.normal(size=120).astype(np.float32),
    }
    importance = {
        name: np.exp(2 * rng.normal(size=array.shape)).astype(np.float32) * 100 for name, array in weights.items()
    }
    return weights, importance


def loss(weights, found, importance):
    """sum F (w - w')^2"""
    return sum(float((importance[n] * (found[n].astype(np.float64) - weights[n]) ** 2).sum()) for n in weights)


def compress(weights, **settings):
    data = deepcabac.compress(weights, **settings)
    return len(data), deepcabac.decompress(data)


# What it brings -------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("bits", [1.5, 3, 5])
def test_a_file_of_the_same_size_loses_less_where_errors_count(quantizer, bits):
    weights, importance = network()
    _, plain = compress(weights, bits=bits, quantizer=quantizer, overrides={"bias": {"exact": False}})
    _, found = compress(weights, bits=bits, quantizer=quantizer, importance=importance)
    assert loss(weights, found, importance) < 0.5 * loss(weights, plain, importance)


@both
def test_an_sqnr_is_that_of_the_network_with_every_weight_counted_by_its_importance(quantizer):
    weights, importance = network()
    signal = sum(float((importance[n] * weights[n].astype(np.float64) ** 2).sum()) for n in weights)
    for wanted in (20, 30, 40):
        _, found = compress(weights, sqnr=wanted, quantizer=quantizer, importance=importance)
        assert 10 * math.log10(signal / loss(weights, found, importance)) == pytest.approx(wanted, abs=2.5)


@both
def test_a_tensor_that_counts_more_gets_a_finer_step(quantizer):
    rng = np.random.default_rng(1)
    weights = {name: (rng.laplace(size=(80, 70)) / 20).astype(np.float32) for name in "ab"}
    importance = {"a": np.full((80, 70), 16.0), "b": np.ones((80, 70))}
    _, found = compress(weights, sqnr=30, quantizer=quantizer, importance=importance)
    errors = {name: float(((found[name] - weights[name]) ** 2).mean()) for name in "ab"}
    assert errors["b"] / errors["a"] == pytest.approx(16, rel=0.2)


def test_tensors_without_importance_are_as_they_were():
    weights, importance = network()
    plain = deepcabac.decompress(deepcabac.compress(weights))
    found = deepcabac.decompress(deepcabac.compress(weights, importance={"matrix": importance["matrix"]}))
    assert np.array_equal(found["kernels"], plain["kernels"]) and np.array_equal(found["bias"], weights["bias"])
    assert not np.array_equal(found["matrix"], plain["matrix"])


@both
def test_importance_one_everywhere_with_a_step_is_none(quantizer):
    rng = np.random.default_rng(2)
    weights = {"a": (rng.laplace(size=(100, 80)) / 20).astype(np.float32)}
    ones = {"a": np.ones((100, 80))}
    (plain_size, plain), (size, found) = (
        compress(weights, step=0.02, quantizer=quantizer, **more) for more in ({}, {"importance": ones})
    )
    # The search looks further afield, and finds next to nothing there.
    assert size == pytest.approx(plain_size, rel=0.01)
    assert loss(weights, found, ones) == pytest.approx(loss(weights, plain, ones), rel=0.03)


# The greedy rule, against plain Python --------------------------------------------------------------------------------


def test_every_level_is_the_cheapest_by_the_coders_own_count():
    """No other level for the last weight of a chunk costs less, error and bytes of the whole chunk together."""
    rng = np.random.default_rng(4)
    lambda_ = 0.2
    for trial in range(20):
        weights = (3 * rng.laplace(size=400)).astype(np.float32)
        weights[-1] = 5 * rng.normal()
        importance = np.exp(2 * rng.normal(size=400)).astype(np.float32)
        importance[-1] = 10.0 ** rng.uniform(-3, 1)
        params = _core.fit((20, 20), weights, 1.0, 0)
        levels = np.empty(400, np.int32)
        _core.quantize(params, weights, 1.0, lambda_, levels, importance=importance)

        def cost(level, levels=levels, weights=weights, importance=importance, params=params):
            # Repeated, so that whole bytes tell fractions of bits.
            tried = np.append(levels[:-1], np.full(1, level, np.int32))
            error = float(importance[-1]) * (float(weights[-1]) - level) ** 2
            return error + lambda_ * 8 * len(_core.encode(params, tried))

        # Bytes are coarse: what was chosen is at most a byte and a half dearer than any other.
        chosen = cost(int(levels[-1]))
        assert chosen <= min(cost(level) for level in range(-12, 13)) + 12 * lambda_, trial


@both
def test_a_weight_that_does_not_count_takes_the_cheapest_level(quantizer):
    rng = np.random.default_rng(5)
    weights = (rng.laplace(size=(80, 60)) / 20).astype(np.float32)
    importance = np.ones((80, 60))
    importance[:, ::2] = 0
    sizes = [
        compress({"a": weights}, step=0.01, quantizer=quantizer, importance={"a": f})[0]
        for f in (importance, np.ones((80, 60)))
    ]
    assert sizes[0] < 0.7 * sizes[1]


# Zeros ----------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("shape", [(90, 70), (30, 20, 3, 3), (6000,)])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.95])
@pytest.mark.parametrize("weighted", [False, True])
def test_pruned_weights_stay_zero(quantizer, shape, share, weighted):
    rng = np.random.default_rng(6)
    weights = (rng.normal(size=shape) / 20 + 0.03).astype(np.float32)  # a mean, so that zero is not what is predicted
    weights[rng.random(shape) < share] = 0
    settings = (
        {"importance": {"a": np.exp(rng.normal(size=shape))}} if weighted else {"overrides": {"a": {"exact": False}}}
    )
    for sqnr in (6, 15, 30):
        _, found = compress({"a": weights}, sqnr=sqnr, quantizer=quantizer, **settings)
        assert not found["a"][weights == 0].any()


def test_zeros_of_a_coarse_type_are_not_taken_for_pruned_ones():
    rng = np.random.default_rng(7)
    sample = (rng.normal(size=5000) / 100).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert (sample == 0).sum() > 100
    assert not is_pruned(sample)
    assert is_pruned(np.where(rng.random(5000) < 0.01, 0, rng.normal(size=5000)).astype(np.float32))


# Types and files ------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_every_float_can_be_weighted(quantizer, dtype):
    weights, importance = network()
    cast = {name: array.astype(dtype) for name, array in weights.items()}
    _, found = compress(cast, sqnr=12, quantizer=quantizer, importance=importance)
    assert all(found[name].dtype == dtype and np.isfinite(found[name].astype(np.float64)).all() for name in cast)
    signal = sum(float((importance[n] * cast[n].astype(np.float64) ** 2).sum()) for n in cast)
    assert loss({n: a.astype(np.float64) for n, a in cast.items()}, found, importance) < 0.2 * signal


def test_the_bytes_do_not_depend_on_threads():
    weights, importance = network()
    assert deepcabac.compress(weights, importance=importance, threads=1) == deepcabac.compress(
        weights, importance=importance, threads=3
    )


# Bad input ------------------------------------------------------------------------------------------------------------

_OK = np.ones((4, 5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"importance": {"a": np.ones((5, 4))}}, r"importance of 'a' has shape \(5, 4\), but the tensor \(4, 5\)"),
        ({"importance": {"a": -_OK}}, "importance of 'a' must not be negative"),
        ({"importance": {"a": np.full((4, 5), np.nan)}}, "importance of 'a' has NaN"),
        ({"importance": {"a": np.full((4, 5), np.inf)}}, "importance of 'a' has NaN or infinity"),
        ({"importance": {"a": 0 * _OK}}, "importance of 'a' is zero everywhere"),
        ({"importance": {"a": 1e200 * _OK}}, "importance of 'a' is beyond floating point"),
        ({"importance": {"a": "much"}}, "importance of 'a' is not an array of numbers"),
        ({"importance": {"b": _OK}}, "importance of 'b': there is no tensor of this name"),
        ({"importance": {}}, "has an array for none of the tensors"),
        ({"importance": {"n": np.ones(3)}}, "has an array for none of the tensors"),
        ({"importance": _OK}, "importance must map names"),
        ({"importance": {"a": _OK}, "curvature": {}}, "choose one of curvature and importance"),
    ],
)
def test_bad_input_is_an_error_that_names_the_tensor(settings, message):
    tensors = {"a": np.ones((4, 5), np.float32), "n": np.arange(3)}
    with pytest.raises(OptionError, match=message):
        deepcabac.compress(tensors, **settings)


def test_importance_of_all_magnitudes_gives_finite_weights():
    weights, importance = network()
    extreme = {name: np.where(array > 100, 1e90, 1e-90) for name, array in importance.items()}
    _, found = compress(weights, importance=extreme, sqnr=30)
    assert all(np.isfinite(found[name]).all() for name in weights)


# The command line -----------------------------------------------------------------------------------------------------


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from deepcabac.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_the_command_line_reads_importance_from_a_file(tmp_path):
    weights, importance = network()
    save_file(weights, tmp_path / "m.safetensors")
    save_file(importance, tmp_path / "f.safetensors")
    model, out = tmp_path / "m.safetensors", tmp_path / "m.dcb"
    assert run("compress", model, "--importance", tmp_path / "f.safetensors", "--bits", 3) == (0, "")
    options = Options(bits=3, importance=importance)
    expected, _ = deepcabac.compress_checkpoint(model, tmp_path / "expected.dcb", options=options)
    assert out.read_bytes() == expected.read_bytes()
    wrong = run("compress", model, "--force", "--importance", tmp_path / "none.safetensors")
    assert wrong[0] == 2 and "none.safetensors: no such file" in wrong[1] and wrong[1].count("\n") == 1
    save_file({"other": np.ones(3)}, tmp_path / "f.safetensors")
    wrong = run("compress", model, "--force", "--importance", tmp_path / "f.safetensors")
    assert wrong[0] == 2 and "'other': there is no tensor of this name" in wrong[1] and wrong[1].count("\n") == 1


def test_options_are_checked_again_when_they_are_replaced():
    weights, importance = network()
    options = Options(importance=importance, step=0.1)
    sizes = [len(deepcabac.compress(weights, options=options, rate_distortion=rate)) for rate in (0, 1, 4)]
    assert sizes == sorted(sizes, reverse=True)
