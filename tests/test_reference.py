"""The reference decoder, written from FORMAT.md alone, and the package agree: on arrays, and on what is damaged."""

from __future__ import annotations

import importlib
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepcabac
from deepcabac import _core
from deepcabac.quantize import exact
from deepcabac.quantize.scales import scale_factors

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(ROOT / "reference"))
decode, encode = importlib.import_module("decode"), importlib.import_module("encode")

LIMIT = 100_000
FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def same(one: np.ndarray, two: np.ndarray) -> bool:
    """Same data type, shape and bits."""
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert list(one) == list(two)
    for name in one:
        assert same(one[name], two[name]), name


def both(data: bytes, base: dict[str, np.ndarray] | None = None) -> None:
    """Both decode the file, to the same arrays."""
    assert_same(decode.read_file(data, base=base), deepcabac.decompress(data, base=base))


def both_levels(data: bytes, levels: np.ndarray | None = None) -> None:
    """Both decode the levels, to the same array."""
    array = decode.read_levels(data)
    assert same(array, deepcabac.decode(data))
    if levels is not None:
        assert array.shape == levels.shape
        assert np.array_equal(array, levels)


def plain_index(data: bytes) -> bytes:
    """The plain index of a file."""
    fields = decode.Fields(data[int.from_bytes(data[16:24], "little") :])
    count = fields.varint()
    return bytes(decode.decode_bytes(fields.rest(), count))


def payload_of(data: bytes) -> bytes:
    return data[32 : int.from_bytes(data[16:24], "little")]


# --- Agreement on arrays ---


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.dcb")), ids=lambda path: path.name)
def test_golden_files(path: Path) -> None:
    base = deepcabac.load_file(GOLDEN / "exact.dcb") if path.name.startswith("update") else None
    both(path.read_bytes(), base)


@pytest.mark.parametrize("preset", ["fast", "default"])
def test_exact_matrices_are_coded_as_symbols(preset: str) -> None:
    rng = np.random.default_rng(4)
    tensors = {"w": rng.standard_normal((300, 256)).astype(np.float16), "v": rng.standard_normal(300)}
    tensors["w"][5, 7:9] = np.array([np.nan, -0.0])
    tensors["scaled"] = (rng.standard_normal((60, 70)) * 2 ** rng.normal(size=70)).astype(ml_dtypes.bfloat16)
    data = deepcabac.compress(tensors, lossless=True, preset=preset)
    with deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=1) as opened:
        assert [entry.method for entry in opened._index.entries[::2]] == [decode.SYMBOLS, decode.SYMBOLS]
    assert_same(deepcabac.decompress(data), tensors)
    both(data)


