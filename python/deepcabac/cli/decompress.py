"""``deepcabac decompress``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .. import files
from ..nnc import files as nnc_files
from .output import print_lines, progress_bar
from .parameters import (
    BASE,
    QUIET,
    THREADS,
    Failure,
    decoding,
    examples,
    keep_apart,
    naming_paths,
    parse_bytes,
    parse_path,
)
from .report import printable


@click.command(
    short_help="Restore a checkpoint from a .dcb file.",
    epilog=examples(
        "deepcabac decompress model.dcb",
        "deepcabac decompress model.dcb -o model.npz --max-bytes 2GB",
    ),
)
@click.argument("file", type=parse_path)
@click.option(
    "--output",
    "-o",
    type=parse_path,
    metavar="MODEL",
    help="File to write; its suffix chooses the kind. [default: FILE's name with the suffix it was made from]",
)
@THREADS
@click.option(
    "--max-bytes", type=parse_bytes, metavar="N", help="Refuse a file whose tensors take more. [default: no limit]"
)
@BASE
@click.option(
    "--apply", is_flag=True, help="Add an update in a .nnc file to its base, instead of writing the difference."
)
@QUIET
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
    if nnc_files.is_stream(file):
        with naming_paths(file, output, *base):
            for read in (file, *base):
                keep_apart(read, output)
            path, nbytes = nnc_files.restore(file, output, base, apply=apply, max_bytes=max_bytes, threads=threads)
        if not quiet:
            print_lines([f"{printable(path)}: {nbytes:,} bytes of tensors in {time.perf_counter() - start:.2f} s"])
        return
    if apply:
        raise Failure(f"{file}: --apply is for updates in .nnc files; those in .dcb files are always applied")
    with decoding(file, output, *base):
        for read in (file, *base):
            keep_apart(read, output)
        with files.open_file(file, max_bytes=max_bytes) as opened:
            infos = [opened.info(name) for name in opened]
        with progress_bar("restoring", quiet) as progress:
            path = files.decompress_checkpoint(
                file, output, base=base or None, max_bytes=max_bytes, threads=threads, progress=progress
            )
    if not quiet:
        nbytes = sum(info.nbytes for info in infos if info.tied_to is None)
        print_lines([f"{printable(path)}: {nbytes:,} bytes of tensors in {time.perf_counter() - start:.2f} s"])
