"""Options of the command line that concern .nnc files alone, and what is printed about such files."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..nnc import files
from ..nnc.writing import DEFAULT_QP, DEFAULT_VECTOR_QP, Settings, StreamReport
from .report import plural, printable, table

_PREFIX = "nnc_"
#: Parameters of ``compress`` that mean nothing to a .nnc file.
_DCB_ONLY = (
    *("sqnr", "bits", "size", "step", "overrides", "depthwise", "states", "preset"),
    *("curvature", "importance", "lossless"),
)


def _switch(flag: str, name: str, text: str) -> Any:
    return click.option(f"--{flag}/--no-{flag}", f"{_PREFIX}{name}", default=None, help=text)


_OPTIONS = (
    click.option(
        "--qp",
        f"{_PREFIX}qp",
        type=int,
        metavar="N",
        help=f".nnc: quantisation parameter; four more double the step. [default: {DEFAULT_QP}]",
    ),
    click.option(
        "--vector-qp",
        f"{_PREFIX}vector_qp",
        type=int,
        metavar="N",
        help=f".nnc: of tensors of one dimension. [default: {DEFAULT_VECTOR_QP}]",
    ),
    click.option(
        "--qp-density",
        f"{_PREFIX}density",
        type=int,
        metavar="N",
        help=".nnc: 2^N parameters double the step. [default: 2]",
    ),
    _switch("dq", "dependent", ".nnc: dependent quantisation. [default: on, as --quantizer trellis]"),
    _switch("param-opt", "param_opt", ".nnc: choose how each context adapts. [default: on]"),
    _switch("row-skipping", "row_skipping", ".nnc: skip rows of zeros. [default: on]"),
    _switch("codebook", "codebook", ".nnc: list a tensor's values where that is smaller. [default: off]"),
    click.option(
        "--scan-order",
        f"{_PREFIX}scan",
        type=int,
        metavar="N",
        help=".nnc: 0 row by row, 1 to 4 in blocks of 8 to 64. [default: 0]",
    ),
    click.option(
        "--unary-length",
        f"{_PREFIX}unary",
        type=int,
        metavar="N",
        help=".nnc: decisions a magnitude, 1 to 256. [default: 11]",
    ),
    _switch("tca", "temporal", ".nnc: contexts of an update look at the update before. [default: on]"),
)


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options; those that were given reach ``function`` as ``nnc``, fields of :class:`Settings` by name."""

    @functools.wraps(function)
    def collected(**arguments: Any) -> None:
        nnc = {name.removeprefix(_PREFIX): arguments.pop(name) for name in list(arguments) if name.startswith(_PREFIX)}
        function(nnc={name: value for name, value in nnc.items() if value is not None}, **arguments)

    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected


def settings(nnc: dict[str, Any], others: dict[str, Any]) -> Settings:
    """From the options of ``compress``. Raises click.UsageError for those that say nothing about a .nnc file."""
    context = click.get_current_context()
    for name in _DCB_ONLY:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            flag = {"overrides": "tensor"}.get(name, name)
            raise click.UsageError(f"--{flag} is for .dcb files: choose the quality of a .nnc file by --qp")
    chosen = {"dependent": others["quantizer"] == "trellis", "rate_distortion": others["rate_distortion"]}
    return Settings(**(chosen | nnc))


def wanted(format_: str | None, output: Path | None, nnc: dict[str, Any]) -> bool:
    """Whether ``compress`` is to write a .nnc file. Raises click.UsageError where options disagree."""
    result = format_ == "nnc" or (format_ is None and output is not None and output.suffix.lower() == ".nnc")
    if nnc and not result:
        raise click.UsageError("--qp and other options marked .nnc go with --format nnc")
    return result


def made(path: Path, report: StreamReport, seconds: float) -> list[str]:
    """What ``compress`` prints."""
    error, energy = (sum(getattr(t, what) for t in report.tensors) for what in ("squared_error", "energy"))
    quality = f"SQNR {10 * math.log10(energy / error):.1f} dB over all tensors" if error and energy else "exact"
    elements = sum(tensor.elements for tensor in report.tensors)
    return [
        f"before   {report.raw_bytes:,} bytes of tensors",
        f"after    {report.file_bytes:,} bytes in {printable(path)}",
        f"ratio    {report.raw_bytes / report.file_bytes:.2f} times smaller, "
        f"{8 * report.file_bytes / max(elements, 1):.3g} bits a weight",
        f"quality  {quality}",
        f"time     {seconds:.2f} s",
    ]


def shown(path: Path, width: int | None) -> list[str]:
    """What ``inspect`` prints."""
    about = files.described(path)
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
        f"{printable(path)}: ISO/IEC 15938-17 (NNC), profile {about['profile']}, {kind}",
        f"{4 * elements:,} bytes of tensors in {about['file_bytes']:,} bytes",
        "",
        *table(["tensor", "shape", "type", ">bits", ">qp", ">step", "coded", ">bytes"], rows, width),
    ]


def verified(path: Path, threads: int | None) -> str:
    """What ``verify`` prints."""
    tensors, coded, nbytes = files.verify(path, threads)
    return (
        f"{printable(path)}: decodes: {plural(tensors, 'tensor')}, {coded:,} bytes to {nbytes:,}; "
        "a .nnc file has no checksums, so changed values may go unnoticed"
    )
