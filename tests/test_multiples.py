"""Weights that were quantised already: integers and steps are found, every bit comes back, and never in more bytes than
the lossy way.
"""

import importlib
import io
import itertools
import sys
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepcabac
from deepcabac.dcb import reader, writer
from deepcabac.options import Options
from deepcabac.quantize import multiples
from deepcabac.source import Arrays

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "reference"))
decode = importlib.import_module("decode")

BFLOAT16 = ml_dtypes.bfloat16
TYPES = pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, BFLOAT16], ids=lambda dtype: np.dtype(dtype).name
)


def weights(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


def rounded(weights, bits, group, scale=np.float32, zero_point=False, signed=False):
    """Weights rounded to nearest, by groups: integers times a step of type ``scale``. float32"""
    rows = weights.reshape(-1, group)
    if zero_point:
        low, high = np.minimum(rows.min(1, keepdims=True), 0), np.maximum(rows.max(1, keepdims=True), 0)
        steps = ((high - low) / (2**bits - 1)).astype(scale).astype(np.float32)
        zero = np.rint(-low / steps)
        levels = np.clip(np.rint(rows / steps) + zero, 0, 2**bits - 1) - zero
    else:
        most = 2 ** (bits - 1) - 1
        steps = (np.abs(rows).max(1, keepdims=True) / most).astype(scale).astype(np.float32)
        levels = np.clip(np.rint(rows / steps), -most - 1, most)
    levels = levels if signed else levels + 0.0  # negative zeros become positive ones
    return (levels.astype(np.float32) * steps).reshape(weights.shape)


def same(one, other):
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def form(data, name="w"):
    with reader.open_bytes(data, max_bytes=None, threads=1) as opened:
        return opened._index.entries[opened.keys().index(name)].form, opened.info(name)


def assert_exact(array, group=None, **options):
    """The file of a tensor that is stored as multiples, and comes back bit for bit, with the reference decoder too."""
    data = deepcabac.compress({"w": array}, **options)
    assert same(deepcabac.decompress(data)["w"], array)
    if array.size < 20_000:
        assert same(decode.read_file(data)["w"], array)
    found, info = form(data)
    assert (info.method, info.coding) == ("exact", "multiples")
    assert group is None or found.group == group
    return data


@TYPES
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, 128, 320])
def test_groups_and_rows_of_every_type_and_precision_are_found(dtype, bits, group):
    array = rounded(weights(40, 320 if group != 128 else 256), bits, group).astype(dtype)
    data = assert_exact(array, group, lossless=True)
    plain = 32 * array.size // group + bits * array.size + 8 * 400  # bits of steps and integers, and of a small file
    assert 8 * len(data) < plain


@pytest.mark.parametrize("scale", [np.float16, BFLOAT16])
@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_integers_with_a_zero_point_narrow_scales_and_signed_zeros(scale, zero_point, signed):
    array = rounded(weights(64, 512), 4, 128, scale, zero_point, signed)
    data = assert_exact(array, 128, lossless=True)
    found, _ = form(data)
    assert found.signed == bool((np.signbit(array) & (array == 0)).any())
    # 16 bits of a step, of which the exponents have few values; integers below 4 bits, and zeros a sign.
    assert 8 * len(data) / array.size < 16 / 128 + 4.0 + 0.3


def test_scales_that_were_narrow_take_few_bytes():
    array = weights(256, 256)
    wide, narrow = (len(assert_exact(rounded(array, 4, 32, scale), 32)) for scale in (np.float32, BFLOAT16))
    assert wide - narrow > 2048 * 14 / 8  # of 24 bits of mantissa, 8 are left


@pytest.mark.parametrize("shape", [(64, 16, 3, 3), (30, 200), (3, 50, 64)], ids=str)
def test_rows_of_convolutions_and_of_the_last_dimension(shape):
    group = int(np.prod(shape[1:])) if len(shape) != 3 else shape[-1]
    assert_exact(rounded(weights(*shape), 4, group), group, lossless=True)


def test_several_chunks_and_slices_of_them(tmp_path):
    array = rounded(weights(700, 2048), 3, 64)
    path = tmp_path / "w.dcb"
    path.write_bytes(assert_exact(array, 64))
    with deepcabac.open_file(path) as opened:
        entry = opened._index.entries[0]
        assert len(entry.chunks) > 1
        for start, stop in [(0, 5), (entry.chunk_size - 3, entry.chunk_size + 70), (array.size - 1, array.size)]:
            assert same(opened.span("w", start, stop), array.reshape(-1)[start:stop])