@st.composite
def symbol_chunks(draw: st.DrawFn) -> tuple[int, bytes, list[int], tuple[int, int]]:
    """Data type, chunk, patterns, and their rows: heads of all kinds, by the reference encoder."""
    code = draw(st.integers(1, 6))
    width, rows = draw(st.integers(1, 40)), draw(st.integers(1, 9))
    count = draw(st.integers(1, width * rows))
    bits, mantissa = 8 * decode.DTYPES[code].itemsize, decode.MANTISSA[code]
    low = mantissa - draw(st.integers(0, min(mantissa, 7)))
    runs, left = [], count
    while left:
        runs.append((draw(st.integers(0, low)), draw(st.integers(1, left))))
        left -= runs[-1][1]
    parts = draw(st.none() | st.integers(0, 3))
    scales = st.integers(0, 31)
    w, h = min(width, count), -(-count // width)
    grades = st.lists(st.integers(0, 128), max_size=254).map(lambda given: [3, *given, 9])
    made = encode.SymbolChunk(
        low,
        draw(st.integers(0, (1 << bits - 1 - low) - 1)),
        runs,
        [(0, draw(grades)) for _ in range(1 << (parts or 0))],
        parts,
        draw(st.none() | st.lists(scales, min_size=h, max_size=h)),
        draw(st.none() | st.lists(scales, min_size=w, max_size=w)),
    )
    source = random.Random(draw(st.integers(0, 9)))
    near = [source.getrandbits(bits) >> source.randrange(bits) << source.randrange(bits) for _ in range(count)]
    patterns = [one % (1 << bits) for one in near]
    return code, made.encode(bits, mantissa, width, patterns), patterns, (width, rows)


@settings(max_examples=60, deadline=None)
@given(symbol_chunks())
def test_symbols_that_no_real_writer_writes(case: tuple[int, bytes, list[int], tuple[int, int]]) -> None:
    code, chunk, patterns, (width, rows) = case
    index = encode.blob(b"") + encode.blob(b"") + b"\1" + encode.blob(b"w") + bytes([code, 1])
    index += encode.varint(len(patterns)) + encode.symbols_entry(width, rows, [chunk])
    data = encode.write_file(index, chunk)
    unsigned = np.dtype(f"<u{decode.DTYPES[code].itemsize}")
    assert deepcabac.decompress(data)["w"].view(unsigned).tolist() == patterns
    both(data)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.levels")), ids=lambda path: path.name)
def test_golden_levels(path: Path) -> None:
    both_levels(path.read_bytes())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("settings", [{}, {"bits": 2}, {"sqnr": 12}, {"step": 0.4}], ids=str)
def test_random_tensors(dtype: str, settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(FLOATS.index(dtype))
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype not in ("float64", "float32", "float16") else np.dtype(dtype)
    tensors = {
        "matrix": rng.normal(size=(70, 23)),
        "columns": rng.normal(size=(40, 30)) + 5 * rng.normal(size=30),
        "rows": np.cumsum(rng.normal(size=(30, 12)), axis=0),
        "conv": rng.normal(size=(9, 5, 3, 3)) + 4 * rng.normal(size=(9, 5, 1, 1)),
        "conv1d": rng.normal(size=(9, 5, 7)),
        "heavy": rng.standard_t(2, size=(40, 20)),
        "sparse": np.where(rng.random((50, 40)) < 0.03, rng.normal(size=(50, 40)), 0),
        "zero": np.zeros((5, 5)),
    }
    with np.errstate(over="ignore"):
        both(deepcabac.compress({name: array.astype(kind) for name, array in tensors.items()}, **settings))


@pytest.mark.parametrize("settings", [{"sqnr": 70}, {"step": 2.0**-24}, {"step": 2.0**-29}], ids=str)
def test_fine_quantisation(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    both(
        deepcabac.compress(
            {"a": rng.normal(size=(60, 20)).astype(np.float32), "b": rng.normal(size=(20, 8))}, **settings
        )
    )


def test_example_network() -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(ROOT / "examples" / "lenet300.safetensors")
    both(deepcabac.compress({name: array[:60] if array.ndim == 2 else array for name, array in tensors.items()}))


def test_random_levels() -> None:
    rng = np.random.default_rng(2)
    for shape in [
        (),
        (1,),
        (0,),
        (3, 0),
        (300,),
        (20, 30),
        (4, 3, 3, 3),
        (3, 4, 20),
        (1, 2, 3, 4, 5),
        (2000, 1),
        (1, 2000),
    ]:
        for scale in 0.3, 3, 1000:
            levels = np.asarray(rng.normal(size=shape) * scale).round().astype(np.int32)
            both_levels(deepcabac.encode(levels), levels)
    both_levels(deepcabac.encode(np.zeros((200, 100), np.int8)))


def test_extreme_levels() -> None:
    rng = np.random.default_rng(3)
    extremes = np.array([-(2**31), 2**31 - 1, 0, 1, -1, 2**30, -(2**31) + 1], dtype=np.int64)
    for shape in (5,), (20, 9), (6, 5, 3, 3):
        for levels in rng.choice(extremes, shape), rng.integers(-(2**31), 2**31, shape):
            both_levels(deepcabac.encode(levels), levels)


def random_record(source: random.Random) -> tuple[bytes, int]:
    """Any parameters, and the number of levels in a chunk."""
    flags = source.choice([*range(32), 48, 49, 52, 53, 56, 57, 60, 61])
    width, rows = source.choice([1, 2, 3, 5, 7, 9, 16, 25, 40, 100]), source.choice([1, 2, 3, 10, 60, 90])
    record = (
        bytes([flags, source.choice([0, 30, 60, 96, 100, 120, 150, 191])]) + encode.varint(width) + encode.varint(rows)
    )
    if flags & 1:
        record += source.randbytes(2)
    if flags & 2:
        largest = source.choice([(5, 12), (64, 128)])
        record += bytes([source.randint(1, largest[0]), source.randint(1, largest[1])]) + source.randbytes(5)
    if flags & 8:
        record += bytes([source.randint(3, 6)])
    return record, width * rows


def possible(record: bytes, numbers: list[int]) -> list[int]:
    """Levels that tensors of these parameters can have: the numbers, or with two quantisers those of these indices."""
    params = decode.Params(record)
    most = 2**30 - 1 if params.dependent else 2**31 - 1
    numbers = [max(-most, min(most, number)) for number in numbers]
    return encode.levels_of(params, numbers) if params.dependent else numbers


def test_any_parameters() -> None:
    source = random.Random(4)
    for _ in range(120):
        record, chunk = random_record(source)
        scale = source.choice([0, 0.5, 3, 100, 1e5, 1e9])
        count = source.randint(1, min(300, 3 * chunk))
        levels = possible(record, [round(source.gauss(0, scale)) for _ in range(count)])
        chunks = encode.encode_chunks(decode.Params(record), levels)
        both_levels(encode.write_levels([count], record, chunks), np.array(levels))


@st.composite
def regressed(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """Parameters with regression, and levels of columns that hang on each other or not, with extremes or not."""
    flags = 48 | draw(st.sampled_from([0, 1, 4, 8, 9, 13]))
    width, rows = draw(st.integers(1, 40) | st.sampled_from([723, 724, 725, 1500])), draw(st.integers(1, 30))
    record = bytes([flags, draw(st.integers(0, 191))]) + encode.varint(width) + encode.varint(rows)
    record += draw(st.binary(min_size=2, max_size=2)) if flags & 1 else b""
    record += bytes([draw(st.integers(3, 6))]) if flags & 8 else b""
    count = draw(st.integers(1, min(2 * width * rows, max(400, 2 * width))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    causes, size = draw(st.integers(1, 4)), draw(st.sampled_from([0.5, 3, 300, 1e5]))
    matrix = rng.normal(size=(-(-count // width), causes)) @ rng.normal(size=(causes, width))
    matrix = size * (matrix + draw(st.sampled_from([0, 0.01, 1])) * rng.normal(size=matrix.shape))
    matrix[rng.random(matrix.shape) < draw(st.sampled_from([0, 0, 0.1, 1]))] *= 2.0**31
    return record, possible(record, [int(x) for x in matrix.reshape(-1)[:count]])


@given(case=regressed())
@settings(max_examples=60, deadline=None)
def test_any_regression(case: tuple[bytes, list[int]]) -> None:
    """Both decode it, and the package's encoder writes what the reference's does."""
    record, levels = case
    params = decode.Params(record)
    chunks = encode.encode_chunks(params, levels)
    both_levels(encode.write_levels([len(levels)], record, chunks), np.array(levels))
    each = params.chunk_levels
    pieces = [np.array(levels[start : start + each], np.int32) for start in range(0, len(levels), each)]
    assert [_core.encode(record, piece) for piece in pieces] == chunks


def record_fields() -> st.SearchStrategy[bytes]:
    """Parameter records, most of them with every field that their flags ask for, and some of them out of range."""
    number = st.integers(1, 9000).map(encode.varint)
    parts = (st.integers(0, 70).map(lambda flags: bytes([flags])), st.integers(0, 193).map(lambda log: bytes([log])))
    rest = st.lists(st.integers(0, 9) | st.integers(0, 255), max_size=11).map(bytes)
    return st.tuples(*parts, number, number, rest).map(b"".join)


@given(record=record_fields())
@settings(max_examples=2000, deadline=None)
def test_any_parameter_record_says_the_same(record: bytes) -> None:
    """The package, which asks the core, and the reference read the same, or both refuse."""
    # Of all lengths, at most one is right.
    for length in range(max(len(record) - 11, 0), len(record) + 1):
        try:
            params = decode.Params(record[:length])
        except decode.Damaged:
            with pytest.raises(deepcabac.DamagedFileError):
                _core.parameters(record[:length])
            with pytest.raises(deepcabac.DamagedFileError):
                _core.chunk_levels(record[:length])
            continue
        said = _core.parameters(record[:length])
        coder = ("binary", "fast", "sparse", "regression")[record[0] >> 4]
        states = 1 << record[length - 1] if params.dependent else 1
        assert said == (params.width, 8 if coder == "binary" else 1, coder, states)
        assert _core.chunk_levels(record[:length]) == params.chunk_levels


@pytest.mark.parametrize("flags", [48, 49])
def test_rows_that_spoil_a_regression_by_rounding(flags: int) -> None:
    """Rows nearly dependent on each other and as large as can be: a wrong rounding anywhere shows."""
    width, rows = 150, 60
    waves = np.sign(np.sin(np.arange(width) * 0.37 * np.arange(rows)[:, None])) * 32767
    jumps = np.where(np.random.default_rng(12).random((rows, width)) < 4 / width, 32767, np.rint(waves / 32767))
    record = bytes([flags, 0]) + encode.varint(width) + encode.varint(rows) + b"\x7f\x81" * (flags & 1)
    params = decode.Params(record)
    for matrix in waves, jumps:
        levels = [int(x) for x in matrix.reshape(-1)]
        (chunk,) = encode.encode_chunks(params, levels)
        both_levels(encode.write_levels([len(levels)], record, [chunk]), np.array(levels))
        assert _core.encode(record, np.array(levels, np.int32)) == chunk


def test_blocks_are_few_alike_and_of_bounded_factors() -> None:
    assert [decode.block_width(width) for width in (1, 16, 724, 725, 1024, 1030, 8191, 8192)] == [
        1, 16, 724, 363, 512, 344, 64, 64
    ]  # fmt: skip
    for width in range(1, 8193):
        each = decode.block_width(width)
        blocks = -(-width // each)
        assert width * each <= 2**19
        assert blocks == 1 or width * -(-width // (blocks - 1)) > 2**19


def test_infinite_and_undefined_predictions() -> None:
    """They are clamped, and NaN is 0, whether or not rows can bring them about."""
    block = decode.Block(3, np.float32(16))
    for value, expected in [(np.inf, 2**23), (-np.inf, -(2**23)), (np.nan, 0), (1e30, 2**23), (-1.9, -1), (0.9, 0)]:
        block.predictions[1] = value
        assert block.prediction(1) == expected


@st.composite
def changed_chunks(draw: st.DrawFn) -> tuple[np.dtype[Any], np.ndarray, np.ndarray, int, bytes]:
    """A type, patterns of a base and what they become, and rates: of their first exponent, and codes."""
    dtype = decode.DTYPES[draw(st.integers(1, 14))]
    bits, size = 8 * dtype.itemsize, draw(st.integers(0, 300))
    exponents = exact.exponents(dtype)
    first = draw(st.integers(0, exponents - 1))
    codes = bytes(draw(st.lists(st.integers(0, 63), min_size=1, max_size=min(exponents - first, 40))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pattern = np.dtype(f"<u{dtype.itemsize}")
    before = rng.integers(0, 2**bits - 1, size, pattern, endpoint=True)
    largest = draw(st.sampled_from([1, 3, 9, 2 ** (bits - 1)]))
    step = rng.integers(1, largest, size, pattern, endpoint=True)
    step[rng.random(size) >= draw(st.sampled_from([0, 0.02, 0.3, 1]))] = 0
    after = before ^ step if draw(st.booleans()) else before + step
    return dtype, before, after, first, codes


@given(case=changed_chunks())
@settings(max_examples=60, deadline=None)
def test_any_changes(case: tuple[np.dtype[Any], np.ndarray, np.ndarray, int, bytes]) -> None:
    """Chunks of changes of the core: the reference encoder writes them too, and the reference decoder reads them."""
    dtype, before, after, first, codes = case
    tensor = decode.Tensor("", dtype, before.shape, decode.CHANGES, first=first, rates=codes)
    rates, bits = _core.Rates(first, codes), exact.mantissa(dtype)
    code = _core.encode_changes(rates, bits, before, after)
    if not code:
        assert (before == after).all()
        return
    old, new = before.tolist(), after.tolist()
    assert code == encode.encode_changes(tensor, old, new)
    assert decode.decode_changes(tensor, code, old) == new
    out = np.empty_like(before)
    assert _core.decode_changes(rates, bits, before, code, out) and (out == after).all()
    places, values = _core.list_changes(rates, bits, before, code)  # type: ignore[misc]
    assert (places == np.flatnonzero(before != after)).all() and (values == after[places]).all()
    for damaged in (code[:-1], code + b"\0", bytes(8) + code, b"\xff" * 8 + code[8:], bytes([code[0] ^ 64]) + code[1:]):
        good = _core.decode_changes(rates, bits, before, damaged, out)
        try:
            assert decode.decode_changes(tensor, damaged, old) == out.tolist() and good
        except decode.Damaged:
            assert not good


def test_reference_encoder_writes_the_same_bytes() -> None:
    for path in sorted(GOLDEN.glob("*.levels")):
        data = path.read_bytes()
        if deepcabac.decode(data).size > 5000:
            continue
        fields = decode.Fields(data)
        fields.take(2)
        shape = decode.parse_shape(fields)
        record = fields.blob()
        levels = [int(x) for x in decode.read_levels(data).ravel()]
        assert encode.write_levels(shape, record, encode.encode_chunks(decode.Params(record), levels)) == data, (
            path.name
        )
    for name in "types", "safetensors", "no_tensors":
        data = (GOLDEN / f"{name}.dcb").read_bytes()
        assert encode.write_file(plain_index(data), payload_of(data)) == data, name


# --- Agreement on damage ---


def outcome(decoder: Callable[[], Any], refusals: tuple[type[Exception], ...], limit: type[Exception]) -> Any:
    try:
        return decoder()
    except limit:
        return "limit"
    except refusals:
        return "refused"


def agree(data: bytes, levels: bool = False) -> str:
    """Both refuse, or both give the same arrays. Any other exception is an error."""
    if levels:
        one = outcome(lambda: {"": decode.read_levels(data, LIMIT)}, (decode.Damaged,), decode.TooLarge)
        two = outcome(lambda: {"": deepcabac.decode(data, max_bytes=LIMIT)}, REFUSALS, deepcabac.LimitError)
    else:
        one = outcome(lambda: decode.read_file(data, LIMIT), (decode.Damaged,), decode.TooLarge)
        two = outcome(lambda: deepcabac.decompress(data, max_bytes=LIMIT), REFUSALS, deepcabac.LimitError)
    if isinstance(one, str) or isinstance(two, str):
        # whether a limit or damage is seen first is not a matter of the format
        assert isinstance(one, str) and isinstance(two, str), (one, two, data.hex())
        return "refused"
    assert_same(one, two)
    return "decoded"


REFUSALS = (deepcabac.DamagedFileError, deepcabac.UnsupportedError)


def mutated(data: bytes, source: random.Random) -> bytes:
    """Some bytes changed, put in, left out, or the end cut off."""
    altered = bytearray(data)
    for _ in range(source.choice([1, 1, 1, 2, 4])):
        place = source.randrange(len(altered)) if altered else 0
        kind = source.randrange(8)
        if not altered or kind == 0:
            altered.insert(place, source.randrange(256))
        elif kind == 1:
            del altered[place]
        elif kind == 2:
            altered[place] = source.choice([0, 1, 127, 128, 255])
        elif kind == 3 and place > 0:
            del altered[place:]
        elif kind == 4:
            altered[place] = (altered[place] + source.choice([1, -1])) % 256
        else:
            altered[place] ^= 1 << source.randrange(8)
    return bytes(altered)


def small_file() -> bytes:
    """A file with little of everything, so that a mutation meets something."""
    payload, index = b"", encode.blob(b"npz") + encode.blob(b"x") + encode.varint(6)
    record = bytes([7, 100, 5, 3, 20, 30, 2, 4, 30, 30, 226, 0, 0])
    levels = [2, 3, 1, 2, -4, 3, 4, 2, -90, 2, 0, 1, 1, 2, -3, 5, 5, 7, 1, 0]
    chunks = encode.encode_chunks(decode.Params(record), levels)
    index += encode.blob(b"a") + bytes([2, 2, 4, 5]) + encode.tensor_entry(0.25, record, chunks)
    exact = b"\1\0\1"
    index += encode.blob(b"b") + bytes([15, 1, 3, 0]) + zlib.crc32(exact).to_bytes(4, "little")
    index += encode.blob("ü".encode()) + bytes([2, 2, 4, 5, 2, 0])
    plain = encode.encode_chunk(decode.Params(bytes([0, 96, 3, 4])), [1, 0, -1, 0, 0, 2])
    index += encode.blob(b"c") + bytes([3, 1, 6]) + encode.tensor_entry(0.5, bytes([0, 96, 3, 4]), [plain])
    index += encode.blob(b"d") + bytes([8, 2, 0, 3, 0])
    scaled = encode.encode_chunks(decode.Params(bytes([0, 96, 3, 1])), [4, 0, -1, 2, 0, 2])
    index += encode.blob(b"e") + bytes([2, 2, 2, 3])
    index += encode.tensor_entry(0.5, bytes([0, 96, 3, 1]), scaled, [-9, 127], [3, 0, -128])
    payload = b"".join(chunks) + exact + plain + b"".join(scaled)
    return bytes(encode.write_file(index, payload))


def test_damaged_files_are_refused() -> None:
    data, source = small_file(), random.Random(5)
    assert agree(data) == "decoded"
    for k in range(len(data)):
        assert agree(data[:k]) == "refused"
        assert agree(data[:k] + bytes([data[k] ^ 1 << source.randrange(8)]) + data[k + 1 :]) == "refused"
    assert agree(data + b"\0") == "refused"
    for _ in range(100):
        altered = mutated(data, source)
        assert altered == data or agree(altered) == "refused"


def test_damaged_index_with_right_checksums() -> None:
    data, source = small_file(), random.Random(6)
    index, payload = plain_index(data), payload_of(data)
    seen = {"decoded": 0, "refused": 0}
    for k in range(0, len(index), 4):
        seen[agree(encode.write_file(index[:k], payload))] += 1
    for _ in range(120):
        seen[agree(encode.write_file(mutated(index, source), payload))] += 1
    assert min(seen.values()) > 5, seen


def test_damaged_coded_index_with_right_checksum() -> None:
    data, source = small_file(), random.Random(7)
    start = int.from_bytes(data[16:24], "little")
    for _ in range(80):
        index = mutated(data[start:], source)
        header = struct.pack("<8sIIQQ", decode.MAGIC, 1, zlib.crc32(index), start, len(index))
        agree(header + data[32:start] + index)


def test_damaged_levels_with_right_checksums() -> None:
    source, seen = random.Random(8), {"decoded": 0, "refused": 0}
    for _ in range(250):
        record, chunk = random_record(source)
        count = source.randint(1, min(60, 2 * chunk))
        levels = possible(record, [round(source.gauss(0, source.choice([0.3, 2, 500]))) for _ in range(count)])
        chunks = encode.encode_chunks(decode.Params(record), levels)
        what = source.randrange(3)
        if what == 0:
            record = mutated(record, source)
        elif what == 1:
            place = source.randrange(len(chunks))
            chunks[place] = mutated(chunks[place], source)
        else:
            count += source.choice([-1, 1, 5])
        seen[agree(encode.write_levels([max(count, 0)], record, chunks), levels=True)] += 1
    assert min(seen.values()) > 5, seen


def test_random_chunks() -> None:
    """Bytes that no encoder wrote, of every length that could fit."""
    source, seen = random.Random(9), {"decoded": 0, "refused": 0}
    for _ in range(400):
        record, chunk = random_record(source)
        count = source.randint(1, min(chunk, 6))
        coded = source.choice([bytes, source.randbytes, lambda n: b"\xff" * n])(source.randint(1, 10))
        seen[agree(encode.write_levels([count], record, [coded]), levels=True)] += 1
    assert min(seen.values()) > 5, seen


def test_damaged_levels_are_refused() -> None:
    source = random.Random(10)
    data = (GOLDEN / "extremes.levels").read_bytes()
    for k in range(len(data)):
        assert agree(data[:k], levels=True) == "refused"
    for _ in range(300):
        altered = mutated(data, source)
        assert altered == data or agree(altered, levels=True) == "refused"


def index_of(
    *tensors: bytes, kind: bytes = b"", extra: bytes = b"", count: int | None = None, tail: bytes = b""
) -> bytes:
    count = len(tensors) if count is None else count
    return bytes(encode.blob(kind) + encode.blob(extra) + encode.varint(count) + b"".join(tensors) + tail)


def entry(name: bytes = b"t", dtype: int = 2, shape: tuple[int, ...] = (0,), rest: bytes = b"\0") -> bytes:
    return bytes(encode.blob(name) + bytes([dtype, len(shape)]) + b"".join(map(encode.varint, shape)) + rest)


def levels_of(step: float | bytes, record: bytes, *chunks: bytes) -> bytes:
    return (
        b"\1"
        + (step if isinstance(step, bytes) else struct.pack("<f", step))
        + bytes(2)  # no scales
        + bytes(encode.levels_entry(record, chunks))
    )


RECORD = bytes([0, 96, 3, 4])
NOTHING = encode.levels_entry(RECORD, [])

EDGES: dict[str, tuple[bytes, str]] = {
    "empty": (index_of(), "decoded"),
    "fewer": (index_of(entry(), count=2), "refused"),
    "more": (index_of(entry(), tail=b"\0"), "refused"),
    "name twice": (index_of(entry(), entry()), "refused"),
    "name not UTF-8": (index_of(entry(name=b"\xff")), "refused"),
    "name with surrogate": (index_of(entry(name=b"\xed\xa0\x80")), "refused"),
    "name with NUL": (index_of(entry(name=b"a\0b")), "decoded"),
    "long name": (index_of(entry(name=b"n" * 300)), "decoded"),
    "kind not UTF-8": (index_of(kind=b"\xff"), "refused"),
    "type 0": (index_of(entry(dtype=0)), "refused"),
    "type 30": (index_of(entry(dtype=30)), "decoded"),
    "type 31": (index_of(entry(dtype=31)), "refused"),
    "packed codes": (index_of(entry(dtype=40)), "decoded"),
    "packed codes of a byte": (index_of(entry(dtype=46)), "decoded"),
    "packed bytes of a byte": (index_of(entry(dtype=78)), "refused"),
    "packed codes of floats": (index_of(entry(dtype=34)), "refused"),
    "packed codes of bools": (index_of(entry(dtype=47)), "refused"),
    "packed codes of nothing": (index_of(entry(dtype=80)), "refused"),
    "packed codes tied to their codes": (
        index_of(entry(dtype=28, shape=(0, 8)), entry(b"u", 40, rest=b"\2\0")),
        "refused",
    ),
    "packed codes tied to others": (index_of(entry(dtype=40), entry(b"u", 44, rest=b"\2\0")), "refused"),
    "an update of packed codes": (index_of(entry(dtype=40, rest=b"\x09")), "refused"),
    "levels of complex numbers": (index_of(entry(dtype=16, rest=levels_of(1, RECORD))), "decoded"),
    "levels of a narrow type": (index_of(entry(dtype=18, rest=levels_of(1, RECORD))), "refused"),
    "complex tied to its parts": (index_of(entry(dtype=2, shape=(0, 2)), entry(b"u", 16, rest=b"\2\0")), "refused"),
    "complex tied to complex": (index_of(entry(dtype=16), entry(b"u", 16, rest=b"\2\0")), "decoded"),
    "32 dimensions": (index_of(entry(shape=(0, *[1] * 31))), "decoded"),
    "33 dimensions": (index_of(entry(shape=(0, *[1] * 32))), "refused"),
    "large": (index_of(entry(shape=(0, 2**60 - 1))), "decoded"),
    "too large": (index_of(entry(shape=(0, 2**60))), "refused"),
    "too large product": (index_of(entry(shape=(2**30, 0, 2**30))), "refused"),
    "overflowing product": (index_of(entry(shape=(2**32, 0, 2**32))), "refused"),
    "largest dimension": (index_of(entry(shape=(2**63 - 1, 0))), "refused"),
    "dimension longer than nine bytes": (index_of(b"\1t\2\1" + b"\x80" * 9 + b"\0\0"), "refused"),
    "dimension with a zero too many": (index_of(b"\1t\2\1\x80\0\0"), "refused"),
    **{f"method {k} and nothing else": (index_of(entry(rest=bytes([k]))), "refused") for k in range(1, 9)},
    "method 11": (index_of(entry(rest=b"\x0b")), "refused"),
    "levels of nothing": (index_of(entry(rest=levels_of(1, RECORD))), "decoded"),
    "levels of integers": (index_of(entry(dtype=8, rest=levels_of(1, RECORD))), "refused"),
    "step 0": (index_of(entry(rest=levels_of(0, RECORD))), "refused"),
    "step -0": (index_of(entry(rest=levels_of(-0.0, RECORD))), "refused"),
    "step negative": (index_of(entry(rest=levels_of(-1, RECORD))), "refused"),
    "step infinite": (index_of(entry(rest=levels_of(float("inf"), RECORD))), "refused"),
    "step NaN": (index_of(entry(rest=levels_of(float("nan"), RECORD))), "refused"),
    "step subnormal": (index_of(entry(rest=levels_of(b"\1\0\0\0", RECORD))), "decoded"),
    "record empty": (index_of(entry(rest=levels_of(1, b""))), "refused"),
    "record too long": (index_of(entry(rest=levels_of(1, RECORD + b"\0"))), "refused"),
    "flags 32": (index_of(entry(rest=levels_of(1, bytes([32, 96, 3, 4])))), "refused"),
    "width 0": (index_of(entry(rest=levels_of(1, bytes([0, 96, 0, 4])))), "refused"),
    "width 65536": (index_of(entry(rest=levels_of(1, bytes([0, 96, 128, 128, 4, 16])))), "decoded"),
    "width 65537": (index_of(entry(rest=levels_of(1, bytes([0, 96, 129, 128, 4, 1])))), "refused"),
    "chunk of 2^20 + 65536": (index_of(entry(rest=levels_of(1, bytes([0, 96, 128, 128, 4, 17])))), "refused"),
    "regression": (index_of(entry(rest=levels_of(1, bytes([48, 96, 3, 4])))), "decoded"),
    "regression, width 8192": (index_of(entry(rest=levels_of(1, bytes([48, 96, 128, 64, 128, 4])))), "decoded"),
    "regression, width 8193": (index_of(entry(rest=levels_of(1, bytes([48, 96, 129, 64, 1])))), "refused"),
    "regression, 2^22 + 8192": (index_of(entry(rest=levels_of(1, bytes([48, 96, 128, 64, 129, 4])))), "refused"),
    "regression and kernels": (index_of(entry(rest=levels_of(1, bytes([50, 96, 9, 4, 3, 9, *[0] * 5])))), "refused"),
    "sparse, row prediction": (index_of(entry(rest=levels_of(1, bytes([33, 96, 3, 4, 1, 1, 100])))), "refused"),
    "flags 64": (index_of(entry(rest=levels_of(1, bytes([64, 96, 3, 4])))), "refused"),
    "tied to itself": (index_of(entry(rest=b"\2\0")), "refused"),
    "tied": (index_of(entry(), entry(b"u", rest=b"\2\0")), "decoded"),
    "tied to tied": (index_of(entry(), entry(b"u", rest=b"\2\0"), entry(b"v", rest=b"\2\1")), "refused"),
    "tied to another type": (index_of(entry(), entry(b"u", dtype=8, rest=b"\2\0")), "refused"),
    "tied to another shape": (index_of(entry(), entry(b"u", shape=(0, 1), rest=b"\2\0")), "refused"),
    "equal": (index_of(entry(), entry(b"u", rest=b"\x0c\0")), "decoded"),
    "equal to itself": (index_of(entry(rest=b"\x0c\0")), "refused"),
    "equal to equal": (index_of(entry(), entry(b"u", rest=b"\x0c\0"), entry(b"v", rest=b"\x0c\1")), "refused"),
    "tied to equal": (index_of(entry(), entry(b"u", rest=b"\x0c\0"), entry(b"v", rest=b"\2\1")), "refused"),
    "equal to another type": (index_of(entry(), entry(b"u", dtype=8, rest=b"\x0c\0")), "refused"),
    "equal to 64 times": (index_of(entry(), *(entry(b"%d" % k, rest=b"\x0c\0") for k in range(64))), "decoded"),
    "equal to 65 times": (index_of(entry(), *(entry(b"%d" % k, rest=b"\x0c\0") for k in range(65))), "refused"),
    "tied to no tensor": (index_of(entry(), entry(b"u", rest=b"\2\5")), "refused"),
    "chunk of no bytes": (index_of(entry(shape=(3,), rest=levels_of(1, RECORD, b""))), "refused"),
    "too many tensors": (index_of(count=2**62), "refused"),
    "payload missing": (index_of(entry(shape=(1,), rest=b"\0\0\0\0\0")), "refused"),
    "a trillion levels": (index_of(entry(shape=(2**40,), rest=levels_of(1, RECORD, b"\0"))), "refused"),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges_of_the_index(name: str) -> None:
    index, expected = EDGES[name]
    assert agree(encode.write_file(index, b"")) == expected


#: Shape, numbers of row and column scales, width and rows of a chunk; whether they fit.
SCALED = [
    *(((4, 6), rows, columns, 6, 2, rows in (0, 4) and columns in (0, 6)) for rows in range(6) for columns in range(8)),
    *(((4, 6), 4, 6, width, rows, width * rows % 6 == 0) for width in range(1, 9) for rows in range(1, 7)),
    ((4, 2, 3), 4, 6, 3, 2, True),
    ((4, 2, 3), 8, 3, 3, 2, False),
    ((4, 1, 1), 4, 1, 1, 3, True),
    ((1, 24), 1, 24, 24, 1, True),
    ((1, 24), 24, 1, 24, 1, False),
    ((24,), 24, 1, 5, 1, True),
    ((24,), 24, 0, 24, 1, True),
    ((24,), 24, 24, 24, 1, False),
    ((24,), 1, 24, 24, 1, False),
    ((), 0, 0, 1, 1, True),
    ((), 1, 0, 1, 1, False),
    ((), 1, 1, 1, 1, False),
    *(
        (shape, rows, columns, 1, 1, rows == columns == 0)
        for shape in [(0,), (0, 3), (3, 0)]
        for rows in (0, 3)
        for columns in (0, 1, 3)
    ),
]


@pytest.mark.parametrize("dtype", [2, 3, 8])
def test_scales_have_to_fit_the_shape(dtype: int) -> None:
    for shape, rows, columns, width, chunk_rows, fits in SCALED:
        record = bytes([0, 96, width, chunk_rows])
        size = int(np.prod(shape))
        chunks = encode.encode_chunks(decode.Params(record), [k % 5 - 2 for k in range(size)])
        rest = encode.tensor_entry(0.5, record, chunks, range(-9, rows - 9), range(columns))
        data = encode.write_file(index_of(entry(dtype=dtype, shape=shape, rest=rest)), b"".join(chunks))
        expected = "decoded" if fits and dtype in (2, 3) else "refused"
        assert agree(data) == expected, (shape, rows, columns, width, chunk_rows)


def test_factors_of_scales() -> None:
    """The roots are the float32 nearest to the powers of two, and every factor is a root times a power of two."""
    for scale in range(-128, 128):
        root = np.float32(2 ** (scale % 4 / 4))
        assert decode.factor(scale % 256) == float(root) * 2.0 ** (scale // 4)
        assert scale_factors(np.array([scale], np.int8))[0] == decode.factor(scale % 256)


def test_every_product_with_scales_is_rounded_in_order() -> None:
    """Also where a product leaves the range of float32 and another would bring it back."""
    source = random.Random(11)
    record = bytes([0, 160, 8, 3])
    for _ in range(60):
        levels = [source.choice([0, 1, -1, source.randint(-(2**31), 2**31 - 1)]) for _ in range(40)]
        scales = [[source.choice([-128, 127, source.randint(-128, 127)]) for _ in range(count)] for count in (5, 8)]
        bits = struct.pack("<I", source.choice([1, 2**23 - 1, 0x7F7FFFFF, source.randint(1, 0x7F7FFFFF)]))
        (step,) = struct.unpack("<f", bits)
        chunks = encode.encode_chunks(decode.Params(record), levels)
        for dtype in range(1, 7):
            rest = encode.tensor_entry(step, record, chunks, *scales)
            data = encode.write_file(index_of(entry(dtype=dtype, shape=(5, 2, 4), rest=rest)), b"".join(chunks))
            assert agree(data) == "decoded"
        with np.errstate(all="ignore"):
            for k, value in enumerate(deepcabac.decompress(scaled_float32(data))["t"].reshape(-1)):
                expected = np.float32(np.int32(levels[k])) * np.float32(step)
                for scale in scales[0][k // 8], scales[1][k % 8]:
                    expected = np.float32(expected * np.float32(2 ** (scale % 4 / 4) * 2.0 ** (scale // 4)))
                assert value.tobytes() == expected.tobytes() and not np.isnan(value)


def scaled_float32(data: bytes) -> bytes:
    """That file of one tensor, as float32."""
    index = bytearray(plain_index(data))
    index[5] = 2
    return bytes(encode.write_file(bytes(index), payload_of(data)))


def test_bool_of_other_value() -> None:
    crc = zlib.crc32(b"\2").to_bytes(4, "little")
    assert agree(encode.write_file(index_of(entry(dtype=15, shape=(1,), rest=b"\0" + crc)), b"\2")) == "refused"


@pytest.mark.parametrize(
    ("dtype", "lowest", "count"), [(24, 0, 64), (26, 0, 16), (27, -8, 16), (28, 0, 16), (29, -2, 4), (30, 0, 4)]
)
def test_bytes_of_narrow_types(dtype: int, lowest: int, count: int) -> None:
    for byte in range(256):
        raw = bytes([byte])
        rest = b"\0" + zlib.crc32(raw).to_bytes(4, "little")
        expected = "decoded" if (byte - lowest) % 256 < count else "refused"
        assert agree(encode.write_file(index_of(entry(dtype=dtype, shape=(1,), rest=rest)), raw)) == expected


def test_unknown_kind() -> None:
    assert agree(encode.write_file(index_of(kind=b"zip"), b"")) == "decoded"


@pytest.mark.parametrize("dtype", range(1, 7))
def test_results_that_are_not_finite(dtype: int) -> None:
    """No writer makes them, yet they have one meaning."""
    levels = [2**31 - 1, -(2**31), 1, 0, 1000, -3]
    chunk = encode.encode_chunk(decode.Params(RECORD), levels)
    for step in 3e38, 1e30, 1e5, 100.0, 1.0:
        index = index_of(entry(dtype=dtype, shape=(6,), rest=levels_of(step, RECORD, chunk)))
        assert agree(encode.write_file(index, chunk)) == "decoded"


# --- The command line ---


def test_command_line(tmp_path: Path) -> None:
    script, out = ROOT / "reference" / "decode.py", tmp_path / "out.npz"
    subprocess.run([sys.executable, script, GOLDEN / "types.dcb", out], check=True)
    expected = deepcabac.load_file(GOLDEN / "types.dcb")
    with np.load(out) as arrays:
        assert list(arrays) == list(expected)
        assert np.array_equal(arrays["bfloat16/levels"], expected["bfloat16/levels"].astype(np.float32))
        assert same(arrays["int64"], expected["int64"])
    listing = subprocess.run([sys.executable, script, GOLDEN / "safetensors.dcb"], check=True, capture_output=True)
    assert b"'layer.weight' float32 [16, 24] levels" in listing.stdout
    (tmp_path / "bad.dcb").write_bytes(b"no")
    assert subprocess.run([sys.executable, script, tmp_path / "bad.dcb"], capture_output=True).returncode == 1
