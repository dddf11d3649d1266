"""Integers that hold packed codes: GPTQ, AWQ and the like."""

from __future__ import annotations

import lzma

import numpy as np
import pytest

import deepcabac
from deepcabac.quantize.packed import codes_of

DTYPES = [np.dtype(code) for code in ("<i8", "<i4", "<i2", "i1", "<u8", "<u4", "<u2", "u1")]


def codes(seed, *shape):
    """As rounding to a grid leaves them: 3.1 bits each."""
    return np.clip(np.rint(np.random.default_rng(seed).normal(8, 2.1, shape)), 0, 15).astype(np.uint64)


def pack(values, dtype, bits=4):
    places = np.arange(values.shape[-1], dtype=np.uint64) * np.uint64(bits)
    return (values << places).sum(axis=-1, dtype=np.uint64).astype(f"<u{dtype.itemsize}").view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_codes_take_what_the_codes_take(dtype):
    count = 2 * dtype.itemsize
    array = pack(codes(0, 200, 160, count), dtype)
    data = deepcabac.compress({"q": array, "tied": array, "scalar": array[0, 0]})
    assert 8 * len(data) < 3.3 * array.size * count
    assert len(data) < len(lzma.compress(array.tobytes(), preset=9 | lzma.PRESET_EXTREME))
    restored = deepcabac.decompress(data)
    for name, expected in (("q", array), ("tied", array), ("scalar", array[0, 0])):
        assert restored[name].dtype == dtype and restored[name].shape == expected.shape
        assert restored[name].tobytes() == expected.tobytes()
    assert restored["q"] is restored["tied"]


@pytest.mark.parametrize(("bits", "limit"), [(2, 4), (4, 16), (8, 256)])
def test_codes_come_lowest_bits_first(bits, limit):
    values = np.random.default_rng(0).integers(0, limit, (5, 3, 32 // bits)).astype(np.uint64)
    found = codes_of(pack(values, np.dtype("<i4"), bits), bits)
    assert found.shape == values.shape and found.astype(np.uint64).tolist() == values.tolist()


def test_reading_a_part_and_into_given_memory(tmp_path):
    array = pack(codes(1, 300, 40, 8), np.dtype("<i4"))
    deepcabac.save_file({"q": array}, tmp_path / "m.dcb")
    with deepcabac.open_file(tmp_path / "m.dcb") as file:
        info = file.info("q")
        assert (info.dtype, info.shape, info.nbytes, info.size) == (array.dtype, array.shape, array.nbytes, array.size)
        assert file.span("q", 1000, 1700).tolist() == array.reshape(-1)[1000:1700].tolist()
        room = np.zeros_like(array)
        assert dict(file.items({"q": room}))["q"].tolist() == array.tolist()


def test_integers_that_are_no_codes_stay_integers():
    rng = np.random.default_rng(0)
    tensors = {
        "small": rng.integers(-9, 9, (300, 70)).astype(np.int32),
        "tokens": rng.integers(0, 50_000, 9000),
        "noise": np.frombuffer(rng.bytes(1 << 16), np.int32),
    }
    for name, array in tensors.items():
        alone = deepcabac.compress({name: array})
        assert deepcabac.decompress(alone)[name].tobytes() == array.tobytes()
        with deepcabac.dcb.reader.open_bytes(alone, max_bytes=None, threads=None) as file:
            assert file._index.entries[0].whole is None, name


def test_an_update_of_packed_codes():
    old = pack(codes(0, 100, 60, 8), np.dtype("<i4"))
    few = old.copy()
    few[3, 5] ^= 1
    for changed in (few, old):
        data = deepcabac.compress({"q": changed}, base={"q": old}, lossless=True)
        assert deepcabac.decompress(data, base={"q": old})["q"].tobytes() == changed.tobytes()