@pytest.mark.parametrize(
    "options", [{}, {"preset": "fast"}, {"preset": "small"}, {"sqnr": 30}, {"quality": 25}], ids=str
)
def test_they_are_kept_where_that_is_smaller_and_the_report_says_why(options):
    array = rounded(weights(512, 512), 4, 128)
    data = assert_exact(array, 128, **options)
    assert len(data) < len(deepcabac.compress({"w": weights(512, 512)}, sqnr=options.get("sqnr", 30)))
    report = writer.compress(Arrays({"w": array}), io.BytesIO(), Options(**options))
    assert report.tensors[0].reason == "quantised already, in groups of 128"


def test_they_are_kept_with_a_step_that_was_asked_for_if_that_is_smaller():
    array = rounded(weights(128, 512), 3, 512)
    fine, coarse = ({"overrides": {"w": {"step": step}}} for step in (0.001, 0.1))
    assert_exact(array, 512, **fine)
    _, info = form(deepcabac.compress({"w": array}, **coarse))
    assert info.method == "quantized"


def test_what_is_finer_than_the_target_needs_is_quantised_and_smaller():
    array = rounded(weights(512, 512), 8, 512)
    data, whole = deepcabac.compress({"w": array}), assert_exact(array, 512, lossless=True)
    assert form(data)[1].method == "quantized"
    assert len(data) < len(whole) < 0.3 * array.nbytes


@TYPES
@pytest.mark.parametrize("shape", [(64, 64), (16, 8, 3, 3), (3, 50_000)], ids=str)
def test_ordinary_weights_are_on_no_grid(dtype, shape):
    assert all(multiples.glance(weights(*shape, seed=seed).astype(dtype)) is None for seed in range(10))
    data = deepcabac.compress({"w": weights(*shape).astype(dtype)}, lossless=True)
    assert form(data)[1].coding == "coded"


def spoilt(change):
    array = rounded(weights(300, 256), 4, 64)
    change(array)
    return array


@pytest.mark.parametrize(
    "array",
    [
        spoilt(lambda array: np.put(array, 70_001, 0.0123)),
        spoilt(lambda array: np.put(array, array.argmax(), array.max() * np.float32(1 + 2**-20))),
        spoilt(lambda array: np.put(array, 70_001, np.nan)),
        spoilt(lambda array: np.put(array, 3, np.inf)),
        spoilt(lambda array: np.put(array, 3, 3e38)),
        spoilt(lambda array: np.put(array, 3, 1e-45)),
        rounded(weights(300, 256), 4, 64).astype(np.float64) * 1.1,
    ],
    ids=["a value", "last bits", "NaN", "infinity", "a large value", "a small value", "float64"],
)
def test_one_value_off_the_grid_and_everything_still_comes_back(array):
    data = deepcabac.compress({"w": array}, lossless=True)
    assert same(deepcabac.decompress(data)["w"], array)
    assert form(data)[1].coding == "coded"


@TYPES
def test_zeros_of_either_sign_and_groups_of_them(dtype):
    array = rounded(weights(48, 256), 4, 64, np.float16, signed=True)
    array[:3] = 0
    array[10, 64:128] = -0.0
    array[20, 5:] = 0
    array[-1] = -0.0
    found, _ = form(assert_exact(array.astype(dtype), 64, lossless=True))
    assert found.signed


def test_rows_that_are_mostly_zero_or_of_other_integers():
    levels = np.random.default_rng(5).integers(-200, 201, (64, 512))
    levels[:, 40:480] = 0
    levels[1::2] = np.sign(levels[1::2])
    steps = np.float32(np.random.default_rng(6).uniform(1e-4, 1e-2, (64, 1)))
    assert_exact(levels.astype(np.float32) * steps, 512, lossless=True)


@pytest.mark.parametrize("scale", [1e-37, 1e-42, 1e34])
def test_steps_at_the_ends_of_float32(scale):
    levels = np.random.default_rng(7).integers(-7, 8, (64, 256)).astype(np.float32)
    steps = (np.random.default_rng(8).uniform(1, 2, (64, 1)) * scale).astype(np.float32)
    array = levels * steps
    data = deepcabac.compress({"w": array}, lossless=True)
    assert same(deepcabac.decompress(data)["w"], array)
    assert scale < 1e-40 or form(data)[1].coding == "multiples"


