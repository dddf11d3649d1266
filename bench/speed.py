"""Speed beside NNCodec 2.1.3: the same tensors in the same run, our file no larger and our error no larger.

    python bench/speed.py --peer-python PEER/bin/python [--model FILE] [--setting=-24,dq] [--rounds 5]

For every setting of the peer, its error (sum of squared errors over sum of squares, all tensors together) is measured
first; then one step for all our tensors is found, the largest whose error is no larger, with rate-distortion decisions
on, as by default. Then rounds: the peer in its own process, our encoder and decoder in this one, in turns, each of them
three times at a go; the best counts on both sides. bench/README.md says how to make the peer's environment.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import _common
import numpy as np

import deepcabac
from deepcabac.dcb import reader

WORKER = Path(__file__).resolve().parent / "peers" / "nncodec_worker.py"
#: Least speed over the peer's, of rows of ours by name.
DECODE_BARS = {"fast": 15.0, "default": 7.0, "small": 1.0}
#: Of the scalar quantiser over the peer's plain one, and of the trellis over the peer's dependent quantisation.
PLAIN_BAR, TRELLIS_BAR = 12.0, 8.0
#: Most bytes with preset fast, over those with preset default.
FAST_BAR = 1.02
#: The settings that the bars are about.
BAR_SETTING, TRELLIS_SETTING = "-20", "-24,dq"
#: Weights of the synthetic checkpoint have this standard deviation: twice the step of BAR_SETTING.
DEVIATION = 1 / 16
#: Matrices of it that the peer codes; all would take it half an hour.
PEER_PART = 2
#: Calls of an encoder or decoder at a go, the peer's and ours: memory that was just used is had faster than fresh one.
REPEAT = 3
#: Our error may be this much below the peer's, relatively, before the step is tried larger.
SLACK, TRIALS = 0.0005, 10
CAVEATS = (
    "The peer has no threads; ours uses every core unless a row says otherwise. The row of 1 thread compares core with "
    "core.",
    "Encoding includes quantisation on both sides: for ours rate-distortion decisions, by a trellis of 32 states (64 "
    "with preset small) or one by one (scalar); for the peer nearest rounding (plain) or a trellis of 8 states (dq), "
    "with a rate term only where lambda is given.",
    "The peer's step is given, one for all tensors, and so is ours. The row 'sqnr' shows ours with the search for each "
    "tensor's step that the command line does.",
    "The peer runs at its defaults, printed below. One of them, param_opt (how each context adapts is chosen in a dry "
    "pass), makes its files 0.5 to 0.7 % smaller and slows its encoder: without it, at qp -20 on MiniLM, 1.7x as fast "
    "and 0.66 % larger (measured once). Divide the encode ratios by that to compare with its fastest encoder.",
    "Decoding is from bytes in memory to float32 arrays in memory; ours also checks every checksum, the peer has none.",
    "No file is read or written. Best of as many calls on both sides. A busy machine slows two threads more than one.",
)
SYNTHETIC = (
    "Synthetic: Gaussian numbers in matrices of 16,384 x 1,024, windows of one block. The peer codes the first two, "
    "and speeds are compared by the weight; error is that of these two. Ours is encoded once."
)


@dataclass(frozen=True)
class Setting:
    """How the peer is run."""

    qp: int
    dq: bool = False
    lambda_scale: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Setting:
        """From ``QP[,dq][,lambda=X]``. Raises ArgumentTypeError."""
        first, *others = text.split(",")
        try:
            values: dict[str, Any] = {"qp": int(first)}
            for other in others:
                if other == "dq":
                    values["dq"] = True
                elif other.startswith("lambda="):
                    values["lambda_scale"] = float(other.removeprefix("lambda="))
                else:
                    raise ValueError(other)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form QP[,dq][,lambda=X]") from None
        return cls(**values)

    @property
    def arguments(self) -> list[str]:
        """For the worker."""
        return ["--qp", str(self.qp), "--lambda-scale", str(self.lambda_scale), *(["--dq"] if self.dq else [])]

    def __str__(self) -> str:
        rate = f" lambda {self.lambda_scale:g}" if self.lambda_scale else ""
        return f"qp {self.qp} {'dq' if self.dq else 'plain'}{rate}"


@dataclass
class Row:
    """One codec at one setting."""

    what: str
    threads: int
    weights: int
    bytes: int = 0
    relative_error: float = 0.0
    encode_seconds: float = math.inf
    decode_seconds: float = math.inf
    encode_ratio: float = 1.0  #: speed, over the peer's
    decode_ratio: float = 1.0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.bytes / self.weights

    def compare(self, peer: Row) -> None:
        """Set the ratios."""
        share = self.weights / peer.weights
        self.encode_ratio = share * peer.encode_seconds / self.encode_seconds
        self.decode_ratio = share * peer.decode_seconds / self.decode_seconds

    def cells(self) -> list[str]:
        """For the table."""
        encode, decode = (self.weights / seconds / 1e6 for seconds in (self.encode_seconds, self.decode_seconds))
        return [
            self.what,
            str(self.threads),
            f"{self.bytes:,}",
            f"{self.bits:.4f}",
            f"{self.relative_error:.6f}",
            *(f"{value:.1f}" for value in (encode, encode / self.threads)),
            f"{4 * encode / 1e3:.3f}",
            f"{self.encode_ratio:.2f}x",
            *(f"{value:.1f}" for value in (decode, decode / self.threads)),
            f"{4 * decode / 1e3:.3f}",
            f"{self.decode_ratio:.2f}x",
        ]


HEADS = (
    *("codec", "threads", "bytes", "bits/weight", "rel. MSE"),
    *("enc Mw/s", "a core", "GB/s", "to peer"),
    *("dec Mw/s", "a core", "GB/s", "to peer"),
)


@dataclass(frozen=True)
class Peer:
    """NNCodec in its own interpreter."""

    python: Path
    folder: Path  #: for the arrays that go in and out

    def prepare(self, tensors: _common.Tensors) -> None:
        """Put the tensors where the worker finds them."""
        with (self.folder / "in.npz").open("wb") as file:
            np.savez(file, **tensors)  # type: ignore[arg-type]

    def run(self, setting: Setting, row: Row) -> None:
        """One round: better times go into ``row``."""
        command = [str(self.python), str(WORKER), str(self.folder / "in.npz"), str(self.folder / "out.npz")]
        command += ["--repeat", str(REPEAT), *setting.arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"the peer failed:\n{done.stderr[-2000:]}")
        result = json.loads(done.stdout.splitlines()[-1])
        row.encode_seconds = min(row.encode_seconds, result["encode_seconds"])
        row.decode_seconds = min(row.decode_seconds, result["decode_seconds"])
        row.bytes, row.details = result["bytes"], {"versions": result["versions"], "settings": result["settings"]}

    def decoded(self) -> dict[str, Any]:
        """What the last round decoded."""
        with np.load(self.folder / "out.npz") as archive:
            return {name: archive[name] for name in archive.files}


def match_step(tensors: _common.Tensors, start: float, error: float, **options: Any) -> float:
    """The largest step found whose relative error is no larger than ``error``."""
    # The error follows the square of the step closely, so this is a secant search that keeps its bracket.
    low, high, step = 0.0, math.inf, start
    for _ in range(TRIALS):
        got = _common.relative_error(tensors, deepcabac.decompress(deepcabac.compress(tensors, step=step, **options)))
        if got <= error:
            low = max(low, step)
            if got >= error * (1 - SLACK):
                break
        else:
            high = min(high, step)
        guess = step * math.sqrt(error * (1 - SLACK / 2) / got)
        step = guess if low < guess < high else (low + high) / 2
    if low == 0.0:
        raise SystemExit(f"no step found that reaches a relative error of {error:.6f}")
    return low


@dataclass
class Ours:
    """deepcabac with some options and a number of threads."""

    row: Row
    encode: Callable[[], bytes]

    def run(self, tensors: _common.Tensors) -> None:
        """One round: better times go into the row; bytes and error must be those of every round."""
        for _ in range(REPEAT):
            seconds, data = _common.timed(self.encode)
            self.row.encode_seconds = min(self.row.encode_seconds, seconds)
        for _ in range(REPEAT):
            seconds, decoded = _common.timed(lambda: deepcabac.decompress(data, threads=self.row.threads))
            self.row.decode_seconds = min(self.row.decode_seconds, seconds)
        if self.row.bytes not in (0, len(data)):
            raise SystemExit(f"{self.row.what}: {len(data)} bytes after {self.row.bytes}: a bug in deepcabac")
        if self.row.bytes == 0:
            self.row.relative_error = _common.relative_error(tensors, decoded)
        self.row.bytes = len(data)


def our_rows(tensors: _common.Tensors, step: float, scalar_step: float, error: float) -> list[Ours]:
    """Ours at the step of each quantiser: every preset on all cores and on one; and with a step searched by tensor."""
    weights, cores = _common.count(tensors), _common.cores()

    def ours(what: str, threads: int, **options: Any) -> Ours:
        return Ours(Row(what, threads, weights), lambda: deepcabac.compress(tensors, threads=threads, **options))

    sqnr = round(_common.decibels(error), 2)
    return [
        *(
            ours(preset, threads, step=step, preset=preset)
            for threads in sorted({cores, 1}, reverse=True)
            for preset in ("default", "fast", "small")
        ),
        ours("scalar", cores, step=scalar_step, quantizer="scalar"),
        ours("scalar, fast", cores, step=scalar_step, quantizer="scalar", preset="fast"),
        ours(f"default, sqnr {sqnr:g} dB", cores, sqnr=sqnr),
    ]


def measure(peer: Peer, setting: Setting, tensors: _common.Tensors, rounds: int) -> list[Row]:
    """The peer and ours at the same error, in turns."""
    theirs = Row(f"NNCodec {setting}", 1, _common.count(tensors))
    _common.note(f"{theirs.what}: round 1 of {rounds} ...")
    peer.run(setting, theirs)
    theirs.relative_error = _common.relative_error(tensors, peer.decoded())
    _common.note("step of the same error ...")
    energy = sum(float(np.square(tensor, dtype=np.float64).sum()) for tensor in tensors.values())
    error = theirs.relative_error
    start = math.sqrt(12 * error * energy / theirs.weights)
    step, scalar_step = (match_step(tensors, start, error, quantizer=name) for name in ("trellis", "scalar"))
    _common.note(f"steps {step:.6g} (trellis), {scalar_step:.6g} (scalar)")
    ours = our_rows(tensors, step, scalar_step, error)
    for number in range(rounds):
        if number > 0:
            _common.note(f"{theirs.what}: round {number + 1} of {rounds} ...")
            peer.run(setting, theirs)
        for one in ours:
            one.run(tensors)
    for one in ours:
        one.row.compare(theirs)
    return [theirs, *(one.row for one in ours)]


def measure_synthetic(peer: Peer, weights: int, rounds: int) -> list[Row]:
    """Ours on a synthetic checkpoint, the peer on its first matrices, at the same error there; the peer's row first."""
    setting = Setting.parse(BAR_SETTING)
    block = np.random.default_rng(0).standard_normal(_common.MOST + (1 << 12), np.float32) * np.float32(DEVIATION)
    tensors = _common.synthetic(weights, block)
    part = dict(list(tensors.items())[:PEER_PART])
    theirs = Row(f"NNCodec {setting}, {_common.count(part):,} weights", 1, _common.count(part))
    peer.prepare(part)
    for number in range(rounds):
        _common.note(f"{theirs.what}: round {number + 1} of {rounds} ...")
        peer.run(setting, theirs)
    error = theirs.relative_error = _common.relative_error(part, peer.decoded())
    _common.note("step of the same error ...")
    # Found on a quarter of a matrix, and a little finer, for levels and matrices differ by some thousandths.
    step = 0.998 * match_step({"w0": part["w0"][:4096]}, math.sqrt(12 * error) * DEVIATION, error)
    rows = [theirs]
    for preset in ("default", "fast", "small"):
        row = Row(f"{preset}, {_common.count(tensors):,} weights", _common.cores(), _common.count(tensors))
        _common.note(f"{row.what} ...")
        row.encode_seconds, data = _common.timed(
            lambda preset=preset: deepcabac.compress(tensors, step=step, preset=preset)  # type: ignore[misc]
        )
        for _ in range(rounds):
            seconds, _ = _common.timed(lambda data=data: _common.decode_all(data))  # type: ignore[misc]
            row.decode_seconds = min(row.decode_seconds, seconds)
        with reader.open_bytes(data, max_bytes=None, threads=None) as file:
            row.relative_error = _common.relative_error(part, file)
        row.bytes = len(data)
        row.compare(theirs)
        rows.append(row)
    return rows


