"""Bytes of trained networks with every preset and quantiser, at the same quality; nothing is timed.

    python bench/presets.py [--models FOLDER] [--only NAME] [--json FILE]

Everything is the default but what a column names. `fast` and `small` are presets; `8 states` and `scalar` are cheaper
searches than the default's 32 states.
"""

from __future__ import annotations

from typing import Any

import _common

import deepcabac
from deepcabac.checkpoint import open_checkpoint

COLUMNS: dict[str, dict[str, Any]] = {
    "fast": {"preset": "fast"},
    "small": {"preset": "small"},
    "8 states": {"states": 8},
    "scalar": {"quantizer": "scalar"},
}
CAVEATS = (
    "Bytes of tensors in memory to a .dcb file in memory; checkpoints' own metadata would add the same to each.",
    "Per cent of the bytes with default settings; positive is larger.",
)


def main() -> None:
    """Compress every network with all settings and print the bytes."""
    options = _common.parser(__doc__)
    _common.add_models(options)
    options.add_argument("--only", default="", metavar="TEXT", help="only networks with TEXT in their name")
    arguments = options.parse_args()
    about = _common.environment()
    _common.print_head("Presets: bytes at the same quality", CAVEATS, about)
    rows: list[dict[str, Any]] = []
    for name, path in _common.checkpoints(arguments.models).items():
        if arguments.only.lower() not in name.lower():
            continue
        with open_checkpoint(path) as checkpoint:
            tensors = {spec.name: checkpoint.read(spec.name) for spec in checkpoint.specs if spec.tied_to is None}
        sizes = {}
        for column, settings in {"default": {}, **COLUMNS}.items():
            sizes[column] = len(deepcabac.compress(tensors, **settings))
            _common.note(f"{name}, {column}: {sizes[column]:,} bytes")
        rows.append({"network": name} | sizes)
    heads = ["network", "default, bytes", *(f"{column}, %" for column in COLUMNS)]
    cells = [
        [
            row["network"],
            f"{row['default']:,}",
            *(f"{100 * (row[column] / row['default'] - 1):+.1f}" for column in COLUMNS),
        ]
        for row in rows
    ]
    _common.print_table(heads, cells)
    _common.save_table(arguments.results, "presets", about, heads, [row for row in cells if "pruned" not in row[0]])
    _common.save_table(arguments.results, "presets_pruned", about, heads, [row for row in cells if "pruned" in row[0]])
    _common.write_json(arguments.json, about, presets=rows)


if __name__ == "__main__":
    main()
