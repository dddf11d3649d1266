"""Bytes and speed without loss: MiniLM, ResNet-56 and a clustered SqueezeNet next to ZipNN, zstd and xz.

    python bench/lossless.py --zipnn PYTHON [--threads 2] [--repeat 3] [--no-xz]

PYTHON belongs to an environment that has zipnn 0.5.4 (see peers/zipnn_worker.py). Everyone gets the same safetensors
files: as they are, and cast to float16 and bfloat16. zstd -19 and xz -9e are the commands of this machine.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _common
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

import deepcabac

WORKER = Path(__file__).resolve().parent / "peers" / "zipnn_worker.py"
CASTS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def files(models: Path, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Network, type and file of each case."""
    sources = {"ResNet-56": models / "cifar10_resnet" / "resnet56.safetensors", "MiniLM": _common.minilm_path()}
    for name, source in sources.items():
        tensors = load_file(source)
        for label, dtype in CASTS.items():
            path = folder / f"{name}-{label}.safetensors"
            save_file(
                {key: array.astype(dtype) if array.dtype == np.float32 else array for key, array in tensors.items()},
                path,
            )
            yield name, label, path
    yield "SqueezeNet, 256 values", "float32", models / "squeezenet_deep_compression" / "squeezenet.safetensors"


def ours(path: Path, folder: Path, threads: int, repeat: int) -> tuple[int, float, float]:
    """Bytes of the whole file, and the best times of encoding and decoding arrays in memory; checks every bit."""
    tensors = load_file(path)
    encode = decode = float("inf")
    for _ in range(repeat):
        seconds, data = _common.timed(lambda: deepcabac.compress(tensors, lossless=True, threads=threads))
        encode = min(encode, seconds)
        seconds, back = _common.timed(lambda data=data: deepcabac.decompress(data, threads=threads))
        decode = min(decode, seconds)
    if any(
        back[name].tobytes() != array.tobytes() or back[name].dtype != array.dtype for name, array in tensors.items()
    ):
        raise SystemExit(f"{path}: not lossless")
    lossless = deepcabac.Options(lossless=True)
    made, _ = deepcabac.compress_checkpoint(path, folder / "ours.dcb", options=lossless, overwrite=True)
    return made.stat().st_size, encode, decode


def piped(command: list[str], path: Path) -> int:
    """Bytes that a command writes to stdout."""
    return len(subprocess.run([*command, str(path)], capture_output=True, check=True).stdout)


def main() -> None:
    """Measure every case, print a table."""
    options = _common.parser(__doc__)
    _common.add_models(options)
    options.add_argument(
        "--zipnn", type=Path, required=True, metavar="PYTHON", help="of an environment with zipnn 0.5.4"
    )
    options.add_argument("--threads", type=int, default=2, help="ours; ZipNN has one (default: %(default)s)")
    options.add_argument("--repeat", type=int, default=3, help="best of so many times (default: %(default)s)")
    options.add_argument("--no-xz", action="store_true", help="leave out zstd and xz, which take minutes")
    arguments = options.parse_args()
    about = _common.environment(("numpy", "safetensors"))
    caveats = [
        "ours: whole files; MB/s of raw bytes, arrays in memory to bytes and back",
        "ZipNN: one thread, its default",
    ]
    _common.print_head("Without loss", caveats, about)
    rows: list[list[str]] = []
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, label, path in files(arguments.models, folder):
            raw = path.stat().st_size
            size, encode, decode = ours(path, folder, arguments.threads, arguments.repeat)
            command = [str(arguments.zipnn), str(WORKER), str(path), label, "--repeat", str(arguments.repeat)]
            peer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            others = [0, 0]
            if not arguments.no_xz:
                others = [piped(["zstd", "-19", "-qc"], path), piped(["xz", "-9ec"], path)]
            sizes = [size, peer["bytes"], *others]
            speeds = [
                raw / 1e6 / seconds for seconds in (encode, decode, peer["encode_seconds"], peer["decode_seconds"])
            ]
            results.append({"network": name, "type": label, "raw": raw, "bytes": sizes, "speeds": speeds})
            cells = [f"{100 * one / raw:.3f}" if one else "" for one in sizes]
            rows.append([name, label, f"{raw:,}", f"{size:,}", *cells, *(f"{speed:.0f}" for speed in speeds)])
            _common.note(" ".join(rows[-1]))
    heads = ["network", "type", "raw, bytes", "ours, bytes", "ours %", "ZipNN %", "zstd -19 %", "xz -9e %"]
    _common.save_table(arguments.results, "lossless", about, heads, [row[: len(heads)] for row in rows], keys=2)
    _common.print_table([*heads, "enc MB/s", "dec MB/s", "ZipNN enc", "ZipNN dec"], rows)
    ratios = [one["bytes"][0] / one["bytes"][1] for one in results if not one["network"].startswith("Squeeze")]
    print(f"\nthan ZipNN, on average of {len(ratios)}: {100 * (float(np.mean(ratios)) - 1):+.2f} %")
    _common.write_json(arguments.json, about, rows=results)


if __name__ == "__main__":
    main()
