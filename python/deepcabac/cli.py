"""The command line: ``deepcabac compress``, ``decompress``, ``inspect`` and ``verify``.

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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from . import files, report
from ._core import LEVELS
from .atomic import reason
from .checkpoint import kind_of_path, open_checkpoint
from .compressor import Progress
from .curvature import Curvature
from .errors import CheckpointError, DamagedFileError, DeepCabacError, OptionError
from .options import DEFAULT_DEPTHWISE, DEFAULT_SQNR, DEFAULT_STATES, Options
from .report import plural, printable

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
            if not (equals and pattern) or kind not in ("exact", "sqnr", "step") or (kind == "exact") == bool(colon):
                raise ValueError
            settings = {kind: True if kind == "exact" else float(number)}
        except ValueError:
            text = f"{value!r} is not like 'PATTERN=exact', 'PATTERN=sqnr:40' or 'PATTERN=step:0.01'"
            raise click.BadParameter(text, context, parameter) from None
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
    help="For tensors whose name matches (* and ?): exact, sqnr:DB or step:S. Can be repeated; the last match counts.",
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
@click.option("--lossless", is_flag=True, hidden=True)
@_THREADS
@_QUIET
def compress(
    model: Path,
    output: Path | None,
    curvature: Path | None,
    importance: Path | None,
    sigma: Path | None,
    lossless: bool,
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
    if lossless:
        raise _Failure("--lossless is not in this version; --tensor '*=exact' stores every tensor bit for bit")
    targets = [name for name in ("sqnr", "bits", "size", "step", "S") if settings[name] is not None]
    if len(targets) > 1:
        raise click.UsageError(f"choose one of --{' and --'.join(targets)}: each fixes the quality")
    if curvature is not None and settings["step"] is not None:
        raise click.UsageError("choose one of --curvature and --step: by curvature, every tensor gets its own step")
    given = {"importance": importance, "sigma": sigma}
    arrays: dict[str, Any] = {name: _arrays(path) for name, path in given.items() if path is not None}
    options = Options(**settings, **arrays)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if curvature is not None:
            options = replace(options, curvature=stack.enter_context(_opened_curvature(curvature)))
        stack.enter_context(_naming(model, output, curvature, importance, sigma))
        progress = stack.enter_context(_progress("compressing", quiet))
        for read in (model, curvature, importance, sigma):
            if read is not None:
                _keep_apart(read, output)
        path, result = files.compress_checkpoint(model, output, options=options, progress=progress)
    if not quiet:
        _print(report.compressed(path, result, time.perf_counter() - start, _width()))
    notes = list(result.notes)
    for pattern in options.overrides:
        if not any(fnmatch.fnmatchcase(tensor.name, pattern) for tensor in result.tensors):
            notes.append(f"no tensor's name matches --tensor {pattern!r}")
    for note in notes:
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
@_QUIET
def decompress(file: Path, output: Path | None, threads: int | None, max_bytes: int | None, quiet: bool) -> None:
    """Restore a checkpoint from the .dcb file FILE.

    Names, shapes and data types are those of the original. MODEL may be of another
    kind: .safetensors, .npz, .pt or .onnx (only of what was made from .onnx).
    Without -o an existing file is not replaced, for it may be the original.

    Every checksum is verified on the way; a damaged file writes nothing.
    """
    start = time.perf_counter()
    with _decoding(file, output):
        _keep_apart(file, output)
        with files.open_file(file, max_bytes=max_bytes) as opened:
            infos = [opened.info(name) for name in opened]
        with _progress("restoring", quiet) as progress:
            path = files.decompress_checkpoint(file, output, max_bytes=max_bytes, threads=threads, progress=progress)
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
    chosen, with the states of the trellis. In the JSON sizes are in bytes, 'step'
    is null for tensors that are not quantised, and 'row_scales' and
    'column_scales' are numbers of scales.
    """
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
@_THREADS
def verify(file: Path, threads: int | None) -> None:
    """Check the .dcb file FILE: every checksum is compared and every chunk decoded.

    Exit code 0 if the file is good, 1 if it is damaged (a line for each damaged
    tensor), 2 if it cannot be read at all.
    """
    damaged = 0
    with contextlib.ExitStack() as stack:
        with _decoding(file):
            opened = stack.enter_context(files.open_file(file, threads=threads))
            damages = opened.check()
        while True:
            with _decoding(file):
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
def _decoding(path: Path, output: Path | None = None) -> Iterator[None]:
    """:func:`_naming`, and a word to who gives a checkpoint where a .dcb file belongs."""
    try:
        with _naming(path, output):
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
