"""Without loss: every bit of every type comes back, in few bytes where there is structure, else in no more than raw."""

import dataclasses
import importlib
import io
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepcabac
from deepcabac import errors
from deepcabac.dcb import writer
from deepcabac.options import Options
from deepcabac.quantize import exact
from deepcabac.source import Arrays

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "reference"))
decode = importlib.import_module("decode")

FLOATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
OTHERS = [np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8, np.bool_]
ALL = pytest.mark.parametrize("dtype", FLOATS + OTHERS, ids=lambda dtype: np.dtype(dtype).name)


def coded(tensors, **settings):
    """The file, and what is said about each tensor; everything must come back bit for bit."""
    data = deepcabac.compress(tensors, **(settings or {"lossless": True}))
    with_reference = sum(array.size for array in tensors.values()) < 20_000
    for back in [deepcabac.decompress(data), *([decode.read_file(data)] if with_reference else [])]:
        assert [*back] == [*tensors]
        for name, array in tensors.items():
            assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
            assert back[name].tobytes() == array.tobytes(), name
    return data


def coding(data, name="w"):
    with deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=1) as opened:
        return opened.info(name).coding


def gauss(*shape, seed=0, scale=0.05):
    return np.random.default_rng(seed).normal(size=shape) * scale


@ALL
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (7,), (300,), (40, 50), (6, 5, 3, 3), (2, 70000)], ids=str)
def test_any_bits_of_any_type_and_shape_come_back(dtype, shape):
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    if dtype == np.bool_:
        array = np.random.default_rng(1).random(shape) < 0.3
        array = np.asarray(array)
    else:
        array = np.frombuffer(np.random.default_rng(1).bytes(count * dtype.itemsize), dtype).reshape(shape)
    data = coded({"w": array})
    assert len(data) <= array.nbytes * 1.001 + 150


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_weights_become_smaller(dtype):
    array = gauss(200, 300).astype(dtype)
    data = coded({"w": array})
    # The exponent's and the sign's share of the bits at least.
    assert len(data) < {8: 0.93, 4: 0.87, 2: 0.9, 1: 0.97}[array.dtype.itemsize] * array.nbytes
    assert coding(data) in ("coded", "codebook")


def test_special_values_keep_their_payloads():
    patterns = np.array(
        [0, 1 << 31, 1, 0x7F800000, 0xFF800000, 0x7FC01234, 0xFF812345, 0x7F7FFFFF, 0x00800000], np.uint32
    )
    array = gauss(100, 100).astype(np.float32)
    array.reshape(-1)[::1112] = patterns.view(np.float32)
    assert coding(coded({"w": array})) == "coded"
    array[:] = np.nan
    assert coding(coded({"w": array})) == "codebook"
    array[:] = np.inf
    coded({"w": array})


@pytest.mark.parametrize(
    ("narrow", "wide"), [(ml_dtypes.bfloat16, np.float32), (np.float16, np.float32), (np.float32, np.float64)]
)
def test_a_type_hidden_in_a_wider_one_costs_what_it_does_itself(narrow, wide):
    array = gauss(300, 256).astype(narrow)
    alone, hidden = (len(coded({"w": one})) for one in (array, array.astype(wide)))
    assert hidden < 1.02 * alone


def test_rows_of_a_narrower_type_are_seen():
    array = gauss(400, 384).astype(np.float32)
    mixed = array.copy()
    mixed[::2] = mixed[::2].astype(np.float16)
    assert len(coded({"w": mixed})) < len(coded({"w": array})) - 200 * 384 * 12 / 8


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.int8])
def test_few_distinct_values_cost_their_entropy(dtype):
    levels = np.random.default_rng(2).integers(0, 16, (400, 200)) - 8
    array = (levels if np.dtype(dtype).kind == "i" else levels * 0.01).astype(dtype)
    data = coded({"w": array})
    assert len(data) < 1.03 * 400 * 200 / 2 + 300


def test_pruned_clusters_cost_their_entropy():
    random = np.random.default_rng(3)
    book = random.normal(size=256).astype(np.float32)
    array = np.where(random.random((300, 500)) < 0.7, 0, book[random.integers(0, 256, (300, 500))])
    data = coded({"w": array})
    entropy = 150_000 * (0.8813 + 0.3 * 8) / 8
    assert coding(data) == "codebook"
    assert len(data) < 1.03 * entropy + 256 * 3


def test_what_has_to_be_exact_in_a_lossy_file_is_coded_too():
    tensors = {
        "w": gauss(64, 64).astype(np.float32),
        "bias": gauss(512).astype(np.float32),
        "index": np.arange(2000).reshape(20, 100),
        "mask": np.tri(100, dtype=bool),
        "nan": np.where(np.eye(64), np.nan, gauss(64, 64)).astype(np.float32),
    }
    data = deepcabac.compress(tensors)
    back, again = deepcabac.decompress(data), decode.read_file(data)
    with deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=1) as opened:
        infos = {name: opened.info(name) for name in opened}
    assert infos["w"].method == "quantized" and infos["w"].coding == ""
    for name in ("bias", "index", "mask", "nan"):
        assert infos[name].method == "exact" and infos[name].coding in ("coded", "codebook")
        assert infos[name].coded_bytes < tensors[name].nbytes
        assert back[name].tobytes() == again[name].tobytes() == tensors[name].tobytes()


