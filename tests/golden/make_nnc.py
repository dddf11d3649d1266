"""Make nnc/ again: streams of ISO/IEC 15938-17 and of 2019 by our own encoder, and what they decode to.

    python tests/golden/make_nnc.py

Decoders read these files for ever; encoders may come to write others.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcabac import dc2019, nnc

FOLDER = Path(__file__).parent / "nnc"
SETTINGS: dict[str, dict[str, Any]] = {
    "dependent": {"qp": -20},
    "uniform": {"qp": -20, "dependent": False, "row_skipping": False},
    "codebook": {"qp": -6, "codebook": True},
    "blocks": {"qp": -20, "scan": 1},
    "dense": {"qp": -44, "density": 3, "unary": 2, "param_opt": False},
}


def model(seed: int) -> dict[str, NDArray[Any]]:
    """A small network; every seed changes a few weights."""
    random = np.random.default_rng(1)
    result: dict[str, NDArray[Any]] = {
        "conv.weight": (random.laplace(size=(12, 5, 3, 3)) * 0.1).astype(np.float32),
        "fc.weight": (random.normal(size=(30, 21)) * 0.1).astype(np.float32),
        "fc.bias": random.normal(size=30).astype(np.float32),
        "steps": np.array([7], np.int32),
    }
    result["fc.weight"][4:20] = 0
    for number in range(1, seed + 1):
        random = np.random.default_rng(number)
        for name in ("conv.weight", "fc.weight"):
            where = random.random(result[name].shape) < 0.1
            result[name] = result[name] + np.float32(0.05) * where.astype(np.float32)
    return result


def streams() -> dict[str, tuple[bytes, list[str]]]:
    """Each with the names of those before it."""
    made: dict[str, tuple[bytes, list[str]]] = {
        name: (nnc.encode(model(0), threads=1, **settings), []) for name, settings in SETTINGS.items()
    }
    before: list[str] = ["dependent"]
    for number in (1, 2):
        bases = [made[name][0] for name in before]
        made[f"update{number}"] = (nnc.encode(model(number), bases=bases, qp=-20, threads=1), list(before))
        before.append(f"update{number}")
    return made


def layers() -> list[tuple[Any, Any, float, float]]:
    """For a stream of 2019."""
    weights = model(0)
    return [
        (weights["conv.weight"], np.full((12, 5, 3, 3), 0.05, np.float32), 0.02, 0.05),
        (weights["fc.weight"], 0.05, 0.03, 0.0),
        (weights["fc.bias"], 0.1, 0.01, 0.2),
    ]


def archive(arrays: dict[str, Any]) -> bytes:
    """An .npz file in memory."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    made = streams()
    for name, (code, before) in made.items():
        (FOLDER / f"{name}.nnc").write_bytes(code)
        decoded = nnc.decode(code, [made[each][0] for each in before])
        (FOLDER / f"{name}.npz").write_bytes(archive(decoded))
    code = dc2019.encode(layers())
    (FOLDER / "layers.dc2019").write_bytes(code)
    (FOLDER / "layers.npz").write_bytes(archive({str(i): layer for i, layer in enumerate(dc2019.decode(code))}))


if __name__ == "__main__":
    main()
