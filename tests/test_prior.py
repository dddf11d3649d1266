"""What is expected of a network on which nothing was measured: importance, inputs of convolutions, and the files."""

import math
from itertools import pairwise

import numpy as np
import pytest

import deepcabac
from deepcabac.errors import OptionError
from deepcabac.quantize import prior
from deepcabac.source import Arrays


def moments(channels, kernel):
    """The matrix itself, as the module's head describes it."""
    places = np.array(list(np.ndindex(*kernel)))
    apart = np.abs(places[:, None] - places[None]).sum(axis=2)
    inside = np.kron(np.eye(channels), prior.NEIGHBOURS**apart)
    return (1 - prior.MEAN) * inside + prior.MEAN


@pytest.mark.parametrize(("channels", "kernel"), [(1, (3, 3)), (7, (3, 3)), (5, (5,)), (12, (1, 1)), (2, (2, 3, 2))])
def test_the_factors_are_those_of_the_second_moments(channels, kernel):
    inputs = prior._Inputs(channels, kernel)
    size, width = math.prod(kernel), channels * math.prod(kernel)
    upper = np.triu(np.tile(inputs.common.astype(float), (width, 1)))
    for channel in range(channels):
        part = slice(channel * size, (channel + 1) * size)
        upper[part, part] = inputs.columns[0, channel]
    wanted = moments(channels, kernel)
    inverse = np.linalg.inv(upper)
    diagonal = inverse @ wanted @ inverse.T
    assert np.allclose(diagonal, np.diag(np.diag(diagonal)), atol=1e-6)
    assert np.allclose(np.diag(upper), 1)
    assert math.isclose(inputs.left, np.exp(np.log(np.diag(diagonal)).mean()), rel_tol=1e-6)
    assert inputs.left < 1
    weights = np.random.default_rng(0).normal(size=(4, width)).astype(np.float32)
    seen = sum(float((part.astype(float) ** 2).sum()) for part in inputs.seen(weights))
    assert math.isclose(seen, np.einsum("ij,jk,ik->", weights, wanted, weights), rel_tol=1e-5)


def test_importance_follows_the_shape_and_the_size_of_the_weights():
    plain = prior.importance("layer.weight", (64, 32), 0.01)
    assert math.isclose(prior.importance("layer.weight", (128, 32), 0.01), plain / 2)
    assert math.isclose(prior.importance("layer.weight", (64, 128), 0.01), plain / 2)
    assert math.isclose(prior.importance("layer.weight", (64, 32), 0.16), plain * 2)
    assert prior.importance("conv.weight", (64, 8, 2, 2), 0.01) == plain
    # Matrices of eight experts are one of eight times as many outputs.
    assert math.isclose(prior.importance("experts.weight", (8, 512, 1024), 0.01), plain / 64 / math.sqrt(32))


@pytest.mark.parametrize(
    ("name", "less"),
    [
        ("layers.0.attention.wq.weight", True),
        ("encoder.layer.0.attention.self.key.weight", True),
        ("model.layers.3.self_attn.k_proj.weight", True),
        ("model.layers.3.self_attn.v_proj.weight", False),
        ("h.0.attention.query_key_value.weight", False),
        ("h.0.mlp.quick.weight", False),
    ],
)
def test_queries_and_keys_count_less(name, less):
    assert (prior.importance(name, (64, 64), 0.01) < prior.importance("w", (64, 64), 0.01)) == less


def sqnr(array, found):
    """In dB."""
    return 10 * math.log10(float((array**2).sum() / ((array - found) ** 2).sum()))


def network():
    """Convolutions, some of them of channels of their own, and matrices, of very different sizes."""
    rng = np.random.default_rng(1)
    shapes = {
        "stem.weight": (16, 3, 3, 3),
        "depthwise.weight": (32, 1, 5, 5),
        "pointwise.weight": (64, 32, 1, 1),
        "conv.weight": (64, 64, 3, 3),
        "up.deconv.weight": (64, 32, 4, 4),
        "dense.weight": (100, 256),
    }
    numbered = enumerate(shapes.items())
    return {name: (rng.normal(size=shape) * 2.0**-number).astype(np.float32) for number, (name, shape) in numbered}


def test_plans():
    tensors = network()
    expected = prior.Prior(Arrays(tensors), tensors)
    plans = {name: expected.plan(name, array) for name, array in tensors.items()}
    assert {name for name, plan in plans.items() if plan.columns is None} == {"dense.weight", "up.deconv.weight"}
    assert expected.plan("unknown", tensors["dense.weight"]) is None


