"""The command line: ``deepcabac compress``, ``decompress``, ``inspect``, ``verify`` and ``search``.

Results go to stdout, progress and notes to stderr. What the user can mend is one line, ``error: ...``. Exit codes: 0;
1 for a damaged file; 2 for anything else that went wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from . import files, plotting, report
from ._core import LEVELS
from .atomic import reason
from .checkpoint import kind_of_path, open_checkpoint
from .compressor import Progress
from .curvature import Curvature
from .errors import CheckpointError, DamagedFileError, DeepCabacError, OptionError, UnsupportedError
from .nnc import command as nnc_command
from .nnc import paths as nnc_paths
from .nnc.writing import Settings
from .options import DEFAULT_DEPTHWISE, DEFAULT_SQNR, DEFAULT_STATES, Options
from .report import plural, printable
from .search import EVALUATIONS, METHODS
from .search import Progress as Searching
from .search import search as find
from .trials import Reference

DAMAGED, USAGE, INTERRUPTED, TERMINATED, BROKEN_PIPE = 1, 2, 130, 143, 141


class _Failure(Exception):
    """The end of a command: one line and an exit code."""

    def __init__(self, message: str, exit_code: int = USAGE, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.exit_code = exit_code


class _Program(click.Group):
    """Ends every command with the exit codes and the one-line errors described above."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command line; see :class:`click.Command`. Raises SystemExit."""
        extra["standalone_mode"] = False
        try:
            sys.exit(super().main(*args, **extra))
        except click.Abort:
            _interrupted()
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "deepcabac"
            message = " ".join(error.format_message().split()).rstrip(".")
            failure = _Failure(message[:1].lower() + message[1:], error.exit_code, f"'{command} --help' says more")
        except _Failure as error:
            failure = error
        _say(f"error: {printable(failure)}")
        sys.exit(failure.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, its errors turned into what :meth:`main` shows."""
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            _interrupted()
        except DamagedFileError as error:
            raise _Failure(str(error), DAMAGED) from error
        except DeepCabacError as error:
            raise _Failure(str(error)) from error
        except MemoryError as error:
            raise _Failure("out of memory") from error
        except OSError as error:  # of stdout: those of files were given their names below
            _discard_stdout()
            if error.errno == errno.EPIPE:
                sys.exit(BROKEN_PIPE)
            raise _Failure(f"the output cannot be written: {reason(error)}") from error


def main() -> NoReturn:
    """The program ``deepcabac``."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks is no error
    # As Ctrl-C does, let what is being written remove its temporary file.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    program.main(prog_name="deepcabac")


_UNITS: dict[str, int] = {"": 1, "b": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("", 1000), ("b", 1000), ("ib", 1024))
}


