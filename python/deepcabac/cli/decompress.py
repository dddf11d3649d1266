"""``deepcabac decompress``."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import click

from .. import files, folders
from ..checkpoint.kinds import left_out
from ..checkpoint.suffixes import kind_of_path, suffix_of_path
from ..nnc import files as nnc_files
from .cluster import DASK, refuse_for_files, workers
from .output import logged, print_lines, progress_bar, say
from .parameters import (
    BASE,
    FORCE,
    QUIET,
    STANDARD,
    THREADS,
    UPDATES,
    VERBOSE,
    Command,
    Failure,
    PathType,
    examples,
    option,
    parse_bytes,
    refuse_together,
)
from .places import Outputs, each, name_of, naming_paths, reading, writing
from .report import printable


@click.command(
    cls=Command,
    short_help="Restore a checkpoint from a .dcb file.",
    epilog=examples(
        "deepcabac decompress model.dcb",
        "deepcabac decompress model.dcb -o model.npz --max-bytes 2GB",
        "deepcabac decompress *.dcb -o restored/",
        "ssh host 'cat model.dcb' | deepcabac decompress - -o model.safetensors",
    ),
)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=PathType())
@option(
    "--output",
    "-o",
    type=PathType(),
    metavar="OUT",
    help="File to write, whose suffix chooses the kind, or folder to write to. [default: FILE's name with the suffix "
    "it was made from, beside FILE]",
)
@FORCE
@option("--max-bytes", type=parse_bytes, metavar="N", help="Refuse a file whose tensors take more. [default: no limit]")
@BASE
@option(
    "--apply",
    is_flag=True,
    heading=UPDATES,
    help="For an update in a .nnc file: write the updated model instead of the difference.",
)
@option(
    "--int8",
    is_flag=True,
    help="For .onnx: weights whose levels fit become int8, each with a DequantizeLinear node.",
)
@option("--external-data", is_flag=True, help="For .onnx: larger weights go to a file beside it, OUT.data.")
@DASK
@THREADS
@QUIET
@VERBOSE
def decompress(
    paths: tuple[Path, ...],
    output: Path | None,
    force: bool,
    max_bytes: int | None,
    base: tuple[Path, ...],
    apply: bool,
    int8: bool,
    external_data: bool,
    dask: str | None,
    threads: int | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Restore a checkpoint from each .dcb or .nnc file FILE.

    Names, shapes and data types are those of the original. OUT may be of another
    kind: .safetensors, .npz, .pt, or .onnx and .gguf (if the file was made from it).
    If FILE is -, it is read from standard input and the checkpoint goes to standard
    output unless -o says otherwise. If FILE is a folder that compress has written,
    OUT is the original folder. [default: its name without -dcb]

    Every checksum is verified on the way. A damaged file writes nothing.
    """
    refuse_together("quiet", ["verbose"], "one prints less, the other more")
    if apply and not base:
        raise click.UsageError("--apply needs --base, the version that the update changes")
    refuse_together("int8", ["external_data"], "int8 models are one file")
    outputs = Outputs(paths, output, force)

    def one(path: Path) -> None:
        start = time.perf_counter()
        floats: list[str] = []
        if path.is_dir():
            if base or int8 or external_data:
                flag = "--base" if base else "--int8" if int8 else "--external-data"
                raise Failure(f"{path}: is a folder, which {flag} does not take")
            target = outputs.of(path, folders.default_decompressed(path))
            if target == STANDARD:
                raise Failure(f"{path}: is a folder, which standard output cannot take: name one to write with -o")
            with workers(dask) as executor, naming_paths(path, target), progress_bar("restoring", quiet) as progress:
                folders.decompress_folder(
                    path,
                    target,
                    overwrite=force,
                    max_bytes=max_bytes,
                    threads=threads,
                    executor=executor,
                    progress=progress,
                )
            if not quiet:
                print_lines([f"{printable(target)}: restored in {time.perf_counter() - start:.2f} s"])
            return
        refuse_for_files(dask, path)
        with contextlib.ExitStack() as last, reading(path, output, *base) as source:
            is_nnc = nnc_files.is_stream(source.path)
            if apply and not is_nnc:
                raise Failure(f"{source.name}: --apply is for .nnc files; updates in .dcb files are always applied")
            if is_nnc:
                kind, extra, nbytes = "", b"", 0
            else:
                with files.open_file(source.path, max_bytes=max_bytes) as opened:
                    kind, extra, infos = opened.kind, opened.extra, [opened.info(name) for name in opened]
                nbytes = sum(info.nbytes for info in infos if info.tied_to is None)
            named = output is not None and output != STANDARD and not os.path.isdir(output)
            default = path if named else files.default_restored(path, kind, extra)
            target = outputs.of(path, default, *base)
            if target == STANDARD and kind == "safetensors-sharded":
                raise Failure(f"{source.name}: was made from several files: name one of them to write with -o")
            if target == STANDARD and external_data:
                raise Failure(f"{source.name}: --external-data writes two files: name one to write with -o")
            if (int8 or external_data) and kind != "onnx":
                flag = "--int8" if int8 else "--external-data"
                raise Failure(f"{source.name}: {flag} is for files made from .onnx, and this one was not")
            made = last.enter_context(writing(target, suffix_of_path(default)))
            with progress_bar("restoring", quiet) as progress:
                if is_nnc:
                    _, nbytes = nnc_files.restore(
                        source.path, made, base, apply=apply, overwrite=force, max_bytes=max_bytes, threads=threads
                    )
                elif int8 and str(kind_of_path(made)) == "onnx":
                    with files.open_file(source.path, base=base or None, max_bytes=max_bytes) as opened:
                        floats = files.restore_integers(opened, made, overwrite=force, progress=progress)
                else:
                    files.decompress_checkpoint(
                        source.path,
                        made,
                        base=base or None,
                        overwrite=force,
                        int8=int8,
                        external_data=external_data,
                        max_bytes=max_bytes,
                        threads=threads,
                        progress=progress,
                    )
        if floats:
            shown = ", ".join(floats[:5]) + (f" and {len(floats) - 5} more" if len(floats) > 5 else "")
            say(f"note: {printable(name_of(target))}: stay floats, with levels or scales beyond int8: {shown}")
        missing = "" if is_nnc else left_out(str(kind_of_path(made)), extra, kind)
        if missing:
            say(f"note: {printable(name_of(target))}: {missing}")
        if not quiet:
            line = f"{printable(name_of(target))}: {nbytes:,} bytes of tensors in {time.perf_counter() - start:.2f} s"
            print_lines([line], to_stderr=target == STANDARD)

    with logged(verbose):
        each(paths, one)
