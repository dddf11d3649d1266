"""Peak resident memory of compressing and decompressing a large safetensors file.

    python bench/memory.py FOLDER [--tensors 16] [--mebibytes 256] [--only default lossless] [--json FILE]

Makes a synthetic checkpoint in a new folder inside FOLDER (16 float32 tensors of 256 MiB and some smaller ones), runs
`deepcabac compress` and `deepcabac decompress` on it with every preset and without loss, each in a process of its own,
and compares what came back. In between it opens the file and decodes one tensor of each size alone: what is read, how
long it takes, how much memory that adds. Deletes everything it made. Needs three times the checkpoint's size on the
disk. Linux only.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import _common
import numpy as np

import deepcabac

BAR = 1e9  # bytes
BLOCK = 1 << 22  # float32 elements: 16 MiB
WIDTH = 8192
SMALL = {"bias": (8192,), "scalar": (), "kernel": (64, 64, 3, 3), "norm": (4096,)}
#: In the middle of the file, once: rows of WIDTH.
MIDDLE = {"mebi": 128, "mebi4": 512, "mebi16": 2048}
CAVEATS = (
    "The checkpoint is synthetic: a block of 16 MiB of Gaussian noise (seed 0), repeated with another scale each time. "
    "Repetition does not help this coder, which has no memory of that reach; real tensors are a little smaller.",
    "Peak: VmHWM of /proc/PID/status, read every 20 ms until the end (it only grows), and ru_maxrss of wait4, which "
    "also counts the moment before exec and so is never below this script's own memory. The larger one counts.",
    "Repetition does help the index: its checksums repeat, too. Of 8,000 chunks it would take 45 kB with others.",
    "Resident memory includes Python, NumPy and the libraries; it does not include the system's file cache.",
    "Seconds are one run, from start to exit of the process, with files on the disk.",
    "Single tensors: in a new process that has coded a small tensor before, so that the libraries are loaded; the best "
    "of three, with the file in the system's cache. Read bytes are those of /proc/self/io: all files, /proc too.",
)
COMMAND = "from deepcabac.cli import main; main()"
SETTINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "fast": ("--preset", "fast"),
    "small": ("--preset", "small"),
    "lossless": ("--lossless",),
}
#: A single tensor is decoded so many times, the shortest time counts; the fit of times is from so many weights on.
LOOKS, FROM = 3, 1 << 20


@dataclass(frozen=True)
class Run:
    """One process."""

    what: str
    seconds: float
    gigabytes_a_second: float  #: of the checkpoint
    peak: int  #: bytes, the larger of the two below
    high_water: int
    ru_maxrss: int


@dataclass(frozen=True)
class Look:
    """Opening a file, or decoding one tensor of it."""

    what: str
    coded_bytes: int  #: of the index, or the tensor, in the file
    weights: int
    seconds: float
    bytes_read: int  #: from all files
    added: int  #: bytes of resident memory, at most, above what was resident before


def shapes(tensors: int, mebibytes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes: the large ones with the small ones between them."""
    rows = (mebibytes << 20) // 4 // WIDTH
    result: dict[str, tuple[int, ...]] = {}
    for number in range(tensors):
        result[f"layers.{number}.weight"] = (rows, WIDTH)
        result |= {f"layers.{number}.{name}": shape for name, shape in SMALL.items()}
        if number == tensors // 2:
            result |= {f"middle.{name}": (size, WIDTH) for name, size in MIDDLE.items()}
    return result


