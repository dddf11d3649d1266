"""Makes the golden files: ``python tests/golden/make.py`` writes them all, and ``expected.json``, beside this script.

See README.md there for when to run it. The inputs are made of integers and exact divisions, so that they are the same
on every machine and with every version of numpy.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import deepcabac
from deepcabac.checkpoint.base import EXACT_DTYPES, TensorSpec, bits_of
from deepcabac.checkpoint.packing import from_codes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "reference"))
decode, encode = importlib.import_module("decode"), importlib.import_module("encode")

Array = npt.NDArray[Any]

FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
INTEGERS = (np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8)


def bits(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """Random 64-bit numbers: splitmix64."""
    with np.errstate(over="ignore"):
        x = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return x ^ x >> np.uint64(31)


def bell(seed: int, *shape: int) -> npt.NDArray[np.int64]:
    """Bell-shaped integers, mean 0, standard deviation 295: the sum of the bytes of a random number."""
    words = bits(seed, int(np.prod(shape)))
    total = sum((words >> np.uint64(8 * k)).astype(np.int64) % 256 for k in range(8)) - 1020
    return np.asarray(total * 1414 // 1000).reshape(shape)


def weights(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    """Weights with a standard deviation of 0.036."""
    return (bell(seed, *shape) / 8192).astype(np.float32)


def sha256(data: bytes) -> str:
    """The hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def describe(array: Array) -> dict[str, Any]:
    """What ``expected.json`` holds of an array: its bytes are those in C order, little-endian."""
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "sha256": sha256(np.ascontiguousarray(array).tobytes()),
    }


def types() -> bytes:
    """All data types, and exact, levels, tied, equal; a scalar, empty tensors, NaN; names."""
    tensors: dict[str, Any] = {}
    for k, dtype in enumerate(FLOATS):
        name = np.dtype(dtype).name
        tensors[f"{name}/levels"] = (bell(k, 24, 16) / 1024).astype(dtype)
        tensors[f"{name}/exact"] = (bell(k + 10, 5) / 512).astype(dtype)
        special = np.array([0.0, -0.0, 1.5, np.nan, -2.0, 0.015625], dtype=dtype)
        tensors[f"{name}/nan"] = special
    tensors["infinite"] = np.array([[np.inf, 1], [-np.inf, 2]], dtype=np.float32)
    for dtype in INTEGERS:
        limits = np.iinfo(dtype)
        tensors[np.dtype(dtype).name] = np.array([limits.min, 0, 1, 100, limits.max], dtype=dtype)
    tensors["bool"] = np.array([[True, False], [False, True], [True, True]])
    tensors["tied"] = tensors["float32/levels"]
    tensors["tied exact"] = tensors["int32"]
    tensors["scalar"] = np.float32(0.1)
    tensors["integer scalar"] = np.int64(-(2**62))
    tensors["equal"] = tensors["float32/levels"].copy()
    tensors["equal, exact"] = (bell(10, 40) / 512).astype(np.float32)
    tensors["equal, exact too"] = tensors["equal, exact"].copy()
    tensors["empty"] = np.zeros((3, 0, 2), np.float32)
    tensors["empty integers"] = np.zeros(0, np.int8)
    tensors["zeros"] = np.zeros((20, 30), np.float32)
    tensors["Gewicht, größer ≥ 0.重み.🦊"] = weights(30, 8, 8)
    tensors[""] = np.array([7], np.uint8)
    small = {"Gewicht*": {"sqnr": 25}}  # by default it would be exact
    return deepcabac.compress(tensors, sqnr=25, quantizer="scalar", overrides=small)


def narrow() -> bytes:
    """Types that are always exact: narrow floats and integers, powers of two, complex numbers; by every method."""
    tensors: dict[str, Any] = {}
    for k, (name, dtype) in enumerate(sorted(EXACT_DTYPES.items())):
        if name.startswith("complex"):
            parts = (bell(600 + k, 30, 7, 2) / 512).astype("f4" if name == "complex64" else "f8")
            tensors[name] = np.ascontiguousarray(parts).view(dtype)[..., 0]
            tensors[f"{name}/scalar"] = np.array(1.5 - 2j, dtype)
            continue
        codes = np.right_shift(bell(600 + k, 40, 30) + 1200, 12 - bits_of(dtype)).astype(np.uint8)
        codes = np.minimum(codes, (1 << bits_of(dtype)) - 1).astype(np.uint8)
        tensors[name] = from_codes(codes.reshape(-1), TensorSpec(name, dtype, codes.shape))
        few = np.where(bits(630 + k, 3000) % 9 < 6, 0, 3).astype(np.uint8)
        tensors[f"{name}/few"] = from_codes(few, TensorSpec(name, dtype, (60, 50)))
    tensors["complex64/tied"] = tensors["complex64"]
    tensors["int4/nothing"] = np.zeros((0, 3), EXACT_DTYPES["int4"])
    return deepcabac.compress(tensors)


