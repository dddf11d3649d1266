"""Quantisation by the rule of DeepCABAC's first variant."""

import numpy as np
import pytest

from deepcabac import OptionError, dc2019


def layer(shape=(60, 50), seed=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype(np.float32), 0.05 * np.exp(rng.normal(size=shape) / 2)


def test_the_step_follows_the_papers_rule():
    array, sigma = np.array([0.5, -1.0, 0.25]), np.array([0.1, 0.2, 0.5])
    # m = 1.1; 2 m / 0.1 = 22
    assert dc2019.step_size(array, sigma, 0) == pytest.approx(2.2 / 22)
    assert dc2019.step_size(array, sigma, 42) == pytest.approx(2.2 / 64)


@pytest.mark.parametrize("lambda_", [0.0, 0.1, 100.0])
def test_no_weight_moves_further_than_3_sigma(lambda_):
    weights, sigma = layer()
    levels, step = dc2019.quantize(weights, sigma, S=16, lambda_=lambda_)
    assert levels.dtype == np.int32 and levels.shape == weights.shape
    assert step == pytest.approx(dc2019.step_size(weights, sigma, 16), rel=1e-6)
    moved = np.abs(levels * np.float64(step) - weights)
    assert (moved - np.maximum(3 * sigma, step / 2)).max() < 1e-4 * step
    if lambda_ == 0:
        assert moved.max() <= 0.5001 * step


def test_a_bit_that_costs_more_makes_a_smaller_stream():
    weights, sigma = layer()
    sizes = [len(dc2019.compress({"a": weights}, {"a": sigma}, S=8, lambda_=one)) for one in (0, 1, 10, 100)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.95 * sizes[0]


def test_small_sigma_keeps_a_weight_in_place():
    weights, sigma = layer((100, 100))
    sigma = np.where(np.arange(100) % 2, 0.02, 0.2) * np.ones_like(sigma)
    levels, step = dc2019.quantize(weights, sigma, S=0, lambda_=5.0)
    moved = np.abs(levels * step - weights)
    assert moved[:, ::2].mean() > 3 * moved[:, 1::2].mean()


def test_a_model_is_one_stream():
    tensors, sigma = {}, {}
    for seed, (name, shape) in enumerate({"kernels": (8, 4, 3, 3), "matrix": (30, 20), "bias": (30,)}.items()):
        tensors[name], sigma[name] = layer(shape, seed)
    stream = dc2019.compress(tensors, sigma, S=64, lambda_=0.01)
    for name, found in zip(tensors, dc2019.decode(stream), strict=True):
        step = dc2019.step_size(tensors[name], sigma[name], 64)
        assert found.shape == tensors[name].shape
        assert np.abs(found - tensors[name]).max() <= max(3 * sigma[name].max(), step)
    first, step = dc2019.quantize(tensors["kernels"], sigma["kernels"], S=64, lambda_=0.01)
    # Contexts of a stream's first tensor are fresh, as they are for a tensor alone.
    assert np.array_equal(first.astype(np.float32) * np.float32(step), dc2019.decode(stream)[0])


def test_any_shape_can_be_quantised():
    for shape in ((1,), (7,), (4, 3, 5), (2, 3, 2, 2, 2)):
        weights, sigma = layer(shape)
        assert dc2019.quantize(weights, sigma)[0].shape == shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, s: dc2019.quantize(w, 0 * s), "sigma must be finite and above zero"),
        (lambda w, s: dc2019.quantize(w, s[:2]), "sigma has the shape"),
        (lambda w, s: dc2019.quantize(w, s, S=-1), "S must be a number from 0"),
        (lambda w, s: dc2019.quantize(w, s, lambda_=-1), "lambda not negative"),
        (lambda w, s: dc2019.quantize(w * np.inf, s), "finite"),
        (lambda w, s: dc2019.compress({"a": w}, {}), "sigma has no array for the tensor 'a'"),
        (lambda w, s: dc2019.compress({"a": w}, {"a": -s}), "tensor 'a': sigma must be"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(OptionError, match=message), np.errstate(invalid="ignore"):
        call(*layer())
