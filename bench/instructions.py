"""Instructions a weight of encoding and decoding, counted by valgrind: what a change costs, without a clock.

    python bench/instructions.py [--only default fast] [--json FILE]

Runs every case once under `valgrind --tool=callgrind`, single-threaded. Counts are the same on a busy machine and a
quiet one, and change by less than 1 % from run to run, so two commits can be compared. Without valgrind it says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _common
import ml_dtypes
import numpy as np

import deepcabac
from deepcabac import nnc

CAVEATS = (
    "Instructions are no time: a mispredicted branch or a chain of dependent steps does not show. Compare a case with "
    "itself at another commit, not with other cases.",
    "Counted are whole calls from arrays to bytes in memory and back, on one thread, with everything that Python does "
    "around the core: 5 to 8 instructions a weight at these sizes. The steps are given, not searched.",
    "Synthetic weights: eight Gaussian matrices of 256 x 256, the same with columns that say something of others, "
    "or eight tensors of 64 x 32 kernels of 3 x 3, smoothed.",
    "valgrind offers AVX2 but no AVX-512.",
)
COUNT = 8
#: A call of this function of the C library, which nothing else calls, makes callgrind write its counts and start anew.
MARK = "getppid"
Arrays = dict[str, Any]


def matrices() -> Arrays:
    """Gaussian, standard deviation 1."""
    random = np.random.default_rng(0)
    return {f"m{number}": random.standard_normal((256, 256), np.float32) for number in range(COUNT)}


def correlated() -> Arrays:
    """Columns say something about each other, as they do in transformers: half of the variance is of 16 causes."""
    random = np.random.default_rng(2)
    causes = random.standard_normal((16, 256), np.float32) / 4
    return {
        f"c{number}": (random.standard_normal((256, 16), np.float32) @ causes + array) / np.float32(np.sqrt(2))
        for number, array in enumerate(matrices().values())
    }


def kernels() -> Arrays:
    """Neighbours inside a kernel resemble each other."""
    random = np.random.default_rng(1)
    tensors = {}
    for number in range(COUNT):
        noise = random.standard_normal((64, 32, 4, 4), np.float32)
        tensors[f"k{number}"] = (noise[..., :3, :3] + noise[..., 1:, :3] + noise[..., :3, 1:] + noise[..., 1:, 1:]) / 2
    return tensors


def cases() -> Iterator[tuple[str, Arrays, Callable[[Arrays], bytes], Callable[[bytes], Any]]]:
    """Name, weights, encoder, decoder."""

    def dcb(tensors: Arrays, **options: Any) -> Any:
        return tensors, lambda arrays: deepcabac.compress(arrays, threads=1, **options), decompress

    def stream(tensors: Arrays, **options: Any) -> Any:
        return (
            tensors,
            lambda arrays: nnc.encode(arrays, threads=1, **options),
            lambda data: nnc.decode(data, threads=1),
        )

    def decompress(data: bytes) -> Any:
        return deepcabac.decompress(data, threads=1)

    flat, kernel = matrices(), kernels()
    for preset in ("fast", "default", "small"):
        yield f"{preset}, trellis", *dcb(flat, step=0.5, preset=preset)
    yield "small, trellis, correlated", *dcb(correlated(), step=0.5, preset="small")
    for preset in ("fast", "default"):
        yield f"{preset}, scalar", *dcb(flat, step=0.5, preset=preset, quantizer="scalar")
    yield "default, trellis, kernels", *dcb(kernel, step=0.5)
    yield "default, scalar, kernels", *dcb(kernel, step=0.5, quantizer="scalar")
    yield "lossless, float32", *dcb(flat, lossless=True)
    narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in flat.items()}
    yield "lossless, bfloat16", *dcb(narrow, lossless=True)
    yield "nnc, plain", *stream(flat, qp=-4, dependent=False, rate_distortion=0.0)
    yield "nnc, dependent, search", *stream(flat, qp=-8, dependent=True)


def work(only: list[str]) -> None:
    """Every case once; prints what was done between marks, as JSON. To be run by valgrind."""
    done = []
    for name, tensors, encode, decode in cases():
        if only and not any(part in name for part in only):
            continue
        decode(encode({"one": next(iter(tensors.values()))[:2]}))  # what the first call loads
        os.getppid()
        data = encode(tensors)
        os.getppid()
        decode(data)
        os.getppid()
        done.append((name, _common.count(tensors), len(data)))
    print(json.dumps(done))


def count(valgrind: str, only: list[str]) -> list[dict[str, Any]]:
    """Run the cases under valgrind. Raises SystemExit if that fails."""
    with tempfile.TemporaryDirectory(prefix="deepcabac-instructions-") as folder:
        out = Path(folder) / "out"
        code = "import sys, instructions; instructions.work(sys.argv[1:])"
        done = subprocess.run(
            [
                *(valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", f"--dump-before={MARK}"),
                *(sys.executable, "-c", code, *only),
            ],
            cwd=Path(__file__).parent,
            env=os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"valgrind failed:\n{done.stderr[-2000:]}")
        names = json.loads(done.stdout.splitlines()[-1])
        counts = [_total(Path(f"{out}.{number + 1}")) for number in range(3 * len(names))]
    return [
        {
            "case": name,
            "weights": weights,
            "bits": 8 * size / weights,
            "encode": counts[3 * number + 1] / weights,
            "decode": counts[3 * number + 2] / weights,
        }
        for number, (name, weights, size) in enumerate(names)
    ]


def _total(path: Path) -> int:
    """Instructions in one of callgrind's files."""
    (line,) = (line for line in path.read_text().splitlines() if line.startswith("totals:"))
    return int(line.split()[1])


def main() -> None:
    """Count and print."""
    options = _common.parser(__doc__)
    options.add_argument("--only", nargs="+", default=[], metavar="PART", help="cases with PART in their name")
    arguments = options.parse_args()
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("instructions are not counted: valgrind is not installed here")
        return
    about = _common.environment()
    version = subprocess.run([valgrind, "--version"], capture_output=True, text=True, check=True)
    about["counted by"] = version.stdout.strip()
    _common.print_head("Instructions a weight", CAVEATS, about)
    results = count(valgrind, arguments.only)
    heads = ["case", "bits per weight", "encode", "decode"]
    lines = [[row["case"], f"{row['bits']:.3f}", f"{row['encode']:,.0f}", f"{row['decode']:,.0f}"] for row in results]
    _common.print_table(heads, lines)
    _common.save_table(arguments.results, "instructions", about, heads, lines)
    _common.write_json(arguments.json, about, instructions=results)


if __name__ == "__main__":
    main()
