"""The coder at the scale of a sparse VGG16, on synthetic weights: time, memory and bytes.

    python bench/vgg16_shape.py FOLDER [--sqnr 10 20] [--json FILE]

Draws weights in a new folder inside FOLDER, runs `deepcabac compress` and `deepcabac decompress` on them, each in a
process of its own, compares what came back, and deletes everything it made. Needs 1.2 GB on the disk. Linux only.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _common as common
import memory
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

PARAMETERS = 138_357_544
NONZERO = 0.0985  # of DeepCABAC's sparse VGG16
CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: pooling
CAVEATS = (
    "SYNTHETIC: these are no trained weights, and nothing is said about accuracy. VGG16's shapes, 138,357,544 "
    "parameters; in every weight tensor 9.85 % are not zero, at random places; these are what magnitude pruning leaves "
    "of a Laplace distribution: a threshold plus an exponential magnitude, signs even.",
    "In a real sparse VGG16 (8.7 MB by DeepCABAC's authors) layers differ in density and zeros cluster; random places "
    "spread evenly are the worst case. 'Floor' is the entropy of the places and a bit a sign; below it comes only what "
    "makes more weights zero.",
    "Biases (13,416, not pruned) at 25 dB. One quantiser. Seconds are one run of a process, files on the disk; peak is "
    "resident memory as in bench/memory.py.",
)


def layers() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names, as torchvision's, and shapes of the weights."""
    before, place = 3, 0
    for channels in CHANNELS:
        if channels == 0:
            place += 1
            continue
        yield f"features.{place}", (channels, before, 3, 3)
        before, place = channels, place + 2
    yield from (("classifier.0", (4096, 25088)), ("classifier.3", (4096, 4096)), ("classifier.6", (1000, 4096)))


def draw() -> dict[str, Any]:
    """All parameters."""
    random = np.random.default_rng(0)
    tensors = {}
    for name, shape in layers():
        scale = math.sqrt(2 / math.prod(shape[1:]))
        weights = np.zeros(math.prod(shape), np.float32)
        for start in range(0, weights.size, 1 << 24):
            piece = weights[start : start + (1 << 24)]
            (places,) = np.nonzero(random.random(piece.size, np.float32) < NONZERO)
            magnitudes = math.log(1 / NONZERO) + random.standard_exponential(places.size, np.float32)
            piece[places] = scale * magnitudes * (2 * random.integers(0, 2, places.size) - 1)
        tensors[f"{name}.weight"] = weights.reshape(shape)
        tensors[f"{name}.bias"] = (0.1 * random.standard_normal(shape[0])).astype(np.float32)
    return tensors


def compare(one: Path, other: Path) -> tuple[float, int]:
    """Relative squared error of all weights, and how many that were zero are no longer."""
    error = energy = 0.0
    raised = 0
    with safe_open(one, "numpy") as first, safe_open(other, "numpy") as second:
        for name in first.keys():  # noqa: SIM118 - it is no dict
            original, restored = first.get_tensor(name).reshape(-1), second.get_tensor(name).reshape(-1)
            for start in range(0, original.size, 1 << 24):
                piece, found = (array[start : start + (1 << 24)] for array in (original, restored))
                difference = piece - found
                energy += float(piece @ piece)
                error += float(difference @ difference)
                raised += int(np.count_nonzero(found[piece == 0]))
    return error / energy, raised


def main() -> None:
    """Draw, compress, decompress, compare, print."""
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where there is room; nothing is left behind")
    parser.add_argument("--sqnr", type=float, nargs="+", default=[10.0, 20.0], metavar="DB")
    arguments = parser.parse_args()
    about = common.environment()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="deepcabac-vgg16-", dir=arguments.folder) as folder:
        model, small, back = (Path(folder) / name for name in ("vgg16.safetensors", "vgg16.dcb", "back.safetensors"))
        common.note("drawing ...")
        tensors = draw()
        count = sum(tensor.size for tensor in tensors.values())
        assert count == PARAMETERS, count
        weights = {name: tensor for name, tensor in tensors.items() if name.endswith("weight")}
        nonzero = sum(int(np.count_nonzero(tensor)) for tensor in weights.values())
        total = sum(tensor.size for tensor in weights.values())
        share = nonzero / total
        entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        floor = (total * entropy + nonzero) / 8
        save_file(tensors, model)
        del tensors, weights
        for sqnr in arguments.sqnr:
            extra = ("--sqnr", f"{sqnr:g}", "--quantizer", "scalar", "--tensor", "*.bias=sqnr:25")
            coded = memory.run("compress", model, small, 4 * count, *extra)
            restored = memory.run("decompress", small, back, 4 * count)
            relative, raised = compare(model, back)
            results.append(
                {
                    "asked": sqnr,
                    "sqnr": common.decibels(relative),
                    "bytes": small.stat().st_size,
                    "raised": raised,
                    "compress": asdict(coded),
                    "decompress": asdict(restored),
                }
            )
            back.unlink()
    common.print_head("VGG16's shape, synthetic sparse weights", CAVEATS, about)
    print(f"{count:,} parameters, {nonzero:,} weights not zero ({100 * share:.2f} %); floor {floor:,.0f} bytes\n")
    heads = ["SQNR, dB", "bytes", "ratio", "bits", "compress, s", "Mw/s", "peak, GB"]
    heads += ["decompress, s", "Mw/s", "peak, GB", "zeros raised"]
    lines = [
        [
            f"{row['sqnr']:.2f}",
            f"{row['bytes']:,}",
            f"{4 * count / row['bytes']:.1f}x",
            f"{8 * row['bytes'] / count:.3f}",
            *(
                text
                for step in ("compress", "decompress")
                for text in (
                    f"{row[step]['seconds']:.1f}",
                    f"{count / row[step]['seconds'] / 1e6:.1f}",
                    f"{row[step]['peak'] / 1e9:.2f}",
                )
            ),
            f"{row['raised']:,}",
        ]
        for row in results
    ]
    common.print_table(heads, lines)
    common.save_table(arguments.results, "vgg16_shape", about, heads, lines, keys=0, timed=True)
    common.write_json(arguments.json, about, parameters=count, nonzero=nonzero, floor=floor, results=results)


if __name__ == "__main__":
    main()
