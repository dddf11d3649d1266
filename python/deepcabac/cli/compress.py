"""``deepcabac compress``."""

from __future__ import annotations

import contextlib
import fnmatch
import time
from pathlib import Path
from typing import Any

import click

from .. import files
from ..nnc import files as nnc_files
from ..nnc.writing import Settings
from ..options import DEFAULT_DEPTHWISE, DEFAULT_SQNR, DEFAULT_STATES, PRESETS
from . import nnc as nnc_options
from . import report
from .output import print_lines, progress_bar, say, terminal_width
from .parameters import (
    BASE,
    OUTPUT,
    QUIET,
    THREADS,
    checked,
    examples,
    keep_apart,
    measured_options,
    naming_paths,
    parse_bytes,
    parse_overrides,
    parse_path,
)
from .report import printable


@click.command(
    short_help="Make a small .dcb file from a checkpoint.",
    epilog=examples(
        "deepcabac compress model.safetensors",
        "deepcabac compress model.onnx -o small.dcb --size 4MB",
        "deepcabac compress model.pt --sqnr 35 --tensor '*.embed*=sqnr:45'",
        "deepcabac compress model.npz --tensor 'head.*=exact'",
        "deepcabac compress model.safetensors --curvature model.curvature --bits 3",
    ),
)
@click.argument("model", type=parse_path)
@OUTPUT
@click.option(
    "--sqnr",
    type=float,
    metavar="DB",
    callback=checked,
    help=f"Signal-to-noise ratio of each quantised tensor in dB; more is better, larger. [default: {DEFAULT_SQNR:g}]",
)
@click.option("--bits", type=float, metavar="B", callback=checked, help="Size of the file in bits a weight.")
@click.option(
    "--size", type=parse_bytes, metavar="BYTES", callback=checked, help="Size of the file, such as 500kB or 2MiB."
)
@click.option(
    "--step",
    type=float,
    metavar="S",
    callback=checked,
    help="Distance of two values of a quantiser, in the weights' unit.",
)
@click.option(
    "--tensor",
    "overrides",
    multiple=True,
    metavar="PATTERN=SETTING",
    callback=parse_overrides,
    help="For tensors whose name matches (* and ?): exact, sqnr:DB, step:S, or offset:DB from the others. Can be "
    "repeated; the last match counts.",
)
@click.option(
    "--depthwise",
    type=float,
    metavar="DB",
    default=DEFAULT_DEPTHWISE,
    show_default=True,
    callback=checked,
    help="What depthwise convolution kernels get above the common SQNR: they are small and fragile.",
)
@click.option(
    "--rate-distortion",
    type=float,
    metavar="X",
    default=1.0,
    show_default=True,
    callback=checked,
    help="How much a saved bit is worth, 0 to 100; 0 rounds to the nearest value.",
)
@click.option(
    "--quantizer",
    type=click.Choice(["trellis", "scalar"]),
    default="trellis",
    show_default=True,
    help="trellis: levels are searched together. scalar: one by one: faster, 3 to 6 % larger.",
)
@click.option(
    "--states",
    type=int,
    metavar="N",
    default=DEFAULT_STATES,
    show_default=True,
    callback=checked,
    help="Of the trellis: 8, 16, 32 or 64. More are smaller and slower to compress, but not to decompress.",
)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="default",
    show_default=True,
    help="fast: decompresses several times faster, 1 to 3 % larger. small: 1 to 7 % smaller (matrices), slower.",
)
@click.option(
    "--curvature",
    type=parse_path,
    metavar="FILE",
    help="What deepcabac.torch.calibrate measured on this model: bits go where they matter.",
)
@click.option(
    "--importance",
    type=parse_path,
    metavar="FILE",
    help="A checkpoint of arrays like MODEL's: what the squared error of each weight costs.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["dcb", "nnc"]),
    help="nnc: ISO/IEC 15938-17. [default: by OUT's suffix, else dcb]",
)
@BASE
@nnc_options.options
@click.option("--lossless", is_flag=True, help="Every tensor comes back bit for bit.")
@THREADS
@QUIET
def compress(
    model: Path,
    output: Path | None,
    curvature: Path | None,
    importance: Path | None,
    format_: str | None,
    base: tuple[Path, ...],
    nnc: dict[str, Any],
    quiet: bool,
    **settings: Any,
) -> None:
    """Make a small .dcb file from the checkpoint MODEL.

    Choose the quality by one of --sqnr, --bits, --size and --step. With --bits or
    --size the SQNR that gives this size, to 1 %, is searched. With --curvature the
    SQNR is an average, each tensor weighted by how much it matters; with
    --importance each weight is.

    Stored exactly, bit for bit: integers and bools, scalars, 1-D tensors below
    16,384 elements (biases, norms), tensors with NaN or infinity, and what --tensor
    asks for. A note says if a tensor could not meet its target.

    MODEL is .safetensors, .safetensors.index.json (sharded), .npz, .pt, .pth, .bin
    or .onnx, and is not changed.
    """
    if nnc_options.wanted(format_, output, nnc):
        chosen = nnc_options.settings(nnc, settings | {"curvature": curvature})
        _compress_nnc(model, output, base, chosen, settings["threads"], quiet)
        return
    names = ("sqnr", "bits", "size", "step", "lossless")
    targets = [name for name in names if settings[name] not in (None, False)]
    if len(targets) > 1:
        raise click.UsageError(f"choose one of --{' and --'.join(targets)}: each fixes the quality")
    if curvature is not None and settings["step"] is not None:
        raise click.UsageError("choose one of --curvature and --step: by curvature, every tensor gets its own step")
    if curvature is not None and (base or settings["lossless"]):
        raise click.UsageError(f"choose one of --curvature and --{'base' if base else 'lossless'}")
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(measured_options(settings, curvature, importance))
        stack.enter_context(naming_paths(model, output, curvature, importance, *base))
        progress = stack.enter_context(progress_bar("compressing", quiet))
        for read in (model, curvature, importance, *base):
            if read is not None:
                keep_apart(read, output)
        path, result = files.compress_checkpoint(model, output, options=options, base=base or None, progress=progress)
    if not quiet:
        print_lines(report.compressed(path, result, time.perf_counter() - start, terminal_width()))
    notes = list(result.notes)
    for pattern in options.overrides:
        if not any(fnmatch.fnmatchcase(tensor.name, pattern) for tensor in result.tensors):
            notes.append(f"no tensor's name matches --tensor {pattern!r}")
    for note in notes:
        say(f"note: {printable(note)}")


def _compress_nnc(
    model: Path, output: Path | None, base: tuple[Path, ...], settings: Settings, threads: int | None, quiet: bool
) -> None:
    start = time.perf_counter()
    with naming_paths(model, output, *base):
        for read in (model, *base):
            keep_apart(read, output)
        path, result = nnc_files.make(model, output, base, settings, threads)
    if not quiet:
        print_lines(nnc_options.made(path, result, time.perf_counter() - start))
    for note in result.notes:
        say(f"note: {printable(note)}")
