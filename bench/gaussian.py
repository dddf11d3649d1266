"""How far from the rate-distortion limit: iid Gaussian and Laplacian numbers, whole files of `deepcabac.compress`.

    python bench/gaussian.py [--peer PEER_PYTHON] [--size N] [--states 8 16 32 64] [--json FILE]

N x N float32 numbers, one tensor. The gap is `bits - 0.5 log2(1 / relative MSE)`: for Gaussian numbers the distance
from the least number of bits that any code needs for that error. For Laplacian ones that is only an upper bound of
the limit, so gaps can be negative; they serve to compare codecs. PEER_PYTHON has NNCodec (see peers/nncodec_worker.py).
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import _common
import numpy as np

import deepcabac

CAVEATS = (
    "Weights are not iid: this isolates quantiser and coder, without anything that a model of weights could know.",
    "Ours is asked for bits per weight, one thread. The peer's QPs are whole numbers: its points lie between ours; it "
    "is set against ours, interpolated linearly between the two points beside it.",
)
WORKER = Path(__file__).resolve().parent / "peers" / "nncodec_worker.py"
RATES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
#: Gap of Gaussian numbers that is asked for, by bits per weight.
BARS = {2.0: 0.11, 3.0: 0.09, 4.0: 0.09, 5.0: 0.09}
#: Of numbers with a standard deviation of 1: 1 to 5 bits.
PEER_QPS = range(-16, 3, 2)


@dataclass(frozen=True)
class Row:
    """A codec at one rate."""

    what: str
    source: str
    bits: float
    relative_error: float
    encode_rate: float  #: million numbers a second
    decode_rate: float

    @property
    def gap(self) -> float:
        """In bits."""
        return self.bits + 0.5 * math.log2(self.relative_error)

    def cells(self, note: str) -> list[str]:
        """For the table."""
        return [
            f"{self.source}, {self.what}",
            f"{self.bits:.3f}",
            f"{_common.decibels(self.relative_error):.2f}",
            f"{self.gap:+.4f}",
            f"{self.encode_rate:.1f}",
            f"{self.decode_rate:.1f}",
            note,
        ]


HEADS = ("numbers, codec", "bits", "SQNR dB", "gap", "enc M/s", "dec M/s", "bar")


def sources(size: int) -> dict[str, Callable[[], _common.Float32]]:
    """The numbers, of standard deviation 1."""
    return {
        "Gaussian": lambda: np.random.default_rng(1).standard_normal((size, size)).astype(np.float32),
        "Laplacian": lambda: np.random.default_rng(2).laplace(0, math.sqrt(0.5), (size, size)).astype(np.float32),
    }


def ours(source: str, numbers: _common.Float32, rate: float, **options: Any) -> Row:
    """Ours at a rate: the step is searched, then timed alone."""
    tensors = {"w": numbers}
    found = deepcabac.compress(tensors, bits=rate, threads=1, **options)
    with tempfile.NamedTemporaryFile(suffix=".dcb") as file:
        file.write(found)
        file.flush()
        with deepcabac.open_file(file.name) as opened:
            info = opened.info("w")
    step = float(info.step or 0) * (2 if info.states else 1)
    seconds, data = _common.timed(lambda: deepcabac.compress(tensors, step=step, threads=1, **options))
    decode_seconds, decoded = _common.timed(lambda: deepcabac.decompress(data, threads=1))
    error = _common.relative_error(tensors, decoded)
    speeds = (numbers.size / seconds / 1e6, numbers.size / decode_seconds / 1e6)
    what = " ".join(f"{value}" for value in ("ours", info.quantizer, info.states) if value)
    return Row(what, source, 8 * len(data) / numbers.size, error, *speeds)


def theirs(python: Path, source: str, numbers: _common.Float32) -> Iterator[Row]:
    """NNCodec with dependent quantisation, at several QPs."""
    with tempfile.TemporaryDirectory() as folder:
        given, back = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, w=numbers)
        for qp in PEER_QPS:
            _common.note(f"{source}: NNCodec, qp {qp} ...")
            command = [str(python), str(WORKER), str(given), str(back), "--qp", str(qp), "--dq"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"the peer failed:\n{done.stderr[-2000:]}")
            result = json.loads(done.stdout.splitlines()[-1])
            with np.load(back) as archive:
                error = _common.relative_error({"w": numbers}, {"w": archive["w"]})
            speeds = [numbers.size / result[key] / 1e6 for key in ("encode_seconds", "decode_seconds")]
            yield Row(f"NNCodec DQ, qp {qp}", source, 8 * result["bytes"] / numbers.size, error, speeds[0], speeds[1])


def interpolated(rows: list[Row], bits: float) -> float | None:
    """The gap of ours at a rate, between the two points beside it."""
    for low, high in pairwise(rows):
        if low.bits <= bits <= high.bits:
            share = (bits - low.bits) / (high.bits - low.bits)
            return low.gap + share * (high.gap - low.gap)
    return None


def main() -> None:
    """Measure, print."""
    options = _common.parser(__doc__)
    options.add_argument("--peer", type=Path, metavar="PYTHON", help="interpreter with NNCodec; left out without it")
    options.add_argument("--size", type=int, default=2048, metavar="N", help="N x N numbers (default: %(default)s)")
    options.add_argument("--states", type=int, nargs="+", default=[32], help="of the trellis (default: %(default)s)")
    arguments = options.parse_args()
    about = _common.environment()
    _common.print_head("Distance from the rate-distortion limit", CAVEATS, about)
    settings: list[dict[str, Any]] = [{"quantizer": "scalar"}, *({"states": states} for states in arguments.states)]
    found: list[Row] = []
    table: list[list[str]] = []
    for source, make in sources(arguments.size).items():
        numbers = make()
        for setting in settings:
            rows = []
            for rate in RATES:
                _common.note(f"{source}: {setting}, {rate:g} bits ...")
                row = ours(source, numbers, rate, **setting)
                bar = BARS.get(rate) if source == "Gaussian" and "states" in setting else None
                note = "" if bar is None else f"{bar:g}: {'met' if row.gap <= bar else 'MISSED'}"
                rows.append(row)
                table.append(row.cells(note))
            found += rows
        # The last setting has the most states.
        for row in theirs(arguments.peer, source, numbers) if arguments.peer else ():
            gap = interpolated(rows, row.bits)
            met = "met" if gap is not None and gap < row.gap else "MISSED"
            table.append(row.cells("" if gap is None else f"ours {gap:+.4f}: {met}"))
            found.append(row)
    _common.print_table(HEADS, table)
    _common.write_json(arguments.json, about, rows=[asdict(row) for row in found])


if __name__ == "__main__":
    main()