def test_the_finer_of_two_grids_is_taken_where_it_saves_bits():
    steps = np.float32(2.0) ** np.random.default_rng(9).integers(-12, -8, (64, 8, 1))  # powers of two, as in MX formats
    array = (np.random.default_rng(10).integers(-7, 8, (64, 8, 32)) * steps).astype(np.float32).reshape(64, 256)
    assert_exact(array, 32, lossless=True)


def test_a_base_of_multiples_is_a_base(tmp_path):
    base = {"w": rounded(weights(64, 512), 4, 128), "v": rounded(weights(64, 512, seed=1), 4, 512)}
    (tmp_path / "base.dcb").write_bytes(deepcabac.compress(base, lossless=True))
    old = deepcabac.decompress((tmp_path / "base.dcb").read_bytes())
    new = {"w": base["w"].copy(), "v": rounded(weights(64, 512, seed=2), 4, 512)}
    new["w"][3, 7] += 1
    update = deepcabac.compress(new, base=old, lossless=True)
    for back in (deepcabac.decompress(update, base=old), decode.read_file(update, base=old)):
        assert all(same(back[name], new[name]) for name in new)
    assert len(update) < 15_000  # a value of one, and the other as multiples
    assert form(update, "v")[1].coding == "multiples"


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([np.float32, np.float16, BFLOAT16]),
    st.integers(1, 255),
    st.integers(0, (1 << 23) - 1),
    st.integers(118, 133),
    st.integers(0, 23),
    st.integers(0, 2**32 - 1),
)
def test_integers_times_any_step_are_found(dtype, most, mantissa, exponent, zeros, seed):
    most = min(most, 127) if dtype == BFLOAT16 else most  # 8 bits of mantissa hardly tell larger ones apart
    step = np.uint32(exponent << 23 | mantissa >> zeros << zeros).view(np.float32)
    levels = np.random.default_rng(seed).integers(-most, most + 1, (5, 64)).astype(np.float32)
    levels[:, 0], levels[:, 1] = most, 1
    array = (levels * step).astype(dtype)
    found = multiples.split(array.reshape(-1), multiples.Grid(64, False, ()))
    assert found is not None
    again = found.levels.astype(np.float32)
    multiples.multiply(again, found.steps, False)
    assert same(again.astype(dtype).reshape(array.shape), array)
    # No step with more zeros at its end does it: the one that was meant has as many, or fewer.
    assert all(trailing(one) >= trailing(step) for one in found.steps)


def trailing(step):
    bits = int(np.float32(step).view(np.uint32))
    return (bits & -bits).bit_length() - 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=lambda dtype: np.dtype(dtype).name)
def test_the_interval_of_steps_is_exact(dtype):
    """Against fractions: its ends still give the value, the numbers beside them do not."""
    random = np.random.default_rng(11)
    for number, _ in itertools.product((1, 2, 3, 7, 10, 127), range(20)):
        value = (random.uniform(1, 2, 1) * 2.0 ** random.integers(-8, 3)).astype(dtype)
        first, last = multiples._interval(value[None], np.array([[number]], np.int32), number)
        bits = value.view(f"<i{value.itemsize}")
        below, above = (Fraction(float((bits + by).astype(bits.dtype).view(dtype)[0])) for by in (-1, 1))
        lower, upper = (Fraction(float(value[0])) + below) / 2, (Fraction(float(value[0])) + above) / 2

        def rounds(step, number=number, lower=lower, upper=upper, even=bits[0] % 2 == 0):
            product = number * Fraction(float(np.int32(step).view(np.float32)))
            return lower < product < upper or (bool(even) and product in (lower, upper))

        if first[0] > last[0]:
            continue
        assert rounds(first[0]) and rounds(last[0])
        assert not rounds(first[0] - 1) and not rounds(last[0] + 1)


def test_levels_and_steps_are_multiplied_as_the_format_says():
    factors = np.array([0, -1, -2, 5, -(2.0**30), 3], np.float32)
    multiples.multiply(factors, np.array([0.5, 3e38], np.float32), True)
    assert factors.tolist() == [0, 0, -0.5, np.inf, -np.inf, np.inf]
    assert np.signbit(factors).tolist() == [False, True, True, False, True, False]
