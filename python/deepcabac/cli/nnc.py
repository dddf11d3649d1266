"""Options of the command line that concern .nnc files alone, and what is printed about such files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ..nnc import files
from ..nnc.writing import Settings, StreamReport
from .parameters import flag, given
from .places import Input
from .report import plural, printable, table

#: Parameters of ``compress`` that mean nothing to a .nnc file.
_DCB_ONLY = (
    *("quality", "sqnr", "bits", "size", "step", "overrides", "states", "preset"),
    *("curvature", "importance", "lossless"),
)


def is_nnc(format_: str | None, output: Path | None) -> bool:
    """Whether ``compress`` is to write a .nnc file. Raises click.UsageError where options disagree."""
    suffix = "" if output is None else output.suffix.lower()
    if format_ is not None and suffix in (".dcb", ".nnc") and suffix != f".{format_}":
        raise click.UsageError(f"{output} does not end in .{format_}: leave --format out, or name another file")
    return format_ == "nnc" or (format_ is None and suffix == ".nnc")


def nnc_settings(others: dict[str, Any], qp: int, vector_qp: int) -> Settings:
    """From the options of ``compress``. Raises click.UsageError for those that mean nothing to a .nnc file."""
    for name in _DCB_ONLY:
        if given(name):
            raise click.UsageError(f"{flag(name)} is for .dcb files: choose the quality of a .nnc file with --qp")
    dependent = others["quantizer"] == "trellis"
    return Settings(qp=qp, vector_qp=vector_qp, dependent=dependent, rate_distortion=others["rate_distortion"])


def nnc_made(name: str, report: StreamReport, seconds: float) -> list[str]:
    """What ``compress`` prints."""
    error, energy = (sum(getattr(t, what) for t in report.tensors) for what in ("squared_error", "energy"))
    quality = f"SQNR {10 * math.log10(energy / error):.1f} dB over all tensors" if error and energy else "exact"
    elements = sum(tensor.elements for tensor in report.tensors)
    return [
        f"before   {report.raw_bytes:,} bytes of tensors",
        f"after    {report.file_bytes:,} bytes in {printable(name)}",
        f"ratio    {report.raw_bytes / report.file_bytes:.2f} times smaller, "
        f"{8 * report.file_bytes / max(elements, 1):.3g} bits per weight",
        f"quality  {quality}",
        f"time     {seconds:.2f} s",
    ]


def shown(source: Input, width: int | None) -> list[str]:
    """What ``inspect`` prints."""
    about = files.described(source.path)
    rows = []
    for tensor in about["tensors"]:
        how = [tensor["quantizer"] or tensor["method"]]
        how += [f"{tensor['codebook']} values"] if tensor["codebook"] else []
        how += [f"blocks of {tensor['block']}"] if tensor["block"] else []
        how += [f"update {tensor['update']}"] if tensor["update"] is not None else []
        how += ["temporal"] if tensor["temporal"] else []
        bits = 8 * tensor["coded_bytes"] / tensor["elements"] if tensor["elements"] and tensor["coded_bytes"] else None
        rows.append(
            [
                tensor["name"],
                "x".join(map(str, tensor["shape"])) or "scalar",
                tensor["dtype"],
                "" if bits is None else f"{bits:.2f}",
                "" if tensor["qp"] is None else str(tensor["qp"]),
                "" if tensor["step"] is None else f"{tensor['step']:.4g}",
                ", ".join(how),
                f"{tensor['coded_bytes']:,}",
            ]
        )
    elements = sum(tensor["elements"] for tensor in about["tensors"])
    kind = "update" if about["is_update"] else "model"
    return [
        f"{printable(source.name)}: ISO/IEC 15938-17 (NNC), profile {about['profile']}, {kind}",
        f"{4 * elements:,} bytes of tensors in {about['file_bytes']:,} bytes",
        "",
        *table(["tensor", "shape", "type", ">bits", ">qp", ">step", "coded", ">bytes"], rows, width),
    ]


def verified(source: Input, threads: int | None) -> str:
    """What ``verify`` prints."""
    tensors, coded, nbytes = files.verify(source.path, threads)
    return (
        f"{printable(source.name)}: decodes: {plural(tensors, 'tensor')}, {coded:,} bytes to {nbytes:,}; "
        "a .nnc file has no checksums, so changed values may go unnoticed"
    )
