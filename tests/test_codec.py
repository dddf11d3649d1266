"""encode and decode: any integers come back exactly, everything else is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import deepcabac
from deepcabac import _core
from deepcabac.dcb import container
from deepcabac.errors import DamagedFileError, LimitError, OptionError, UnsupportedError
from deepcabac.options import PRESETS
from deepcabac.wire import Cursor

LOW, HIGH = -(1 << 31), (1 << 31) - 1
INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i2", ">i8", "?"]


def check(levels, **settings_):
    data = deepcabac.encode(levels, **settings_)
    back = deepcabac.decode(data, **settings_)
    levels = np.asarray(levels)
    assert back.dtype == np.int32 and back.shape == levels.shape
    assert (back == levels).all()
    return data


@given(
    levels=npst.arrays(
        np.int32,
        npst.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=6),
        elements=st.integers(-3, 3) | st.integers(-1000, 1000) | st.integers(LOW, HIGH) | st.sampled_from([LOW, HIGH]),
    )
)
@settings(max_examples=200, deadline=None)
def test_any_int32_array_comes_back(levels):
    check(levels, threads=1)


@st.composite
def like_weights(draw):
    """Levels like those of networks: of some spread, sparse or not, predictable or not, with outliers or not."""
    shape = draw(
        st.tuples(st.integers(1, 300), st.integers(1, 300))
        | st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 11), st.integers(1, 11))
        | st.tuples(st.integers(1, 30_000))
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.laplace(scale=draw(st.sampled_from([0.01, 0.3, 2, 50, 1e5])), size=shape)
    if draw(st.booleans()):
        values = values.cumsum(axis=-1)
    if draw(st.booleans()):
        values = values + rng.normal(size=shape[-1]) * 20
    if draw(st.booleans()):
        values *= rng.random(shape) < 0.02
    levels = np.rint(np.clip(values, -1e9, 1e9)).astype(np.int64)
    for _ in range(draw(st.integers(0, 3))):
        levels.flat[draw(st.integers(0, levels.size - 1))] = draw(st.sampled_from([LOW, HIGH, 1 << 24, -70_000]))
    return levels


@given(levels=like_weights())
@settings(max_examples=80, deadline=None)
def test_levels_like_those_of_networks_come_back(levels):
    check(levels)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_extremes_of_every_integer_type_come_back_or_are_refused(dtype):
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        check(np.array([[True, False], [False, False]]))
        return
    info = np.iinfo(dtype)
    values = np.array([info.min, 0, 1, info.max], dtype)
    if info.min >= LOW and info.max <= HIGH:
        check(values)
    else:
        with pytest.raises(OptionError, match="int32"):
            deepcabac.encode(values)
        check(values.clip(max(LOW, info.min), min(HIGH, info.max)))
    check(np.zeros(0, dtype))


@pytest.mark.parametrize("value", [LOW, LOW + 1, -1, 0, 1, HIGH])
@pytest.mark.parametrize("shape", [(), (1,), (70,), (9, 9), (4, 3, 3, 3)], ids=str)
def test_arrays_of_one_extreme_value_come_back(value, shape):
    check(np.full(shape, value))


def test_alternating_extremes_come_back_whatever_is_predicted():
    for shape in [(64, 64), (16, 4, 4, 4), (5000,), (32, 3, 7)]:
        flat = np.where(np.arange(math.prod(shape)) % 2, LOW, HIGH)
        check(flat.reshape(shape))
        check(np.sort(flat).reshape(shape))


@pytest.mark.parametrize("width", [1, 2, 127, 128, 1023, 65_535, 65_536, 65_537, 300_001])
def test_rows_of_every_width_come_back(width):
    check(np.random.default_rng(width).integers(-4, 5, (max(1, 70_000 // width), width)))


def test_tensors_of_several_chunks_come_back_and_do_not_depend_on_threads():
    levels = np.rint(np.random.default_rng(0).normal(scale=2, size=(1500, 700))).astype(np.int32)
    data = [check(levels, threads=threads) for threads in (1, 4)]
    assert data[0] == data[1] == check(levels)


def correlated(rows, width, seed=0):
    """Levels of columns that say something about each other."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, 3)) @ rng.normal(size=(3, width))
    return np.rint(2 * hidden + rng.normal(size=(rows, width))).astype(np.int32)


def coded_with(data):
    """Coding parameters and chunks of coded levels."""
    cursor = Cursor(data, "levels")
    cursor.take(2)
    return container.read_chunks(cursor, math.prod(container.read_shape(cursor)), 0)


