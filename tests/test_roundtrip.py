"""What goes in comes out: bit for bit where exact, within the quality asked for elsewhere."""

from __future__ import annotations

import io
import math
import string
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepcabac
from deepcabac.checkpoint.base import BFLOAT16, DTYPES, FLOAT8_E4M3FN, FLOAT8_E5M2
from deepcabac.dcb import container
from deepcabac.dcb.reader import OpenFile

EXAMPLES = Path(__file__).parents[1] / "examples"
FLOATS = [np.dtype("<f8"), np.dtype("<f4"), np.dtype("<f2"), BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2]
F4 = np.dtype("<f4")

dtypes = st.sampled_from(DTYPES)
#: 0 to 8 dimensions and at most a few thousand elements; some are empty.
shapes = st.lists(st.integers(0, 4), max_size=8).map(tuple) | st.lists(st.integers(1, 70), max_size=2).map(tuple)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def bit_patterns(draw):
    """An array of any dtype and shape with any bits: NaN payloads, infinities, -0, denormals."""
    dtype, shape = draw(dtypes), draw(shapes)
    size = math.prod(shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    return np.frombuffer(rng.bytes(size * dtype.itemsize), dtype).reshape(shape)


@st.composite
def weights(draw):
    """A finite float array like those of networks, of any float dtype."""
    dtype, shape = draw(st.sampled_from(FLOATS)), draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1e-3, 0.05, 1.0, 30.0]))
    values = rng.normal(scale=scale, size=shape) * (rng.random(shape) < draw(st.sampled_from([0.1, 1.0])))
    return values.astype(dtype)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def noise(w, restored):
    w, restored = w.astype(np.float64), restored.astype(np.float64)
    return float(((w - restored) ** 2).sum())


def sqnr(w, restored):
    error = noise(w, restored)
    return 10 * math.log10(float((w.astype(np.float64) ** 2).sum()) / error) if error else math.inf