def _bytes(text: str) -> int:
    """A number of bytes, plain or with a suffix: ``1.5MB`` to 1500000."""
    match = re.fullmatch(r"([0-9][0-9_,]{0,24}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}) ?([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise click.BadParameter(f"{text!r} is not a number of bytes such as 500000, 500kB, 1.5MB or 64MiB")
    digits = match[1].replace(",", "").replace("_", "")
    unit = _UNITS[match[2]]
    return round(float(digits) * unit) if "." in digits else int(digits) * unit


def _checked(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """A value that :class:`Options` accepts for the setting of this name."""
    if value is not None:
        try:
            Options(**{str(parameter.name): value})
        except OptionError as error:
            raise click.BadParameter(str(error), context, parameter) from error
    return value


def _overrides(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, dict[str, Any]]:
    """From ``PATTERN=SETTING`` ... to :attr:`Options.overrides`."""
    overrides: dict[str, dict[str, Any]] = {}
    for value in values:
        pattern, equals, setting = value.rpartition("=")
        kind, colon, number = setting.partition(":")
        try:
            known = kind in ("exact", "sqnr", "step", "offset")
            if not (equals and pattern and known) or (kind == "exact") == bool(colon):
                raise ValueError
            settings = {kind: True if kind == "exact" else float(number)}
        except ValueError:
            forms = "'PATTERN=exact', 'PATTERN=sqnr:40', 'PATTERN=step:0.01' or 'PATTERN=offset:-3'"
            raise click.BadParameter(f"{value!r} is not like {forms}", context, parameter) from None
        overrides.pop(pattern, None)  # the last one wins, also by its place
        overrides[pattern] = settings
    _checked(context, parameter, overrides)
    return overrides


def _examples(*lines: str) -> str:
    """An epilog that click does not wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _path(text: str) -> Path:
    """The path of a file, whether it exists or not."""
    path = Path(text)
    if not path.name or "\0" in text:
        raise click.BadParameter(f"{text!r} is not the name of a file")
    return path


_THREADS = click.option(
    "--threads", type=int, metavar="N", callback=_checked, help="Number of threads. [default: one a core]"
)
_BASE = click.option(
    "--base",
    multiple=True,
    type=_path,
    metavar="FILE",
    help="The older version that this is an update of (a checkpoint, .dcb or .nnc file). Repeated for a chain, oldest "
    "first.",
)
_QUIET = click.option("--quiet", "-q", is_flag=True, help="Print nothing but notes and errors.")


@click.group(
    cls=_Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog=_examples(
        "deepcabac compress model.safetensors      writes model.dcb",
        "deepcabac inspect model.dcb               shows where the bytes go",
        "deepcabac decompress model.dcb -o restored.safetensors",
    ),
)
@click.version_option(package_name="deepcabac", prog_name="deepcabac", message="%(prog)s %(version)s")
@click.pass_context
def program(context: click.Context) -> None:
    """Make trained neural networks small.

    Weights are quantised to a quality of your choice and packed by a
    context-adaptive arithmetic coder. No data and no GPU are needed. Reads and
    writes .safetensors (also sharded), .npz, .pt, .pth and .onnx.

    'deepcabac COMMAND --help' says more. Exit codes: 0 done, 1 the file is
    damaged, 2 anything else that went wrong.
    """
    if context.invoked_subcommand is None:
        _say(context.get_help())
        context.exit(USAGE)


@program.command(
    short_help="Make a small .dcb file from a checkpoint.",
    epilog=_examples(
        "deepcabac compress model.safetensors",
        "deepcabac compress model.onnx -o small.dcb --size 4MB",
        "deepcabac compress model.pt --sqnr 35 --tensor '*.embed*=sqnr:45'",
        "deepcabac compress model.npz --tensor 'head.*=exact'",
        "deepcabac compress model.safetensors --curvature model.curvature --bits 3",
        "deepcabac compress model.safetensors --sigma sigma.npz --S 64 --lambda 0.01",
    ),
)
@click.argument("model", type=_path)
@click.option("--output", "-o", type=_path, metavar="OUT.dcb", help="File to write. [default: MODEL's name with .dcb]")
@click.option(
    "--sqnr",
    type=float,
    metavar="DB",
    callback=_checked,
    help=f"Signal-to-noise ratio of each quantised tensor in dB; more is better, larger. [default: {DEFAULT_SQNR:g}]",
)
@click.option("--bits", type=float, metavar="B", callback=_checked, help="Size of the file in bits a weight.")
@click.option(
    "--size", type=_bytes, metavar="BYTES", callback=_checked, help="Size of the file, such as 500kB or 2MiB."
)
@click.option(
    "--step",
    type=float,
    metavar="S",
    callback=_checked,
    help="Distance of two values of a quantiser, in the weights' unit.",
)
@click.option(
    "--tensor",
    "overrides",
    multiple=True,
    metavar="PATTERN=SETTING",
    callback=_overrides,
    help="For tensors whose name matches (* and ?): exact, sqnr:DB, step:S, or offset:DB from the others. Can be "
    "repeated; the last match counts.",
)
@click.option(
    "--depthwise",
    type=float,
    metavar="DB",
    default=DEFAULT_DEPTHWISE,
    show_default=True,
    callback=_checked,
    help="What depthwise convolution kernels get above the common SQNR: they are small and fragile.",
)
@click.option(
    "--rate-distortion",
    type=float,
    metavar="X",
    default=1.0,
    show_default=True,
    callback=_checked,
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
    callback=_checked,
    help="Of the trellis: 8, 16, 32 or 64. More are smaller and slower to compress, but not to decompress.",
)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="default",
    show_default=True,
    help="fast: decompresses several times faster, 1 to 3 % larger. small: slower to compress, up to 1 % smaller.",
)
@click.option(
    "--curvature",
    type=_path,
    metavar="FILE",
    help="What deepcabac.torch.calibrate measured on this model: bits go where they matter.",
)
@click.option(
    "--importance",
    type=_path,
    metavar="FILE",
    help="A checkpoint of arrays like MODEL's: what the squared error of each weight costs.",
)
@click.option("--sigma", type=_path, metavar="FILE", help="Likewise the standard deviation of each weight: DC-v1.")
@click.option(
    "--S",
    "S",
    type=float,
    metavar="N",
    help="With --sigma and --lambda: steps by DC-v1's rule, 2m / (ceil(2m / min(sigma)) + N).",
)
@click.option(
    "--lambda",
    "lambda_",
    type=float,
    metavar="X",
    help="With --sigma and --S or --step: price of a bit, in squared halves of sigma.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["dcb", "nnc"]),
    help="nnc: ISO/IEC 15938-17. [default: by OUT's suffix, else dcb]",
)
@_BASE
@nnc_command.options
@click.option("--lossless", is_flag=True, help="Every tensor comes back bit for bit.")
@_THREADS
@_QUIET
def compress(
    model: Path,
    output: Path | None,
    curvature: Path | None,
    importance: Path | None,
    sigma: Path | None,
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
    --importance or --sigma each weight is.

    Stored exactly, bit for bit: integers and bools, scalars, 1-D tensors below
    16,384 elements (biases, norms), tensors with NaN or infinity, and what --tensor
    asks for. A note says if a tensor could not meet its target.

    MODEL is .safetensors, .safetensors.index.json (sharded), .npz, .pt, .pth, .bin
    or .onnx, and is not changed.
    """
    if nnc_command.wanted(format_, output, nnc):
        chosen = nnc_command.settings(nnc, settings | {"curvature": curvature})
        _compress_nnc(model, output, base, chosen, settings["threads"], quiet)
        return
    names = ("sqnr", "bits", "size", "step", "S", "lossless")
    targets = [name for name in names if settings[name] not in (None, False)]
    if len(targets) > 1:
        raise click.UsageError(f"choose one of --{' and --'.join(targets)}: each fixes the quality")
    if curvature is not None and settings["step"] is not None:
        raise click.UsageError("choose one of --curvature and --step: by curvature, every tensor gets its own step")
    if curvature is not None and (base or settings["lossless"]):
        raise click.UsageError(f"choose one of --curvature and --{'base' if base else 'lossless'}")
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(_measured(settings, curvature, importance, sigma))
        stack.enter_context(_naming(model, output, curvature, importance, sigma, *base))
        progress = stack.enter_context(_progress("compressing", quiet))
        for read in (model, curvature, importance, sigma, *base):
            if read is not None:
                _keep_apart(read, output)
        path, result = files.compress_checkpoint(model, output, options=options, base=base or None, progress=progress)
    if not quiet:
        _print(report.compressed(path, result, time.perf_counter() - start, _width()))
    notes = list(result.notes)
    for pattern in options.overrides:
        if not any(fnmatch.fnmatchcase(tensor.name, pattern) for tensor in result.tensors):
            notes.append(f"no tensor's name matches --tensor {pattern!r}")
    for note in notes:
        _say(f"note: {printable(note)}")


def _compress_nnc(
    model: Path, output: Path | None, base: tuple[Path, ...], settings: Settings, threads: int | None, quiet: bool
) -> None:
    start = time.perf_counter()
    with _naming(model, output, *base):
        for read in (model, *base):
            _keep_apart(read, output)
        path, result = nnc_paths.make(model, output, base, settings, threads)
    if not quiet:
        _print(nnc_paths.made(path, result, time.perf_counter() - start))
    for note in result.notes:
        _say(f"note: {printable(note)}")


@program.command(
    short_help="Restore a checkpoint from a .dcb file.",
    epilog=_examples(
        "deepcabac decompress model.dcb",
        "deepcabac decompress model.dcb -o model.npz --max-bytes 2GB",
    ),
)
@click.argument("file", type=_path)
@click.option(
    "--output",
    "-o",
    type=_path,
    metavar="MODEL",
    help="File to write; its suffix chooses the kind. [default: FILE's name with the suffix it was made from]",
)
@_THREADS
@click.option(
    "--max-bytes", type=_bytes, metavar="N", help="Refuse a file whose tensors take more. [default: no limit]"
)
@_BASE
@click.option(
    "--apply", is_flag=True, help="Add an update in a .nnc file to its base, instead of writing the difference."
)
@_QUIET
def decompress(
    file: Path,
    output: Path | None,
    threads: int | None,
    max_bytes: int | None,
    base: tuple[Path, ...],
    apply: bool,
    quiet: bool,
) -> None:
    """Restore a checkpoint from the .dcb or .nnc file FILE.

    Names, shapes and data types are those of the original. MODEL may be of another
    kind: .safetensors, .npz, .pt or .onnx (only of what was made from .onnx).
    Without -o an existing file is not replaced, for it may be the original.

    Every checksum is verified on the way; a damaged file writes nothing.
    """
    start = time.perf_counter()
    if nnc_paths.is_stream(file):
        with _naming(file, output, *base):
            for read in (file, *base):
                _keep_apart(read, output)
            path, nbytes = nnc_paths.restore(file, output, base, apply=apply, max_bytes=max_bytes, threads=threads)
        if not quiet:
            _print([f"{printable(path)}: {nbytes:,} bytes of tensors in {time.perf_counter() - start:.2f} s"])
        return
    if apply:
        raise _Failure(f"{file}: --apply is for updates in .nnc files; those in .dcb files are always applied")
    with _decoding(file, output, *base):
        for read in (file, *base):
            _keep_apart(read, output)
        with files.open_file(file, max_bytes=max_bytes) as opened:
            infos = [opened.info(name) for name in opened]
        with _progress("restoring", quiet) as progress:
            path = files.decompress_checkpoint(
                file, output, base=base or None, max_bytes=max_bytes, threads=threads, progress=progress
            )
    if not quiet:
        nbytes = sum(info.nbytes for info in infos if info.tied_to is None)
        _print([f"{printable(path)}: {nbytes:,} bytes of tensors in {time.perf_counter() - start:.2f} s"])


@program.command(
    short_help="Show a .dcb file's tensors and where its bytes go.",
    epilog=_examples(
        "deepcabac inspect model.dcb",
        "deepcabac inspect model.dcb --json | jq '.tensors[] | .name, .coded_bytes'",
    ),
)
@click.argument("file", type=_path)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def inspect(file: Path, as_json: bool) -> None:
    """Show the tensors of the .dcb file FILE and where its bytes go.

    Only the index is read. 'bits' is bits an element; 'step' is the distance of
    two restored values, or how else a tensor is stored; 'times' says whether each
    row or column has a scale of its own besides; 'quantizer' how the values were
    chosen, with the states of the trellis, or how an exact tensor is coded. 'of
    base' is what changes another file. In the JSON sizes are in bytes, 'step'
    is null for tensors that are not quantised, and 'row_scales' and
    'column_scales' are numbers of scales.
    """
    if nnc_paths.is_stream(file):
        with _naming(file):
            about = json.dumps(nnc_paths.described(file), indent=2).splitlines() if as_json else None
            _print(about or nnc_paths.shown(file, _width()))
        return
    with _decoding(file), files.open_file(file) as opened:
        lines = (
            json.dumps(report.inspected_json(file, opened), indent=2, allow_nan=False).splitlines()
            if as_json
            else report.inspected(file, opened, _width())
        )
    _print(lines)


@program.command(
    short_help="Check a .dcb file: every checksum, every chunk.",
    epilog=_examples("deepcabac verify model.dcb && echo good"),
)
@click.argument("file", type=_path)
@_BASE
@_THREADS
def verify(file: Path, base: tuple[Path, ...], threads: int | None) -> None:
    """Check the .dcb file FILE: every checksum is compared and every chunk decoded.

    Exit code 0 if the file is good, 1 if it is damaged (a line for each damaged
    tensor), 2 if it cannot be read at all.
    """
    damaged = 0
    if nnc_paths.is_stream(file):
        _print([nnc_paths.verify(file, threads)])
        return
    with contextlib.ExitStack() as stack:
        with _decoding(file, *base):
            opened = stack.enter_context(files.open_file(file, base=base or None, threads=threads))
            damages = opened.check()
        while True:
            with _decoding(file, *base):
                damage = next(damages, None)
            if damage is None:
                break
            damaged += 1
            _print([f"{printable(file)}: {printable(damage[1])}"])
        infos = [opened.info(name) for name in opened]
        own = [info for info in infos if info.tied_to is None]
        nbytes = sum(info.nbytes for info in own)
        if damaged:
            raise DamagedFileError(f"{file}: {damaged:,} of {plural(len(own), 'tensor')} damaged")
        _print(
            [
                f"{printable(file)}: good: the index and {plural(len(own), 'tensor')} checked, "
                f"{opened.file_bytes:,} bytes decoded to {nbytes:,}"
            ]
        )


@program.command(
    short_help="Find the smallest file that keeps a metric.",
    epilog=_examples(
        "deepcabac search model.safetensors --eval my_model:accuracy --max-drop 0.003",
        "deepcabac search model.pt --eval my_model:loss --lower-is-better --max-drop 0.01",
    ),
)
@click.argument("model", type=_path)
@click.option("--output", "-o", type=_path, metavar="OUT.dcb", help="File to write. [default: MODEL's name with .dcb]")
@click.option(
    "--eval",
    "evaluate",
    required=True,
    metavar="MODULE:FUNCTION",
    help="Takes a dict of arrays by name, returns a number. MODULE is imported, or the path of a .py file.",
)
@click.option(
    "--max-drop", type=float, required=True, metavar="X", help="What the metric may lose, in its own unit, 0 or more."
)
@click.option("--lower-is-better", is_flag=True, help="The metric is a loss: less is better.")
@click.option(
    "--evaluations", type=int, metavar="N", default=EVALUATIONS, show_default=True, help="Evaluations at most."
)
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="Try this one. Can be repeated.")
@click.option("--grid", is_flag=True, help="Try a full grid instead, whatever that takes.")
@click.option("--jobs", type=int, metavar="N", default=1, show_default=True, help="Trials at once.")
@click.option("--patience", type=float, metavar="SECONDS", help="What one evaluation may take. [default: no limit]")
@click.option("--trials", type=_path, metavar="CSV", help="Where trials are kept. [default: OUT.search.csv]")
@_QUIET
def search(
    model: Path,
    output: Path | None,
    evaluate: str,
    trials: Path | None,
    methods: Sequence[str],
    quiet: bool,
    curvature: Path | None,
    importance: Path | None,
    sigma: Path | None,
    max_drop: float,
    lower_is_better: bool,
    evaluations: int,
    grid: bool,
    jobs: int,
    patience: float | None,
    **settings: Any,
) -> None:
    """Find the smallest .dcb file of MODEL that loses at most X of its metric.

    FUNCTION measures the decoded tensors. What it measures on chooses the file, so
    give it other data than you will report on. Trials are kept as they finish:
    after Ctrl-C the same command goes on where it was.

    Writes the .dcb file, a CSV file of all trials, and plots of them (.png and
    .svg, if matplotlib is installed). The file that is chosen is decoded and
    measured once more.
    """
    target = output or files.default_output(model)
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(_measured(settings, curvature, importance, sigma))
        stack.enter_context(_naming(model, target, curvature, importance, sigma, trials))
        for read in (model, curvature, importance, sigma):
            if read is not None:
                _keep_apart(read, target)
        watch = stack.enter_context(_search_progress(quiet))
        result = find(
            model,
            Reference(evaluate),
            max_drop=max_drop,
            output=target,
            lower_is_better=lower_is_better,
            evaluations=evaluations,
            methods=list(methods) or None,
            grid=grid,
            jobs=jobs,
            patience=patience,
            trials=trials,
            options=options,
            progress=watch,
        )
    if not quiet:
        _print(report.searched(result))
    try:
        drawn = plotting.plot(
            result.trials, result.best, max_drop, lower_is_better, target.with_suffix(".search.png")
        )
        if not quiet:
            _print([f"plots    {', '.join(printable(path) for path in drawn)}"])
    except UnsupportedError as error:
        _say(f"note: {error}")


#: Settings of compress that a search leaves as they are.
_FIXED = ("overrides", "depthwise", "quantizer", "states", "curvature", "importance", "sigma", "threads")
search.params += [parameter for parameter in compress.params if parameter.name in _FIXED]


@contextlib.contextmanager
def _search_progress(quiet: bool) -> Iterator[Callable[[Searching], None] | None]:
    """A bar on stderr with the best file so far; a line for each trial where there is no terminal."""
    if quiet or sys.stderr is None:
        yield None
        return
    if not sys.stderr.isatty():
        yield lambda now: _say(f"{now.done}/{now.total} {report.trial(now.trial)}{_so_far(now)}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("searching", total=None)

        def update(now: Searching) -> None:
            bar.update(task, completed=now.done, total=now.total, description=f"searching{_so_far(now)}")

        yield update


def _so_far(now: Searching) -> str:
    return "; none does yet" if now.best is None else f"; best: {now.best.bytes:,} bytes, lost {now.best.drop:.4g}"


def _keep_apart(source: Path, target: Path | None) -> None:
    """Refuse to write onto what is read, by whatever name or link."""
    with contextlib.suppress(OSError):  # one of them does not exist, or worse, which is said when it is opened
        if target is not None and target.samefile(source):
            raise OptionError(f"{target}: is the file to read; name another one to write")


@contextlib.contextmanager
def _naming(*paths: Path | None) -> Iterator[None]:
    """Begin messages of errors with the first path, unless they begin with one of ``paths`` already."""
    try:
        yield
    except DeepCabacError as error:
        if str(error).startswith(tuple(f"{name}: " for path in paths if path for name in (path, repr(str(path))))):
            raise
        raise type(error)(f"{paths[0]}: {error}") from error
    except OSError as error:  # e.g. a pipe, in which nothing can be sought
        raise CheckpointError(f"{paths[0]}: cannot be read: {reason(error)}") from error


def _arrays(path: Path) -> dict[str, Any]:
    """All tensors of a checkpoint."""
    with _naming(path), open_checkpoint(path) as source:
        return {spec.name: source.read(spec.tied_to or spec.name) for spec in source.specs}


@contextlib.contextmanager
def _measured(
    settings: Mapping[str, Any], curvature: Path | None, importance: Path | None, sigma: Path | None
) -> Iterator[Options]:
    """``settings`` with what these files say about the weights."""
    given = {"importance": importance, "sigma": sigma}
    arrays: dict[str, Any] = {name: _arrays(path) for name, path in given.items() if path is not None}
    options = Options(**settings, **arrays)
    if curvature is None:
        yield options
        return
    with _opened_curvature(curvature) as held:
        yield replace(options, curvature=held)


@contextlib.contextmanager
def _opened_curvature(path: Path) -> Iterator[Curvature]:
    """A curvature's file. Exit code 1 is for damaged models and .dcb files; what is wrong with this one is mended
    by giving another.
    """
    try:
        with Curvature.load(path) as curvature:
            yield curvature
    except DamagedFileError as error:
        if not str(error).startswith(f"{path}: "):
            raise
        raise _Failure(str(error)) from error


@contextlib.contextmanager
def _decoding(path: Path, *others: Path | None) -> Iterator[None]:
    """:func:`_naming`, and a word to who gives a checkpoint where a .dcb file belongs."""
    try:
        with _naming(path, *others):
            yield
    except DamagedFileError as error:
        if "not a .dcb file" not in str(error) or kind_of_path(path) is None:
            raise
        hint = f"'deepcabac compress {path}' makes a .dcb file of a checkpoint"
        raise _Failure(str(error), DAMAGED, hint) from error


@contextlib.contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Progress | None]:
    """A progress bar on stderr that goes away when it is done; None if nobody would see it."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    # Imported here: it takes longer than many a command.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        before, passes = 0, 1

        def update(done: int, total: int) -> None:
            nonlocal before, passes
            if done < before:  # a size is searched by coding all tensors again
                passes += 1
                bar.reset(task, description=f"{what}, pass {passes}")
            before = done
            bar.update(task, completed=done, total=total)

        yield update


def _width() -> int | None:
    """Columns of the terminal on stdout; None if it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def _print(lines: Sequence[str]) -> None:
    for line in lines:  # one by one: Python does not report a pipe that breaks within one large write
        print(line)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nowhere left to complain
        print(line, file=sys.stderr, flush=True)


def _interrupted() -> NoReturn:
    if sys.stderr is not None and sys.stderr.isatty():
        _say("")  # below the ^C that the terminal shows
    _say("interrupted")
    sys.exit(INTERRUPTED)


def _discard_stdout() -> None:
    """Let Python's own flush at exit, which would fail again, go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
