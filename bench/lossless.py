"""Bytes and speed without loss: MiniLM, ResNet-56 and a clustered SqueezeNet next to ZipNN, OpenZL, pcodec, zstd.

    python bench/lossless.py --peers PYTHON [--repeat 5] [--small]

PYTHON belongs to an environment that has the peers (see peers/lossless_worker.py). Everyone gets the same
floating-point tensors: as they are, and cast to float16 and bfloat16. Times are the processor's, on one thread, arrays
in memory to bytes and back; those on two threads are ours by the clock. MB are of raw values.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _common
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

import deepcabac

WORKER = Path(__file__).resolve().parent / "peers" / "lossless_worker.py"
CASTS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
PEERS = ("zipnn", "openzl", "pcodec", "zstd")


def files(models: Path, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Network, type and file of each case: floating-point tensors alone."""
    sources = {
        "ResNet-56": models / "cifar10_resnet" / "resnet56.safetensors",
        "MiniLM": _common.minilm_path(),
        "SqueezeNet, 256 values": models / "squeezenet_deep_compression" / "squeezenet.safetensors",
    }
    for name, source in sources.items():
        tensors = {key: array for key, array in load_file(source).items() if array.dtype == np.float32}
        for label, dtype in CASTS.items():
            if label == "float32" or not name.startswith("SqueezeNet"):
                path = folder / f"{name}-{label}.safetensors"
                save_file({key: array.astype(dtype) for key, array in tensors.items()}, path)
                yield name, label, path


def best(repeat: int, clock: Callable[[], float], call: Callable[[], Any]) -> tuple[float, Any]:
    """The least time of so many calls, and the last result."""
    least, result = float("inf"), None
    for _ in range(repeat):
        start = clock()
        result = call()
        least = min(least, clock() - start)
    return least, result


def ours(path: Path, preset: str, threads: int, repeat: int) -> tuple[int, float, float]:
    """Bytes of the whole file, and the best times of encoding and decoding; checks every bit."""
    tensors = load_file(path)
    clock = time.process_time if threads == 1 else time.perf_counter
    encode, data = best(
        repeat, clock, lambda: deepcabac.compress(tensors, lossless=True, threads=threads, preset=preset)
    )
    decode, back = best(repeat, clock, lambda: deepcabac.decompress(data, threads=threads))
    if any(
        back[name].tobytes() != array.tobytes() or back[name].dtype != array.dtype for name, array in tensors.items()
    ):
        raise SystemExit(f"{path}: not lossless")
    return len(data), encode, decode


def peer(python: Path, path: Path, name: str, label: str, repeat: int) -> dict[str, Any]:
    """What a peer's worker prints."""
    command = [str(python), str(WORKER), str(path), name, label, "--repeat", str(repeat)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(printed))


def main() -> None:
    """Measure every case, print two tables."""
    options = _common.parser(__doc__)
    _common.add_models(options)
    options.add_argument("--peers", type=Path, required=True, metavar="PYTHON", help="of an environment with the peers")
    options.add_argument("--repeat", type=int, default=5, help="best of so many times (default: %(default)s)")
    options.add_argument("--small", action="store_true", help="preset small too, which takes minutes")
    arguments = options.parse_args()
    about = _common.environment(("numpy", "safetensors"))
    _common.print_head("Without loss", ["MB/s of raw values, in and out, by the processor's time on one thread"], about)
    presets = ("fast", "default", "small") if arguments.small else ("fast", "default")
    sizes: list[list[str]] = []
    speeds: list[list[str]] = []
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for network, label, path in files(arguments.models, Path(temporary)):
            raw = sum(array.nbytes for array in load_file(path).values())
            programs: dict[str, tuple[int, float, float]] = {}
            for preset in presets:
                repeat = arguments.repeat if preset != "small" else 1
                programs[preset] = ours(path, preset, 1, repeat)
                programs[f"{preset}, 2 threads"] = ours(path, preset, 2, repeat)
            for name in PEERS:
                found = peer(arguments.peers, path, name, label, arguments.repeat)
                programs[name] = found["bytes"], found["encode_seconds"], found["decode_seconds"]
            single = {name: made for name, made in programs.items() if "," not in name}
            sizes.append([network, label, f"{raw:,}", *(f"{100 * made[0] / raw:.3f}" for made in single.values())])
            rates = {name: [raw / 1e6 / seconds for seconds in made[1:]] for name, made in programs.items()}
            speeds.append([network, label, *(f"{one:.0f}, {two:.0f}" for one, two in rates.values())])
            results.append({"network": network, "type": label, "raw": raw, "programs": programs})
            _common.note(" ".join([*sizes[-1], "|", *speeds[-1][2:]]))
    heads = ["network", "type", "raw, bytes", *(f"{name} %" for name in (*presets, *PEERS))]
    _common.save_table(arguments.results, "lossless", about, heads, sizes, keys=2)
    _common.print_table(heads, sizes)
    print()
    doubled = [name for preset in presets for name in (preset, f"{preset}, 2 threads")]
    _common.print_table(["network", "type", *doubled, *PEERS], speeds)
    _common.write_json(arguments.json, about, rows=results)


if __name__ == "__main__":
    main()
