"""Streams of ISO/IEC 15938-17 with settings of all kinds, to NNCodec 2.1.3 and back: does everybody decode the same?

    python bench/nnc_spread.py --peer-python PEER/bin/python [--count 120] [--json FILE]

Arrays of odd shapes and values, made from a fixed seed, are coded with settings drawn from that seed, by NNCodec and by
ours; each stream is decoded by both, and the arrays are compared bit for bit. bench/README.md says how to make the
peer's environment.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _common
import numpy as np
from nnc_exchange import ask

from deepcabac import DeepCabacError, nnc

CAVEATS = (
    "NNCodec refuses some arrays and settings (blocks of few rows, for one); what it does not write cannot be "
    "compared, and is counted as refused.",
    "Sizes are compared without a rate term on either side, row skipping as each chooses it.",
)
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """The same setting in both programs' names, and what came of it."""

    theirs: dict[str, Any]
    ours: dict[str, Any]
    arrays: list[str]
    peer_bytes: int | None = None
    our_bytes: int | None = None
    theirs_here: str = "-"  #: NNCodec's stream, decoded here and there
    ours_there: str = "-"  #: our stream, decoded here and there


def arrays_of(random: np.random.Generator) -> Arrays:
    """Every kind that the format has, some of them."""

    def numbers(*shape: int) -> Any:
        return (random.standard_normal(shape) * 10.0 ** random.uniform(-2, 0.5)).astype(np.float32)

    def single() -> Any:
        array = np.zeros((7, 11), np.float32)
        array[3, 5] = -1.5
        return array

    def sparse() -> Any:
        array = numbers(40, 31 + size % 3)
        return array * (random.random((40, 1)) < 0.3) * (random.random(array.shape) < 0.4).astype(np.float32)

    size = int(random.integers(1, 70))
    makers: dict[str, Callable[[], Any]] = {
        "vector": lambda: numbers(size),
        "one": lambda: numbers(1),
        "row.weight": lambda: numbers(1, size),
        "column.weight": lambda: numbers(size, 1),
        "matrix.weight": lambda: numbers(size, 1 + 97 % size),
        "cube.weight": lambda: numbers(5, 6, 7),
        "kernels.weight": lambda: numbers(9, 1 + size % 5, 3, 3),
        "five.weight": lambda: numbers(3, 2, 2, 3, 2),
        "zeros.weight": lambda: np.zeros((size, 13), np.float32),
        "single.weight": single,
        "sparse.weight": sparse,
        "large.weight": lambda: numbers(17, 19) * 1000,
        "integers": lambda: random.integers(-(2 ** int(random.integers(1, 31))), 2**20, (11, 5)).astype(np.int32),
    }
    chosen = random.permutation(len(makers))[: int(random.integers(1, 6))]
    return {name: make() for number, (name, make) in enumerate(makers.items()) if number in chosen}


