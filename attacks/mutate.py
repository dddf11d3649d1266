"""Random damage: ``python attacks/mutate.py --count 100000 --seed 1``.

Takes good files, damages them, and opens the result. Half of the time checksums are made right again, so that damage
reaches the decoder. Whatever happens must be a DeepCabacError, or tensors of the shapes and types that the file
declares. Prints the outcomes, the slowest file and the peak of memory; exits with 1 and keeps the file on anything
else.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

import forge  # noqa: E402
import ml_dtypes  # noqa: E402
from forge import Parts  # noqa: E402

import deepcabac  # noqa: E402
from deepcabac import _core, codec  # noqa: E402
from deepcabac.dcb import container, reader  # noqa: E402

MAX_BYTES = 8 << 20
EXAMPLE = FOLDER.parent / "examples" / "lenet300.safetensors"
Random = np.random.Generator


def small() -> bytes:
    """A file of every feature in a few hundred bytes."""
    rng = np.random.default_rng(3)
    fan = np.linspace(-1, 1, 48).reshape(4, 1, 4, 3) + rng.normal(size=(4, 1, 4, 3)) / 9
    conv = fan.astype(np.float32)
    tensors = {
        "conv": conv,
        "half": rng.normal(size=(5, 8)).astype(np.float16),
        "bf": rng.normal(size=(6, 6)).astype(ml_dtypes.bfloat16),
        "tied": conv,
        "n": np.arange(3, dtype=np.int16),
        "scalar": np.float64(2.5),
        "none": np.zeros((2, 0), np.uint8),
        "bool": np.array([True, False]),
        "\u00e4": np.zeros((2, 30), np.float32),
    }
    return deepcabac.compress(tensors, sqnr=12)


def scaled() -> bytes:
    """Levels with scales: of rows, of columns, of both; several chunks; types whose values overflow."""
    rng = np.random.default_rng(6)
    payload, entries = b"", []
    cases = [((12, 20), 2, 12, 0), ((6, 3, 3, 3), 4, 0, 27), ((9, 10), 5, 9, 10), ((40,), 3, 40, 1), ((5, 6), 1, 5, 6)]
    for number, (shape, dtype, rows, columns) in enumerate(cases):
        levels = np.rint(rng.normal(size=math.prod(shape)) * 3).astype(np.int32)
        params = bytes([0, 100]) + container.varint(math.prod(shape[1:])) + b"\5"
        each = _core.chunk_levels(params)
        codes = [_core.encode(params, levels[start : start + each]) for start in range(0, levels.size, each)]
        scales = [rng.integers(-128, 128, count).astype(np.int8).tobytes() for count in (rows, columns)]
        rest = forge.levels_rest(codes, params, 0.25, rows=scales[0], columns=scales[1])
        entries.append(forge.entry(b"%d" % number, dtype, shape, container.LEVELS, rest))
        payload += b"".join(codes)
    return Parts(payload, forge.plain_index(entries)).file()


def medium() -> bytes:
    """Several kinds of prediction and several chunks a tensor."""
    rng = np.random.default_rng(4)
    smooth = rng.normal(size=(64, 16, 3, 3)).cumsum(axis=3).astype(np.float32)
    rows = (rng.normal(size=(200, 1)) + rng.normal(size=(1, 300)) + rng.normal(size=(200, 300)) / 4).astype(np.float32)
    sparse = (rng.normal(size=(100, 100)) * (rng.random((100, 100)) < 0.05)).astype(np.float32)
    heavy = (rng.standard_cauchy(size=(50, 100)) * 10).astype(np.float64)
    return deepcabac.compress({"smooth": smooth, "rows": rows, "sparse": sparse, "heavy": heavy}, sqnr=18)


def regressed() -> bytes:
    """Regression: one quantiser and two, row prediction, several blocks and chunks, a last row that is cut."""
    rng = np.random.default_rng(7)
    payload, entries = b"", []
    for number, (flags, width, rows, count) in enumerate([(48, 12, 9, 250), (57, 30, 6, 400), (52, 1030, 2, 2500)]):
        record = bytes([flags, 110]) + container.varint(width) + container.varint(rows)
        record += bytes([20, 40]) * (flags & 1) + bytes([4]) * (flags >> 3 & 1)
        matrix = 3 * rng.normal(size=(-(-count // width), 2)) @ rng.normal(size=(2, width))
        weights = (matrix + rng.normal(size=matrix.shape)).astype(np.float32).reshape(-1)[:count]
        weights[::60] *= 1 << 15
        pieces = [weights[start : start + width * rows] for start in range(0, count, width * rows)]
        codes = [_core.quantize(record, piece, 1.0, 0.0)[0] for piece in pieces]
        rest = forge.levels_rest(codes, record, 0.25)
        entries.append(forge.entry(b"%d" % number, 2, (count,), container.LEVELS, rest))
        payload += b"".join(codes)
    return Parts(payload, forge.plain_index(entries)).file()


def exact() -> bytes:
    """Floating-point values as symbols: scales, escapes, runs of zero bits, several types; and a codebook."""
    rng = np.random.default_rng(8)
    matrix = rng.normal(size=(40, 30)) * 2 ** rng.normal(size=30)
    matrix[::7] = matrix[::7].astype(np.float16)
    matrix[5, 5:8] = np.inf, 0, 1e-30
    tensors = {kind: matrix.astype(kind) for kind in ("float64", "float32", "float16")}
    return deepcabac.compress({**tensors, "few": np.sign(matrix)}, lossless=True)


def network() -> bytes:
    """The example network."""
    from safetensors.numpy import load_file

    return deepcabac.compress(load_file(EXAMPLE), sqnr=20)


def some_levels() -> bytes:
    """Coded levels."""
    rng = np.random.default_rng(5)
    values = rng.integers(-9, 9, (12, 3, 3, 3)).cumsum(axis=3)
    values[3, 1] = 1 << 30
    return codec.encode(values)


def damage(data: bytes, rng: Random) -> bytes:
    """``data`` with one to four things wrong."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not out:
            break
        at, kind = int(rng.integers(len(out))), rng.integers(8)
        if kind <= 1:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            out[at] = int(rng.integers(256))
        elif kind == 3:
            out[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 4:
            end = at + int(rng.integers(1, 9))
            out[at:end] = bytes([int(rng.choice([0, 127, 128, 255]))]) * len(out[at:end])
        elif kind == 5:
            del out[at : at + int(rng.integers(1, 9))]
        elif kind == 6:
            out[at:at] = rng.bytes(int(rng.integers(1, 9)))
        else:
            length, other = int(rng.integers(1, 33)), int(rng.integers(len(out)))
            out[at : at + length] = out[other : other + length]
    return bytes(out)


def damage_behind_checksums(data: bytes, rng: Random) -> bytes:
    """A damaged .dcb file whose checksums are right as far as there is still something to check."""
    parts = Parts.of(data)
    where = rng.integers(8)
    if where == 0:
        # The coded index itself.
        claimed = len(parts.plain) if rng.integers(2) else int(rng.integers(1 << rng.integers(1, 30)))
        return forge.with_stored(
            parts.payload, container.varint(claimed) + damage(_core.encode_bytes(parts.plain), rng)
        )
    if where <= 4:
        broken = Parts(parts.payload, damage(parts.plain, rng))
    elif where <= 6:
        broken = Parts(damage(parts.payload, rng), parts.plain)
        if len(broken.payload) != len(parts.payload):
            size = len(parts.payload)
            broken.payload = (broken.payload + bytes(size))[:size]
    else:
        broken = Parts(damage(parts.payload, rng), damage(parts.plain, rng))
    return forge.right_checksums(broken) or broken.file()


def damaged_levels_behind_checksums(data: bytes, rng: Random) -> bytes:
    """Damaged coded levels whose checksums are right as far as they parse."""
    broken = damage(data, rng)
    return forge.levels_with_right_checksums(broken) or broken


def open_file(data: bytes, max_bytes: int | None = MAX_BYTES) -> str:
    """Open and decode a .dcb file; the outcome. Raises what is no DeepCabacError."""
    try:
        with reader.open_bytes(data, max_bytes=max_bytes, threads=1) as opened:
            found = dict(opened.items())
            infos = [opened.info(name) for name in opened]
    except deepcabac.DeepCabacError as error:
        return type(error).__name__
    if list(found) != [info.name for info in infos]:
        raise AssertionError("other tensors than declared")
    for info in infos:
        array = found[info.name]
        if array.shape != info.shape or array.dtype != info.dtype:
            raise AssertionError(f"{array.dtype}{array.shape} instead of {info.dtype}{info.shape}")
    return "opened"


def open_levels(data: bytes, max_bytes: int | None = MAX_BYTES) -> str:
    """Decode coded levels; the outcome."""
    try:
        array = codec.decode(data, max_bytes=max_bytes, threads=1)
    except deepcabac.DeepCabacError as error:
        return type(error).__name__
    if array.dtype != np.int32 or array.nbytes > MAX_BYTES:
        raise AssertionError(f"{array.dtype}{array.shape}")
    return "opened"


Seed = tuple[str, bytes, Callable[[bytes], str], Callable[[bytes, Random], bytes], int]


def seeds() -> list[Seed]:
    """Name, good file, opener, damage behind checksums, and how often it is taken."""
    found: list[Seed] = [
        ("small", small(), open_file, damage_behind_checksums, 4),
        ("scaled", scaled(), open_file, damage_behind_checksums, 2),
        ("medium", medium(), open_file, damage_behind_checksums, 2),
        ("regressed", regressed(), open_file, damage_behind_checksums, 2),
        ("exact", exact(), open_file, damage_behind_checksums, 2),
        ("levels", some_levels(), open_levels, damaged_levels_behind_checksums, 2),
    ]
    if EXAMPLE.exists():
        found.append(("network", network(), open_file, damage_behind_checksums, 2))
    return found


def run(count: int, seed: int, progress: bool = False) -> dict[str, object]:
    """Open ``count`` damaged files; statistics. Raises on an outcome that must not be, with the file in ``.data``."""
    rng = np.random.default_rng(seed)
    pool = [item for item in seeds() for _ in range(item[4])]
    for name, data, opener, _, _ in pool:
        if opener(data) != "opened":
            raise AssertionError(f"the undamaged file {name} does not open")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: Counter[str] = Counter()
    slowest = slowest_per_mib = (0.0, "", 0)
    for number in range(count):
        name, data, opener, behind, _ = pool[int(rng.integers(len(pool)))]
        right = bool(rng.integers(2))
        broken = behind(data, rng) if right else damage(data, rng)
        start = time.perf_counter()
        try:
            outcome = opener(broken)
        except BaseException as error:
            error.data = broken  # type: ignore[attr-defined]
            raise
        seconds = time.perf_counter() - start
        if outcome == "opened" and not right and broken != data:
            error = AssertionError("damage went unnoticed past the checksums")
            error.data = broken  # type: ignore[attr-defined]
            raise error
        label = f"{name}{', checksums right' if right else ''}"
        outcomes[f"{label}: {outcome}"] += 1
        slowest = max(slowest, (seconds, label, len(broken)))
        slowest_per_mib = max(slowest_per_mib, (seconds / max(len(broken), 1 << 16) * (1 << 20), label, len(broken)))
        if progress and number % 1000 == 999:
            print(f"\r{number + 1:,}", end="", file=sys.stderr, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "outcomes": dict(sorted(outcomes.items())),
        "slowest": slowest,
        "slowest per MiB": slowest_per_mib,
        "memory before (KiB)": before,
        "peak memory (KiB)": peak,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    try:
        result = run(given.count, given.seed, progress=sys.stderr.isatty())
    except Exception as error:
        traceback.print_exc()
        if hasattr(error, "data"):
            Path("mutant.bin").write_bytes(error.data)
            print("the file is mutant.bin", file=sys.stderr)
        sys.exit(1)
    outcomes = result.pop("outcomes")
    assert isinstance(outcomes, dict)
    for outcome, times in outcomes.items():
        print(f"{times:8,}  {outcome}")
    for key in ("slowest", "slowest per MiB"):
        value, label, size = result[key]  # type: ignore[misc]
        print(f"{key}: {value:.3f} s, of {label}, {size:,} bytes (per MiB: files below 64 KiB count as 64 KiB)")
    peak, before = result["peak memory (KiB)"], result["memory before (KiB)"]
    print(f"peak memory: {peak:,} KiB; before the first file {before:,} KiB")


if __name__ == "__main__":
    main()
