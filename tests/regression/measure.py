"""The bytes that fixed inputs take: ``python tests/regression/measure.py`` measures them all and rewrites results.csv.

    python tests/regression/measure.py TEXT ...    # only rows whose input or settings contain a TEXT; writes nothing

tests/test_regression.py fails where a row differs. A change that is meant to change bytes rewrites the file, so that
its diff shows what each input gained or lost. The inputs are the network in examples/ and tensors made of integers
and exact divisions, which are the same on every machine and with every version of numpy.
"""

from __future__ import annotations

import csv
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import deepcabac
from deepcabac.checkpoint import open_checkpoint

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.csv"
LENET = HERE.parents[1] / "examples" / "lenet300.safetensors"
HEADS = ("input", "settings", "raw_bytes", "bytes", "sha256")

Arrays = dict[str, npt.NDArray[Any]]
#: input, settings, raw bytes, bytes, SHA-256: as in the file
Row = tuple[str, str, str, str, str]


def bell(seed: int, *shape: int) -> npt.NDArray[np.int64]:
    """Bell-shaped integers of standard deviation 209: sums of eight random bytes."""
    words = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return (words.view(np.uint8).reshape(*shape, 8).sum(axis=-1, dtype=np.int64) - 1020).reshape(shape)


def floats(integers: npt.NDArray[np.int64], divisor: int = 7919) -> npt.NDArray[np.float32]:
    """Weights, with all bits of a float32 in use: the divisors are primes."""
    return (integers / divisor).astype(np.float32)


def network() -> Arrays:
    """LeNet-300-100, as it is shipped."""
    with open_checkpoint(LENET) as checkpoint:
        return {spec.name: checkpoint.read(spec.name) for spec in checkpoint.specs}


def matrices() -> Arrays:
    """Independent weights, two scales, and a bias."""
    return {"a": floats(bell(1, 192, 256)), "b": floats(bell(2, 128, 256), 1999), "bias": floats(bell(3, 256))}


def kernels() -> Arrays:
    """Convolutions of 3 x 3 and 5 x 5 whose neighbours resemble each other, one of 1 x 1, and a depthwise one."""

    def smooth(seed: int, out: int, depth: int, width: int) -> npt.NDArray[np.float32]:
        noise = bell(seed, out, depth, width + 1, width + 1)
        corners = (noise[..., i : width + i, j : width + j] for i in (0, 1) for j in (0, 1))
        return floats(sum(corners, np.zeros((), np.int64)))

    return {
        "3x3": smooth(4, 64, 48, 3),
        "5x5": smooth(5, 32, 24, 5),
        "1x1": floats(bell(6, 96, 64, 1, 1)),
        "depthwise": smooth(7, 256, 1, 3),
    }


def correlated() -> Arrays:
    """A matrix whose columns say something of each other, as in transformers: half of its variance has 16 causes."""
    causes = bell(8, 384, 16) @ bell(9, 16, 160) // 800
    return {"projection": floats(causes + bell(10, 384, 160)), "offsets": floats(bell(11, 256, 96) + bell(12, 96))}


def sparse() -> Arrays:
    """A matrix and kernels of which 1 in 16 weights is not zero."""

    def pruned(seed: int, *shape: int) -> npt.NDArray[np.float32]:
        kept = np.random.PCG64(seed + 100).random_raw(int(np.prod(shape))).reshape(shape) % 16 == 0
        return floats(np.where(kept, bell(seed, *shape), 0))

    return {"matrix": pruned(13, 256, 256), "kernels": pruned(14, 64, 64, 3, 3)}


def clustered() -> Arrays:
    """A matrix of 64 different values, not evenly spaced."""
    values = floats(bell(15, 64))
    return {"matrix": values[np.random.PCG64(16).random_raw(256 * 128).reshape(256, 128) % 64]}


def narrow(dtype: Any) -> Arrays:
    """Matrices and kernels in another data type."""
    return {name: array.astype(dtype) for name, array in (matrices() | kernels()).items() if name != "5x5"}


