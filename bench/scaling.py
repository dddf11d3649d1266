"""How speed and size follow the number of weights, of threads, of bits per weight, and the size of chunks.

    python bench/scaling.py --json FILE [--part weights threads bits chunks] [--plot FIGURE.png]

Every part is measured in turn, or those that are named; what FILE holds of other parts is kept, so that the machine
need not be quiet for all of them at once. The figure has a panel for each part; `--part none` only draws it.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _common
import numpy as np

import deepcabac
from deepcabac import _core
from deepcabac.dcb import reader
from deepcabac.options import PRESETS

#: Step in standard deviations: about three bits.
STEP = 0.5
SIZES = (10**5, 316_000, 10**6, 3_160_000, 10**7, 31_600_000, 10**8, 10**9)
STEPS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625)
CHUNKS = {preset: tuple(range(13, 23 if preset == "small" else 21)) for preset in PRESETS}
THREADS_BAR, ROUNDS = 1.9, 3
#: Decoding takes little time, most of all for memory that was never used before; so it is done more often.
DECODES = 3
#: Weights of the parts threads and bits; from how many on there is one round, and from how many on times are fitted.
THREADED, SHADED, ONCE, FITTED = 1 << 25, 1 << 23, 10**7, 10**7
CAVEATS = (
    "Weights are independent Gaussian numbers in matrices of 1,024 columns and at most 2^24 elements, but for the part "
    "chunks, which takes MiniLM's matrices at half a standard deviation of each.",
    "The step is given, half a standard deviation unless said otherwise; to search it for an SQNR takes one to three "
    "times as long as coding once. Trellis with every preset.",
    "From arrays to bytes in memory, and from these to arrays, which above 1e8 weights go as they come. Best of "
    "three (threads: five, in turns, in memory that was used before; chunks: two; weights, above 1e7: one), each "
    "decoded three times.",
    "The exponent is the slope of a straight line through log(seconds) against log(weights), from 1e7 weights on: "
    "below, there are too few chunks (of up to 2^20 levels with preset small) for every core and lane.",
)
#: Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
Rows = list[dict[str, Any]]
#: Weights whose arrays are kept while they are decoded.
KEPT = 10**8


def decode(data: bytes, threads: int | None) -> None:
    """As a user would, or tensor by tensor where the arrays take much memory."""
    with reader.open_bytes(data, max_bytes=None, threads=threads) as file:
        few = sum(file.info(name).size for name in file) <= KEPT
        deque(file.items(keep=few), maxlen=None if few else 0)


def measure(model: _common.Tensors, rounds: int = ROUNDS, threads: int | None = None, **options: Any) -> dict[str, Any]:
    """Seconds of encoding and decoding, and bits per weight."""
    encoding = decoding = math.inf
    for _ in range(rounds):
        seconds, data = _common.timed(lambda: deepcabac.compress(model, threads=threads, **options))
        encoding = min(encoding, seconds)
        for _ in range(DECODES):
            seconds, _ = _common.timed(lambda data=data: decode(data, threads))
            decoding = min(decoding, seconds)
    weights = _common.count(model)
    row = {"preset": options["preset"], "threads": threads or _common.cores(), "weights": weights}
    return row | {"bits": 8 * len(data) / weights, "encode": encoding, "decode": decoding}


def weights_part(block: _common.Float32) -> Iterator[dict[str, Any]]:
    """Time against the number of weights."""
    for size in SIZES:
        for preset in PRESETS:
            yield measure(_common.synthetic(size, block), 1 if size > ONCE else ROUNDS, step=STEP, preset=preset)


def keep_memory() -> None:
    """Have the C library give no memory back: to get it anew is work of the kernel's, and its locks."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28), (M_MMAP_MAX, 0)):
            mallopt(option, value)


def threads_part(block: _common.Float32) -> Iterator[dict[str, Any]]:
    """One thread, and as many as there are cores, in turns."""
    keep_memory()
    cores = _common.cores()
    counts = sorted({1, cores} | {2**n for n in range(1, 8) if 2**n < cores})
    for preset in PRESETS:
        rounds = [
            [measure(_common.synthetic(THREADED, block), 1, threads, step=STEP, preset=preset) for threads in counts]
            for _ in range(ROUNDS + 2)
        ]
        for same in zip(*rounds, strict=True):
            yield same[0] | {verb: min(row[verb] for row in same) for verb in ("encode", "decode")}


def bits_part(block: _common.Float32) -> Iterator[dict[str, Any]]:
    """From coarse steps to fine ones."""
    for step in STEPS:
        for preset in PRESETS:
            yield {"step": step} | measure(_common.synthetic(SHADED, block), step=step, preset=preset)


def chunks_part(_: _common.Float32) -> Iterator[dict[str, Any]]:
    """MiniLM with chunks of other sizes than those the encoder chooses, and with those."""
    model = _common.load_matrices(_common.minilm_path())
    overrides = {name: {"step": STEP * float(array.std())} for name, array in model.items()}
    for preset in PRESETS:
        yield {"chunk": 0} | measure(model, 2, overrides=overrides, preset=preset)
        for size in CHUNKS[preset]:
            with chunks_of(1 << size):
                yield {"chunk": 1 << size} | measure(model, 2, overrides=overrides, preset=preset)


