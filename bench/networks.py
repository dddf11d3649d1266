"""Trained networks compressed at several qualities: bytes against the network's own metric.

    python bench/networks.py [--models FOLDER] [--data FOLDER] [--quality 30 --quality 25] [--only NAME] [--json FILE]

For each network and quality: `deepcabac compress`'s function writes a .dcb file, `deepcabac decompress`'s restores the
checkpoint from it, and the network's own evaluation script measures that, in a process of its own. Everything is the
default but the quality, which is the same for all networks. The scripts need torch, safetensors, tokenizers and pillow.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import _common

import deepcabac
from deepcabac.checkpoint import open_checkpoint
from deepcabac.options import DEFAULT_QUALITY

QUALITIES = (35.0, DEFAULT_QUALITY, 25.0, 20.0)
CAVEATS = (
    "Bytes are whole files: the float32 checkpoint as it is, the .dcb file with names, metadata and index.",
    "The same setting for every network: nothing was chosen on these data, and compressing uses no data.",
    "Test sets are finite: 800 images make 0.125 points each, 1,000 make 0.1, 10,000 make 0.01. Differences of a few "
    "images mean nothing, in either direction.",
    "stories260K is measured on the text it was trained on, the others on test data.",
)


@dataclass(frozen=True)
class Network:
    """A checkpoint and the command that measures it."""

    name: str
    checkpoint: Path
    command: tuple[str, ...]  #: of the Python interpreter; WEIGHTS stands for the checkpoint
    pattern: str  #: finds the metric in what the command prints
    metric: str
    scale: float = 1.0  #: from what is printed to what is shown
    digits: int = 2  #: after the point, as shown

    def evaluate(self, weights: Path) -> float:
        """The metric of these weights. Raises SystemExit if the script fails."""
        arguments = [str(weights) if argument == "WEIGHTS" else argument for argument in self.command]
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        found = re.search(self.pattern, done.stdout)
        if done.returncode != 0 or found is None:
            raise SystemExit(f"{self.name}: its evaluation failed:\n{done.stdout[-500:]}{done.stderr[-1500:]}")
        return self.scale * float(found[1])


@dataclass(frozen=True)
class Row:
    """A network at a quality; ``quality`` is None for the checkpoint itself."""

    network: str
    quality: float | None
    bytes: int
    ratio: float
    bits: float  #: a weight, of the whole file
    metric: str
    value: float
    digits: int
    original: float  #: the checkpoint's value

    def cells(self) -> list[str]:
        """For the table."""
        default = " (default)" if self.quality == DEFAULT_QUALITY else ""
        quality = "float32" if self.quality is None else f"{self.quality:g}{default}"
        change = "" if self.quality is None else f"{self.value - self.original:+.{self.digits}f}"
        return [
            self.network,
            quality,
            f"{self.bytes:,}",
            f"{self.ratio:.2f}x",
            f"{self.bits:.2f}",
            self.metric,
            f"{self.value:.{self.digits}f}",
            change,
        ]


def networks(models: Path, data: Path) -> list[Network]:
    """All that are measured. MNIST's whole test set is used where it lies in ``data``."""
    cifar, lite, stories = (models / name for name in ("cifar10_resnet", "efficientnet_lite0", "stories260k"))
    examples = _common.ROOT / "examples"
    whole = data / "mnist_test.npz"
    test, images = ([str(whole)], "MNIST test") if whole.exists() else ([], "1,000 of MNIST's test images")
    command = (str(examples / "mnist_eval.py"), "WEIGHTS", *test)
    lenet = examples / "lenet300.safetensors"
    result = [Network("LeNet-300-100", lenet, command, r"accuracy ([\d.]+) %", f"top-1 %, {images}")]
    for depth in ("20", "56"):
        weights = cifar / f"resnet{depth}.safetensors"
        command = (str(cifar / "eval.py"), depth, "WEIGHTS")
        result.append(
            Network(f"ResNet-{depth}", weights, command, r"top1=([\d.]+)", "top-1 %, CIFAR-10 test", scale=100.0)
        )
    return [
        *result,
        Network(
            "EfficientNet-Lite0",
            lite / "efficientnet_lite0.safetensors",
            (str(lite / "eval.py"), "WEIGHTS", "evaluation"),
            r"top1=([\d.]+)",
            "top-1 %, 800 ImageNet images",
            scale=100.0,
        ),
        Network(
            "all-MiniLM-L6-v2",
            _common.minilm_path(),
            (str(models / "minilm" / "eval.py"), "WEIGHTS", "test"),
            r"spearman=([\d.]+)",
            "Spearman x 100, STS-B test",
            scale=100.0,
        ),
        Network(
            "stories260K",
            stories / "stories260K.safetensors",
            (str(stories / "eval.py"), "WEIGHTS"),
            r"ppl=([\d.]+)",
            "perplexity, TinyStories (lower is better)",
            digits=3,
        ),
    ]


