"""Bits a weight of `deepcabac.encode`, the entropy coder alone, on trained networks quantised by nearest rounding.

    python bench/sizes.py [--level small] [--minilm FILE] [--models FOLDER] [--json FILE]

The levels are rint(w / (r * std)), std each tensor's own; every tensor is one call, and all bytes it returns count.
The order-0 entropy (each tensor's own) is computed here from the same levels. Every array is decoded and compared.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import _common
import numpy as np
from numpy.typing import NDArray

import deepcabac

CAVEATS = (
    "This measures entropy coding alone: the quantiser is plain rounding, not what `deepcabac compress` does.",
    "Order-0 entropy: the ideal length if each tensor's own histogram came for free and no context were used.",
    "Columns marked 'quoted' were measured once, elsewhere, and are not run here. 2019: real bytes of the software of "
    "DeepCABAC's authors. Sketch: ideal code lengths, without any overhead, of the contexts this coder grew from.",
)
QUOTED = ("2019 (quoted)", "sketch (quoted)")


@dataclass(frozen=True)
class Case:
    """A network, a step and what is known about the pair."""

    model: str
    ratio: float  #: step over standard deviation
    bar: float | None = None  #: bits a weight, at most
    authors: float | None = None  #: DeepCABAC's authors' software of 2019, real bytes: quoted
    sketch: float | None = None  #: ideal adaptive code length of our sketch's contexts: quoted


CASES = (
    Case("MiniLM", 0.25, 3.99, 4.057, 3.967),
    Case("MiniLM", 0.5, 2.99, 3.061, 2.980),
    Case("MiniLM", 1.0, 2.05, 2.086, 2.033),
    Case("ResNet-20", 0.5, 2.80, 2.925, 2.730),
    Case("ResNet-56", 0.5),
)


@dataclass(frozen=True)
class Row:
    """What was measured for a case."""

    model: str
    ratio: float
    tensors: int
    weights: int
    bytes: int
    bits: float
    entropy: float
    bar: float | None
    met: bool | None


def levels_of(tensor: _common.Float32, ratio: float) -> NDArray[np.int32]:
    """Nearest levels at a step of ``ratio`` standard deviations."""
    step = ratio * float(tensor.std(dtype=np.float64))
    return np.rint(tensor.astype(np.float64) / step).astype(np.int32)


def entropy_bits(levels: NDArray[np.int32]) -> float:
    """Total order-0 entropy in bits."""
    counts = np.unique(levels, return_counts=True)[1]
    return float(-(counts * np.log2(counts / levels.size)).sum())


def measure(case: Case, tensors: _common.Tensors, level: str) -> Row:
    """Code every tensor and decode it again. Raises SystemExit if a level comes back different."""
    size, entropy = 0, 0.0
    for name, tensor in tensors.items():
        levels = levels_of(tensor, case.ratio)
        code = deepcabac.encode(levels, level=level)
        if not np.array_equal(deepcabac.decode(code), levels):
            raise SystemExit(f"{case.model}: {name} does not decode to its levels: a bug in deepcabac")
        size += len(code)
        entropy += entropy_bits(levels)
    weights = _common.count(tensors)
    bits = 8 * size / weights
    met = None if case.bar is None else bits <= case.bar
    return Row(case.model, case.ratio, len(tensors), weights, size, bits, entropy / weights, case.bar, met)


def main() -> None:
    """Measure all cases and print them."""
    options = _common.parser(__doc__)
    options.add_argument("--minilm", type=Path, metavar="FILE", help="MiniLM's weights (default: the package's)")
    options.add_argument("--level", default="default", help="fast, default or small (default: %(default)s)")
    _common.add_models(options)
    arguments = options.parse_args()
    resnets = arguments.models / "cifar10_resnet"
    paths = {
        "MiniLM": arguments.minilm or _common.minilm_path(),
        "ResNet-20": resnets / "resnet20.safetensors",
        "ResNet-56": resnets / "resnet56.safetensors",
    }
    about = _common.environment()
    about["settings"] = f"level {arguments.level}"
    _common.print_head("Small: bits a weight of deepcabac.encode", CAVEATS, about)
    tensors = {model: _common.load_matrices(path) for model, path in paths.items()}
    rows = []
    for case in CASES:
        _common.note(f"{case.model} at {case.ratio:g} std ...")
        rows.append(measure(case, tensors[case.model], arguments.level))

    def optional(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    _common.print_table(
        ["tensors", "step", "weights", "bytes", "bits/weight", "bar", "met", "order-0", *QUOTED],
        [
            [
                f"{row.model}, {row.tensors}",
                f"{row.ratio:g} std",
                f"{row.weights:,}",
                f"{row.bytes:,}",
                f"{row.bits:.4f}",
                "-" if row.bar is None else f"{row.bar:.2f}",
                "-" if row.met is None else "yes" if row.met else "NO",
                f"{row.entropy:.3f}",
                optional(case.authors),
                optional(case.sketch),
            ]
            for case, row in zip(CASES, rows, strict=True)
        ],
    )
    print("Every array was decoded and is equal to what was coded.")
    _common.write_json(arguments.json, about, sizes=[asdict(row) for row in rows])


if __name__ == "__main__":
    main()