@contextmanager
def chunks_of(levels: int) -> Iterator[None]:
    """Let the encoder make chunks of about so many levels."""
    fit = _core.fit

    def other(shape: Any, *arguments: Any, **options: Any) -> bytes:
        params = fit(shape, *arguments, **options)
        width, end = _number(params, 2)
        _, rest = _number(params, end)
        # Even chunks, as the encoder makes them, of whole rows; those of the fast coder of whole strips.
        rows = -(-math.prod(shape) // width)
        rows = -(-rows // max(round(math.prod(shape) / levels), 1))
        if options.get("preset", arguments[-1] if arguments else "") == "fast" and rows * width < math.prod(shape):
            rows = -(-rows // 16) * 16
        most = 1 << (22 if _core.parameters(params).coder == "regression" else 20)
        rows = max(min(rows, most // width), 1)
        return params[:end] + _varint(rows) + params[rest:]

    _core.fit = other
    try:
        yield
    finally:
        _core.fit = fit


def _number(params: bytes, at: int) -> tuple[int, int]:
    """A number of coding parameters (FORMAT.md, 4.8) and where it ends."""
    value = shift = 0
    while True:
        value |= (params[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if params[at - 1] < 128:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


PARTS: dict[str, Callable[[_common.Float32], Iterator[dict[str, Any]]]] = {
    "weights": weights_part,
    "threads": threads_part,
    "bits": bits_part,
    "chunks": chunks_part,
}


def print_part(part: str, rows: Rows) -> None:
    """The table, and what follows from it."""
    about = {"weights": "weights", "threads": "threads", "bits": "step", "chunks": "chunk"}[part]

    def value(row: dict[str, Any]) -> str:
        return "chosen" if row[about] == 0 else f"{row[about]:,}"

    print(f"## {part}\n")
    _common.print_table(
        ["preset", about, "bits/weight", "encode, s", "Mw/s", "decode, s", "Mw/s"],
        [
            [
                row["preset"],
                value(row),
                f"{row['bits']:.4f}",
                *(
                    text
                    for verb in ("encode", "decode")
                    for text in (f"{row[verb]:.4f}", f"{row['weights'] / row[verb] / 1e6:.1f}")
                ),
            ]
            for row in rows
        ],
    )
    for preset in PRESETS:
        mine = [row for row in rows if row["preset"] == preset]
        for verb in ("encode", "decode"):
            if part == "weights":
                fitted = [row for row in mine if row["weights"] >= FITTED * 0.99]
                if len(fitted) < 2:
                    continue
                slope = _common.exponent([row["weights"] for row in fitted], [row[verb] for row in fitted])
                print(f"{preset}, {verb}: seconds grow as weights^{slope:.3f}")
            if part == "threads":
                gain = mine[0][verb] / mine[-1][verb]
                bar = f"bar {THREADS_BAR:g}x: {'met' if gain >= THREADS_BAR else 'NOT met'}"
                print(f"{preset}, {verb}: {mine[-1]['threads']} threads {gain:.2f}x as fast as 1, {bar}")
    print(flush=True)


def _speed(row: dict[str, Any], verb: str) -> str:
    """Million weights per second, to three digits at least."""
    return f"{row['weights'] / row[verb] / 1e6:#.3g}".rstrip(".")


def weights_table(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """For docs/speed.md: the powers of ten."""
    heads = ["preset", "weights", "bits per weight", "encode, s", "Mw/s", "decode, s", "Mw/s"]
    lines = []
    for row in sorted(rows, key=lambda row: row["weights"]):
        power = round(math.log10(row["weights"]))
        if abs(row["weights"] / 10**power - 1) < 0.01:
            times = (text for verb in ("encode", "decode") for text in (f"{row[verb]:.3g}", _speed(row, verb)))
            lines.append([row["preset"], f"1e{power}", f"{row['bits']:.3f}", *times])
    return heads, lines


def threads_table(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """For docs/speed.md: one thread and the most."""
    lines = []
    for preset in PRESETS:
        one, *_, most = (row for row in rows if row["preset"] == preset)
        cells = (
            (f"{one[verb]:.3g}", f"{most[verb]:.3g}", f"{one[verb] / most[verb]:.2f}x") for verb in ("encode", "decode")
        )
        lines.append([preset, *(text for three in cells for text in three)])
    threads = f"{most['threads']} threads, s"
    return ["preset", "encode, 1 thread, s", threads, "speed-up", "decode, 1 thread, s", threads, "speed-up"], lines


def bits_table(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """For docs/speed.md: a line for each step, million weights per second."""
    heads = ["bits", *(f"{preset}, {verb}" for preset in PRESETS for verb in ("encode", "decode"))]
    steps: dict[float, dict[str, dict[str, Any]]] = {}
    for row in rows:
        steps.setdefault(row["step"], {})[row["preset"]] = row
    return heads, [
        [
            f"{found['default']['bits']:.1f}",
            *(_speed(found[preset], verb) for preset in PRESETS for verb in ("encode", "decode")),
        ]
        for found in steps.values()
    ]


def chunks_table(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """For docs/speed.md: a line for each size, in bold what the encoder chooses."""
    heads = [
        "levels in a chunk",
        *(text for preset in PRESETS for text in (f"{preset}, bits", f"{preset}, decode, Mw/s")),
    ]
    sizes: dict[int, dict[str, dict[str, Any]]] = {}
    chosen = {row["preset"]: row["bits"] for row in rows if not row["chunk"]}
    for row in rows:
        if row["chunk"]:
            sizes.setdefault(row["chunk"], {})[row["preset"]] = row
    lines = []
    for size, found in sorted(sizes.items()):
        line = [f"2^{size.bit_length() - 1}"]
        for preset in PRESETS:
            if preset in found:
                mark = "**" if abs(found[preset]["bits"] - chosen[preset]) < 1e-4 else ""
                line += [f"{mark}{found[preset]['bits']:.4f}{mark}", _speed(found[preset], "decode")]
            else:
                line += ["", ""]
        lines.append(line)
    return heads, lines


TABLES = {"weights": weights_table, "threads": threads_table, "bits": bits_table, "chunks": chunks_table}


def draw(results: dict[str, Rows], path: Path) -> None:
    """A panel for each part; encoding dashed, decoding solid."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"font.size": 9, "figure.dpi": 100}
    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    axes = dict(zip(PARTS, panels.flat, strict=True))
    size = axes["chunks"].twinx()
    for number, preset in enumerate(PRESETS):
        mine = {part: [row for row in rows if row["preset"] == preset] for part, rows in results.items()}
        mine["chunks"] = [row for row in mine.get("chunks", []) if row["chunk"]]
        for verb, style in (("encode", "o--"), ("decode", "o-")):
            look = {"color": f"C{number}", "markersize": 3, "label": f"{preset}, {verb}"}

            def speed(part: str, verb: str = verb, mine: dict[str, Rows] = mine) -> list[float]:
                return [row["weights"] / row[verb] / 1e6 for row in mine.get(part, [])]

            rows = mine.get("weights", [])
            axes["weights"].loglog([row["weights"] for row in rows], [row[verb] for row in rows], style, **look)
            axes["threads"].plot([row["threads"] for row in mine.get("threads", [])], speed("threads"), style, **look)
            axes["bits"].semilogy([row["bits"] for row in mine.get("bits", [])], speed("bits"), style, **look)
            if verb == "decode":
                axes["chunks"].semilogx(
                    [row["chunk"] for row in mine["chunks"]], speed("chunks"), style, base=2, **look
                )
        bits = [row["bits"] for row in mine["chunks"]]
        size.plot([row["chunk"] for row in mine["chunks"]], bits, "s:", color=f"C{number}", markersize=3)
    axes["weights"].set(title="linear in the number of weights", xlabel="weights", ylabel="seconds")
    axes["threads"].set(title="threads, 3.4e7 weights", xlabel="threads", ylabel="million weights per second")
    axes["threads"].set_xticks(sorted({row["threads"] for row in results.get("threads", [])}))
    axes["threads"].set_ylim(0)
    axes["bits"].set(title="bits per weight", xlabel="bits per weight", ylabel="million weights per second")
    axes["chunks"].set(title="chunks, MiniLM", xlabel="levels in a chunk", ylabel="million weights per second (solid)")
    size.set_ylabel("bits per weight (dotted)")
    for panel in panels.flat:
        panel.grid(which="major", alpha=0.3)
    axes["weights"].legend(fontsize="small")
    _common.save_figure(figure, path)


def main() -> None:
    """Measure the parts, print all that is known, draw."""
    options = _common.parser(__doc__)
    options.add_argument("--part", nargs="+", choices=[*PARTS, "none"], default=list(PARTS), metavar="PART")
    options.add_argument("--most", type=int, default=SIZES[-1], metavar="N", help="weights (default: %(default)s)")
    options.add_argument("--plot", type=Path, metavar="FIGURE", help="draw to FIGURE.png")
    arguments = options.parse_args()
    about = _common.environment()
    _common.print_head("Scaling", CAVEATS, about)
    results: dict[str, Rows] = {}
    if arguments.json is not None and arguments.json.exists():
        results = json.loads(arguments.json.read_text())["scaling"]
    block = np.random.default_rng(0).standard_normal(_common.MOST + 256, np.float32)
    for part in [part for part in PARTS if part in arguments.part]:
        results[part] = []
        for row in PARTS[part](block):
            if part == "weights" and row["weights"] > arguments.most:
                break
            results[part].append(row)
            _common.note(f"{part}: {json.dumps(row)}")
    for part in PARTS:
        if part in results:
            print_part(part, results[part])
            if part in arguments.part:
                heads, lines = TABLES[part](results[part])
                _common.save_table(arguments.results, f"scaling_{part}", about, heads, lines, keys=0, timed=True)
    _common.write_json(arguments.json, about, scaling=results)
    if arguments.plot is not None:
        draw(results, arguments.plot)


if __name__ == "__main__":
    main()