INPUTS: dict[str, Callable[[], Arrays]] = {
    "lenet300": network,
    "matrices": matrices,
    "kernels": kernels,
    "correlated": correlated,
    "sparse": sparse,
    "clustered": clustered,
    "float32": lambda: narrow(np.float32),
    "bfloat16": lambda: narrow(ml_dtypes.bfloat16),
    "float16": lambda: narrow(np.float16),
}


@cache
def tensors(name: str) -> Arrays:
    """An input, made once."""
    return INPUTS[name]()


def later(arrays: Arrays) -> Arrays:
    """The next version of an input: a sixteenth of its weights has moved a little."""
    result = {}
    for number, (name, array) in enumerate(arrays.items()):
        moved = np.random.PCG64(200 + number).random_raw(array.size).reshape(array.shape) % 16 == 0
        change = np.where(moved, floats(bell(300 + number, *array.shape), 65521), np.float32(0))
        result[name] = (array.astype(np.float32) + change).astype(array.dtype)
    return result


def cases() -> Iterator[tuple[str, str, Callable[[Arrays], bytes]]]:
    """Input, settings as they are written down, and what makes the file."""

    def dcb(**settings: Any) -> tuple[str, Callable[[Arrays], bytes]]:
        shown = " ".join(f"{key}={value}" for key, value in settings.items()) or "default"
        return shown, lambda arrays: deepcabac.compress(arrays, **settings)

    def update(**settings: Any) -> tuple[str, Callable[[Arrays], bytes]]:
        shown = " ".join(["update", *(f"{key}={value}" for key, value in settings.items())])
        return shown, lambda arrays: deepcabac.compress(later(arrays), base=arrays, **settings)

    def nnc(**settings: Any) -> tuple[str, Callable[[Arrays], bytes]]:
        shown = " ".join(["nnc", *(f"{key}={value}" for key, value in settings.items())])
        return shown, lambda arrays: deepcabac.nnc.encode(arrays, **settings)

    def file(_: Arrays) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            written, _ = deepcabac.compress_checkpoint(LENET, Path(folder) / "lenet300.dcb")
            return written.read_bytes()

    yield "lenet300", "file", file
    for name in ("lenet300", "matrices", "kernels", "correlated", "sparse"):
        for preset in ("default", "fast", "small"):
            yield name, *dcb(preset=preset)
            yield name, *dcb(preset=preset, quantizer="scalar")
    for name in ("matrices", "kernels"):
        yield name, *dcb(states=8)
        yield name, *dcb(sqnr=15)
        yield name, *dcb(bits=3)
    yield "lenet300", *dcb(size=100_000)
    yield "sparse", *dcb(sqnr=15)
    for name in ("lenet300", "float32", "bfloat16", "float16", "sparse", "clustered"):
        for preset in ("default", "fast", "small"):
            yield name, *dcb(lossless=True, preset=preset)
    for name in ("lenet300", "kernels"):
        yield name, *update()
        yield name, *update(lossless=True)
    yield "bfloat16", *update(lossless=True)
    for name in ("lenet300", "kernels"):
        yield name, *nnc(qp=-24, dependent=False)
        yield name, *nnc(qp=-28, dependent=True)


def measure(name: str, settings: str, encode: Callable[[Arrays], bytes]) -> Row:
    """A row of the file."""
    arrays = tensors(name)
    data = encode(arrays)
    raw = sum(array.nbytes for array in arrays.values())
    return name, settings, str(raw), str(len(data)), hashlib.sha256(data).hexdigest()


def recorded() -> dict[tuple[str, str], Row]:
    """What the file says, by input and settings."""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return {(row[0], row[1]): (row[0], row[1], row[2], row[3], row[4]) for row in rows}


def main() -> None:
    """Measure and write, or print."""
    wanted = sys.argv[1:]
    rows = []
    start = time.perf_counter()
    for name, settings, encode in cases():
        if not wanted or any(text in f"{name} {settings}" for text in wanted):
            rows.append(measure(name, settings, encode))
            print(*rows[-1][:-1], f"({time.perf_counter() - start:.1f} s)")
    if not wanted:
        with RESULTS.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADS, *rows])


if __name__ == "__main__":
    main()