def packed() -> bytes:
    """Integers that hold codes of 2, 4 and 8 bits, as indices and as levels; tied ones."""
    codes = np.clip(bell(660, 20, 52, 32) // 140 + 8, 0, 15).astype(np.uint64)
    tensors: dict[str, Any] = {}
    for number, dtype in enumerate(INTEGERS):
        item = np.dtype(dtype).itemsize
        for bits_each, largest in ((4, 15), (2, 3), (8, 250)):
            if bits_each == 8 and item == 1:
                continue
            count = 8 * item // bits_each
            few = codes[: -(-20 // item), :, :count] * np.uint64(13 if bits_each == 8 else 1) + np.uint64(number % 2)
            few = np.minimum(few, largest)
            places = np.arange(count, dtype=np.uint64) * np.uint64(bits_each)
            total = (few << places).sum(axis=-1, dtype=np.uint64)
            tensors[f"{np.dtype(dtype).name}/{bits_each}"] = total.astype(f"<u{item}").view(dtype)
    tensors["tied"] = tensors["int32/4"]
    return deepcabac.compress(tensors)


def predicted() -> bytes:
    """Levels with row prediction, kernel prediction, both and neither; fine and sparse ones; many chunks."""
    smooth = np.cumsum(bell(40, 60, 24), axis=0)
    kernels = 5 * bell(41, 12, 8, 1, 1) + np.cumsum(np.cumsum(bell(42, 12, 8, 3, 3), axis=2), axis=3)
    means = bell(43, 40, 32) + 4 * bell(44, 1, 32)
    means4 = bell(45, 12, 8, 3, 3) + 5 * bell(46, 1, 8, 3, 3) + 3 * bell(47, 12, 8, 1, 1)
    sparse = np.where(bits(48, 4096).reshape(64, 64) % 20 == 0, bell(49, 64, 64), 0)
    scaled = bell(50, 48, 16) * (1 + np.arange(16)) ** 2
    tensors: dict[str, Any] = {
        "plain": weights(51, 48, 32),
        "smooth rows": (smooth / 8192).astype(np.float32),
        "column means": (means / 8192).astype(np.float32),
        "conv.smooth": (kernels / 8192).astype(np.float32),
        "conv.means": (means4 / 8192).astype(np.float16),
        "sparse": (sparse / 8192).astype(np.float32),
        "scaled columns": (scaled / 2**20).astype(np.float32),
        "bias": weights(52, 48),
        "long": weights(53, 1200),
    }
    overrides = {"sparse": {"sqnr": 15}, "scaled columns": {"sqnr": 55}}
    return deepcabac.compress(tensors, sqnr=30, overrides=overrides, quantizer="scalar")


def trellis(states: int, sqnr: float) -> Callable[[], bytes]:
    """Two quantisers: all kinds of prediction, narrow types, many chunks."""
    kernels = 5 * bell(120, 8, 6, 1, 1) + np.cumsum(np.cumsum(bell(121, 8, 6, 3, 3), axis=2), axis=3)
    tensors: dict[str, Any] = {
        "plain": weights(122, 48, 20),
        "smooth rows": (np.cumsum(bell(123, 40, 20), axis=0) / 8192).astype(np.float32),
        "conv.smooth": (kernels / 8192).astype(np.float32),
        "conv.float16": (bell(124, 8, 5, 5) / 8192).astype(np.float16),
        "float8": (bell(125, 20, 20) / 1024).astype(ml_dtypes.float8_e4m3fn),
        "sparse": np.where(bits(126, 400) % 20 == 0, bell(127, 400), 0).reshape(20, 20) / 8192,
    }
    return lambda: deepcabac.compress(tensors, sqnr=sqnr, states=states, quantizer="trellis")


def fast() -> bytes:
    """The fast coder: both quantisers, all predictions, rows dealt out to strips and not."""
    tensors = {
        "matrix": weights(160, 100, 24),
        "low": weights(161, 20, 24),
        "rows": (weights(162, 1, 30) + weights(163, 70, 30) / 4).astype(np.float32),
        "kernels": (weights(164, 80, 3, 1, 1) + weights(165, 80, 3, 3, 3) / 4).astype(np.float32),
        "long": weights(166, 1, 1200),
        "bfloat16": weights(167, 66, 8).astype(ml_dtypes.bfloat16),
    }
    overrides = {"low": {"sqnr": 45}, "rows": {"sqnr": 12}, "long": {"sqnr": 20}}
    return deepcabac.compress(tensors, sqnr=20, preset="fast", overrides=overrides)


def fast_levels(flags: int) -> Callable[[], bytes]:
    """The fast coder with parameters and levels that no real writer takes: by the reference encoder."""
    row, kernel = bytes([30, 20]), bytes([2, 5, 60, 0x90, 20, 0xF0, 127])
    params = record(
        60, 3, 75, row=row * (flags & 1), kernel=kernel * (flags >> 1 & 1), states=bytes([4]) * (flags >> 3), fast=True
    )
    numbers = [int(x) for x in np.cumsum(bell(170 + flags, 450)) // (2000 if flags else 300)]
    numbers[100:400:30] = [2**30 - 1, 1 - 2**30, 15, -15, 2**29, 0, 2**23, -(2**23), 14, -14]
    levels = encode.levels_of(decode.Params(params), numbers) if flags & 8 else numbers
    return lambda: bytes(encode.write_levels([450], params, encode.encode_chunks(decode.Params(params), levels)))


def sparse(states: int) -> Callable[[], bytes]:
    """The sparse coder: one quantiser (no states) or two, with kernels and without, few levels and many."""
    few, some = (np.where(bits(180 + k, 2400) % every == 0, bell(182 + k, 2400), 0) for k, every in ((0, 30), (1, 5)))
    tensors: dict[str, Any] = {
        "few": (few.reshape(40, 60) / 8192).astype(np.float32),
        "some": (some.reshape(100, 24) / 8192).astype(np.float32),
        "kernels": (few.reshape(12, 8, 5, 5) / 8192).astype(np.float32),
        "float16": (few.reshape(20, 120) / 8192).astype(np.float16),
    }
    how: dict[str, Any] = {"quantizer": "trellis", "states": states} if states else {"quantizer": "scalar"}
    return lambda: deepcabac.compress(tensors, sqnr=15, overrides={"some": {"sqnr": 40}}, **how)


def sparse_levels(flags: int) -> Callable[[], bytes]:
    """The sparse coder with parameters and levels that no real writer takes: by the reference encoder."""
    kernel, states = bytes([2, 5]) * (flags >> 1 & 1), bytes([4]) * (flags >> 3 & 1)
    density = bytes([[155, 0, 70][flags % 3]])
    params = record(60 + 8 * flags, 63, 6, kernel=kernel, coarse=flags & 4 != 0, states=states, sparse=density)
    numbers = [int(x) for x in np.where(bits(190 + flags, 600) % 3 == 0, bell(191 + flags, 600) // 3**flags, 0)]
    numbers[100:400:30] = [2**30 - 1, 1 - 2**30, 15, -15, 2**29, 0, 2**23, -(2**23), 17, -17]
    levels = encode.levels_of(decode.Params(params), numbers) if flags & 8 else numbers
    return lambda: bytes(encode.write_levels([600], params, encode.encode_chunks(decode.Params(params), levels)))


def correlated(seed: int, rows: int, width: int) -> npt.NDArray[np.int64]:
    """Rows with four hidden causes, so that columns say something about each other; standard deviation about 600."""
    causes, kinds = bell(seed, rows, 4), bell(seed + 1, 4, width)
    return np.asarray(causes @ kinds // 295 + bell(seed + 2, rows, width) // 3)


def regression(states: int) -> Callable[[], bytes]:
    """Regression as the writer chooses it: one quantiser (no states) or two; row prediction, narrow types, exact."""
    tensors: dict[str, Any] = {
        "plain": (correlated(260, 200, 30) / 8192).astype(np.float32),
        "means": ((correlated(263, 160, 24) + 4 * bell(266, 1, 24)) / 8192).astype(np.float32),
        "bfloat16": (correlated(267, 150, 20) / 8192).astype(ml_dtypes.bfloat16),
        "float16": (correlated(270, 150, 20) / 8192).astype(np.float16),
        "exact": (correlated(273, 150, 20) // 8 / 1024).astype(np.float32),
    }
    how: dict[str, Any] = {"quantizer": "trellis", "states": states} if states else {"quantizer": "scalar"}
    return lambda: deepcabac.compress(tensors, sqnr=20, preset="small", overrides={"exact": {"exact": True}}, **how)


def regression_levels(flags: int, width: int, extreme: bool = False) -> Callable[[], bytes]:
    """Regression with parameters and levels that no real writer takes: by the reference encoder.

    Two chunks, the last row of the second cut short; more than one block if rows are wide enough.
    """
    row, states = bytes([40, 0xF0]) * (flags & 1), bytes([4]) * (flags >> 3 & 1)
    rows = 3000 // width + 2
    params = record(
        40 if extreme else 110, width, rows, row=row, coarse=flags & 4 != 0, states=states, regression=True
    )
    count = 2 * rows * width - width // 3
    numbers = [int(x) for x in (correlated(280 + flags, 2 * rows, width) // 150).reshape(-1)[:count]]
    if extreme:
        ends = [2**30 - 1, 1 - 2**30, 2**15, -(2**15), 2**15 - 1, 0, 2**23, -(2**23), 1, -1]
        numbers[::7] = (ends * count)[: len(numbers[::7])]
    levels = encode.levels_of(decode.Params(params), numbers) if flags & 8 else numbers
    return lambda: bytes(encode.write_levels([count], params, encode.encode_chunks(decode.Params(params), levels)))


def fine() -> bytes:
    """Very fine quantisation, and float64."""
    tensors: dict[str, Any] = {"a": (bell(60, 20, 30) / 3000).astype(np.float32), "b": bell(61, 20, 30) / 3000}
    return deepcabac.compress(tensors, step=2.0**-21, quantizer="scalar")


def plain_rounding() -> bytes:
    """Without rate-distortion optimisation."""
    return deepcabac.compress({"a": weights(70, 32, 48)}, bits=3, rate_distortion=0, quantizer="scalar")


def no_tensors() -> bytes:
    """A file without tensors."""
    return deepcabac.compress({})


def safetensors_bytes(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None) -> bytes:
    """A safetensors file, by hand, of float32 and int64 tensors."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, array in tensors.items():
        kind = {"float32": "F32", "int64": "I64"}[array.dtype.name]
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def from_checkpoint(files: Mapping[str, bytes], model: str) -> bytes:
    """Compress a checkpoint file that lies among ``files``."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        path = Path(folder) / "out.dcb"
        options = deepcabac.Options(quantizer="scalar", sqnr=30)
        deepcabac.compress_checkpoint(Path(folder) / model, path, options=options)
        return path.read_bytes()


def safetensors() -> bytes:
    """Made from a safetensors file with metadata."""
    tensors: dict[str, Array] = {
        "layer.weight": weights(80, 16, 24),
        "layer.bias": weights(81, 16),
        "steps": np.array(1234, np.int64),
    }
    model = safetensors_bytes(tensors, {"format": "pt", "note": "größer \u2265 0"})
    return from_checkpoint({"model.safetensors": model}, "model.safetensors")


def sharded() -> bytes:
    """Made from a sharded checkpoint."""
    first, second = {"a": weights(82, 16, 24)}, {"b": weights(83, 16, 24), "c": weights(84, 6)}
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {"a": names[0], "b": names[1], "c": names[1]}
    size = sum(array.nbytes for array in [*first.values(), *second.values()])
    index = json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=2).encode()
    files = {
        names[0]: safetensors_bytes(first, {"format": "pt"}),
        names[1]: safetensors_bytes(second, {"format": "pt"}),
        "model.safetensors.index.json": index,
    }
    return from_checkpoint(files, "model.safetensors.index.json")


def npz() -> bytes:
    """Made from an npz file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        np.savez(path, weight=weights(85, 16, 24), labels=np.arange(10, dtype=np.int16))
        return from_checkpoint({"model.npz": path.read_bytes()}, "model.npz")


def source(name: str) -> Callable[[], bytes]:
    """Made from a checkpoint file that is kept in ``sources``, since other programs wrote it."""
    return lambda: from_checkpoint({name: (HERE / "sources" / name).read_bytes()}, name)


def levels(array: npt.ArrayLike) -> Callable[[], bytes]:
    """Levels by themselves."""
    return lambda: deepcabac.encode(array)


def record(
    mean_log: int,
    width: int,
    rows: int,
    *,
    row: bytes = b"",
    kernel: bytes = b"",
    coarse: bool = False,
    states: bytes = b"",
    fast: bool = False,
    sparse: bytes = b"",
    regression: bool = False,
) -> bytes:
    """A parameter record (FORMAT.md, 4.8); bytes of flags that are not set are left out."""
    coder = 3 if regression else 2 if sparse else int(fast)
    flags = 16 * coder + 8 * bool(states) + 4 * coarse + 2 * bool(kernel) + bool(row)
    head = bytes([flags, mean_log]) + b"".join(map(encode.varint, (width, rows)))
    return head + row + kernel + sparse + states


def exotic_levels() -> bytes:
    """Kernel prediction alone, with parameters that no real writer takes: by the reference encoder."""
    numbers = [int(x) for x in np.cumsum(bell(110, 500)) // 50]
    params = record(140, 23, 7, kernel=bytes([3, 8, 60, 0x90, 20, 0xF0, 127]))
    return bytes(encode.write_levels([5, 10, 10], params, encode.encode_chunks(decode.Params(params), numbers)))


def exotic_trellis(states: int, mean_log: int, scale: int, extreme: bool = False) -> Callable[[], bytes]:
    """Two quantisers, with parameters and indices that no real writer takes: by the reference encoder."""
    row, kernel = bytes([30, 20]), bytes([3, 8, 60, 0x90, 20, 0xF0, 127])
    params = record(mean_log, 23, 7, row=row, kernel=kernel, states=bytes([states]))
    indices = [int(x) for x in np.cumsum(bell(128 + states, 500)) // scale]
    if extreme:
        indices[100:400:30] = [2**30, -(2**30), 2**30 - 1, 1 - 2**30, 2**29, 0, 2**23, -(2**23), 1, 2**30]
    levels = encode.levels_of(decode.Params(params), indices)
    return lambda: bytes(encode.write_levels([5, 100], params, encode.encode_chunks(decode.Params(params), levels)))


def exotic() -> bytes:
    """A file that no real writer makes, by the reference encoder: levels of a scalar and of nothing, tiny and huge
    results, many chunks, all flags.
    """
    payload, index = b"", encode.blob(b"") + encode.blob(b"\0extra") + encode.varint(10)
    row, kernel = bytes([20, 40]), bytes([3, 9, 30, 30, 0xE0, 0, 0])
    many = [int(x) for x in bell(111, 300) // 40]
    extreme = [-(2**31), 2**31 - 1, 2**24 + 1, -(2**25) - 2, 0, 77]
    cases: list[tuple[str, int, list[int], float, list[int], bytes]] = [
        ("scalar", 2, [], 0.5, [-3], record(96, 1, 1)),
        ("nothing", 1, [7, 0], 1.0, [], record(0, 65536, 16)),
        ("extremes float64", 1, [2, 3], 1e30, extreme, record(191, 3, 2, coarse=True)),
        ("extremes float32", 2, [6], 2.0**-149, extreme, record(0, 2, 2, row=row)),
        ("tiny float16", 3, [300], 2.0**-25, many, record(110, 10, 3, row=row)),
        ("tiny bfloat16", 4, [3, 100], 2.0**-130, many, record(110, 20, 5, kernel=kernel)),
        ("float8_e4m3fn", 5, [300], 2.0**-9, many, record(90, 18, 4, row=row, kernel=kernel)),
        ("float8_e5m2", 6, [2, 150], 2.0**-14, many, record(90, 18, 16, kernel=kernel, coarse=True)),
        ("many chunks", 2, [300], 0.1, many, record(100, 1, 7, row=row, kernel=kernel, coarse=True)),
    ]
    for name, dtype, shape, step, numbers, params in cases:
        chunks = encode.encode_chunks(decode.Params(params), numbers)
        index += encode.blob(name.encode()) + bytes([dtype, len(shape)]) + b"".join(map(encode.varint, shape))
        index += encode.tensor_entry(step, params, chunks)
        payload += b"".join(chunks)
    index += encode.blob(b"tied to nothing") + bytes([1, 2, 7, 0, 2, 1])
    return bytes(encode.write_file(index, payload))


def scaled() -> bytes:
    """Levels with scales, by the reference encoder: of rows, of columns, both, neither; the widest; both quantisers.

    Not by the writer: which scales it takes, and which levels, hangs on the linear algebra of the machine.
    """
    payload, index = b"", b""
    row, kernel = bytes([20, 40]), bytes([3, 9, 30, 30, 0xE0, 0, 0])
    # Names, codes of data types, and steps with which the largest scales stay within the type.
    dtypes = [("float64", 1, 0.5), ("float32", 2, 0.01), ("float16", 3, 2.0**-9), ("bfloat16", 4, 0.003)]
    dtypes += [("float8_e4m3fn", 5, 2.0**-7), ("float8_e5m2", 6, 2.0**-6)]
    shapes = [([12, 10], 10, 5, b""), ([6, 4, 3, 3], 36, 2, kernel), ([20], 1, 7, b"")]
    cases: list[tuple[str, int, float, list[int], list[int], list[int], list[int], bytes]] = []
    for number, (name, code, step) in enumerate(dtypes):
        for shape, width, chunk_rows, taps in shapes:
            for which in range(3):
                seed = 130 + 9 * number + 3 * len(shape) + which
                scales = [int(x) % 41 - 20 for x in bits(seed, shape[0] + width)]
                rows, columns = scales[: shape[0]], scales[shape[0] :]
                states = bytes([3 + which]) if number % 2 else b""
                params = record(100, width, chunk_rows, row=row if which else b"", kernel=taps, states=states)
                numbers = [int(x) for x in bell(seed, int(np.prod(shape))) // 60]
                label = f"{name} {'x'.join(map(str, shape))} {('rows', 'columns', 'both')[which]}"
                cases.append(
                    (label, code, step, shape, numbers, rows if which != 1 else [], columns if which else [], params)
                )
    ends, small = [-128, -127, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 126, 127], [1, -1, 0, 3]
    cases += [
        ("every end", 2, 1.0, [15, 4], small * 15, ends, [], record(96, 4, 16)),
        ("infinite", 2, 3e38, [15, 4], small * 15, ends, [0, -128, 127, 1], record(96, 1, 4)),
        ("tiny", 2, 2.0**-149, [15, 4], small * 15, ends, [0, -128, 127, 1], record(96, 8, 16)),
        ("narrow", 5, 1.0, [15, 4], small * 15, ends, [], record(96, 4, 16)),
        ("neither", 2, 0.25, [3, 2, 2], small * 3, [], [], record(96, 2, 2)),
        ("one", 2, 0.25, [1, 1], [5], [9], [-7], record(96, 1, 1)),
    ]
    for name, dtype, step, shape, numbers, rows, columns, params in cases:
        levels = encode.levels_of(decode.Params(params), numbers) if params[0] & 8 else numbers
        chunks = encode.encode_chunks(decode.Params(params), levels)
        index += encode.blob(name.encode()) + bytes([dtype, len(shape)]) + b"".join(map(encode.varint, shape))
        index += encode.tensor_entry(step, params, chunks, rows, columns)
        payload += b"".join(chunks)
    head = encode.blob(b"") + encode.blob(b"") + encode.varint(len(cases))
    return bytes(encode.write_file(head + index, payload))


def exact_arrays() -> dict[str, Array]:
    """Every type and method of exact values: bell-shaped, coarser than their type by rows, few, special, none alike."""
    tensors: dict[str, Array] = {}
    for number, dtype in enumerate(FLOATS):
        name = np.dtype(dtype).name
        tensors[name] = (bell(140 + number, 30, 20) / 8192).astype(dtype)
        tensors[f"{name} pruned"] = np.where(bits(150 + number, 400) % 3, 0, bell(160 + number, 400) / 64).astype(dtype)
    by_row = (bell(170, 24, 40) / 8192).astype(np.float32) * np.float32(1.1)
    by_row[::3] = by_row[::3].astype(np.float16).astype(np.float32)
    tensors["half of it float16"] = by_row
    tensors["few values"] = (bell(171, 40, 30) // 300 / 8).astype(np.float32)
    tensors["one value"] = np.full((30, 30), 0.3, np.float16)
    patterns = np.array(
        [0, 1 << 31, 1, 0x7F800000, 0xFF800000, 0x7FC01234, 0xFF812345, 0x7F7FFFFF, 0x00800000], np.uint32
    )
    tensors["special"] = np.concatenate([patterns.view(np.float32), weights(172, 60), patterns.view(np.float32)])
    for number, integer in enumerate(INTEGERS):
        centre = 0 if np.dtype(integer).kind == "i" else 120
        tensors[np.dtype(integer).name] = (bell(180 + number, 20, 15) // 10 + centre).astype(integer)
    tensors["bool"] = (bits(190, 400) % 5 == 0).reshape(20, 20)
    return tensors


def exact() -> bytes:
    """Those, without loss."""
    return deepcabac.compress(exact_arrays(), lossless=True, preset="small")


def symbols(preset: str) -> Callable[[], bytes]:
    """Floating-point values as symbols: every type, scales of rows and columns, escapes, rows coarser than their type,
    and enough of them for all states.
    """
    arrays = exact_arrays()
    tensors = {np.dtype(dtype).name: arrays[np.dtype(dtype).name] for dtype in FLOATS}
    tensors |= {name: arrays[name] for name in ("half of it float16", "special")}
    rows, columns = (2.0 ** -(bits(seed, 40) % 7).astype(np.float64) for seed in (200, 201))
    tensors["scales"] = (bell(202, 40, 40) * rows[:, None] * columns / 64).astype(ml_dtypes.bfloat16)
    tensors["scales"][3:30:9, 5] = np.array([np.inf, 0.0, np.nan], ml_dtypes.bfloat16)
    tensors["all states"] = (bell(203, 100, 90) / 64).astype(ml_dtypes.float8_e5m2)
    return lambda: deepcabac.compress(tensors, lossless=True, preset=preset)


def exotic_symbols() -> bytes:
    """Heads of chunks that no real writer makes, by the reference encoder."""
    payload, index = b"", encode.blob(b"") + encode.blob(b"") + encode.varint(3)
    chunk = encode.SymbolChunk
    few = [(0, [128, 1]), (0, [1, 0, 0, 100]), (0, [1] * 10 + [0] * 190 + [5] * 56), (0, [9, 20, 9])]
    cases: list[tuple[str, int, int, int, Any]] = [
        ("float16", 3, 16, 10, chunk(7, 100, [(0, 30), (7, 3), (3, 167)], few * 4, 4, [0, 31] * 10, range(10, 20))),
        ("float64", 1, 64, 52, chunk(45, 0x7FFFF, [(0, 200)], [(0, [60, 100, 128, 100])], 0, None, range(10))),
        ("float8_e4m3fn", 5, 8, 3, chunk(0, 127, [(0, 1), (0, 199)], [(1, [*range(1, 129)])])),
    ]
    for name, code, width, mantissa, made in cases:
        given = [int(x) for x in bits(210 + code, 200) >> np.uint64(64 - width)]
        given[30:33] = [one >> 7 << 7 for one in given[30:33]]
        given = [one if one % 128 < 127 else 0 for one in given]
        data = made.encode(width, mantissa, 10, given)
        index += encode.blob(name.encode()) + bytes([code, 1]) + encode.varint(200)
        index += encode.symbols_entry(10, 20, [data])
        payload += data
    return bytes(encode.write_file(index, payload))


def multiples() -> bytes:
    """Weights that were quantised already, of every type: steps of rows and of groups, zeros with a sign."""
    tensors: dict[str, Array] = {}
    for number, dtype in enumerate(FLOATS[:4]):
        codes = (bell(220 + number, 24, 64) // 100).astype(np.float32)
        steps = (1 + bits(230 + number, 24) % 7).astype(np.float16) / np.float16(77)
        tensors[f"{np.dtype(dtype).name} rows"] = (codes * steps[:, None]).astype(dtype)
        steps = (100 + bits(240 + number, 48) % 99).astype(np.float32) / np.float32(7e4)
        groups = codes.reshape(48, 32) * steps[:, None]
        tensors[f"{np.dtype(dtype).name} groups"] = groups.reshape(24, 64).astype(dtype)
    signs = np.where(bits(250, 1536) % np.uint64(3) == 0, -1, 1).astype(np.float32).reshape(24, 64)
    tensors["signed"] = tensors["float32 rows"] * signs
    tensors["signed"][[0, 3, 4, 23]] = 0
    return deepcabac.compress(tensors, lossless=True)


def exotic_multiples() -> bytes:
    """Levels and steps that no real writer makes, by the reference encoder: products that are too large and too small,
    types of 8 bits, several chunks.
    """
    payload, index = b"", encode.blob(b"") + encode.blob(b"") + encode.varint(12)
    record = bytes([0, 96, 10, 6])  # chunks of 6 rows of 10
    exponents = encode.SymbolChunk(23, 255, [], [(0, [1] * 256)])
    for code in range(1, 7):
        for signed in (0, 1):
            values = [int(x) for x in bell(260 + code, 150) // 150]
            values[7:11] = [-(2**31), 2**31 - 1, -1, -(2**24) - 2]
            levels = [encode.encode_chunk(decode.Params(record), values[k : k + 60]) for k in range(0, 150, 60)]
            sizes = [int(x) % 0x7F7FFFFF + 1 for x in bits(270 + code, 30)]
            lengths = [
                replace(exponents, runs=[(0, len(some))]).encode(32, 23, 65536, some)
                for some in (sizes[k : k + 12] for k in range(0, 30, 12))
            ]
            index += encode.blob(f"{code} {signed}".encode()) + bytes([code, 1]) + encode.varint(150)
            index += encode.multiples_entry(5, signed, record, levels, lengths)
            payload += b"".join(a + b for a, b in zip(levels, lengths, strict=True))
    return bytes(encode.write_file(index, payload))


def changed_arrays() -> dict[str, Array]:
    """A later version of them: most moved a little, some in part, some not at all, one new."""
    tensors = {name: array.copy() for name, array in exact_arrays().items()}
    for number, array in enumerate(tensors.values()):
        if number % 4 == 3:
            continue
        moved = bell(200 + number, array.size).reshape(array.shape)
        if array.dtype == np.bool_:
            array[3] = ~array[3]
        elif array.dtype.kind in "iu":
            array += (moved // 400).astype(array.dtype)
        else:
            with np.errstate(invalid="ignore", over="ignore"):
                array[...] = (array.astype(np.float64) * (1 + moved / 2.0**20)).astype(array.dtype)
    tensors["new"] = weights(240, 20, 10)
    return tensors


def base_of(name: str) -> dict[str, Array] | None:
    """What a golden update changes."""
    return exact_arrays() if name.startswith("update") else None


def update_lossless() -> bytes:
    """The difference, without loss."""
    return deepcabac.compress(changed_arrays(), base=exact_arrays(), lossless=True)


def update_changes() -> bytes:
    """A few values are others: most by one representable number, some by many."""
    tensors = {name: array.copy() for name, array in exact_arrays().items()}
    for number, array in enumerate(tensors.values()):
        if array.size > 1 and array.dtype != np.bool_:
            pattern = array.reshape(-1).view(f"<u{array.dtype.itemsize}")
            seen = bits(260 + number, array.size)
            pattern[seen % 40 == 0] += pattern.dtype.type(1)
            pattern[seen % 400 == 1] ^= pattern.dtype.type(103)
    return deepcabac.compress(tensors, base=exact_arrays(), lossless=True)


def update_quantized() -> bytes:
    """The difference, quantised; some tensors exactly."""
    return deepcabac.compress(changed_arrays(), base=exact_arrays(), sqnr=12, overrides={"few*": {"exact": True}})


EXTREMES = np.array([[-(2**31), 2**31 - 1, 0], [1, -1, -(2**31)], [2**31 - 1, 2**31 - 1, 7]])

GOLDEN: dict[str, Callable[[], bytes]] = {
    "types.dcb": types,
    "narrow.dcb": narrow,
    "packed.dcb": packed,
    "predicted.dcb": predicted,
    "fine.dcb": fine,
    "plain_rounding.dcb": plain_rounding,
    "no_tensors.dcb": no_tensors,
    "safetensors.dcb": safetensors,
    "sharded.dcb": sharded,
    "npz.dcb": npz,
    "torch.dcb": source("torch.pt"),
    "onnx.dcb": source("onnx.onnx"),
    "plain.levels": levels(bell(90, 40, 30) // 200),
    "zeros.levels": levels(np.zeros((200, 100), np.int8)),
    "sparse.levels": levels(np.where(bits(91, 3000) % 50 == 0, bell(92, 3000) // 100, 0).reshape(50, 60)),
    "rows.levels": levels(np.cumsum(bell(93, 50, 20), axis=0) // 200),
    "kernels.levels": levels((8 * bell(94, 10, 8, 1, 1) + bell(95, 10, 8, 3, 3)) // 200),
    "kernels5.levels": levels((8 * bell(96, 6, 5, 1, 1) + bell(97, 6, 5, 5, 5)) // 200),
    "extremes.levels": levels(EXTREMES),
    "chunks.levels": levels(np.where(bits(98, 400 * 512) % 1000 == 0, 1, 0).reshape(-1, 512)),
    "large_rows.levels": levels(
        bell(100, 1, 256) // 30 + np.where(bits(101, 250 * 256).reshape(250, 256) % 99 == 0, 3, 0)
    ),
    "large_kernels.levels": levels(
        bell(102, 40, 64, 1, 1) // 100 + np.where(bits(103, 40 * 64 * 25).reshape(40, 64, 5, 5) % 199 == 0, 1, 0)
    ),
    "fast.dcb": fast,
    "fast0.levels": fast_levels(0),
    "fast3.levels": fast_levels(3),
    "fast8.levels": fast_levels(8),
    "fast9.levels": fast_levels(9),
    "fast11.levels": fast_levels(11),
    "sparse.dcb": sparse(0),
    "sparse_trellis.dcb": sparse(8),
    "sparse0.levels": sparse_levels(0),
    "sparse2.levels": sparse_levels(2),
    "sparse4.levels": sparse_levels(4),
    "sparse8.levels": sparse_levels(8),
    "sparse14.levels": sparse_levels(14),
    "regression.dcb": regression(0),
    "regression_trellis.dcb": regression(8),
    "regression.levels": lambda: deepcabac.encode(correlated(276, 120, 25) // 100, preset="small"),
    "regression0.levels": regression_levels(0, 40),
    "regression1.levels": regression_levels(1, 60, extreme=True),
    "regression4.levels": regression_levels(4, 1030),
    "regression8.levels": regression_levels(8, 17),
    "regression9.levels": regression_levels(9, 50, extreme=True),
    "regression13.levels": regression_levels(13, 1040),
    "trellis8.dcb": trellis(8, 12),
    "trellis16.dcb": trellis(16, 20),
    "trellis32.dcb": trellis(32, 30),
    "trellis64.dcb": trellis(64, 60),
    "trellis8.levels": exotic_trellis(3, 40, 2000),
    "trellis16.levels": exotic_trellis(4, 90, 400, extreme=True),
    "trellis32.levels": exotic_trellis(5, 100, 200),
    "trellis64.levels": exotic_trellis(6, 160, 5),
    "exotic.levels": exotic_levels,
    "exotic.dcb": exotic,
    "scaled.dcb": scaled,
    "exact.dcb": exact,
    "symbols.dcb": symbols("default"),
    "symbols_fast.dcb": symbols("fast"),
    "symbols_exotic.dcb": exotic_symbols,
    "multiples.dcb": multiples,
    "multiples_exotic.dcb": exotic_multiples,
    "update_lossless.dcb": update_lossless,
    "update_changes.dcb": update_changes,
    "update_quantized.dcb": update_quantized,
    "scalar.levels": levels(np.array(-5)),
    "empty.levels": levels(np.zeros((4, 0), np.int32)),
    "line.levels": levels(bell(99, 700) // 30),
}


def make_sources() -> None:
    """Write the source checkpoints that are not there; needs torch and onnx."""
    folder = HERE / "sources"
    folder.mkdir(exist_ok=True)
    if not (folder / "torch.pt").exists():
        import torch

        weight = torch.tensor(weights(86, 16, 24))
        state = {"weight": weight, "tied": weight, "bias": torch.tensor(weights(87, 16)), "epoch": 3}
        torch.save({"model": state, "note": "größer"}, folder / "torch.pt")
    if not (folder / "onnx.onnx").exists():
        import onnx

        x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 16])
        y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 24])
        node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = onnx.helper.make_graph([node], "g", [x], [y], [onnx.numpy_helper.from_array(weights(88, 16, 24), "w")])
        opset = [onnx.helper.make_opsetid("", 17)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "onnx.onnx")


def decoded(name: str, data: bytes) -> dict[str, Array]:
    """What a golden file stands for."""
    return {"": deepcabac.decode(data)} if name.endswith(".levels") else deepcabac.decompress(data, base=base_of(name))


def main() -> None:
    """Write all golden files, after the reference decoder has agreed on them."""
    make_sources()
    expected: dict[str, Any] = {}
    for name, make in GOLDEN.items():
        data = make()
        arrays = decoded(name, data)
        again = (
            {"": decode.read_levels(data)} if name.endswith(".levels") else decode.read_file(data, base=base_of(name))
        )
        expected[name] = {"sha256": sha256(data), "tensors": {key: describe(value) for key, value in arrays.items()}}
        if expected[name]["tensors"] != {key: describe(value) for key, value in again.items()}:
            raise SystemExit(f"{name}: the reference decoder disagrees")
        if len(data) > 40_000:
            raise SystemExit(f"{name}: {len(data)} bytes")
        path = HERE / name
        old = path.read_bytes() if path.exists() else None
        path.write_bytes(data)
        print(f"{name} {len(data)} bytes{'' if old == data else ', new' if old is None else ', CHANGED'}")
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