def normal(*shape, seed=0, dtype=F4, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(dtype)


@given(tensors=st.dictionaries(names, bit_patterns(), max_size=5))
@settings(max_examples=100, deadline=None)
def test_exact_tensors_come_back_bit_for_bit(tensors):
    data = deepcabac.compress(tensors, overrides={"*": {"exact": True}}, threads=1)
    restored = deepcabac.decompress(data, threads=1)
    assert list(restored) == list(tensors)
    for name, array in tensors.items():
        assert same_bits(restored[name], array)


@given(tensors=st.dictionaries(names, weights() | bit_patterns(), max_size=4), sqnr=st.sampled_from([3, 15, 30, 50]))
@settings(max_examples=100, deadline=None)
def test_any_tensors_come_back_with_their_names_types_and_shapes(tensors, sqnr):
    report = deepcabac.dcb.writer.compress(
        deepcabac.source.Arrays(tensors), io.BytesIO(), deepcabac.Options(sqnr=sqnr, threads=1)
    )
    restored = deepcabac.decompress(deepcabac.compress(tensors, sqnr=sqnr, threads=1), threads=1)
    assert list(restored) == list(tensors)
    for told, (name, array) in zip(report.tensors, tensors.items(), strict=True):
        assert (restored[name].dtype, restored[name].shape) == (array.dtype, array.shape)
        if told.method == "exact":
            assert same_bits(restored[name], array)
        elif told.method == "quantized":
            assert np.isfinite(restored[name].astype(np.float64)).all()
            assert told.coded_bytes < array.nbytes
            if told.sqnr is not None and math.isfinite(told.sqnr):
                assert told.sqnr >= 0.99 * sqnr
                # What the report says is what a reader measures.
                energy = float((array.astype(np.float64) ** 2).sum())
                assert noise(array, restored[name]) == pytest.approx(energy * 10 ** (-told.sqnr / 10), rel=0.02)
            else:
                assert noise(array, restored[name]) <= 1e-6 * float((array.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("dtype", [np.dtype("<f8"), F4, np.dtype("<f2"), BFLOAT16], ids=str)
@pytest.mark.parametrize("wanted", [10, 20, 30, 40])
@pytest.mark.parametrize("shape", [(300, 200), (32, 16, 3, 3), (20000,), (4, 50, 60)], ids=str)
def test_the_sqnr_asked_for_is_reached_within_one_percent(dtype, wanted, shape):
    w = normal(*shape, dtype=dtype, scale=0.05)
    data = deepcabac.compress({"w": w}, sqnr=wanted)
    reached = sqnr(w, deepcabac.decompress(data)["w"])
    assert reached == pytest.approx(wanted, rel=0.01)
    assert len(data) < w.nbytes


def test_sparse_heavy_tailed_and_shifted_weights_reach_their_sqnr_too():
    rng = np.random.default_rng(1)
    tensors = {
        "sparse": normal(400, 300) * (rng.random((400, 300)) < 0.03),
        "laplace": rng.laplace(size=(300, 300)),
        "student": rng.standard_t(4, size=(300, 300)),
        "uniform": rng.uniform(-1, 1, size=(300, 300)),
        "shifted": 1 + normal(300, 300) / 10,
        "rows": normal(300, 300) * np.exp(normal(300, 1) * 2),
        "smooth": rng.normal(size=(64, 32, 7, 7)).cumsum(-1).cumsum(-2),
    }
    tensors = {name: w.astype(F4) for name, w in tensors.items()}
    restored = deepcabac.decompress(deepcabac.compress(tensors, sqnr=25))
    for name, w in tensors.items():
        assert sqnr(w, restored[name]) == pytest.approx(25, rel=0.01), name


@pytest.mark.skipif(not (EXAMPLES / "lenet300.safetensors").exists(), reason="no examples/lenet300.safetensors")
def test_the_example_network_reaches_its_sqnr_in_every_tensor():
    from safetensors.numpy import load_file

    network = load_file(EXAMPLES / "lenet300.safetensors")
    data = deepcabac.compress(network, sqnr=20)
    assert len(data) < 0.15 * sum(w.nbytes for w in network.values())
    restored = deepcabac.decompress(data)
    for name, w in network.items():
        if w.ndim == 1:
            assert same_bits(restored[name], w)
        else:
            assert sqnr(w, restored[name]) == pytest.approx(20, rel=0.01)


@given(w=weights(), step=st.sampled_from([0.001, 0.03, 0.5, 8.0]))
@settings(max_examples=100, deadline=None)
def test_with_plain_rounding_no_weight_is_off_by_more_than_half_a_step(w, step):
    w = w.astype(F4)
    options = {"step": step, "rate_distortion": 0, "quantizer": "scalar", "threads": 1}
    restored = deepcabac.decompress(deepcabac.compress({"w": w}, **options))["w"]
    # The step itself is rounded to 12 bits, and w' to float32.
    off, largest = np.abs(restored.astype(np.float64) - w).max(initial=0), np.abs(w).max(initial=0)
    assert off <= step * (0.5 + 2**-12) + 1e-6 * largest


def test_rate_distortion_makes_a_smaller_file_of_the_same_step():
    w = normal(300, 300)
    plain = deepcabac.compress({"w": w}, step=1.0, rate_distortion=0)
    assert len(deepcabac.compress({"w": w}, step=1.0)) < len(plain)


@pytest.mark.parametrize("bits", [0.7, 1, 2, 3.5, 6, 10])
def test_bits_are_reached_within_one_percent(bits):
    tensors = {"a": normal(200, 300), "b": normal(64, 32, 3, 3, seed=1, scale=0.1), "bias": normal(64)}
    data = deepcabac.compress(tensors, bits=bits)
    elements = sum(w.size for w in tensors.values())
    assert 8 * len(data) / elements == pytest.approx(bits, rel=0.01)


@pytest.mark.parametrize("size", [8_000, 20_000, 50_000])
def test_a_size_is_reached_within_one_percent(tmp_path, size):
    report = deepcabac.save_file({"a": normal(200, 300), "b": normal(20, 20)}, tmp_path / "m.dcb", size=size)
    assert (tmp_path / "m.dcb").stat().st_size == report.file_bytes == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("size", [1, 100, 2_000, 10**9])
def test_a_size_that_cannot_be_reached_is_an_error_that_says_what_can(tmp_path, size):
    with pytest.raises(deepcabac.OptionError, match="come closest"):
        deepcabac.save_file({"a": normal(200, 300), "exact": np.arange(2000)}, tmp_path / "m.dcb", size=size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings_", [{"sqnr": 25}, {"bits": 3}, {"step": 0.1}], ids=str)
def test_the_bytes_do_not_depend_on_threads_or_on_the_time(settings_):
    tensors = {f"w{n}": normal(64 * n, 129, seed=n) for n in range(1, 6)}
    tensors |= {"large": normal(700, 900), "half": normal(90, 90, dtype=np.float16), "n": np.arange(9)}
    tensors["tied"] = tensors["w1"]
    data = [deepcabac.compress(tensors, threads=threads, **settings_) for threads in (1, 4, 4)]
    assert data[0] == data[1] == data[2]
    one, four = (deepcabac.decompress(data[0], threads=threads) for threads in (1, 4))
    assert all(same_bits(one[name], four[name]) for name in tensors)


def test_single_tensors_are_those_of_the_whole_file(tmp_path):
    shared = normal(300, 500)
    tensors = {"a": shared, "b": normal(16, 8, 5, 5), "again": shared, "n": np.arange(5), "": np.float32(3)}
    path = tmp_path / "model.dcb"
    deepcabac.save_file(tensors, path, sqnr=25)
    whole = deepcabac.load_file(path)
    assert whole["a"] is whole["again"]
    with deepcabac.open_file(path) as file:
        assert file.keys() == list(file) == list(tensors) and len(file) == 5
        assert "a" in file and "z" not in file
        for name in tensors:
            assert same_bits(file[name], whole[name])
        for name, array in file.items():
            assert same_bits(array, whole[name])
        info = file.info("again")
        assert (info.method, info.tied_to, info.shape, info.dtype) == ("tied", "a", (300, 500), F4)
        assert file.info("a").method == "quantized" and file.info("a").step > 0
        assert file.info("n").method == "exact" and file.info("n").step is None
        assert not list(file.check())
        with pytest.raises(KeyError):
            file["z"]


@pytest.mark.parametrize("quantizer", ["scalar", "trellis"])
def test_matrices_of_correlated_columns_are_regressed_at_level_small(tmp_path, quantizer):
    rng = np.random.default_rng(0)
    tensors = {"noise": normal(300, 60), "bias": normal(60), "n": np.arange(9)}
    for dtype in ("<f8", "<f4", "<f2", BFLOAT16):
        hidden = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 60))
        tensors[np.dtype(dtype).name] = (0.01 * (hidden + 0.5 * rng.normal(size=hidden.shape))).astype(dtype)
    hidden = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 1500))
    tensors["wide"] = (hidden + 0.5 * rng.normal(size=hidden.shape)).astype(F4)
    how = {"sqnr": 25, "quantizer": quantizer}
    data = [deepcabac.compress(tensors, preset="small", threads=threads, **how) for threads in (1, 3)]
    assert data[0] == data[1]
    path = tmp_path / "a.dcb"
    deepcabac.save_file(tensors, path, preset="small", **how)
    assert path.read_bytes() == data[0]
    usual = deepcabac.compress(tensors, **how)
    one, three = (deepcabac.decompress(data[0], threads=threads) for threads in (1, 3))
    loaded = deepcabac.load_file(path)
    with deepcabac.open_file(path) as file, OpenFile(io.BytesIO(usual)) as other:
        assert not list(file.check())
        for name, w in tensors.items():
            assert same_bits(file[name], one[name]) and same_bits(three[name], one[name])
            assert same_bits(loaded[name], one[name])
            info = file.info(name)
            if name in ("noise", "bias", "n"):
                assert info.coder != "regression"
            else:
                assert info.coder == "regression" and other.info(name).coder == "binary"
                assert info.coded_bytes < 0.95 * other.info(name).coded_bytes
                assert 10 * math.log10((w.astype(float) ** 2).sum() / noise(w, one[name])) > 24.8


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    def __init__(self, data):
        super().__init__(data)
        self.count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