def verdict(setting: Setting, theirs: Row, ours: list[Row]) -> dict[str, Any]:
    """Print ours on all cores against the peer's, with the bars where they apply."""
    rows: dict[str, Row] = {}
    for row in ours:
        rows.setdefault(row.what, row)
    default, fast = rows["default"], rows["fast"]
    bars = setting == Setting.parse(BAR_SETTING)

    def line(what: str, value: str, bar: str = "", met: bool = True) -> None:
        print(f"  {what:<28}{value:<24}{f'bar {bar}: ' + ('met' if met else 'NOT met') if bar else ''}".rstrip())

    print(f"{setting}, ours with {default.threads} threads against its 1:")
    smaller, finer = default.bytes <= theirs.bytes, default.relative_error <= theirs.relative_error
    line("file no larger", f"{'yes' if smaller else 'NO'} ({100 * (default.bytes / theirs.bytes - 1):+.2f} %)")
    line("error no larger", f"{default.relative_error:.6f} to {theirs.relative_error:.6f}", "no larger", finer)
    larger = fast.bytes / default.bytes
    bar = f"{100 * (FAST_BAR - 1):.0f} %"
    line("fast, bytes over default", f"{100 * (larger - 1):+.2f} %", bar, larger <= FAST_BAR)
    for preset, bar in DECODE_BARS.items():
        ratio = rows[preset].decode_ratio
        line(f"{preset}, decode", f"{ratio:.2f}x", f"{bar:g}x" if bars else "", ratio >= bar)
    plain, trellis = rows["scalar"].encode_ratio, default.encode_ratio
    line("scalar, encode", f"{plain:.2f}x", f"{PLAIN_BAR:g}x" if bars else "", plain >= PLAIN_BAR)
    line("trellis, encode", f"{trellis:.2f}x", f"{TRELLIS_BAR:g}x" if setting.dq else "", trellis >= TRELLIS_BAR)
    (*_, alone) = (row for row in ours if row.what == "default")
    line(f"decode, {default.threads} threads over 1", f"{alone.decode_seconds / default.decode_seconds:.2f}x")
    print(flush=True)
    ratios = {name: {"decode": row.decode_ratio, "encode": row.encode_ratio} for name, row in rows.items()}
    return {"file_no_larger": smaller, "error_no_larger": finer, "fast_over_default": larger, "ratios": ratios}