def pieces(size: int, number: int, block: _common.Float32) -> Iterator[_common.Float32]:
    """The values of tensor ``number``, a block at a time."""
    for start in range(0, size, BLOCK):
        scale = np.float32(0.02 * (1 + number % 7) * (1 + start // BLOCK % 5 / 8))
        yield block[: min(BLOCK, size - start)] * scale


def write_checkpoint(file: BinaryIO, layout: dict[str, tuple[int, ...]], block: _common.Float32) -> int:
    """Stream a safetensors file; returns the bytes of its tensors."""
    header, at = {}, 0
    for name, shape in layout.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for number, shape in enumerate(layout.values()):
        for piece in pieces(math.prod(shape), number, block):
            file.write(piece.data)
    return at


def signal_to_noise(path: Path, layout: dict[str, tuple[int, ...]], block: _common.Float32) -> float:
    """The lowest SQNR of a tensor in dB. Raises SystemExit if names or shapes are not those that were written."""
    lowest = math.inf
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for number, (name, shape) in enumerate(layout.items()):
            entry = header.get(name, {})
            if entry.get("dtype") != "F32" or entry.get("shape") != list(shape):
                raise SystemExit(f"{name} came back as {entry}")
            file.seek(8 + length + entry["data_offsets"][0])
            error = energy = 0.0
            for piece in pieces(math.prod(shape), number, block):
                difference = piece - np.frombuffer(file.read(piece.nbytes), np.float32)
                error += float(difference @ difference)
                energy += float(piece @ piece)
            lowest = min(lowest, _common.decibels(error / energy if error else 0.0))
    return lowest


def command(verb: str, source: Path, target: Path, *options: str) -> list[str]:
    """The process to measure."""
    return [sys.executable, "-c", COMMAND, verb, str(source), "-o", str(target), *options]


def run(verb: str, source: Path, target: Path, checkpoint_bytes: int, *options: str) -> Run:
    """Run one command and watch its memory."""
    _common.note(shlex.join([verb, *options]) + " ...")
    took = _common.watch(command(verb, source, target, *options))
    return Run(verb, took.seconds, checkpoint_bytes / took.seconds / 1e9, took.peak, took.high_water, took.ru_maxrss)


def bytes_read() -> int:
    """What this process has asked its files for so far."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def look(path: Path, names: list[str]) -> None:
    """Open a file and decode single tensors, and print what each step took, as JSON. To be run in a new process."""
    deepcabac.decompress(deepcabac.compress({"warm": np.ones((256, 256), np.float32)}))  # what the first call loads
    before, resident = bytes_read(), _common.resident()
    seconds, file = _common.timed(lambda: deepcabac.open_file(path))
    steps = [
        Look("open", file.index_bytes, 0, seconds, bytes_read() - before, _common.resident() - resident),
    ]
    for name in names:
        info = file.info(name)
        best, added, read = math.inf, 0, 0
        for _ in range(LOOKS):
            _common.forget_peak()
            before, resident = bytes_read(), _common.resident()
            seconds, array = _common.timed(lambda name=name: file[name])
            best, read = min(best, seconds), bytes_read() - before
            added = max(added, _common.resident("VmHWM") - resident)
            del array
        steps.append(Look(name, info.coded_bytes, info.size, best, read, added))
    print(json.dumps([asdict(step) for step in steps]))


def looks(path: Path, layout: dict[str, tuple[int, ...]]) -> list[Look]:
    """Open the file in a new process, and decode one tensor of each size in it."""
    by_size = {math.prod(shape): name for name, shape in layout.items()}
    names = [by_size[size] for size in sorted(by_size)]
    code = "import sys, memory; from pathlib import Path; memory.look(Path(sys.argv[1]), sys.argv[2:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), *names],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Look(**step) for step in json.loads(done.stdout)]


def measure(setting: str, model: Path, layout: dict[str, tuple[int, ...]], block: _common.Float32) -> dict[str, Any]:
    """One setting, both ways, and single tensors."""
    small, back = model.with_suffix(".dcb"), model.with_name("back.safetensors")
    size = model.stat().st_size
    runs = [run("compress", model, small, size, *SETTINGS[setting])]
    _common.note("single tensors ...")
    single = looks(small, layout)
    runs.append(run("decompress", small, back, size))
    _common.note("comparing ...")
    lowest = signal_to_noise(back, layout, block)
    if setting == "lossless" and lowest != math.inf:
        raise SystemExit(f"lossless came back at {lowest:.2f} dB")
    back.unlink()
    return {"setting": setting, "bytes": small.stat().st_size, "sqnr": lowest, "runs": runs, "looks": single}


def print_results(results: list[dict[str, Any]]) -> None:
    """Both tables."""
    _common.print_table(
        ["setting", "command", "file, bytes", "least dB", "seconds", "GB/s", "peak, GB", "bar", "met"],
        [
            [
                result["setting"],
                one.what,
                f"{result['bytes']:,}",
                f"{result['sqnr']:.2f}",
                f"{one.seconds:.1f}",
                f"{one.gigabytes_a_second:.3f}",
                f"{one.peak / 1e9:.3f}",
                f"{BAR / 1e9:g}",
                "yes" if one.peak < BAR else "NO",
            ]
            for result in results
            for one in result["runs"]
        ],
    )
    _common.print_table(
        ["setting", "what", "weights", "its bytes", "read, bytes", "ms", "Mw/s", "added memory, MB", "of the tensor's"],
        [
            [
                result["setting"],
                one.what,
                f"{one.weights:,}" if one.weights else "",
                f"{one.coded_bytes:,}",
                f"{one.bytes_read:,}",
                f"{1e3 * one.seconds:.2f}",
                f"{one.weights / one.seconds / 1e6:.1f}" if one.weights else "",
                f"{one.added / 1e6:.2f}",
                f"{one.added / 4 / one.weights:.2f}" if one.weights else "",
            ]
            for result in results
            for one in result["looks"]
        ],
    )
    for result in results:
        large = [one for one in result["looks"] if one.weights >= FROM]
        slope = _common.exponent([one.weights for one in large], [one.seconds for one in large])
        print(f"{result['setting']}: time of f[name] grows as weights^{slope:.3f} from {FROM:,} weights on")
    print()


def save(results: list[dict[str, Any]], about: dict[str, str], wanted: bool) -> None:
    """Peaks of both commands, and what a single tensor takes, for docs/speed.md."""
    peaks = [
        [result["setting"], f"{result['bytes']:,}", *(f"{one.peak / 1e9:.3f}" for one in result["runs"])]
        for result in results
    ]
    heads = ["options", "file, bytes", "compress, GB", "decompress, GB"]
    _common.save_table(wanted, "memory", about, heads, peaks)
    by_setting = {result["setting"]: result["looks"] for result in results}
    if "default" in by_setting and "fast" in by_setting:
        heads = ["weights", "tensor in the file, bytes", "read, bytes", "ms, default", "ms, fast"]
        lines = [
            [
                f"{one.weights:,}",
                f"{one.coded_bytes:,}",
                f"{one.bytes_read:,}",
                f"{1e3 * one.seconds:.2f}",
                f"{1e3 * fast.seconds:.2f}",
                f"{one.added / 4 / one.weights:.2f}",
            ]
            for one, fast in zip(by_setting["default"], by_setting["fast"], strict=True)
            if one.weights >= 8192
        ]
        heads += ["added memory, of the tensor's"]
        _common.save_table(wanted, "memory_lazy", about, heads, lines, keys=0, timed=True)


def main() -> None:
    """Make the checkpoint; compress, decompress and compare at every setting; print."""
    options = _common.parser(__doc__)
    options.add_argument("folder", type=Path, metavar="FOLDER", help="where there is room; nothing is left behind")
    options.add_argument("--tensors", type=int, default=16, metavar="N", help="large tensors (default: %(default)s)")
    options.add_argument("--mebibytes", type=int, default=256, metavar="M", help="of each (default: %(default)s)")
    options.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING")
    arguments = options.parse_args()
    layout = shapes(arguments.tensors, arguments.mebibytes)
    needed = int(3 * 4 * sum(math.prod(shape) for shape in layout.values()))
    free = shutil.disk_usage(arguments.folder).free
    if free < needed:
        raise SystemExit(f"{arguments.folder}: {free / 1e9:.1f} GB are free, {needed / 1e9:.1f} GB are needed")
    about = _common.environment()
    block = np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    with tempfile.TemporaryDirectory(prefix="deepcabac-memory-", dir=arguments.folder) as folder:
        model = Path(folder) / "model.safetensors"
        about["measured"] = shlex.join(["python", *command("VERB", Path("IN"), Path("OUT"))[1:]])
        _common.print_head("Streaming: peak resident memory", CAVEATS, about)
        _common.note("writing the checkpoint ...")
        with model.open("wb") as file:
            checkpoint_bytes = write_checkpoint(file, layout, block)
        results = [measure(setting, model, layout, block) for setting in arguments.only]
    print(f"checkpoint: {checkpoint_bytes:,} bytes in {len(layout)} tensors, the largest {arguments.mebibytes} MiB\n")
    print_results(results)
    save(results, about, arguments.results)
    for result in results:
        for what in ("runs", "looks"):
            result[what] = [asdict(one) for one in result[what]]
    _common.write_json(arguments.json, about, checkpoint_bytes=checkpoint_bytes, results=results)


if __name__ == "__main__":
    main()
