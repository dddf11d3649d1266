"""Streams of ISO/IEC 15938-17 with settings of all kinds, to NNCodec 2.1.3 and back: does everybody decode the same?

    python bench/nnc_spread.py --peer-python PEER/bin/python [--count 200] [--seed 0] [--json FILE]

Arrays of odd shapes and values, and settings, are drawn from a fixed seed: QP and its density, dependent
quantisation, blocks, unary lengths, context settings, row skipping, codebooks; on NNCodec's side also bit depths, its
own choice of QP and its rate term; one in five is a model and two updates of it. NNCodec and we code the same; each
stream is decoded by both, and values are compared exactly. bench/README.md says how to make the peer's environment.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import _common
import numpy as np
from nnc_exchange import ask

from deepcabac import DeepCabacError, nnc

CAVEATS = (
    "NNCodec's encoder fails on blocks of matrices with one row or column, so these are not asked of it; what it "
    "refuses beyond that is counted.",
    "Sizes are compared without a rate term, bit depths and updates, row skipping as each chooses it.",
    "With dependent quantisation, blocks and skipped rows whose width is no multiple of four, NNCodec decodes other "
    "values than it meant: ours does not skip rows there.",
)
#: Streams of a sequence of updates.
STEPS = 3
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """The same setting in both programs' names, and what came of it."""

    theirs: dict[str, Any]
    ours: dict[str, Any]
    steps: int
    comparable: bool  #: sizes say something
    shapes: dict[str, list[int]]
    peer_bytes: int | None = None
    our_bytes: int | None = None
    peer_error: float | None = None  #: largest of a value, in steps
    our_error: float | None = None
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
        array = numbers(40, int(random.integers(20, 80)))
        rows, places = random.random((len(array), 1)) < 0.3, random.random(array.shape) < 0.4
        return (array * rows * places).astype(np.float32)

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


def updated(model: Arrays, random: np.random.Generator) -> Arrays:
    """The same model some steps of training later."""
    result = {}
    for name, array in model.items():
        moves = random.random(array.shape) < 0.3
        change = random.standard_normal(array.shape) * 0.3 * moves
        result[name] = (array + change.round() if array.dtype == np.int32 else array + change).astype(array.dtype)
    return result


def settings_of(random: np.random.Generator) -> Pair:
    """Settings in NNCodec's names and in ours."""
    density, dependent = int(random.integers(0, 4)), bool(random.integers(2))
    qp = int(random.integers(-11 * 2**density, 1))
    common = {"qp": qp, "param_opt": bool(random.integers(2)), "row_skipping": bool(random.integers(2))}
    scan, unary = int(random.choice([0, 0, 0, 0, 1, 2, 3, 4])), int(random.choice([0, 3, 10, 10, 24, 255]))
    theirs = {"qp_density": density, "use_dq": dependent, "scan_order": scan, "cabac_unary_length_minus1": unary}
    ours = {"density": density, "dependent": dependent, "scan": scan, "unary": unary + 1, "rate_distortion": 0.0}
    # At NNCodec's default of -75 vectors have the same step at density 2 only; here they always have the matrices'.
    theirs["nonweight_qp"] = ours["vector_qp"] = qp
    if random.integers(4) == 0:
        theirs["codebook_mode"], ours["codebook"] = int(random.integers(1, 3)), True
    alone: dict[str, Any] = {}
    if random.integers(3) == 0:
        alone = [{"int_quant_bw": int(random.integers(2, 13))}, {"opt_qp": True}, {"lambda_scale": 1.0}][
            int(random.integers(3))
        ]
    steps = STEPS if random.integers(5) == 0 else 1
    if steps > 1:
        ours["temporal"] = alone["tca"] = bool(random.integers(2))
        alone["compress_differences"] = True
    # NNCodec moves the QP where a codebook and dependent quantisation meet.
    comparable = not alone and not ("codebook" in ours and dependent)
    return Pair(common | theirs | alone, common | ours, steps, comparable, {})


def drawn(random: np.random.Generator) -> tuple[list[Arrays], Pair]:
    """A model and its updates, and settings."""
    arrays, pair = arrays_of(random), settings_of(random)
    if pair.ours["scan"]:
        matrices = {name: (array.shape[0], array[:1].size) for name, array in arrays.items() if array.ndim > 1}
        arrays = {name: array for name, array in arrays.items() if 1 not in matrices.get(name, ())}
    if not arrays:
        return drawn(random)
    models = [arrays]
    while len(models) < pair.steps:
        models.append(updated(models[-1], random))
    return models, replace(pair, shapes={name: list(array.shape) for name, array in arrays.items()})


def decoded(streams: list[bytes]) -> Arrays | str:
    """What ours makes of the last stream, or what it says."""
    try:
        return dict(nnc.decode(streams[-1], streams[:-1]))
    except DeepCabacError as error:
        return f"{type(error).__name__}: {error}"