def save(setting: Setting, rows: list[Row], about: dict[str, str], wanted: bool) -> None:
    """All cores beside NNCodec, for docs/results.md; the last column is one thread of ours."""
    theirs, *ours = rows
    alone = {row.what: f"{row.decode_ratio:.2f}x" for row in ours if row.threads == 1}
    name = f"qp {setting.qp}, {'dependent' if setting.dq else 'plain'}"
    name += f", lambda {setting.lambda_scale:g}" * bool(setting.lambda_scale)
    lines = []
    for row in (theirs, *(row for row in ours if row.threads > 1 and "sqnr" not in row.what)):
        encode, decode = (f"{row.weights / seconds / 1e6:.1f}" for seconds in (row.encode_seconds, row.decode_seconds))
        ratios = ["", ""] if row is theirs else [f"{row.encode_ratio:.1f}x", f"{row.decode_ratio:.1f}x"]
        what = "NNCodec" if row is theirs else row.what
        lines.append([name, what, f"{row.bytes:,}", encode, ratios[0], decode, ratios[1], alone.get(what, "")])
    heads = ["NNCodec's setting", "coder", "bytes", "encode, Mw/s", "encode, to NNCodec"]
    heads += ["decode, Mw/s", "decode, to NNCodec", "decode, one thread"]
    _common.save_table(wanted, "speed", about, heads, lines, timed=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    options = _common.parser(__doc__)
    options.add_argument("--peer-python", type=Path, required=True, metavar="PATH", help="Python with nncodec 2.1.3")
    options.add_argument(
        "--model", type=Path, metavar="FILE", help="checkpoint; its float32 matrices are coded (default: MiniLM's)"
    )
    options.add_argument(
        "--setting",
        type=Setting.parse,
        action="append",
        metavar="QP[,dq][,lambda=X]",
        help="of the peer; can be repeated, as in --setting=-20 --setting=-24,dq (default: these two)",
    )
    options.add_argument("--rounds", type=int, default=3, metavar="N", help="in turns (default: %(default)s)")
    options.add_argument(
        "--synthetic",
        type=int,
        metavar="WEIGHTS",
        help="instead: a synthetic checkpoint of so many weights, such as 1000000000, of which the peer codes a part",
    )
    arguments = options.parse_args()
    if arguments.rounds < 1:
        options.error("--rounds must be at least 1")
    return arguments


def synthetic(arguments: argparse.Namespace) -> None:
    """The synthetic checkpoint: measure and print."""
    about = _common.environment()
    _common.print_head("Fast: deepcabac beside NNCodec, synthetic weights", (*CAVEATS, SYNTHETIC), about)
    with tempfile.TemporaryDirectory(prefix="deepcabac-speed-") as folder:
        rows = measure_synthetic(Peer(arguments.peer_python, Path(folder)), arguments.synthetic, arguments.rounds)
    _common.print_table(HEADS, [row.cells() for row in rows])
    for row in rows[1:]:
        preset = row.what.split(",")[0]
        met = "met" if row.decode_ratio >= DECODE_BARS[preset] else "NOT met"
        finer = "no larger" if row.relative_error <= rows[0].relative_error else "LARGER"
        print(f"  {preset}, decode {row.decode_ratio:.2f}x, bar {DECODE_BARS[preset]:g}x: {met}; ", end="")
        print(f"{100 * (row.bits / rows[0].bits - 1):+.2f} % bits, error {finer}")
    _common.write_json(arguments.json, about, synthetic=[asdict(row) for row in rows])


def main() -> None:
    """Measure every setting and print it."""
    arguments = parse_arguments()
    if arguments.synthetic:
        synthetic(arguments)
        return
    path = arguments.model or _common.minilm_path()
    tensors = _common.load_matrices(path)
    if not tensors:
        raise SystemExit(f"{path}: has no float32 tensor of two dimensions or more")
    about = _common.environment()
    about["tensors"] = f"{path.name}: {len(tensors)} float32 matrices, {_common.count(tensors):,} weights"
    about["rounds"] = str(arguments.rounds)
    _common.print_head("Fast: deepcabac beside NNCodec", CAVEATS, about)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="deepcabac-speed-") as folder:
        peer = Peer(arguments.peer_python, Path(folder))
        peer.prepare(tensors)
        for setting in arguments.setting or [Setting.parse(BAR_SETTING), Setting.parse(TRELLIS_SETTING)]:
            rows = measure(peer, setting, tensors, arguments.rounds)
            versions = ", ".join(f"{name} {number}" for name, number in rows[0].details["versions"].items())
            print(f"peer: {versions}; {json.dumps(rows[0].details['settings'])}\n")
            _common.print_table(HEADS, [row.cells() for row in rows])
            save(setting, rows, about, arguments.results)
            passed = verdict(setting, rows[0], rows[1:])
            results.append({"setting": str(setting), "verdict": passed, "rows": [asdict(row) for row in rows]})
    _common.write_json(arguments.json, about, speed=results)


if __name__ == "__main__":
    main()