@pytest.mark.parametrize("shape", [(300, 30), (200, 1100), (90_000, 48)], ids=str)
def test_columns_that_depend_on_each_other_are_regressed_with_preset_small(shape):
    levels = correlated(*shape)
    data = [deepcabac.encode(levels, preset="small", threads=threads) for threads in (1, 4)]
    assert data[0] == data[1]
    params, chunks = coded_with(data[0])
    assert _core.parameters(params).coder == "regression" and len(chunks) == -(-levels.size // (1 << 22))
    assert len(data[0]) < 0.95 * len(deepcabac.encode(levels))
    for threads in 1, 3:
        assert (deepcabac.decode(data[0], threads=threads) == levels).all()


def test_columns_that_do_not_are_not():
    levels = np.rint(np.random.default_rng(0).normal(scale=2, size=(300, 60))).astype(np.int32)
    for preset in PRESETS:
        assert _core.parameters(coded_with(deepcabac.encode(levels, preset=preset))[0]).coder != "regression"
    assert _core.parameters(coded_with(deepcabac.encode(correlated(300, 30)))[0]).coder == "binary"


def test_the_bytes_depend_on_the_values_alone():
    levels = np.random.default_rng(0).integers(-100, 100, (60, 50))
    expected = deepcabac.encode(levels)
    for other in (levels.astype(np.int8), levels.astype(">i4"), np.asfortranarray(levels), levels.tolist()):
        assert deepcabac.encode(other) == expected
    assert deepcabac.encode(np.repeat(levels, 2, axis=0)[::2]) == expected


def test_coded_bytes_come_close_to_the_entropy_and_zeros_cost_next_to_nothing():
    rng = np.random.default_rng(0)
    levels = np.rint(rng.normal(scale=2, size=(400, 500))).astype(np.int32)
    _, counts = np.unique(levels, return_counts=True)
    entropy = -(counts * np.log2(counts / levels.size)).sum() / 8
    assert len(deepcabac.encode(levels)) < 1.01 * entropy + 50
    assert len(deepcabac.encode(np.zeros((1000, 1000), int))) < 300


@pytest.mark.parametrize(
    "levels",
    [1.0, [0.5], np.zeros(3, np.float32), np.zeros(3, complex), ["1"], [None], [b"1"], np.zeros(2, "M8[s]"), {}],
    ids=repr,
)
def test_what_is_not_integers_is_refused(levels):
    with pytest.raises(OptionError, match="integers"):
        deepcabac.encode(levels)


@pytest.mark.parametrize("value", [1 << 31, LOW - 1, (1 << 64) - 1, -(1 << 63)])
def test_integers_beyond_int32_are_refused(value):
    with pytest.raises(OptionError, match="int32"):
        deepcabac.encode([value, 0] if value < 1 << 63 else np.array([value], np.uint64))


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="numpy itself allows 32 only")
def test_more_dimensions_than_numpy_once_allowed_are_refused():
    check(np.zeros((1,) * 32, int))
    with pytest.raises(OptionError, match="33 dimensions"):
        deepcabac.encode(np.zeros((1,) * 33, int))


def test_decode_takes_any_buffer_and_max_bytes():
    levels = np.arange(100).reshape(10, 10)
    data = deepcabac.encode(levels)
    for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert (deepcabac.decode(buffer) == levels).all()
    assert (deepcabac.decode(data, max_bytes=400) == levels).all()
    with pytest.raises(LimitError, match="399"):
        deepcabac.decode(data, max_bytes=399)


def test_files_and_levels_are_told_apart():
    with pytest.raises(DamagedFileError, match=r"not a \.dcb file"):
        deepcabac.decompress(deepcabac.encode([1]))
    with pytest.raises(DamagedFileError, match="not coded levels"):
        deepcabac.decode(deepcabac.compress({}))
    with pytest.raises(UnsupportedError, match="version 9"):
        deepcabac.decode(b"\xdc\x09")


def test_results_are_writable_and_inputs_left_alone():
    levels = np.arange(50)
    levels.flags.writeable = False
    back = deepcabac.decode(deepcabac.encode(levels))
    back += 1
    assert (levels == np.arange(50)).all()


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_a_number_of_threads_that_is_none_is_refused(threads):
    data = deepcabac.encode([1, 2])
    with pytest.raises(OptionError, match="threads"):
        deepcabac.encode([1, 2], threads=threads)
    with pytest.raises(OptionError, match="threads"):
        deepcabac.decode(data, threads=threads)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_parameters_code_any_levels(data):
    """What a writer chooses is free: every valid record codes every chunk."""
    flags = data.draw(st.sampled_from([*range(8), 48, 49, 52, 53, 56, 57]))
    params = bytes(
        [flags, data.draw(st.integers(0, 191)), data.draw(st.integers(1, 127)), data.draw(st.integers(1, 60))]
    )
    if flags & 1:
        params += data.draw(st.binary(min_size=2, max_size=2))
    if flags & 2:
        params += bytes([data.draw(st.integers(1, 64)), data.draw(st.integers(1, 128))])
        params += data.draw(st.binary(min_size=5, max_size=5))
    if flags & 8:
        params += bytes([data.draw(st.integers(3, 6))])
    size = data.draw(st.integers(1, min(500, _core.chunk_levels(params))))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    levels = rng.integers(-4, 5, size).astype(np.int32)
    levels[rng.random(size) < 0.1] *= 1 << 12
    levels[rng.random(size) < 0.05] = rng.choice([LOW, HIGH])
    if flags & 8:  # not all levels are possible
        code, _ = _core.quantize(params, levels.astype(np.float32), 1.0, 0.0, levels)
    else:
        code = _core.encode(params, levels)
    out, other = np.empty_like(levels), np.empty_like(levels)
    assert _core.decode([_core.Job(params, code, out), _core.Job(params, code, other)]) == [True, True]
    assert (out == levels).all() and (other == levels).all()


@given(plain=st.binary(max_size=2000))
@settings(max_examples=60, deadline=None)
def test_bytes_of_the_index_come_back(plain):
    assert _core.decode_bytes(_core.encode_bytes(plain), len(plain)) == plain