def measure(network: Network, qualities: list[float], folder: Path) -> list[Row]:
    """The checkpoint itself and each quality."""
    raw_bytes = network.checkpoint.stat().st_size
    with open_checkpoint(network.checkpoint) as checkpoint:
        weights = sum(spec.size for spec in checkpoint.specs)

    def row(quality: float | None, weights_file: Path, size: int) -> Row:
        value = network.evaluate(weights_file)
        shown = "float32" if quality is None else f"{quality:g}"
        _common.note(f"{network.name}, {shown}: {size:,} bytes, {network.metric} {value:.{network.digits}f}")
        original = rows[0].value if rows else value
        ratio, bits = raw_bytes / size, 8 * size / weights
        return Row(network.name, quality, size, ratio, bits, network.metric, value, network.digits, original)

    rows: list[Row] = []
    rows.append(row(None, network.checkpoint, raw_bytes))
    for quality in qualities:
        options = deepcabac.Options() if quality == DEFAULT_QUALITY else deepcabac.Options(quality=quality)
        target = folder / "model.dcb"
        small, _ = deepcabac.compress_checkpoint(network.checkpoint, target, options=options, overwrite=True)
        restored = deepcabac.decompress_checkpoint(small, folder / "restored.safetensors", overwrite=True)
        rows.append(row(quality, restored, small.stat().st_size))
    return rows


def at_default(rows: list[Row]) -> list[list[str]]:
    """For README's table: a line a network, the checkpoint and the default quality beside each other."""
    lines = []
    original: Row | None = None
    for row in rows:
        if row.quality is None:
            original = row
        if row.quality == DEFAULT_QUALITY and original is not None:
            _, _, size, ratio, bits, metric, value, change = row.cells()
            before = original.cells()
            lines.append([row.network, metric, before[2], before[6], size, ratio, bits, value, change])
    return lines


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    options = _common.parser(__doc__)
    _common.add_models(options)
    options.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where mnist_test.npz may be (default: data beside the models)"
    )
    options.add_argument(
        "--quality", type=float, action="append", metavar="Q", help=f"can be repeated (default: {QUALITIES})"
    )
    options.add_argument("--only", metavar="TEXT", help="only networks with TEXT in their name")
    return options.parse_args()


def main() -> None:
    """Measure every network at every quality and print the table."""
    arguments = parse_arguments()
    data = arguments.data or arguments.models.parent / "data"
    chosen = [one for one in networks(arguments.models, data) if (arguments.only or "").lower() in one.name.lower()]
    if not chosen:
        raise SystemExit(f"no network has {arguments.only!r} in its name")
    about = _common.environment(["numpy", "torch"])
    _common.print_head("Networks: bytes against the metric", CAVEATS, about)
    rows = []
    with tempfile.TemporaryDirectory(prefix="deepcabac-networks-") as folder:
        for network in chosen:
            rows += measure(network, arguments.quality or list(QUALITIES), Path(folder))
    heads = ["network", "quality", "bytes", "ratio", "bits per weight", "metric", "value", "change"]
    _common.print_table(heads, [row.cells() for row in rows])
    _common.save_table(arguments.results, "qualities", about, heads, [row.cells() for row in rows], keys=2)
    print("At the default quality:\n")
    heads = ["network", "metric", "checkpoint, bytes", "before", "`.dcb`, bytes", "ratio", "bits per weight"]
    heads += ["after", "change"]
    _common.print_table(heads, default := at_default(rows))
    _common.save_table(arguments.results, "networks", about, heads, default)
    _common.write_json(arguments.json, about, networks=[asdict(row) for row in rows])


if __name__ == "__main__":
    main()
