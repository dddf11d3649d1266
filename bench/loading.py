"""From bytes to a model: load_model next to safetensors, and the link speed from which on our file arrives later.

    python bench/loading.py [--model FILE.safetensors] [--plot FIGURE.png] [--rounds 3] [--json FILE]

Takes MiniLM, and a larger synthetic checkpoint as float32 and as bfloat16, at about 3 bits per weight. Each is loaded
into parameters that have memory but no values yet, in a new process for every load: by `deepcabac.torch.load_model`
from levels fast and default, and by safetensors. Time until the model is there is download and loading together.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import load_model as load_safetensors

import deepcabac.torch

#: About three bits per weight.
SQNR = 17.5
SIDE, LAYERS = 4096, 8
LINKS = {"100 Mbit/s": 1e8 / 8, "1 Gbit/s": 1e9 / 8}
CAVEATS = (
    "The file is in the system's cache when loading begins, as if it had just come; so time until the model is there "
    "is bytes / link + loading. Nobody decodes while the file still comes, though that could be done.",
    "safetensors copies into the parameters (load_model), or gives them the mapped file's pages (assign), which are "
    "then read once so that they are there; the faster one is 'raw'. Best of all rounds, each in a new process.",
    "Added memory is the peak of what is resident during the load, above what was before, over the bytes of the "
    "parameters, which have no pages before; mapped files count.",
    "Synthetic: 8 matrices of 4,096 x 4,096 Gaussian numbers. A link's speed is that of bytes, without its overhead.",
)


class Empty(torch.nn.Module):
    """Parameters of given names, shapes and types, without values, nested as their names say."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                piece = file.get_slice(name)
                tensor = torch.empty(piece.get_shape(), dtype=file.get_tensor(name).dtype)
                *folders, last = name.split(".")
                module: torch.nn.Module = self
                for folder in folders:
                    if folder not in module._modules:
                        module.add_module(folder, torch.nn.Module())
                    module = module._modules[folder]  # type: ignore[assignment]
                if tensor.is_floating_point():
                    module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
                else:
                    module.register_buffer(last, tensor)


def assign(model: torch.nn.Module, path: Path) -> None:
    """Parameters become the mapped file's pages, each page read once."""
    model.load_state_dict(load_file(path), assign=True)
    for tensor in model.state_dict().values():
        tensor.reshape(-1).view(torch.uint8)[::4096].sum()


LOADERS: dict[str, Callable[[torch.nn.Module, Path], Any]] = {
    "copy": lambda model, path: load_safetensors(model, path),
    "assign": assign,
    "deepcabac": lambda model, path: deepcabac.torch.load_model(path, model),
}


def load(loader: str, like: str, path: str) -> None:
    """One load in this process; prints seconds and memory as JSON. ``like`` is the checkpoint with the same shapes."""
    small = torch.nn.Linear(300, 300)  # what the first call loads
    with tempfile.TemporaryDirectory() as folder:
        deepcabac.torch.save_model(small, Path(folder) / "small.dcb")
        deepcabac.torch.load_model(Path(folder) / "small.dcb", small)
        save_file(small.state_dict(), Path(folder) / "small.safetensors")
        load_safetensors(small, Path(folder) / "small.safetensors")
    model = Empty(Path(like))
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    _common.forget_peak()
    before = _common.resident()
    seconds, _ = _common.timed(lambda: LOADERS[loader](model, Path(path)))
    print(json.dumps({"seconds": seconds, "added": (_common.resident("VmHWM") - before) / size}))


def measure(name: str, raw: Path, rounds: int) -> dict[str, Any]:
    """All ways to load one checkpoint."""
    files = {"copy": raw, "assign": raw}
    for level in ("fast", "default"):
        _common.note(f"{name}: compressing, {level} ...")
        files[level] = raw.with_name(f"{raw.stem}-{level}.dcb")
        options = deepcabac.Options(sqnr=SQNR, preset=level)
        deepcabac.compress_checkpoint(raw, files[level], options=options, overwrite=True)
    ways: dict[str, Any] = {}
    for _ in range(rounds):
        for way, path in files.items():
            code = "import sys, loading; loading.load(*sys.argv[1:])"
            loader = way if way in LOADERS else "deepcabac"
            command = [sys.executable, "-c", code, loader, str(raw), str(path)]
            done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}, {way}: {done.stderr[-2000:]}")
            result = json.loads(done.stdout.splitlines()[-1])
            one = ways.setdefault(way, {"bytes": path.stat().st_size, "seconds": math.inf, "added": 0.0})
            one["seconds"] = min(one["seconds"], result["seconds"])
            one["added"] = max(one["added"], result["added"])
    fastest = min(ways["copy"]["seconds"], ways["assign"]["seconds"])
    for level in ("fast", "default"):
        saved, later = ways["copy"]["bytes"] - ways[level]["bytes"], ways[level]["seconds"] - fastest
        ways[level]["break_even"] = saved / later if later > 0 else math.inf
    with safe_open(raw, "pt") as file:
        weights = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return {"name": name, "weights": weights, "ways": ways}


