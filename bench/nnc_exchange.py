"""Streams of ISO/IEC 15938-17 to NNCodec 2.1.3 and back, and what they cost: bytes, error and time, in one run.

    python bench/nnc_exchange.py --peer-python PEER/bin/python [--only resnet20] [--rounds 3] [--json FILE]

For each network and setting: NNCodec's stream decoded here and there, ours decoded here and there (all agree),
bytes of both at the same setting without a rate term, then bytes at equal error with our search, against NNCodec
without and with its own, and those of a .dcb file. Time is of one core: CPU time of single-threaded code on both sides.
bench/README.md says how to make the peer's environment.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _common
import numpy as np

import deepcabac
from deepcabac import nnc
from deepcabac.checkpoint import open_checkpoint

WORKER = Path(__file__).resolve().parent / "peers" / "nncodec_exchange.py"
CAVEATS = (
    "NNCodec runs with param_opt, row skipping, and one-dimensional tensors at qp -75.",
    "Times are CPU seconds of one thread, the best of all rounds, taken in turns; nothing is in them but the call from "
    "arrays to bytes in memory, or back. Decoding on all cores is wall time, against NNCodec's CPU time.",
    "Equal error: the sum of squared errors of all matrices; our bytes are interpolated between neighbouring points.",
    ".dcb: one step for all matrices that gives the error of our .nnc stream with its search, preset default, no data.",
)
NETWORKS = {
    "resnet20": ("cifar10_resnet", "resnet20.safetensors"),
    "resnet56": ("cifar10_resnet", "resnet56.safetensors"),
    "lite0": ("efficientnet_lite0", "*.safetensors"),
    "minilm": ("", ""),
}
SETTINGS: tuple[dict[str, Any], ...] = ({"qp": -20, "use_dq": False}, {"qp": -24, "use_dq": True})
#: What of NNCodec's is compared with what of ours.
SPEEDS = (("decode", "decode"), ("decode", "decode_parallel"), ("encode", "encode"), ("encode", "search"))
#: Finer and coarser than a setting, until the peer's error lies between.
OFFSETS = (-4, -2, -1, 0, 1)


def network(name: str, models: Path) -> dict[str, Any]:
    """Its floating-point tensors."""
    folder, pattern = NETWORKS[name]
    path = _common.minilm_path() if name == "minilm" else sorted((models / folder).glob(pattern))[0]
    with open_checkpoint(path) as checkpoint:
        return {
            spec.name: checkpoint.read(spec.name)
            for spec in checkpoint.specs
            if spec.dtype == np.float32 and spec.tied_to is None and spec.size and spec.shape
        }


def error(tensors: dict[str, Any], decoded: dict[str, Any]) -> float:
    """Relative squared error of the matrices."""
    return _common.relative_error({n: t for n, t in tensors.items() if t.ndim > 1}, decoded)


def ask(peer: Path, folder: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Let NNCodec do jobs."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run([peer, WORKER, folder / "jobs.json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stderr[-2000:]}")
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def best(call: Callable[[], Any], rounds: int, clock: Callable[[], float] = time.process_time) -> tuple[float, Any]:
    """Time, of the CPU unless another clock is given, and result."""
    seconds = math.inf
    for _ in range(rounds):
        start = clock()
        result = call()
        seconds = min(seconds, clock() - start)
    return seconds, result


def agree(ours: dict[str, Any], theirs: Path) -> bool:
    """Whether arrays are the same values."""
    with np.load(theirs) as archive:
        return set(archive.files) == set(ours) and all(
            np.array_equal(archive[name].astype(np.float32), ours[name].astype(np.float32)) for name in ours
        )


def dcb_at(tensors: dict[str, Any], level: float, qp: int) -> bytes:
    """A .dcb file with this error of its matrices."""
    step = 2.0 ** (qp / 4)
    for _ in range(6):
        code = deepcabac.compress(tensors, step=step)
        ratio = error(tensors, deepcabac.decompress(code)) / level
        if abs(math.log(ratio)) < 1e-3:
            break
        step /= math.sqrt(ratio)
    return code


def measure(
    name: str, tensors: dict[str, Any], setting: dict[str, Any], arguments: Any, folder: Path
) -> dict[str, Any]:
    """One row."""
    np.savez(folder / "model.npz", **tensors)
    qp, dependent = setting["qp"], setting["use_dq"]
    common: dict[str, Any] = {"qp": qp, "dependent": dependent, "threads": 1}
    (folder / "ours.nnc").write_bytes(nnc.encode(tensors, rate_distortion=0.0, **common))
    peer_encode = peer_decode = encode = search = decode = parallel = math.inf
    for _ in range(arguments.rounds):
        jobs: list[dict[str, Any]] = [
            {
                "encode": str(folder / "model.npz"),
                "output": str(folder / "peer.nnc"),
                "settings": setting | {"row_skipping": True},
            },
            {"decode": [str(folder / "peer.nnc")], "output": str(folder / "peer.npz")},
            {"decode": [str(folder / "ours.nnc")], "output": str(folder / "ours.npz")},
        ]
        results = ask(arguments.peer_python, folder, jobs)
        if any("error" in result for result in results):
            raise SystemExit(f"{name} {setting}: the peer failed: {results}")
        theirs = (folder / "peer.nnc").read_bytes()
        seconds, back = best(partial(nnc.decode, theirs, threads=1), 2)
        peer_encode = min(peer_encode, results[0]["seconds"])
        peer_decode, decode = min(peer_decode, results[1]["seconds"]), min(decode, seconds)
        seconds, _ = best(partial(nnc.decode, theirs), 2, time.perf_counter)
        parallel = min(parallel, seconds)
        seconds, ours = best(lambda: nnc.encode(tensors, rate_distortion=0.0, **common), 1)
        encode = min(encode, seconds)
        seconds, searched = best(lambda: nnc.encode(tensors, **common), 1)
        search = min(search, seconds)
    mine = nnc.decode(ours)
    rated = setting | {"row_skipping": True, "lambda_scale": 1.0, "qp": qp}
    jobs = [
        {"encode": str(folder / "model.npz"), "output": str(folder / "rated.nnc"), "settings": rated},
        {"decode": [str(folder / "rated.nnc")], "output": str(folder / "rated.npz")},
    ]
    ask(arguments.peer_python, folder, jobs)
    gains = {}
    points = []
    for offset in OFFSETS:
        code = nnc.encode(tensors, **(common | {"qp": qp + offset, "threads": None}))
        points.append((math.log(error(tensors, nnc.decode(code))), len(code)))
    for what, stream in (("plain", "peer.nnc"), ("rated", "rated.nnc")):
        code = (folder / stream).read_bytes()
        level = math.log(error(tensors, nnc.decode(code)))
        at_equal = float(np.interp(level, *zip(*sorted(points), strict=True)))
        gains[what] = 100 * (1 - at_equal / len(code))
    dcb = dcb_at(tensors, error(tensors, nnc.decode(searched)), qp)
    gains["dcb"] = 100 * (1 - len(dcb) / len(searched))
    decode_searched, _ = best(partial(nnc.decode, searched, threads=1), 2 * arguments.rounds)
    decode_dcb, _ = best(partial(deepcabac.decompress, dcb, threads=1), 2 * arguments.rounds)
    return {
        "network": name,
        **setting,
        "weights": sum(tensor.size for tensor in tensors.values()),
        "peer_bytes": len(theirs),
        "our_bytes": len(ours),
        "searched_bytes": len(searched),
        "theirs_here": agree(back, folder / "peer.npz"),
        "ours_there": agree(mine, folder / "ours.npz"),
        "errors": [error(tensors, back), error(tensors, mine)],
        "smaller_at_equal_error": gains,
        "seconds": {
            "peer_encode": peer_encode,
            "encode": encode,
            "search": search,
            "peer_decode": peer_decode,
            "decode": decode,
            "decode_parallel": parallel,
            "decode_searched": decode_searched,
            "decode_dcb": decode_dcb,
        },
    }


#: As documents call them.
TITLES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56", "lite0": "EfficientNet-Lite0", "minilm": "MiniLM"}


def _quantiser(row: dict[str, Any]) -> str:
    return "dependent" if row["use_dq"] else "uniform"


def save(rows: list[dict[str, Any]], about: dict[str, str], wanted: bool) -> None:
    """Bytes beside NNCodec's, and .nnc beside .dcb, for docs/nnc.md."""
    bytes_rows, dcb_rows = [], []
    for row in rows:
        label = [TITLES[row["network"]], str(row["qp"]), _quantiser(row)]
        gains = row["smaller_at_equal_error"]
        smaller = [f"{gains[key]:.1f} %" for key in ("plain", "rated")]
        bytes_rows.append([*label, f"{row['peer_bytes']:,}", f"{row['our_bytes']:,}", *smaller])
        dcb_rows.append([*label, f"{row['searched_bytes']:,}", f"{gains['dcb']:.1f} %"])
    heads = ["network", "qp", "quantiser", "NNCodec, bytes", "ours, same setting"]
    heads += ["smaller at equal error, with search", "than NNCodec with lambda 1"]
    _common.save_table(wanted, "nnc_bytes", about, heads, bytes_rows, keys=3)
    heads = ["network", "qp", "quantiser of .nnc", ".nnc, bytes", ".dcb is smaller by"]
    _common.save_table(wanted, "nnc_dcb", about, heads, dcb_rows, keys=3)


