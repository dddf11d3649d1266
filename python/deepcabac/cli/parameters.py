"""Options: their headings in the help, what they accept, and those that commands share."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from ..errors import OptionError
from ..options import Options

DAMAGED, USAGE, INTERRUPTED, TERMINATED, BROKEN_PIPE = 1, 2, 130, 143, 141
#: What ``-`` stands for: standard input or standard output. A file of that name is ``./-``.
STANDARD = Path("-")

#: Headings of the help, in the order in which they are shown.
COMMON, SEARCH, QUALITY, UPDATES, NNC, OTHER = (
    "Common options",
    "Search",
    "Quality in detail",
    "Updates",
    ".nnc files (ISO/IEC 15938-17)",
    "Other options",
)
_HEADINGS = (COMMON, SEARCH, QUALITY, UPDATES, NNC, OTHER)


class Failure(Exception):
    """The end of a command: one line and an exit code."""

    def __init__(self, message: str, exit_code: int = USAGE, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.exit_code = exit_code


class Option(click.Option):
    """An option that the help lists under a heading."""

    def __init__(self, *args: Any, heading: str = COMMON, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.heading = heading


#: :func:`click.option` with a ``heading``.
option = functools.partial(click.option, cls=Option)


class Command(click.Command):
    """A command whose help lists its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading in _HEADINGS:
            records = [
                record
                for parameter in self.get_params(ctx)
                if isinstance(parameter, click.Option)
                and getattr(parameter, "heading", OTHER) == heading
                and (record := parameter.get_help_record(ctx)) is not None
            ]
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


if TYPE_CHECKING:
    _ParamType = click.ParamType[Path]
else:  # click 8.1 has no generic one
    _ParamType = click.ParamType


class PathType(_ParamType):
    """The path of a file, whether it exists or not, or ``-``. Shells complete the names of files."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if str(value) in (os.curdir, os.pardir):  # folders without a name of their own
            return path.resolve()
        if not path.name or "\0" in str(value):
            self.fail(f"{value!r} is not the name of a file", param, ctx)
        # pathlib takes the ./ away.
        return path.absolute() if path == STANDARD and str(value) != "-" else path

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class FileType(PathType):
    """Likewise, without ``-``: standard input holds one file, and that is another one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = super().convert(value, param, ctx)
        if path == STANDARD:
            self.fail("must be a file; a file called - is ./-", param, ctx)
        return path


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


def given(name: str) -> bool:
    """Whether the command line has the option of this name, even with its default."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def flag(name: str) -> str:
    """How the option of this name is written."""
    parameter = next(one for one in click.get_current_context().command.params if one.name == name)
    return max(parameter.opts, key=len)


def refuse_together(name: str, others: Sequence[str], why: str) -> None:
    """Raise click.UsageError if the option is given together with one of the ``others``."""
    for other in others:
        if given(name) and given(other):
            raise click.UsageError(f"choose one of {flag(name)} and {flag(other)}: {why}")


THREADS = option(
    "--threads", type=int, metavar="N", callback=checked, heading=OTHER, help="Number of threads. [default: all cores]"
)
BASE = option(
    "--base",
    multiple=True,
    type=FileType(),
    metavar="FILE",
    heading=UPDATES,
    help="The older version that an update changes: a checkpoint, .dcb or .nnc file. For a chain of updates repeat it, "
    "oldest first.",
)
FORCE = option("--force", "-f", is_flag=True, help="Replace files that exist.")
QUIET = option("--quiet", "-q", is_flag=True, heading=OTHER, help="Print notes and errors only.")
VERBOSE = option("--verbose", "-v", is_flag=True, heading=OTHER, help="Print a line for each tensor when it is done.")