def print_results(results: list[dict[str, Any]], about: dict[str, str], save: bool) -> None:
    """The table, and the link speeds from which on raw is sooner."""
    heads = ["model", "file", "bytes", "bits", "load, s", "added memory", *(f"at {name}, s" for name in LINKS)]
    raw = {"copy": "safetensors, copied", "assign": "safetensors, mapped"}
    lines = [
        [
            result["name"],
            raw.get(way, way),
            f"{one['bytes']:,}",
            f"{8 * one['bytes'] / result['weights']:.2f}",
            f"{one['seconds']:.3f}",
            f"{one['added']:.2f}x",
            *(f"{one['bytes'] / link + one['seconds']:.2f}" for link in LINKS.values()),
        ]
        for result in results
        for way, one in result["ways"].items()
    ]
    _common.print_table(heads, lines)
    _common.save_table(save, "loading", about, heads, lines, timed=True)
    for result in results:
        for level in ("fast", "default"):
            speed = result["ways"][level]["break_even"] * 8 / 1e9
            print(f"{result['name']}, {level}: our file is there later than the raw one from {speed:.2f} Gbit/s on")
    print()


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Seconds until the model is loaded against link speed, a panel for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"font.size": 9, "figure.dpi": 100}
    figure, panels = pyplot.subplots(
        1, len(results), figsize=(4 * len(results), 3.6), layout="constrained", squeeze=False
    )
    links = np.geomspace(1e7, 1e11, 25)
    for result, panel in zip(results, panels.flat, strict=True):
        ways = result["ways"]
        raw = min(ways["copy"]["seconds"], ways["assign"]["seconds"])
        for number, (label, size, seconds) in enumerate(
            [("raw", ways["copy"]["bytes"], raw)]
            + [(f"ours, {level}", ways[level]["bytes"], ways[level]["seconds"]) for level in ("fast", "default")]
        ):
            panel.loglog(links, 8 * size / links + seconds, color=f"C{number}", label=label)
            if label != "raw":
                even = 8 * ways[label.removeprefix("ours, ")]["break_even"]
                if math.isfinite(even):
                    panel.axvline(even, color=f"C{number}", linewidth=0.8, linestyle=":")
        panel.set(title=result["name"], xlabel="link, bit/s", ylabel="seconds until the model is loaded")
        panel.grid(which="major", alpha=0.3)
        panel.legend(fontsize="small")
    _common.save_figure(figure, path)


def synthetic(folder: Path) -> dict[str, Path]:
    """The larger checkpoints."""
    random = np.random.default_rng(0)
    tensors = {
        f"layers.{number}.weight": torch.from_numpy(random.standard_normal((SIDE, SIDE), np.float32) * np.float32(0.02))
        for number in range(LAYERS)
    }
    files = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        files[f"synthetic, {name}"] = folder / f"synthetic-{name}.safetensors"
        save_file({key: tensor.to(dtype) for key, tensor in tensors.items()}, files[f"synthetic, {name}"])
    return files


def main() -> None:
    """Measure, print, draw."""
    options = _common.parser(__doc__)
    options.add_argument("--model", type=Path, metavar="FILE", help="load this one alone (default: MiniLM, synthetic)")
    options.add_argument("--rounds", type=int, default=3, metavar="N", help="best of N (default: %(default)s)")
    options.add_argument("--plot", type=Path, metavar="FIGURE", help="draw to FIGURE.png")
    arguments = options.parse_args()
    about = _common.environment(("numpy", "torch", "safetensors"))
    _common.print_head("Loading: from bytes to a model", CAVEATS, about)
    with tempfile.TemporaryDirectory(prefix="deepcabac-loading-") as folder:
        source = arguments.model or _common.minilm_path()
        raw = Path(folder) / "model.safetensors"
        raw.write_bytes(source.read_bytes())
        models = {arguments.model.stem if arguments.model else "MiniLM": raw}
        if arguments.model is None:
            models |= synthetic(Path(folder))
        results = [measure(name, path, arguments.rounds) for name, path in models.items()]
    print_results(results, about, arguments.results)
    _common.write_json(arguments.json, about, loading=results)
    if arguments.plot is not None:
        draw(results, arguments.plot)


if __name__ == "__main__":
    main()