def settings_of(random: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings in NNCodec's names and in ours."""
    density, dependent = int(random.integers(0, 4)), bool(random.integers(2))
    qp = int(random.integers(-11 * 2**density, 1))
    common = {"qp": qp, "param_opt": bool(random.integers(2)), "row_skipping": bool(random.integers(2))}
    scan, unary = int(random.choice([0, 0, 0, 0, 1, 2, 3, 4])), int(random.choice([0, 3, 10, 10, 24]))
    theirs = {"qp_density": density, "use_dq": dependent, "scan_order": scan, "cabac_unary_length_minus1": unary}
    ours = {"density": density, "dependent": dependent, "scan": scan, "unary": unary + 1, "rate_distortion": 0.0}
    # At NNCodec's default of -75 vectors have the same step at density 2 only; here they always have the matrices'.
    theirs["nonweight_qp"] = ours["vector_qp"] = qp
    if not dependent and random.integers(4) == 0:
        theirs["codebook_mode"], ours["codebook"] = int(random.integers(1, 3)), True
    return common | theirs, common | ours


def decoded(stream: bytes) -> Arrays | str:
    """What ours makes of a stream, or what it says."""
    try:
        return dict(nnc.decode(stream))
    except DeepCabacError as error:
        return f"{type(error).__name__}: {error}"


def compared(here: Arrays | str, there: Path, error: str | None) -> str:
    """In words."""
    if isinstance(here, str):
        return f"here: {here}"
    if error is not None:
        return f"there: {error}"
    with np.load(there) as archive:
        if set(archive.files) != set(here):
            return "DIFFERENT NAMES"
        for name in archive.files:
            other = archive[name]
            if other.size != here[name].size:
                return f"DIFFERENT SIZE of {name}"
            if not np.array_equal(other.reshape(-1).astype(np.float64), here[name].reshape(-1).astype(np.float64)):
                return f"DIFFERENT {name}"
    return "same"


def measure(peer: Path, folder: Path, pairs: list[tuple[Arrays, Pair]]) -> list[Pair]:
    """Both ways."""
    jobs: list[dict[str, Any]] = []
    for number, (arrays, pair) in enumerate(pairs):
        here = folder / str(number)
        np.savez(f"{here}.npz", **arrays)
        Path(f"{here}.ours").write_bytes(nnc.encode(arrays, **pair.ours))
        jobs.append({"encode": f"{here}.npz", "output": f"{here}.theirs", "settings": pair.theirs})
        jobs.append({"decode": [f"{here}.theirs"], "output": f"{here}.theirs.npz"})
        jobs.append({"decode": [f"{here}.ours"], "output": f"{here}.ours.npz"})
    results = ask(peer, folder, jobs)
    done = []
    for number, (_, pair) in enumerate(pairs):
        here = folder / str(number)
        wrote, back, read = (result.get("error") for result in results[3 * number : 3 * number + 3])
        ours = Path(f"{here}.ours").read_bytes()
        found = {"our_bytes": len(ours), "ours_there": compared(decoded(ours), Path(f"{here}.ours.npz"), read)}
        if wrote is None:
            theirs = Path(f"{here}.theirs").read_bytes()
            found["peer_bytes"] = len(theirs)
            found["theirs_here"] = compared(decoded(theirs), Path(f"{here}.theirs.npz"), back)
        else:
            found["theirs_here"] = f"refused: {wrote}"
        done.append(Pair(**(asdict(pair) | found)))
    return done


def main() -> None:
    """Draw, code, compare, print."""
    options = _common.parser(__doc__)
    options.add_argument("--peer-python", type=Path, required=True, metavar="FILE", help="NNCodec's environment")
    options.add_argument("--count", type=int, default=120, metavar="N", help="settings (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="of arrays and settings")
    arguments = options.parse_args()
    about = _common.environment()
    _common.print_head("Settings of all kinds, to NNCodec 2.1.3 and back", CAVEATS, about)
    random = np.random.default_rng(arguments.seed)
    pairs = []
    for _ in range(arguments.count):
        arrays = arrays_of(random)
        theirs, ours = settings_of(random)
        pairs.append((arrays, Pair(theirs, ours, list(arrays))))
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments.peer_python, Path(folder), pairs)
    for way in ("theirs_here", "ours_there"):
        print(f"{way}: {dict(Counter(getattr(row, way).split(':')[0] for row in rows))}")
    for row in rows:
        for way in ("theirs_here", "ours_there"):
            if getattr(row, way) != "same":
                print(f"  {way}: {getattr(row, way)}; {row.theirs}, {row.arrays}")
    both = [(row.peer_bytes, row.our_bytes, row) for row in rows if row.peer_bytes and row.our_bytes]
    larger = [(ours - theirs, row) for theirs, ours, row in both if ours > theirs]
    print(f"bytes: NNCodec {sum(one for one, _, _ in both):,}, ours {sum(one for _, one, _ in both):,}")
    print(f"ours larger in {len(larger)} of {len(both)}, by {sum(more for more, _ in larger):,} bytes in all")
    for more, row in sorted(larger, key=lambda one: -one[0])[:8]:
        print(f"  {more} bytes of {row.our_bytes}: {row.theirs}, {row.arrays}")
    _common.write_json(arguments.json, about, spread=[asdict(row) for row in rows])
    if any("DIFFERENT" in way or "here:" in way for row in rows for way in (row.theirs_here, row.ours_there)):
        raise SystemExit("streams were decoded to different values")


if __name__ == "__main__":
    main()