def compared(here: Arrays | str, there: Path, error: str | None) -> str:
    """In words."""
    if isinstance(here, str):
        return "refused: by both" if error is not None else f"here: {here}"
    if error is not None:
        return f"there: {error}"
    with np.load(there) as archive:
        # NNCodec gives tensors back that an update left as they were, as zeros; ours leaves them out.
        missing = set(archive.files) ^ set(here)
        if any(name in here or archive[name].any() for name in missing):
            return "DIFFERENT NAMES"
        for name in here:
            # NNCodec gives values of codebooks as float64.
            if not np.array_equal(archive[name].astype(here[name].dtype), here[name]):
                return f"DIFFERENT {name}"
    return "same"


def largest_error(here: Arrays | str, arrays: Arrays, pair: Pair) -> float | None:
    """Of floating-point values, in steps of the setting."""
    floats = [name for name, array in arrays.items() if array.dtype == np.float32]
    if isinstance(here, str) or not floats:
        return None
    step = nnc.reading.step_size(pair.ours["qp"], pair.ours["density"])
    return max(float(np.abs(here[name].astype(np.float64) - arrays[name]).max()) / step for name in floats)


def measure(peer: Path, folder: Path, pairs: list[tuple[list[Arrays], Pair]]) -> list[Pair]:
    """Both ways."""
    jobs: list[dict[str, Any]] = []
    for number, (models, pair) in enumerate(pairs):
        here = [f"{folder / str(number)}.{step}" for step in range(pair.steps)]
        ours: list[bytes] = []
        before: Arrays = {}
        for path, model in zip(here, models, strict=True):
            ours.append(nnc.encode(model, bases=ours, **pair.ours))
            Path(f"{path}.ours").write_bytes(ours[-1])
            change = {name: array - before[name] if before else array for name, array in model.items()}
            np.savez(f"{path}.npz", **change)
            before = model
            job = {"encode": f"{path}.npz", "output": f"{path}.theirs", "settings": pair.theirs}
            jobs.append(job | ({"sequence": str(number)} if pair.steps > 1 else {}))
        for side in ("theirs", "ours"):
            jobs.append({"decode": [f"{path}.{side}" for path in here], "output": f"{here[-1]}.{side}.npz"})
    results = iter(ask(peer, folder, jobs))
    done = []
    for number, (models, pair) in enumerate(pairs):
        here = [f"{folder / str(number)}.{step}" for step in range(pair.steps)]
        wrote, back, read = ([next(results).get("error") for _ in range(count)] for count in (pair.steps, 1, 1))
        found: dict[str, Any] = {}
        for side, error in (("theirs", back[0]), ("ours", read[0])):
            if side == "theirs" and any(wrote):
                found["theirs_here"] = f"refused: {next(filter(None, wrote))}"
                continue
            streams = [Path(f"{path}.{side}").read_bytes() for path in here]
            arrays = decoded(streams)
            found[{"theirs": "theirs_here", "ours": "ours_there"}[side]] = compared(
                arrays, Path(f"{here[-1]}.{side}.npz"), error
            )
            who = "peer" if side == "theirs" else "our"
            found[f"{who}_bytes"] = len(streams[-1])
            if pair.steps == 1:
                found[f"{who}_error"] = largest_error(arrays, models[0], pair)
        done.append(replace(pair, **found))
    return done


def main() -> None:
    """Draw, code, compare, print."""
    options = _common.parser(__doc__)
    options.add_argument("--peer-python", type=Path, required=True, metavar="FILE", help="NNCodec's environment")
    options.add_argument("--count", type=int, default=200, metavar="N", help="settings (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="of arrays and settings")
    arguments = options.parse_args()
    about = _common.environment()
    _common.print_head("Settings of all kinds, to NNCodec 2.1.3 and back", CAVEATS, about)
    random = np.random.default_rng(arguments.seed)
    pairs = [drawn(random) for _ in range(arguments.count)]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments.peer_python, Path(folder), pairs)
    for way, title in (("theirs_here", "NNCodec's, decoded here"), ("ours_there", "ours, decoded by NNCodec")):
        counts = Counter(getattr(row, way).split(":")[0] for row in rows)
        print(f"{title}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
        for row in rows:
            if getattr(row, way) != "same":
                print(f"  {getattr(row, way)}; {row.theirs}, {row.shapes}")
    both = [row for row in rows if row.comparable and row.peer_bytes and row.our_bytes]
    ours, theirs = sum(row.our_bytes or 0 for row in both), sum(row.peer_bytes or 0 for row in both)
    print(f"bytes of {len(both)}: NNCodec {theirs:,}, ours {ours:,}")
    larger = [row for row in both if (row.our_bytes or 0) > (row.peer_bytes or 0)]
    print(f"ours larger: {len(larger)}")
    for row in larger:
        errors = f"errors {row.peer_error:.2f} and {row.our_error:.2f} steps" if row.our_error is not None else ""
        print(f"  {row.peer_bytes} and {row.our_bytes} bytes, {errors}; {row.theirs}, {row.shapes}")
    _common.write_json(arguments.json, about, spread=[asdict(row) for row in rows])
    outcomes = {way for row in rows for way in (row.theirs_here, row.ours_there)}
    if not all(way.startswith(("same", "refused")) for way in outcomes):
        raise SystemExit("streams were decoded to different values")


if __name__ == "__main__":
    main()
