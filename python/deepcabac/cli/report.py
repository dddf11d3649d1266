"""What the command line says about files: plain text tables, 80 columns wide on a terminal, and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ..dcb.container import VERSION
from ..dcb.reader import OpenFile, TensorInfo
from ..dcb.writer import Report, TensorReport
from ..folders import FolderReport
from ..loadable import CodedFile
from ..trials.search import SearchResult
from ..trials.trials import Trial

#: Rows of the table that ``compress`` prints.
_LARGEST = 8
#: Columns that a table has for names, however narrow the terminal.
_NARROWEST = 16
#: What is said of a difference to a base, quantised.
_UPDATE = {True: "of base", False: ""}


def printable(text: object) -> str:
    """``text`` on one line, anything that could steer a terminal escaped: names in files may be hostile."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in str(text)
    )


def plural(number: int, noun: str) -> str:
    """``1 tensor``, ``1,200 tensors``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines of a table. Columns whose heading begins with ``>`` are flush right.

    A name in the first column that makes a line longer than ``width`` gets a line of its own. If ``width`` leaves no
    room for names, all do, and the other columns follow on as many lines as they need.
    """
    lines = [[heading.removeprefix(">") for heading in header], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    columns = range(len(header))
    groups = [columns]
    if width is not None:
        room = width - sum(widths[1:]) - 2 * len(widths[1:])
        if room >= min(widths[0], _NARROWEST):
            widths[0] = min(widths[0], room)
        else:
            widths[0] = 0
            groups = _groups(widths, width)
    text = []
    for line in lines:
        cells = [
            cell.rjust(wide) if heading.startswith(">") else cell.ljust(wide)
            for cell, wide, heading in zip(line, widths, header, strict=True)
        ]
        if len(line[0]) > widths[0]:
            text.append(line[0])
            cells[0] = " " * widths[0]
        indent = "" if groups == [columns] else "  "
        placed = [(indent + "  ".join(cells[column] for column in group)).rstrip() for group in groups]
        text += [part for part in placed if part or not indent]
    return text


def _groups(widths: Sequence[int], width: int) -> list[range]:
    """Columns after the first, in groups of which each fits into a line, after an indentation."""
    ends, used = [1], 0
    for column in range(1, len(widths)):
        used += 2 + widths[column]
        if used > width and column > ends[-1]:
            ends.append(column)
            used = 2 + widths[column]
    return [range(start, end) for start, end in zip(ends, [*ends[1:], len(widths)], strict=True)]


def compressed(name: str, report: Report, seconds: float, width: int | None) -> list[str]:
    """What ``compress`` prints: sizes and quality of the whole, then the largest tensors."""
    bits = f", {report.bits_per_weight:.3g} bits per weight" if report.file_bytes else ""
    lines = [
        f"before   {report.raw_bytes:,} bytes of tensors",
        f"after    {report.file_bytes:,} bytes in {printable(name)}",
        f"ratio    {_ratio(report.raw_bytes, report.file_bytes)}{bits}",
        f"quality  {_quality(report.tensors)}",
        f"time     {seconds:.2f} s",
    ]
    largest = sorted(report.tensors, key=lambda tensor: tensor.coded_bytes, reverse=True)[:_LARGEST]
    rows = [
        [
            tensor.name,
            _shape(tensor.shape),
            tensor.dtype,
            _bits(tensor.coded_bytes, tensor.size) if tensor.method != "tied" else "",
            tensor.method if tensor.sqnr is None else f"{tensor.sqnr:.1f}",
            _percent(tensor.coded_bytes, report.file_bytes),
        ]
        for tensor in largest
    ]
    rest = len(report.tensors) - len(largest)
    coded = sum(tensor.coded_bytes for tensor in report.tensors)
    left = coded - sum(tensor.coded_bytes for tensor in largest)
    if rest:
        rows.append([f"{plural(rest, 'smaller tensor')}", *[""] * 4, _percent(left, report.file_bytes)])
    rows.append(["header and index", *[""] * 4, _percent(report.file_bytes - coded, report.file_bytes)])
    header = ["tensor", "shape", "type", ">bits", ">SQNR dB", ">of file"]
    return [*lines, "", *table(header, rows, width)]


def compressed_folder(report: FolderReport, seconds: float, width: int | None) -> list[str]:
    """What ``compress`` prints of a folder: sizes and quality of the whole, then of each file."""
    tensors = [tensor for one in report.files.values() for tensor in one.tensors]
    bits = f", {report.bits_per_weight:.3g} bits per weight" if report.file_bytes else ""
    rows = [
        [
            name,
            f"{one.raw_bytes:,}",
            f"{one.file_bytes:,}",
            _percent(one.file_bytes, one.raw_bytes),
            f"{one.bits_per_weight:.2f}",
        ]
        for name, one in report.files.items()
    ]
    return [
        f"before   {report.raw_bytes:,} bytes of tensors in {plural(len(report.files), 'file')}",
        f"after    {report.file_bytes:,} bytes in {printable(report.path)}; {len(report.copied):,} other files copied",
        f"ratio    {_ratio(report.raw_bytes, report.file_bytes)}{bits}",
        f"quality  {_quality(tensors)}",
        f"time     {seconds:.2f} s",
        "",
        *table(["file", ">bytes of tensors", ">bytes", ">of before", ">bits"], rows, width),
    ]


def inspected_folder(name: str, files: Sequence[tuple[str, OpenFile | CodedFile]], width: int | None) -> list[str]:
    """What ``inspect`` prints of a folder: a line for each .dcb file."""
    totals = [_totals(opened, [opened.info(name) for name in opened]) for _, opened in files]
    rows = [
        [
            file,
            opened.kind or "arrays",
            f"{len(opened):,}",
            f"{total['elements']:,}",
            _bits(opened.file_bytes, total["elements"]),
            f"{opened.file_bytes:,}",
        ]
        for (file, opened), total in zip(files, totals, strict=True)
    ]
    tensor_bytes, file_bytes = sum(one["tensor_bytes"] for one in totals), sum(one.file_bytes for _, one in files)
    elements = sum(one["elements"] for one in totals)
    tensors = sum(len(opened) for _, opened in files)
    rows.append(["all files", "", f"{tensors:,}", f"{elements:,}", _bits(file_bytes, elements), f"{file_bytes:,}"])
    return [
        f"{printable(name)}: a folder with {plural(len(files), 'compressed file')}",
        f"{tensor_bytes:,} bytes of tensors in {file_bytes:,} bytes: {_ratio(tensor_bytes, file_bytes)}",
        "",
        *table(["file", "from", ">tensors", ">elements", ">bits", ">bytes"], rows, width),
    ]


def inspected(name: str, opened: OpenFile | CodedFile, width: int | None) -> list[str]:
    """What ``inspect`` prints: where the bytes go, then every tensor."""
    infos = [opened.info(name) for name in opened]
    totals = _totals(opened, infos)
    payload, tensor_bytes = totals["payload_bytes"], totals["tensor_bytes"]
    rows = []
    for method in ("quantized", "exact", "equal", "tied"):
        those = [info for info in infos if info.method == method]
        if those:
            size, count = sum(info.size for info in those), payload.get(method, 0)
            rows.append(
                [
                    f"{plural(len(those), 'tensor')}, {method}",
                    f"{size:,}",
                    _bits(count, size) if method != "tied" else "",
                    f"{count:,}",
                    _percent(count, opened.file_bytes),
                ]
            )
    around = opened.file_bytes - sum(payload.values())
    rows.append(["header and index", "", "", f"{around:,}", _percent(around, opened.file_bytes)])
    weights, bits = totals["elements"], _bits(opened.file_bytes, totals["elements"])
    rows.append(["whole file", f"{weights:,}", bits, f"{opened.file_bytes:,}", "100 %"])
    listed = [
        [
            info.name,
            _shape(info.shape),
            str(info.dtype),
            _bits(info.coded_bytes, info.size) if info.method != "tied" else "",
            info.method if info.step is None else f"{info.step:.4g}",
            *([_scales(info)] if totals["scales"] else []),
            _how(info),
            f"{info.coded_bytes:,}",
        ]
        for info in infos
    ]
    scales = ["times"] if totals["scales"] else []
    origin = f"from {printable(opened.kind)}" if opened.kind else "from arrays"
    if opened.base_name is not None:
        origin += f", an update of {printable(opened.base_name or 'an unnamed base')}"
    return [
        f"{printable(name)}: format version {VERSION}, {origin}",
        f"{tensor_bytes:,} bytes of tensors in {opened.file_bytes:,} bytes: {_ratio(tensor_bytes, opened.file_bytes)}",
        "",
        *table(["", ">elements", ">bits", ">bytes", ">of file"], rows, width),
        "",
        *table(["tensor", "shape", "type", ">bits", ">step", *scales, "quantizer", ">bytes"], listed, width),
        *(f"{printable(info.name)} is {printable(info.tied_to)}" for info in infos if info.tied_to is not None),
        *(f"{printable(info.name)} equals {printable(info.equal_to)}" for info in infos if info.equal_to is not None),
    ]


def inspected_json(name: str, opened: OpenFile | CodedFile) -> dict[str, Any]:
    """What ``inspect --json`` prints. Keys stay; new ones may come. Sizes in bytes, bits per element."""
    infos = [opened.info(name) for name in opened]
    totals = _totals(opened, infos)
    return {
        "path": name,
        "format_version": VERSION,
        "made_from": opened.kind,
        "base": None if opened.base_name is None else {"name": opened.base_name, "sha256": opened.base_digest},
        "file_bytes": opened.file_bytes,
        **totals,
        "tensors": [
            {
                "name": info.name,
                "dtype": str(info.dtype),
                "shape": list(info.shape),
                "method": info.method,
                "elements": info.size,
                "tensor_bytes": info.nbytes,
                "coded_bytes": info.coded_bytes,
                "bits_per_weight": info.bits_per_weight,
                "step": info.step,
                "row_scales": info.row_scales,
                "column_scales": info.column_scales,
                "quantizer": info.quantizer,
                "states": info.states,
                "coder": info.coder,
                "tied_to": info.tied_to,
                "equal_to": info.equal_to,
                "coding": info.coding,
                "update": info.update,
            }
            for info in infos
        ],
    }


def _totals(opened: OpenFile | CodedFile, infos: Sequence[TensorInfo]) -> dict[str, Any]:
    """Sums over the tensors, tied ones counted once."""
    own = [info for info in infos if info.tied_to is None]
    payload = {
        method: sum(info.coded_bytes for info in own if info.method == method) for method in ("quantized", "exact")
    }
    elements = sum(info.size for info in own)
    return {
        "header_bytes": opened.file_bytes - sum(payload.values()) - opened.index_bytes,
        "index_bytes": opened.index_bytes,
        "payload_bytes": payload,
        "tensor_bytes": sum(info.nbytes for info in own),
        "elements": elements,
        "scales": sum(info.row_scales + info.column_scales for info in own),
        "bits_per_weight": 8 * opened.file_bytes / elements if elements else 0.0,
    }


def _quality(tensors: Sequence[TensorReport]) -> str:
    values = [tensor.sqnr for tensor in tensors if tensor.sqnr is not None]
    exact = sum(tensor.method == "exact" for tensor in tensors)
    if not values:
        return "exact: no tensor is quantized"
    low, typical, high = (f"{value:.1f}" for value in (min(values), statistics.median(values), max(values)))
    spread = "" if low == high else f" ({low} to {high})"
    return f"SQNR {typical} dB{spread} in {plural(len(values), 'quantized tensor')}; {exact:,} exact"


def _scales(info: TensorInfo) -> str:
    """What the step of a tensor is multiplied by, in words."""
    return " ".join(word for word, count in (("row", info.row_scales), ("column", info.column_scales)) if count)


def trial(one: Trial) -> str:
    """A line for a trial of a search."""
    plain = {name: value for name, value in one.settings.items() if name != "overrides"}
    said = " ".join(f"{name}={value:g}" for name, value in plain.items())
    return f"{one.method} {said}: {one.bytes:,} bytes, metric {one.metric:.6g}, lost {one.drop:.4g}"


def searched(result: SearchResult) -> list[str]:
    """What ``search`` prints."""
    best = result.best
    again = f", {result.repeated:,} of them from before" if result.repeated else ""
    return [
        f"before   metric {result.original:.6g}, {result.raw_bytes:,} bytes of tensors",
        f"after    metric {best.metric:.6g} (lost {best.drop:.4g}), {best.bytes:,} bytes in {printable(result.path)}",
        f"ratio    {_ratio(result.raw_bytes, best.bytes)}",
        f"by       {trial(best)}",
        f"trials   {len(result.trials):,}{again}, in {printable(result.trials_path)}",
    ]


def _how(info: TensorInfo) -> str:
    """How values were chosen and coded, in a few words."""
    coder = "" if info.coder == "binary" else info.coder
    parts = (info.quantizer, info.states, coder, info.coding, _UPDATE[info.update])
    return " ".join(str(part) for part in parts if part)


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.2f} times smaller" if before >= after > 0 else f"{after - before:,} bytes larger"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _bits(count: int, elements: int) -> str:
    return f"{8 * count / elements:.2f}" if elements else ""


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
