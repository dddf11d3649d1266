"""Peak resident memory of compressing and decompressing a large safetensors file.

    python bench/memory.py FOLDER [--tensors 16] [--mebibytes 256] [--json FILE]

Makes a synthetic checkpoint in a new folder inside FOLDER (16 float32 tensors of 256 MiB and some small ones), runs
`deepcabac compress` and `deepcabac decompress` on it, each in a process of its own, compares what came back, and
deletes everything it made. Needs about 2.3 times the checkpoint's size on the disk. Linux only.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import _common
import numpy as np

BAR = 1.2e9  # bytes
BLOCK = 1 << 22  # float32 elements: 16 MiB
WIDTH = 8192
SMALL = {"bias": (8192,), "scalar": (), "kernel": (64, 64, 3, 3), "norm": (4096,)}
CAVEATS = (
    "The checkpoint is synthetic: a block of 16 MiB of Gaussian noise (seed 0), repeated with another scale each time. "
    "Repetition does not help this coder, which has no memory of that reach; real tensors are a little smaller.",
    "Peak: VmHWM of /proc/PID/status, read every 20 ms until the end (it only grows), and ru_maxrss of wait4, which "
    "also counts the moment before exec and so is never below this script's own memory. The larger one counts.",
    "Resident memory includes Python, NumPy and the libraries; it does not include the system's file cache.",
    "Seconds are one run, from start to exit of the process, with files on the disk.",
)
#: What a child runs where the package has a command line, and where it does not.
COMMAND = "from deepcabac.cli import main; main()"
FUNCTION = (
    "import sys, deepcabac; (_, verb, source, _, target) = sys.argv; "
    "dict(compress=deepcabac.compress_checkpoint, decompress=deepcabac.decompress_checkpoint)[verb](source, target)"
)


@dataclass(frozen=True)
class Run:
    """One process."""

    what: str
    seconds: float
    gigabytes_a_second: float  #: of the checkpoint
    peak: int  #: bytes, the larger of the two below
    high_water: int
    ru_maxrss: int


def shapes(tensors: int, mebibytes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes: the large ones with the small ones between them."""
    rows = (mebibytes << 20) // 4 // WIDTH
    result: dict[str, tuple[int, ...]] = {}
    for number in range(tensors):
        result[f"layers.{number}.weight"] = (rows, WIDTH)
        result |= {f"layers.{number}.{name}": shape for name, shape in SMALL.items()}
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
            lowest = min(lowest, _common.decibels(error / energy))
    return lowest


def command(verb: str, source: Path, target: Path) -> list[str]:
    """The process to measure."""
    code = COMMAND if importlib.util.find_spec("deepcabac.cli") else FUNCTION
    return [sys.executable, "-c", code, verb, str(source), "-o", str(target)]


def run(verb: str, source: Path, target: Path, checkpoint_bytes: int, *options: str) -> Run:
    """Run one command and watch its memory."""
    _common.note(f"{verb} ...")
    start = time.perf_counter()
    process = subprocess.Popen([*command(verb, source, target), *options], stdout=subprocess.DEVNULL)
    high_water = 0
    while True:
        high_water = max(high_water, resident_peak(process.pid))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{verb} failed with exit code {process.returncode}")
    ru_maxrss = usage.ru_maxrss * 1024
    return Run(verb, seconds, checkpoint_bytes / seconds / 1e9, max(high_water, ru_maxrss), high_water, ru_maxrss)


def resident_peak(pid: int) -> int:
    """VmHWM in bytes; 0 once the process has given its memory back."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Make the checkpoint, compress, decompress, compare, print."""
    options = _common.parser(__doc__)
    options.add_argument("folder", type=Path, metavar="FOLDER", help="where there is room; nothing is left behind")
    options.add_argument("--tensors", type=int, default=16, metavar="N", help="large tensors (default: %(default)s)")
    options.add_argument("--mebibytes", type=int, default=256, metavar="M", help="of each (default: %(default)s)")
    arguments = options.parse_args()
    layout = shapes(arguments.tensors, arguments.mebibytes)
    needed = int(2.3 * 4 * sum(math.prod(shape) for shape in layout.values()))
    free = shutil.disk_usage(arguments.folder).free
    if free < needed:
        raise SystemExit(f"{arguments.folder}: {free / 1e9:.1f} GB are free, {needed / 1e9:.1f} GB are needed")
    about = _common.environment()
    block = np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    with tempfile.TemporaryDirectory(prefix="deepcabac-memory-", dir=arguments.folder) as folder:
        model, small, back = (Path(folder) / name for name in ("model.safetensors", "model.dcb", "back.safetensors"))
        about["measured"] = shlex.join(["python", *command("VERB", Path("IN"), Path("OUT"))[1:]])
        _common.print_head("Streaming: peak resident memory", CAVEATS, about)
        _common.note("writing the checkpoint ...")
        with model.open("wb") as file:
            checkpoint_bytes = write_checkpoint(file, layout, block)
        runs = [run("compress", model, small, checkpoint_bytes), run("decompress", small, back, checkpoint_bytes)]
        sizes = {path.name: path.stat().st_size for path in (model, small, back)}
        _common.note("comparing ...")
        lowest = signal_to_noise(back, layout, block)
    print(f"checkpoint: {checkpoint_bytes:,} bytes in {len(layout)} tensors, the largest {arguments.mebibytes} MiB")
    print(f".dcb file:  {sizes[small.name]:,} bytes; every tensor came back at {lowest:.2f} dB or better\n")
    _common.print_table(
        ["command", "seconds", "GB/s", "peak, GB", "VmHWM, GB", "ru_maxrss, GB", "bar, GB", "met"],
        [
            [
                one.what,
                f"{one.seconds:.1f}",
                f"{one.gigabytes_a_second:.3f}",
                *(f"{value / 1e9:.3f}" for value in (one.peak, one.high_water, one.ru_maxrss)),
                f"{BAR / 1e9:g}",
                "yes" if one.peak < BAR else "NO",
            ]
            for one in runs
        ],
    )
    _common.write_json(arguments.json, about, sizes=sizes, sqnr=lowest, runs=[asdict(one) for one in runs])


if __name__ == "__main__":
    main()
