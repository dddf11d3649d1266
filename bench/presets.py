"""Bytes of trained networks with every preset and quantiser, at the same quality and without loss; nothing is timed.

    python bench/presets.py [--models FOLDER] [--only NAME] [--json FILE]

Everything is the default but what a column names. `fast` and `small` are presets; `8 states` and `scalar` are cheaper
searches than the default's 32 states.
"""

from __future__ import annotations

from typing import Any

import _common
import ml_dtypes
import numpy as np

import deepcabac
from deepcabac.checkpoint import open_checkpoint

Arrays = dict[str, Any]
PRESETS: dict[str, dict[str, Any]] = {"fast": {"preset": "fast"}, "small": {"preset": "small"}}
SEARCHES: dict[str, dict[str, Any]] = {"8 states": {"states": 8}, "scalar": {"quantizer": "scalar"}}
CAVEATS = (
    "Bytes of tensors in memory to a .dcb file in memory; checkpoints' own metadata would add the same to each.",
    "Per cent of the bytes with default settings; positive is larger.",
)


def sizes(name: str, tensors: Arrays, settings: dict[str, dict[str, Any]], **common: Any) -> dict[str, int]:
    """Bytes by setting, the default first."""
    found = {}
    for label, options in {"default": {}, **settings}.items():
        found[label] = len(deepcabac.compress(tensors, **common, **options))
        _common.note(f"{name}, {label}: {found[label]:,} bytes")
    return found


def line(name: str, found: dict[str, int]) -> list[str]:
    """For a table: the default's bytes, then what the others change."""
    default, *others = found.values()
    return [name, f"{default:,}", *(f"{100 * (other / default - 1):+.1f}" for other in others)]


def main() -> None:
    """Compress every network with all settings and print the bytes."""
    options = _common.parser(__doc__)
    _common.add_models(options)
    options.add_argument("--only", default="", metavar="TEXT", help="only networks with TEXT in their name")
    arguments = options.parse_args()
    about = _common.environment()
    _common.print_head("Presets: bytes at the same quality", CAVEATS, about)
    quantised: dict[str, dict[str, int]] = {}
    exact: dict[str, dict[str, int]] = {}
    for name, path in _common.checkpoints(arguments.models).items():
        if arguments.only.lower() not in name.lower():
            continue
        with open_checkpoint(path) as checkpoint:
            tensors = {spec.name: checkpoint.read(spec.name) for spec in checkpoint.specs if spec.tied_to is None}
        quantised[name] = sizes(name, tensors, PRESETS | SEARCHES)
        for dtype in (np.float32, ml_dtypes.bfloat16):
            cast = {key: array.astype(dtype) if array.dtype == np.float32 else array for key, array in tensors.items()}
            label = f"{name}, {np.dtype(dtype).name}"
            exact[label] = sizes(f"{label}, lossless", cast, PRESETS, lossless=True)
    heads = ["network", "default, bytes", *(f"{label}, %" for label in (*PRESETS, *SEARCHES))]
    lines = [line(*each) for each in quantised.items()]
    _common.print_table(heads, lines)
    for table, pruned in (("presets", False), ("presets_pruned", True)):
        chosen = [each for each in lines if ("pruned" in each[0]) == pruned]
        _common.save_table(arguments.results, table, about, heads, chosen)
    print("Without loss:\n")
    heads = ["network", "default, bytes", *(f"{label}, %" for label in PRESETS)]
    lines = [line(*each) for each in exact.items()]
    _common.print_table(heads, lines)
    _common.save_table(arguments.results, "presets_lossless", about, heads, lines)
    _common.write_json(arguments.json, about, quantised=quantised, lossless=exact)


if __name__ == "__main__":
    main()
