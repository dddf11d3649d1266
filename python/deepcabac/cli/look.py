"""``deepcabac inspect`` and ``deepcabac verify``: what a file holds, and whether it is good."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import click

from .. import files
from ..errors import DamagedFileError
from ..nnc import files as nnc_files
from . import nnc, report
from .output import print_lines, terminal_width
from .parameters import BASE, THREADS, decoding, examples, naming_paths, parse_path
from .report import plural, printable


@click.command(
    short_help="Show a .dcb file's tensors and where its bytes go.",
    epilog=examples(
        "deepcabac inspect model.dcb",
        "deepcabac inspect model.dcb --json | jq '.tensors[] | .name, .coded_bytes'",
    ),
)
@click.argument("file", type=parse_path)
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
    if nnc_files.is_stream(file):
        with naming_paths(file):
            about = json.dumps(nnc_files.described(file), indent=2).splitlines() if as_json else None
            print_lines(about or nnc.shown(file, terminal_width()))
        return
    with decoding(file), files.open_file(file) as opened:
        lines = (
            json.dumps(report.inspected_json(file, opened), indent=2, allow_nan=False).splitlines()
            if as_json
            else report.inspected(file, opened, terminal_width())
        )
    print_lines(lines)


@click.command(
    short_help="Check a .dcb file: every checksum, every chunk.",
    epilog=examples("deepcabac verify model.dcb && echo good"),
)
@click.argument("file", type=parse_path)
@BASE
@THREADS
def verify(file: Path, base: tuple[Path, ...], threads: int | None) -> None:
    """Check the .dcb file FILE: every checksum is compared and every chunk decoded.

    Exit code 0 if the file is good, 1 if it is damaged (a line for each damaged
    tensor), 2 if it cannot be read at all.
    """
    damaged = 0
    if nnc_files.is_stream(file):
        print_lines([nnc.verified(file, threads)])
        return
    with contextlib.ExitStack() as stack:
        with decoding(file, *base):
            opened = stack.enter_context(files.open_file(file, base=base or None, threads=threads))
            damages = opened.check()
        while True:
            with decoding(file, *base):
                damage = next(damages, None)
            if damage is None:
                break
            damaged += 1
            print_lines([f"{printable(file)}: {printable(damage[1])}"])
        infos = [opened.info(name) for name in opened]
        own = [info for info in infos if info.tied_to is None]
        nbytes = sum(info.nbytes for info in own)
        if damaged:
            raise DamagedFileError(f"{file}: {damaged:,} of {plural(len(own), 'tensor')} damaged")
        print_lines(
            [
                f"{printable(file)}: good: the index and {plural(len(own), 'tensor')} checked, "
                f"{opened.file_bytes:,} bytes decoded to {nbytes:,}"
            ]
        )