def test_patterns_may_be_lossless_beside_quantised_ones():
    tensors = {"head": gauss(64, 64).astype(np.float32), "body": gauss(64, 64).astype(np.float32)}
    back = deepcabac.decompress(deepcabac.compress(tensors, overrides={"head": {"exact": True}}))
    assert back["head"].tobytes() == tensors["head"].tobytes()
    assert back["body"].tobytes() != tensors["body"].tobytes()


@pytest.mark.parametrize("dtype", ["<f4", "<f2", ml_dtypes.bfloat16, "<i2"], ids=str)
def test_correlated_columns_are_regressed_at_level_small(dtype):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 40))
    array = (hidden + 0.2 * rng.normal(size=hidden.shape)).astype(np.float32)
    array = (np.rint(100 * array) if dtype == "<i2" else array).astype(dtype)
    small, usual = (deepcabac.compress({"w": array}, lossless=True, preset=preset) for preset in ("small", "default"))
    assert len(small) < 0.97 * len(usual)
    with deepcabac.dcb.reader.open_bytes(small, max_bytes=None, threads=1) as file:
        assert file._index.entries[0].coder == "regression"
    for threads in 1, 4:
        assert deepcabac.decompress(small, threads=threads)["w"].tobytes() == array.tobytes()


def test_the_bytes_do_not_depend_on_the_threads():
    tensors = {"w": gauss(700, 700).astype(np.float32), "c": np.random.default_rng(0).integers(0, 9, (900, 900))}
    assert len({deepcabac.compress(tensors, lossless=True, threads=threads) for threads in (1, 2, 5)}) == 1


def test_lossless_goes_with_no_other_target():
    for other in ({"sqnr": 30}, {"bits": 3}, {"size": 1000}, {"step": 0.1}):
        with pytest.raises(errors.OptionError, match="choose one of"):
            deepcabac.compress({}, lossless=True, **other)
    with pytest.raises(errors.OptionError, match="must be True or False"):
        deepcabac.compress({}, lossless=1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_mixture_comes_back(data):
    dtype = np.dtype(data.draw(st.sampled_from(FLOATS + OTHERS[:-1])))
    shape = tuple(data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
    count = int(np.prod(shape))
    kind = data.draw(st.sampled_from(["bits", "few", "small", "zeros"]))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    patterns = random.integers(0, 1 << 8 * dtype.itemsize - 1, count, np.uint64)
    if kind == "few":
        patterns = patterns[random.integers(0, min(count, 4), count)]
    if kind == "small":
        patterns >>= np.uint64(random.integers(0, 8 * dtype.itemsize))
    if kind == "zeros":
        patterns[random.random(count) < 0.8] = 0
    coded({"w": patterns.astype(f"<u{dtype.itemsize}").view(dtype).reshape(shape)})


def test_every_changed_byte_is_an_error_or_the_declared_shape():
    tensors = {"f": gauss(12, 10).astype(np.float32), "c": np.random.default_rng(0).integers(0, 3, (12, 10))}
    data = coded(tensors)
    for index in range(len(data)):
        bad = bytearray(data)
        bad[index] ^= 1 << index % 8
        with pytest.raises(errors.DeepCabacError):
            deepcabac.decompress(bytes(bad))
    for length in range(len(data)):
        with pytest.raises(errors.DeepCabacError):
            deepcabac.decompress(data[:length])


def test_what_was_coded_is_decoded_again_before_it_is_written(monkeypatch):
    tensors = {
        "symbols": gauss(300, 300).astype(np.float32),
        "levels": np.cumsum(np.ones(5000, np.int64)),
        "codebook": np.random.default_rng(0).integers(0, 3, (100, 100)).astype(np.int8),
        "packed": np.random.default_rng(0).integers(0, 4, (400, 64)).astype(np.uint8).view(np.int32) | 0x01010101,
    }
    whole = deepcabac.compress(tensors, lossless=True)
    assert {coding(whole, name) for name in tensors} == {"coded", "codebook"}
    core = exact._core
    honest = core.encode_floats, core.encode_exact, core.encode_indices, core.encode_leveled

    def turned(function):
        def lie(*arguments, **more):
            found = function(*arguments, **more)
            leveled = isinstance(found, core.Leveled)
            code = found.code if leveled else found[0] if isinstance(found, tuple) else found
            code = code[:-1] + bytes([code[-1] ^ 255])
            if leveled:
                return dataclasses.replace(found, code=code)
            return (code, found[1]) if isinstance(found, tuple) else code

        return lie

    for function in honest:
        monkeypatch.setattr(exact._core, function.__name__, turned(function))
    file = io.BytesIO()
    report = writer.compress(Arrays(tensors), file, Options(lossless=True))
    assert [note.split(":")[0] for note in report.notes] == [*tensors]
    back = deepcabac.decompress(file.getvalue())
    assert all(np.array_equal(back[name], array) for name, array in tensors.items())


def test_changes_to_a_base_are_decoded_again_too(monkeypatch):
    base = {"w": gauss(300, 300).astype(np.float32)}
    new = {"w": np.where(np.eye(300, dtype=bool), np.float32(1), base["w"])}
    assert coding(deepcabac.compress(new, base=base, lossless=True)) == "changes"
    honest = exact._core.encode_changes
    monkeypatch.setattr(exact._core, "encode_changes", lambda *given: honest(*given)[:-1] + b"\0\0")
    data = deepcabac.compress(new, base=base, lossless=True)
    assert np.array_equal(deepcabac.decompress(data)["w"], new["w"])  # it needs no base