def test_only_the_index_and_the_chunks_of_the_tensor_asked_for_are_read():
    tensors = {"a": normal(600, 700), "b": normal(50, 60, seed=1), "n": np.arange(100_000)}
    file = Counting(deepcabac.compress(tensors, sqnr=30))
    with OpenFile(file) as opened:
        assert file.count == container.HEADER.size + opened.index_bytes
        for name in ("b", "n", "a"):
            file.count = 0
            opened[name]
            assert file.count == opened.info(name).coded_bytes > 0


def test_ties_are_found_by_memory_and_cost_nothing():
    w = normal(200, 200)
    once, twice = deepcabac.compress({"a": w}), deepcabac.compress({"a": w, "b": w, "c": w[:]})
    assert len(twice) < len(once) + 40
    restored = deepcabac.decompress(twice)
    assert restored["a"] is restored["b"] is restored["c"]
    # Same memory, read otherwise: not tied.
    restored = deepcabac.decompress(deepcabac.compress({"a": w, "t": w.T, "r": w[::-1], "h": w[:100]}, sqnr=40))
    assert (restored["t"].shape, restored["h"].shape) == ((200, 200), (100, 200))
    for name, expected in {"t": w.T, "r": w[::-1], "h": w[:100]}.items():
        assert sqnr(expected, restored[name]) > 39


