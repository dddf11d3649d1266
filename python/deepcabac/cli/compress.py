"""``deepcabac compress``."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import click

from .. import files, folders
from ..nnc import files as nnc_files
from ..nnc.writing import DEFAULT_QP, DEFAULT_VECTOR_QP
from ..options import DEFAULT_QUALITY, DEFAULT_STATES, PRESETS, Options
from . import report
from .cluster import DASK, refuse_for_files, workers
from .nnc import is_nnc, nnc_made, nnc_settings
from .output import logged, print_lines, progress_bar, say, terminal_width
from .parameters import (
    BASE,
    FORCE,
    NNC,
    QUALITY,
    QUIET,
    STANDARD,
    THREADS,
    VERBOSE,
    Command,
    Failure,
    FileType,
    PathType,
    checked,
    examples,
    given,
    option,
    parse_bytes,
    parse_overrides,
    refuse_together,
)
from .places import Outputs, each, is_compressed, measured_options, name_of, naming_paths, reading, writing
from .report import printable

_TARGETS = ("quality", "sqnr", "bits", "size", "step", "lossless")


@click.command(
    cls=Command,
    short_help="Make a small .dcb file from a checkpoint.",
    epilog=examples(
        "deepcabac compress model.safetensors",
        "deepcabac compress model.onnx -o small.dcb --size 4MB",
        "deepcabac compress model.pt --quality 35 --tensor '*.embed*=sqnr:45'",
        "deepcabac compress model.npz --tensor 'head.*=exact'",
        "deepcabac compress model.safetensors --curvature model.curvature --bits 3",
        "deepcabac compress *.safetensors -o small/",
        "deepcabac compress my-model/ -o my-model-small",
        "cat model.npz | deepcabac compress - -o - | ssh host 'cat > model.dcb'",
    ),
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=PathType())
@option(
    "--output",
    "-o",
    type=PathType(),
    metavar="OUT",
    help="File to write, or folder to write to. [default: MODEL's name with .dcb, beside MODEL]",
)
@FORCE
@option(
    "--quality",
    type=float,
    metavar="Q",
    callback=checked,
    help=f"Quality of the network as a whole; 6 more are about one bit per weight. [default: {DEFAULT_QUALITY:g}]",
)
@option("--size", type=parse_bytes, metavar="BYTES", callback=checked, help="Size of the file, e.g. 500kB or 2MiB.")
@option("--bits", type=float, metavar="B", callback=checked, help="Size of the file in bits per weight.")
@option("--lossless", is_flag=True, help="Every tensor comes back bit for bit.")
@option(
    "--preset",
    type=click.Choice(PRESETS),
    default="default",
    show_default=True,
    help="fast: decompresses 2 to 3 times as fast, up to 5 % larger. small: smaller, takes 3 to 6 times as long.",
)
@option(
    "--tensor",
    "overrides",
    multiple=True,
    metavar="PATTERN=SETTING",
    callback=parse_overrides,
    help="Setting for tensors whose name matches (* and ?): exact, sqnr:DB, step:S, or offset:DB from the others. "
    "Repeatable; the last match counts.",
)
@option(
    "--optimizer",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    show_default=True,
    help="Optimizer state in a training checkpoint. keep: exact, to go on training. drop: left out, for shipping.",
)
@option(
    "--step",
    type=float,
    metavar="S",
    callback=checked,
    heading=QUALITY,
    help="Distance between two values of a quantiser, in the weights' own unit.",
)
@option(
    "--sqnr",
    type=float,
    metavar="DB",
    callback=checked,
    heading=QUALITY,
    help="Signal-to-noise ratio in dB, the same for each quantised tensor.",
)
@option(
    "--rate-distortion",
    type=float,
    metavar="X",
    default=1.0,
    show_default=True,
    callback=checked,
    heading=QUALITY,
    help="How much a saved bit is worth, 0 to 100; 0 rounds to the nearest value.",
)
@option(
    "--quantizer",
    type=click.Choice(["trellis", "scalar"]),
    default="trellis",
    show_default=True,
    heading=QUALITY,
    help="trellis: searches for the best sequence of values. scalar: one by one; faster, 3 to 4 % larger.",
)
@option(
    "--states",
    type=click.Choice(["8", "32"]),
    default=str(DEFAULT_STATES),
    show_default=True,
    callback=lambda context, parameter, value: int(value),
    heading=QUALITY,
    help="States of the trellis. More: smaller files, slower compression, same decompression speed.",
)
@option(
    "--curvature",
    type=FileType(),
    metavar="FILE",
    heading=QUALITY,
    help="What deepcabac.torch.calibrate measured on this model: bits go where they matter.",
)
@option(
    "--importance",
    type=FileType(),
    metavar="FILE",
    heading=QUALITY,
    help="A checkpoint with arrays like MODEL's: what the squared error of each weight costs.",
)
@BASE
@option(
    "--format",
    "format_",
    type=click.Choice(["dcb", "nnc", "transformers"]),
    help="Kind of file to write. transformers: a folder that from_pretrained loads after 'import "
    "deepcabac.transformers'. [default: by OUT's suffix, else dcb]",
)
@option(
    "--qp",
    type=int,
    metavar="N",
    default=DEFAULT_QP,
    show_default=True,
    heading=NNC,
    help="Quantisation parameter; 4 more double the step.",
)
@option(
    "--vector-qp",
    type=int,
    metavar="N",
    default=DEFAULT_VECTOR_QP,
    show_default=True,
    heading=NNC,
    help="Likewise, for 1-D tensors.",
)
@DASK
@THREADS
@QUIET
@VERBOSE
def compress(
    models: tuple[Path, ...],
    output: Path | None,
    force: bool,
    curvature: Path | None,
    importance: Path | None,
    format_: str | None,
    base: tuple[Path, ...],
    qp: int,
    vector_qp: int,
    dask: str | None,
    quiet: bool,
    verbose: bool,
    **settings: Any,
) -> None:
    """Make a small .dcb file from each checkpoint MODEL.

    Choose the quality with one of --quality, --size, --bits, --lossless, --sqnr and
    --step. --size and --bits search for the quality that gives this size to within
    1 %. Which tensors get more of it is decided by what is known of networks, or by
    what was measured on this one: --curvature, --importance.

    What is no weight stays exact, bit for bit: integers and bools, vectors below
    16,384 elements (biases, norms), tensors below 128 elements, optimizer state,
    masks, grids and other constants, scales of integer weights, and tensors with
    NaN or infinity. So does what takes no more bytes that way. A note says if a
    tensor could not meet its target.

    MODEL is .safetensors, .npz, .onnx, .gguf, PyTorch's .pt, .pth, .bin, .ckpt or
    .tar, or the index of shards (.safetensors.index.json, .bin.index.json), and is
    not changed. If MODEL is -, it is read from standard input and goes to standard
    output unless -o says otherwise.

    If MODEL is a folder, as models have on the Hugging Face hub, OUT is a folder of
    the same shape in which each file of weights, such as each shard, is a .dcb file
    and all else is copied. [default: MODEL's name with -dcb]
    """
    refuse_together("quiet", ["verbose"], "one prints less, the other more")
    nnc = nnc_settings(settings, qp, vector_qp) if is_nnc(format_, output) else None
    _check_together(models, is_dcb=nnc is None)
    outputs = Outputs(models, output, force)
    with contextlib.ExitStack() as stack:
        stack.enter_context(logged(verbose))
        options = stack.enter_context(measured_options(settings, curvature, importance))

        def one(path: Path) -> None:
            start = time.perf_counter()
            if path.is_dir():
                if nnc is not None or base:
                    raise Failure(f"{path}: is a folder, which {'--format nnc' if nnc else '--base'} does not take")
                with workers(dask) as executor:
                    _compress_folder(path, outputs, format_ or "dcb", options, force, quiet, start, executor)
                return
            refuse_for_files(dask, path)
            if format_ == "transformers":
                raise Failure(f"{path}: is not a folder, which --format transformers needs")
            default = files.default_output(path) if nnc is None else path.with_suffix(nnc_files.SUFFIX)
            read = (curvature, importance, *base)
            if path != STANDARD:  # before its output is looked for, whose name may be the same
                _refuse_compressed(path, str(path))
            target = outputs.of(path, default, *read)
            with writing(target, default.suffix) as made, reading(path, target, *read) as source:
                _refuse_compressed(source.path, source.name)
                with progress_bar("compressing", quiet) as progress:
                    if nnc is not None:
                        threads = settings["threads"]
                        _, coded = nnc_files.make(source.path, made, base, nnc, threads, overwrite=force)
                    else:
                        _, result = files.compress_checkpoint(
                            source.path, made, options=options, base=base or None, overwrite=force, progress=progress
                        )
            seconds = time.perf_counter() - start
            if nnc is not None:
                lines, notes = nnc_made(name_of(target), coded, seconds), coded.notes
            else:
                lines = report.compressed(name_of(target), result, seconds, terminal_width())
                notes = result.notes
            if not quiet:
                print_lines(lines, to_stderr=target == STANDARD)
            for note in notes:
                say(f"note: {printable(note)}")

        each(models, one)


def _compress_folder(
    path: Path,
    outputs: Outputs,
    format_: str,
    options: Options,
    force: bool,
    quiet: bool,
    start: float,
    executor: Executor | None,
) -> None:
    target = outputs.of(path, folders.default_compressed(path))
    if target == STANDARD:
        raise Failure(f"{path}: is a folder, which standard output cannot take: name one to write with -o")
    with naming_paths(path, target), progress_bar("compressing", quiet) as progress:
        result = folders.compress_folder(
            path, target, format=format_, options=options, overwrite=force, executor=executor, progress=progress
        )
    if not quiet:
        print_lines(report.compressed_folder(result, time.perf_counter() - start, terminal_width()))
    for note in result.notes:
        say(f"note: {printable(note)}")


def _refuse_compressed(path: Path, name: str) -> None:
    if is_compressed(path):
        raise Failure(f"{name}: is compressed already", hint="'deepcabac decompress' restores it")


def _check_together(models: tuple[Path, ...], is_dcb: bool) -> None:
    """Raise click.UsageError for options that mean nothing together."""
    for number, name in enumerate(_TARGETS):
        refuse_together(name, _TARGETS[number + 1 :], "each fixes the quality")
    nothing = "when every tensor is exact, nothing is quantised"
    quantised = ("overrides", "rate_distortion", "quantizer", "states", "curvature", "importance")
    refuse_together("lossless", quantised, nothing)
    refuse_together("curvature", ["step"], "by curvature, every tensor gets its own step")
    refuse_together("curvature", ["importance"], "each says which errors matter")
    refuse_together("curvature", ["base"], "what a difference does was not measured")
    context = click.get_current_context()
    if given("states") and context.params["quantizer"] == "scalar":
        raise click.UsageError("leave --states out: --quantizer scalar has no trellis")
    if given("states") and context.params["preset"] == "small":
        raise click.UsageError("leave --states out: --preset small always takes 64")
    if len(models) > 1 and (given("curvature") or given("importance")):
        name = "curvature" if given("curvature") else "importance"
        raise click.UsageError(f"--{name} was measured on one model: give one MODEL")
    if not is_dcb and given("optimizer"):
        raise click.UsageError("--optimizer is for .dcb files: leave it out, or compress the model's checkpoint alone")
    if is_dcb and (given("qp") or given("vector_qp")):
        raise click.UsageError("--qp and --vector-qp are for .nnc files: add --format nnc, or choose --quality instead")
