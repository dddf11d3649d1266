"""``deepcabac inspect`` and ``deepcabac verify``: what a file holds, and whether it is good."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import click

from .. import folders
from ..atomic import AtomicFile
from ..dcb.reader import OpenFile
from ..errors import DamagedFileError
from ..loadable import CodedFile
from ..nnc import files as nnc_files
from . import nnc, report
from .output import logged, print_lines, progress_bar, terminal_width
from .page import inspected_page
from .parameters import (
    BASE,
    FORCE,
    QUIET,
    THREADS,
    VERBOSE,
    Command,
    Failure,
    FileType,
    PathType,
    examples,
    option,
    refuse_together,
)
from .places import Input, each, keep_apart, reading, refuse_to_replace
from .report import plural, printable


@click.command(
    cls=Command,
    short_help="Show a .dcb file's tensors and where its bytes go.",
    epilog=examples(
        "deepcabac inspect model.dcb",
        "deepcabac inspect my-model-dcb/",
        "deepcabac inspect model.dcb --html model.html",
        "deepcabac inspect model.dcb --json | jq '.tensors[] | .name, .coded_bytes'",
    ),
)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=PathType())
@option("--json", "as_json", is_flag=True, help="Print everything as a JSON object, one for each file.")
@option("--html", type=FileType(), metavar="PAGE", help="Write a page with drawings, which needs no other file.")
@FORCE
def inspect(paths: tuple[Path, ...], as_json: bool, html: Path | None, force: bool) -> None:
    """Show the tensors of each .dcb or .nnc file FILE and where its bytes go.

    Only the index is read, unless --html draws histograms. FILE may be - for standard input, or a folder that
    compress has written: then there is a line for each file. The columns:

    \b
    bits       bits per element
    step       distance between two restored values, or how an exact
               tensor is stored
    times      whether each row or column also has a scale of its own
    quantizer  how values were chosen (with the states of the trellis)
               and coded; "of base" marks what changes another file

    In the JSON, sizes are in bytes, 'step' is null for tensors that are not
    quantised, and 'row_scales' and 'column_scales' count scales.
    """
    refuse_together("as_json", ["html"], "each is another way to show a file")
    if html is not None:
        _write_page(paths, html, force)
        return
    lines_before = False

    def one(path: Path) -> None:
        nonlocal lines_before
        if path.is_dir():
            lines = _inspected_folder(path)
        else:
            with reading(path) as source:
                lines = _inspected(source, as_json)
        if lines_before and not as_json:
            print_lines([""])
        lines_before = True
        print_lines(lines)

    each(_files_of(paths) if as_json else paths, one)


def _write_page(paths: Sequence[Path], html: Path, force: bool) -> None:
    if len(paths) > 1 or paths[0].is_dir():
        raise click.UsageError("a page shows one file: name one")
    keep_apart(html, paths[0])
    refuse_to_replace(html, force=force)
    with reading(paths[0], html) as source:
        if nnc_files.is_stream(source.path):
            raise Failure(f"{source.name}: --html is for .dcb files")
        with folders.open_compressed(source.path) as opened, AtomicFile(html, overwrite=force) as target:
            target.file.write(inspected_page(source.name, opened).encode("utf-8", "backslashreplace"))
    print_lines([f"page     {printable(html)}"])


def _files_of(paths: Sequence[Path]) -> list[Path]:
    """``paths`` with the .dcb files of each folder in its place."""
    return [
        file
        for path in paths
        for file in ([file for _, file in folders.compressed_files(path)] if path.is_dir() else [path])
    ]


def _inspected_folder(path: Path) -> list[str]:
    with contextlib.ExitStack() as stack:
        opened: list[tuple[str, OpenFile | CodedFile]] = []
        for name, file in folders.compressed_files(path):
            opened.append((name, folders.open_compressed(file)))
            stack.push(opened[-1][1])
        return report.inspected_folder(str(path), opened, terminal_width())


def _inspected(source: Input, as_json: bool) -> list[str]:
    if nnc_files.is_stream(source.path):
        if not as_json:
            return nnc.shown(source, terminal_width())
        about = nnc_files.described(source.path) | {"path": source.name}
    else:
        with folders.open_compressed(source.path) as opened:
            if not as_json:
                return report.inspected(source.name, opened, terminal_width())
            about = report.inspected_json(source.name, opened)
    return json.dumps(about, indent=2, allow_nan=False).splitlines()


@click.command(
    cls=Command,
    short_help="Check a .dcb file: every checksum, every chunk.",
    epilog=examples(
        "deepcabac verify model.dcb && echo good",
        "deepcabac verify *.dcb",
        "cat model.dcb | deepcabac verify -",
    ),
)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=PathType())
@BASE
@option("--checksums", is_flag=True, help="Compare checksums and decode nothing: gigabytes per second, without a base.")
@THREADS
@QUIET
@VERBOSE
def verify(
    paths: tuple[Path, ...],
    base: tuple[Path, ...],
    checksums: bool,
    threads: int | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Check each .dcb or .nnc file FILE: compare every checksum, decode every chunk.

    FILE may be - for standard input, or a folder whose .dcb files are meant.
    Exit code 0 if all files are good, 1 if one is
    damaged (with a line for each damaged tensor), 2 if one cannot be read at all or
    is of another kind.
    """
    refuse_together("quiet", ["verbose"], "one prints less, the other more")
    refuse_together("checksums", ["base"], "checksums of an update need no base")

    def one(path: Path) -> None:
        with reading(path, *base) as source:
            if not nnc_files.is_stream(source.path):
                line = _verified(source, base, threads, quiet, not checksums)
            elif checksums:
                raise Failure(f"{source.name}: streams of the standard have no checksums: leave --checksums out")
            else:
                line = nnc.verified(source, threads)
        if not quiet:
            print_lines([line])

    with logged(verbose):
        each(_files_of(paths), one)


def _verified(source: Input, base: tuple[Path, ...], threads: int | None, quiet: bool, decode: bool) -> str:
    """What there is to say of a good file. Raises DamagedFileError after a line for each damaged tensor."""
    with folders.open_compressed(source.path, base=base or None, threads=threads) as opened:
        own = [info for info in map(opened.info, opened) if info.tied_to is None]
        with progress_bar("verifying", quiet) as progress:
            damages = [damage for _, damage in opened.check(progress, decode=decode)]
        print_lines([f"{printable(source.name)}: {printable(damage)}" for damage in damages])
        if damages:
            raise DamagedFileError(f"{source.path}: {len(damages):,} of {plural(len(own), 'tensor')} damaged")
        if not decode:
            checked = f"checksums of the index and {plural(len(own), 'tensor')} are right"
            return f"{printable(source.name)}: good: {checked}, {opened.file_bytes:,} bytes read"
        return (
            f"{printable(source.name)}: good: the index and {plural(len(own), 'tensor')} checked, "
            f"{opened.file_bytes:,} bytes decoded to {sum(info.nbytes for info in own):,}"
        )