def test_negative_zero_nan_and_infinity_are_kept_exactly_and_finite_neighbours_too():
    bits = np.arange(0x7F800000 - 50, 0x7F800000 + 50, dtype=np.uint32)
    odd = np.concatenate([bits, bits | 0x80000000, np.arange(50, dtype=np.uint32)]).view(F4).reshape(25, 10)
    minus_zero = np.full((40, 40), -0.0, F4)
    data = deepcabac.compress({"odd": odd, "zero": minus_zero}, overrides={"zero": {"exact": True}})
    restored = deepcabac.decompress(data)
    assert same_bits(restored["odd"], odd) and same_bits(restored["zero"], minus_zero)


def test_tensors_of_zeros_constants_and_single_spikes_survive():
    spike = np.zeros((100, 100), F4)
    spike[50, 50] = 3e30
    tensors = {"zeros": np.zeros((100, 100), F4), "ones": np.ones((100, 100), F4), "spike": spike}
    restored = deepcabac.decompress(deepcabac.compress(tensors, sqnr=30))
    assert same_bits(restored["zeros"], tensors["zeros"])
    assert sqnr(tensors["ones"], restored["ones"]) > 29
    assert noise(spike, restored["spike"]) <= 9e60 * 1e-3


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-20, 1e20, 1e30, 1e37], ids=str)
def test_tiny_and_huge_weights_reach_their_sqnr_or_are_exact(scale):
    w = (normal(100, 100).astype(np.float64) * scale).astype(F4)
    restored = deepcabac.decompress(deepcabac.compress({"w": w}, sqnr=30))["w"]
    assert np.isfinite(restored).all()
    wide, back = w.astype(np.float64) / scale, restored.astype(np.float64) / scale
    assert same_bits(w, restored) or sqnr(wide, back) == pytest.approx(30, rel=0.01)


