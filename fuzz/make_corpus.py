"""Writes the seeds of the fuzzer: ``python fuzz/make_corpus.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "attacks"))

import forge
import make
import mutate
import numpy as np

from deepcabac import _core


def seeds() -> dict[str, bytes]:
    """Names and inputs of ``fuzz_decode``."""
    found = {}
    files = {"small": mutate.small(), "scaled": mutate.scaled(), "good": make.good(), "good-scaled": make.scaled()}
    golden = Path(__file__).parents[1] / "tests" / "golden"
    files |= {name: (golden / f"{name}.dcb").read_bytes() for name in ("exact", "update_lossless", "update_quantized")}
    files |= {"regressed": mutate.regressed(), "symbols": mutate.exact()}
    levels = {"some": mutate.some_levels(), "good": make.good_levels()}
    for attack in make.ATTACKS:
        kind = files if attack.name.endswith(".dcb") else levels
        kind[attack.name] = make.data_of(attack)
    for name, data in files.items():
        found[f"file-{name}"] = b"\0" + data
        try:
            parts = forge.Parts.of(data)
        except Exception:  # an attack on the header
            continue
        if len(parts.plain) < 2000:
            found[f"index-{name}"] = b"\2" + len(parts.plain).to_bytes(2, "little") + parts.plain + parts.payload
    found |= {f"levels-{name}": b"\1" + data for name, data in levels.items()}
    files_of_chunks = mutate.medium(), mutate.regressed()
    entries = [entry for data in files_of_chunks for entry in forge.Parts.of(data).index().entries]
    for number, entry in enumerate(entries):
        values = np.random.default_rng(number).normal(size=300, scale=2).astype(np.float32)
        values[::40] *= 100_000
        code, _ = _core.quantize(entry.params, values, 1.0, 0.0)
        head = bytes([3, len(entry.params)]) + entry.params + (300).to_bytes(2, "little")
        found[f"chunk-{entry.name}"] = head + code
    return found


def main() -> None:
    """The command."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    found = seeds()
    for name, data in found.items():
        (folder / name).write_bytes(data)
    print(f"{len(found)} seeds in {folder}")


if __name__ == "__main__":
    main()
