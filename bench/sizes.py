"""Bits per weight of `deepcabac.encode`, the entropy coder alone, on trained networks quantised by nearest rounding.

    python bench/sizes.py [--minilm FILE] [--models FOLDER] [--json FILE]

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

PRESETS = ("fast", "default", "small")
CAVEATS = (
    "This measures entropy coding alone: the quantiser is plain rounding, not what `deepcabac compress` does.",
    "Order-0 entropy: the ideal length if each tensor's own histogram came for free and no context were used.",
    "The column of 2019 was measured once, elsewhere, and is not run here: real bytes of the software of DeepCABAC's "
    "authors.",
)


@dataclass(frozen=True)
class Case:
    """A network, a step and what is known about the pair."""

    model: str
    ratio: float  #: step over standard deviation
    authors: float | None = None  #: DeepCABAC's authors' software of 2019, real bytes: quoted


CASES = (
    Case("MiniLM", 0.25, 4.057),
    Case("MiniLM", 0.5, 3.061),
    Case("MiniLM", 1.0, 2.086),
    Case("ResNet-20", 0.5, 2.925),
    Case("ResNet-56", 0.5),
)


@dataclass(frozen=True)
class Row:
    """What was measured for a case."""

    model: str
    ratio: float
    tensors: int
    weights: int
    bytes: dict[str, int]  #: by preset
    entropy: float  #: bits per weight

    def bits(self, preset: str) -> float:
        """Bits per weight."""
        return 8 * self.bytes[preset] / self.weights


def levels_of(tensor: _common.Float32, ratio: float) -> NDArray[np.int32]:
    """Nearest levels at a step of ``ratio`` standard deviations."""
    step = ratio * float(tensor.std(dtype=np.float64))
    return np.rint(tensor.astype(np.float64) / step).astype(np.int32)


def entropy_bits(levels: NDArray[np.int32]) -> float:
    """Total order-0 entropy in bits."""
    counts = np.unique(levels, return_counts=True)[1]
    return float(-(counts * np.log2(counts / levels.size)).sum())


def measure(case: Case, tensors: _common.Tensors) -> Row:
    """Code every tensor and decode it again. Raises SystemExit if a level comes back different."""
    sizes, entropy = dict.fromkeys(PRESETS, 0), 0.0
    for name, tensor in tensors.items():
        levels = levels_of(tensor, case.ratio)
        for preset in PRESETS:
            code = deepcabac.encode(levels, preset=preset)
            if not np.array_equal(deepcabac.decode(code), levels):
                raise SystemExit(f"{case.model}: {name} does not decode to its levels: a bug in deepcabac")
            sizes[preset] += len(code)
        entropy += entropy_bits(levels)
    weights = _common.count(tensors)
    return Row(case.model, case.ratio, len(tensors), weights, sizes, entropy / weights)


def main() -> None:
    """Measure all cases and print them."""
    options = _common.parser(__doc__)
    options.add_argument("--minilm", type=Path, metavar="FILE", help="MiniLM's weights (default: the package's)")
    _common.add_models(options)
    arguments = options.parse_args()
    resnets = arguments.models / "cifar10_resnet"
    paths = {
        "MiniLM": arguments.minilm or _common.minilm_path(),
        "ResNet-20": resnets / "resnet20.safetensors",
        "ResNet-56": resnets / "resnet56.safetensors",
    }
    about = _common.environment()
    _common.print_head("Small: bits per weight of deepcabac.encode", CAVEATS, about)
    tensors = {model: _common.load_matrices(path) for model, path in paths.items()}
    rows = []
    for case in CASES:
        _common.note(f"{case.model} at {case.ratio:g} std ...")
        rows.append(measure(case, tensors[case.model]))
    heads = ["network", "step", "order-0 entropy", *PRESETS, "authors' software, 2019"]
    cells = [
        [
            row.model,
            f"{row.ratio:g} std",
            f"{row.entropy:.3f}",
            *(f"{row.bits(preset):.3f}" for preset in PRESETS),
            "" if case.authors is None else f"{case.authors:.3f}",
        ]
        for case, row in zip(CASES, rows, strict=True)
    ]
    _common.print_table(heads, cells)
    print("Every array was decoded and is equal to what was coded.")
    _common.save_table(arguments.results, "sizes", about, heads, cells, keys=2)
    _common.write_json(arguments.json, about, sizes=[asdict(row) for row in rows])


if __name__ == "__main__":
    main()