def save_speeds(rows: list[dict[str, Any]], about: dict[str, str], arguments: Any) -> None:
    """How many times as fast as NNCodec, and .dcb as our .nnc, for docs/nnc.md."""
    lines = []
    for row in rows:
        name = "one tensor" if arguments.single else TITLES[row["network"]]
        seconds = row["seconds"]
        pairs = [(f"peer_{way}", other) for way, other in SPEEDS]
        pairs.append(("decode_searched", "decode_dcb"))
        lines.append([name, _quantiser(row), *(f"{seconds[slow] / seconds[fast]:.1f}" for slow, fast in pairs)])
    heads = ["network", "quantiser", "decoding", "on two cores", "encoding", "search", ".dcb, decoding"]
    _common.save_table(arguments.results, "nnc_speed", about, heads, lines, keys=2, timed=True)


def main() -> None:
    """Measure and print."""
    options = _common.parser(__doc__)
    _common.add_models(options)
    options.add_argument("--peer-python", type=Path, required=True, metavar="FILE", help="NNCodec's environment")
    options.add_argument("--only", choices=NETWORKS, action="append", help="a network; can be repeated")
    options.add_argument("--rounds", type=int, default=2, metavar="N", help="of measuring (default: %(default)s)")
    options.add_argument("--single", action="store_true", help="only the largest tensor, for speed")
    arguments = options.parse_args()
    about = _common.environment()
    _common.print_head("Exchange with NNCodec 2.1.3", CAVEATS, about)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only or NETWORKS:
            tensors = network(name, arguments.models)
            if arguments.single:
                largest = max(tensors, key=lambda each: tensors[each].size)
                tensors = {largest: tensors[largest][:12000]}
            for setting in SETTINGS:
                _common.note(f"{name} {setting}")
                rows.append(measure(name, tensors, setting, arguments, Path(folder)))
    _common.print_table(
        ["network", "qp", "quantiser", "theirs here", "ours there", "NNCodec bytes", "our bytes", "smaller"],
        [
            [
                row["network"],
                str(row["qp"]),
                "dependent" if row["use_dq"] else "uniform",
                *("same" if row[key] else "DIFFERS" for key in ("theirs_here", "ours_there")),
                f"{row['peer_bytes']:,}",
                f"{row['our_bytes']:,}",
                f"{100 * (1 - row['our_bytes'] / row['peer_bytes']):.2f} %",
            ]
            for row in rows
        ],
    )
    _common.print_table(
        [
            *("network", "qp", "quantiser", "than without rate term", "than NNCodec's, lambda 1"),
            *(".dcb than our .nnc", "decoded, times as fast"),
        ],
        [
            [
                row["network"],
                str(row["qp"]),
                "dependent" if row["use_dq"] else "uniform",
                *(f"{row['smaller_at_equal_error'][key]:.2f} %" for key in ("plain", "rated", "dcb")),
                f"{row['seconds']['decode_searched'] / row['seconds']['decode_dcb']:.2f}",
            ]
            for row in rows
        ],
    )
    names = ["decode", "encode", "search"]
    _common.print_table(
        [
            *("network", "qp", "quantiser"),
            *(f"{n}, Mw/s" for n in names),
            *("decode ratio", "on all cores", "encode ratio", "search ratio"),
        ],
        [
            [
                row["network"],
                str(row["qp"]),
                "dependent" if row["use_dq"] else "uniform",
                *(f"{row['weights'] / row['seconds'][n] / 1e6:.1f}" for n in names),
                f"{row['seconds']['peer_decode'] / row['seconds']['decode']:.2f}",
                f"{row['seconds']['peer_decode'] / row['seconds']['decode_parallel']:.2f}",
                f"{row['seconds']['peer_encode'] / row['seconds']['encode']:.2f}",
                f"{row['seconds']['peer_encode'] / row['seconds']['search']:.2f}",
            ]
            for row in rows
        ],
    )
    if not arguments.single:
        save(rows, about, arguments.results)
    save_speeds(rows, about, arguments)
    _common.write_json(arguments.json, about, rows=rows)
    if not all(row["theirs_here"] and row["ours_there"] for row in rows):
        raise SystemExit("streams were decoded to different values")


if __name__ == "__main__":
    main()