def test_a_bias_tells_a_transposed_convolution():
    kernel = np.random.default_rng(4).normal(size=(32, 16, 3, 3)).astype(np.float32)
    for outputs, feedback in ((32, True), (16, False)):
        tensors = {"block.weight": kernel, "block.bias": np.zeros(outputs, np.float32)}
        plan = prior.Prior(Arrays(tensors), ["block.weight"]).plan("block.weight", kernel)
        assert (plan.columns is not None) == feedback


def test_quality_is_about_the_average_sqnr_and_six_more_are_a_bit():
    tensors = network()
    sizes = []
    for quality in (24, 30, 36):
        data = deepcabac.compress(tensors, quality=quality)
        found = deepcabac.decompress(data)
        levels = [sqnr(array, found[name]) for name, array in tensors.items()]
        counts = [array.size for array in tensors.values()]
        # Error feedback makes room for coarser steps: the plain error is larger than the one that counts.
        assert quality - 4 < np.average(levels, weights=counts) < quality + 1
        sizes.append(8 * len(data) / sum(counts))
    assert all(0.85 < more - less < 1.1 for less, more in pairwise(sizes))


def test_errors_of_convolutions_cancel_in_what_their_inputs_are_expected_to_be():
    rng = np.random.default_rng(2)
    tensors = {"conv.weight": rng.normal(size=(64, 32, 3, 3)).astype(np.float32)}
    weights = tensors["conv.weight"].reshape(64, -1)
    wanted = moments(32, (3, 3))

    def cost(data):
        error = deepcabac.decompress(data)["conv.weight"].reshape(64, -1) - weights
        return np.einsum("ij,jk,ik->", error, wanted, error) / np.einsum("ij,jk,ik->", weights, wanted, weights)

    data = deepcabac.compress(tensors, quality=24)
    plain = deepcabac.compress(tensors, sqnr=24)
    assert len(data) < 0.95 * len(plain)
    assert abs(cost(data) / cost(plain) - 1) < 0.02


def test_the_default_and_what_excludes_it():
    tensors = network()
    data = deepcabac.compress(tensors)
    assert data == deepcabac.compress(tensors, quality=30) != deepcabac.compress(tensors, sqnr=30)
    assert data == deepcabac.compress(tensors, threads=1) == deepcabac.compress(tensors, threads=4)
    with pytest.raises(OptionError, match="choose one of quality and sqnr"):
        deepcabac.compress(tensors, quality=30, sqnr=30)
    for wrong in -41, 121, math.nan, "good", True:
        with pytest.raises(OptionError, match="quality must be a number"):
            deepcabac.compress(tensors, quality=wrong)


def test_settings_by_name_go_beside_the_rule():
    tensors = network()
    overrides = {"dense.*": {"sqnr": 40}, "stem.*": {"exact": True}, "conv.*": {"offset": 12}}
    found = deepcabac.decompress(deepcabac.compress(tensors, quality=20, overrides=overrides))
    plain = deepcabac.decompress(deepcabac.compress(tensors, quality=20))
    assert np.array_equal(found["stem.weight"], tensors["stem.weight"])
    assert abs(sqnr(tensors["dense.weight"], found["dense.weight"]) - 40) < 0.2
    errors = [((tensors["conv.weight"] - one["conv.weight"]) ** 2).sum() for one in (plain, found)]
    assert 8 < 10 * math.log10(errors[0] / errors[1]) < 16


def test_pruned_weights_stay_zero_and_odd_values_do_no_harm():
    rng = np.random.default_rng(3)
    pruned = rng.normal(size=(64, 32, 3, 3)) * (rng.random((64, 32, 3, 3)) < 0.3)
    tensors = {
        "pruned": pruned.astype(np.float32),
        "zeros": np.zeros((32, 32, 3, 3), np.float32),
        "nan": np.full((16, 16), np.nan, np.float32),
        "huge": rng.normal(size=(30, 30)) * 1e200,
        "half": rng.normal(size=(32, 32, 3, 3)).astype(np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "small": rng.normal(size=(3, 3, 3, 3)).astype(np.float32),
    }
    found = deepcabac.decompress(deepcabac.compress(tensors))
    assert not found["pruned"][pruned == 0].any()
    for name in "zeros", "nan", "huge", "empty":
        assert np.array_equal(found[name], tensors[name], equal_nan=True)
    for name in "pruned", "half", "small":
        error = found[name].astype(float) - tensors[name].astype(float)
        assert (error**2).sum() < 0.01 * (tensors[name].astype(float) ** 2).sum()