@pytest.mark.parametrize("scale", [1e-300, 1e-45, 1e45, 1e300], ids=str)
def test_float64_that_float32_cannot_hold_is_exact(scale):
    w = normal(50, 50, dtype=np.float64) * scale
    assert same_bits(w, deepcabac.decompress(deepcabac.compress({"w": w}, sqnr=30))["w"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "settings_", [{"sqnr": n} for n in (1, 3, 5, 8, 12, 25)] + [{"step": 1e5}, {"step": 1e30}], ids=str
)
def test_quantised_values_never_leave_the_range_of_a_narrow_type(settings_):
    for dtype in (np.dtype("<f2"), FLOAT8_E4M3FN, FLOAT8_E5M2, BFLOAT16):
        largest = float(ml_dtypes.finfo(dtype).max)
        for values in ([-1, 1, 0.999, 0.5], [-1, 1], [1, 0.01, -0.3]):
            w = (np.random.default_rng(0).choice(values, size=(64, 64)) * largest).astype(dtype)
            restored = deepcabac.decompress(deepcabac.compress({"w": w}, **settings_))["w"]
            assert np.isfinite(restored.astype(np.float64)).all(), (dtype, values)


def test_big_endian_strided_and_nested_list_inputs_are_taken():
    w = normal(60, 70)
    expected = deepcabac.compress({"w": w})
    assert deepcabac.compress({"w": w.astype(">f4")}) == expected
    assert deepcabac.compress({"w": np.asfortranarray(w)}) == expected
    assert deepcabac.compress({"w": np.repeat(w, 2, axis=1)[:, ::2]}) == expected
    assert (deepcabac.decompress(deepcabac.compress({"w": [[1, 2], [3, 4]]}))["w"] == [[1, 2], [3, 4]]).all()


def test_inputs_are_left_alone_and_results_are_writable():
    w = normal(60, 70)
    w.flags.writeable = False
    before = w.copy()
    restored = deepcabac.decompress(deepcabac.compress({"w": w, "n": np.arange(3)}))
    assert same_bits(w, before)
    for array in restored.values():
        array += 1


def test_a_file_without_tensors_is_a_file():
    assert deepcabac.decompress(deepcabac.compress({})) == {}


def test_many_small_tensors_stay_in_order():
    tensors = {f"layer.{n}.{kind}": normal(n % 5 + 1, 7, seed=n) for n in range(300) for kind in ("weight", "scale")}
    restored = deepcabac.decompress(deepcabac.compress(tensors, sqnr=20))
    assert list(restored) == list(tensors)
    assert all(restored[name].shape == w.shape for name, w in tensors.items())


@given(text=st.text(string.printable + "äπ模\u0000\U0001f600", max_size=300))
@settings(max_examples=30, deadline=None)
def test_any_name_survives(text):
    assert list(deepcabac.decompress(deepcabac.compress({text: np.zeros(2)}, threads=1), threads=1)) == [text]


@pytest.mark.parametrize("lossless", [True, False])
def test_bools_of_other_bytes_are_stored_as_true_and_a_note_says_so(tmp_path, lossless):
    odd = np.arange(200, dtype=np.uint8).view(np.bool_).reshape(2, 100)
    report = deepcabac.save_file({"mask": odd, "w": np.ones(3)}, tmp_path / "m.dcb", lossless=lossless)
    assert report.notes == ["mask: 198 bools had bytes other than 0 and 1 and are stored as 1, true"]
    mask = deepcabac.load_file(tmp_path / "m.dcb")["mask"]
    assert mask.view(np.uint8).tolist() == (odd.view(np.uint8) > 0).astype(int).tolist()
    update = deepcabac.compress({"mask": odd}, base={"mask": np.zeros((2, 100), np.bool_)}, lossless=lossless)
    assert deepcabac.decompress(update, base={"mask": np.zeros((2, 100), np.bool_)})["mask"].sum() == 199
