"""Options that commands share, what they accept, and the files that they name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..atomic import reason
from ..checkpoint import kind_of_path, open_checkpoint
from ..curvature import Curvature
from ..errors import CheckpointError, DamagedFileError, DeepCabacError, OptionError
from ..options import Options

DAMAGED, USAGE, INTERRUPTED, TERMINATED, BROKEN_PIPE = 1, 2, 130, 143, 141


class Failure(Exception):
    """The end of a command: one line and an exit code."""

    def __init__(self, message: str, exit_code: int = USAGE, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.exit_code = exit_code


_UNITS: dict[str, int] = {"": 1, "b": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("", 1000), ("b", 1000), ("ib", 1024))
}


def parse_bytes(text: str) -> int:
    """A number of bytes, plain or with a suffix: ``1.5MB`` to 1500000."""
    match = re.fullmatch(r"([0-9][0-9_,]{0,24}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}) ?([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise click.BadParameter(f"{text!r} is not a number of bytes such as 500000, 500kB, 1.5MB or 64MiB")
    digits = match[1].replace(",", "").replace("_", "")
    unit = _UNITS[match[2]]
    return round(float(digits) * unit) if "." in digits else int(digits) * unit


def checked(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """A value that :class:`Options` accepts for the setting of this name."""
    if value is not None:
        try:
            Options(**{str(parameter.name): value})
        except OptionError as error:
            raise click.BadParameter(str(error), context, parameter) from error
    return value


def parse_overrides(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, dict[str, Any]]:
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
    checked(context, parameter, overrides)
    return overrides


def examples(*lines: str) -> str:
    """An epilog that click does not wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def parse_path(text: str) -> Path:
    """The path of a file, whether it exists or not."""
    path = Path(text)
    if not path.name or "\0" in text:
        raise click.BadParameter(f"{text!r} is not the name of a file")
    return path


THREADS = click.option(
    "--threads", type=int, metavar="N", callback=checked, help="Number of threads. [default: one a core]"
)
BASE = click.option(
    "--base",
    multiple=True,
    type=parse_path,
    metavar="FILE",
    help="The older version that this is an update of (a checkpoint, .dcb or .nnc file). Repeated for a chain, oldest "
    "first.",
)
OUTPUT = click.option(
    "--output", "-o", type=parse_path, metavar="OUT.dcb", help="File to write. [default: MODEL's name with .dcb]"
)
QUIET = click.option("--quiet", "-q", is_flag=True, help="Print nothing but notes and errors.")


def keep_apart(source: Path, target: Path | None) -> None:
    """Refuse to write onto what is read, by whatever name or link."""
    with contextlib.suppress(OSError):  # one of them does not exist, or worse, which is said when it is opened
        if target is not None and target.samefile(source):
            raise OptionError(f"{target}: is the file to read; name another one to write")


@contextlib.contextmanager
def naming_paths(*paths: Path | None) -> Iterator[None]:
    """Begin messages of errors with the first path, unless they begin with one of ``paths`` already."""
    try:
        yield
    except DeepCabacError as error:
        if str(error).startswith(tuple(f"{name}: " for path in paths if path for name in (path, repr(str(path))))):
            raise
        raise type(error)(f"{paths[0]}: {error}") from error
    except OSError as error:  # e.g. a pipe, in which nothing can be sought
        raise CheckpointError(f"{paths[0]}: cannot be read: {reason(error)}") from error


def read_arrays(path: Path) -> dict[str, Any]:
    """All tensors of a checkpoint."""
    with naming_paths(path), open_checkpoint(path) as source:
        return {spec.name: source.read(spec.tied_to or spec.name) for spec in source.specs}


@contextlib.contextmanager
def measured_options(
    settings: Mapping[str, Any], curvature: Path | None, importance: Path | None
) -> Iterator[Options]:
    """``settings`` with what these files say about the weights."""
    options = Options(**settings, importance=None if importance is None else read_arrays(importance))
    if curvature is None:
        yield options
        return
    with opened_curvature(curvature) as held:
        yield replace(options, curvature=held)


@contextlib.contextmanager
def opened_curvature(path: Path) -> Iterator[Curvature]:
    """A curvature's file. Exit code 1 is for damaged models and .dcb files; what is wrong with this one is mended
    by giving another.
    """
    try:
        with Curvature.load(path) as curvature:
            yield curvature
    except DamagedFileError as error:
        if not str(error).startswith(f"{path}: "):
            raise
        raise Failure(str(error)) from error


@contextlib.contextmanager
def decoding(path: Path, *others: Path | None) -> Iterator[None]:
    """:func:`naming_paths`, and a word to who gives a checkpoint where a .dcb file belongs."""
    try:
        with naming_paths(path, *others):
            yield
    except DamagedFileError as error:
        if "not a .dcb file" not in str(error) or kind_of_path(path) is None:
            raise
        hint = f"'deepcabac compress {path}' makes a .dcb file of a checkpoint"
        raise Failure(str(error), DAMAGED, hint) from error
