"""``inspect --html``: where the bytes of a file go, on a page of its own."""

from __future__ import annotations

import numpy as np

from .. import showing
from ..dcb.container import VERSION
from ..dcb.reader import OpenFile, TensorInfo
from ..loadable import CodedFile
from ..options import SCALAR_NOISE, TRELLIS_NOISE

#: Values of a tensor that a histogram is made from, at most.
_SAMPLE = 1 << 20


def inspected_page(name: str, opened: OpenFile | CodedFile) -> str:
    """The page: sizes, then for each tensor its bits, error and share of the bytes, and a histogram of its levels."""
    infos = [opened.info(one) for one in opened]
    own = [info for info in infos if info.coded_bytes or info.tied_to is None]
    elements, nbytes = sum(info.size for info in own), sum(info.nbytes for info in own)
    most_bits = max((info.bits_per_weight for info in own), default=0.0) or 1.0
    summary = []
    for method in ("quantized", "exact"):
        those = [info for info in own if info.method == method]
        coded = sum(info.coded_bytes for info in those)
        if those:
            counts = [f"{len(those):,}", f"{sum(info.size for info in those):,}"]
            summary.append([method, *counts, *_part(coded, opened.file_bytes)])
    around = opened.file_bytes - sum(info.coded_bytes for info in own)
    summary.append(["header and index", "", "", *_part(around, opened.file_bytes)])
    rows = []
    for info in infos:
        error, drawing = _seen(opened, info)
        rows.append(
            [
                info.name,
                "x".join(map(str, info.shape)) or "scalar",
                str(info.dtype),
                info.method if info.tied_to is None else f"is {info.tied_to}",
                f"{info.bits_per_weight:.2f}" if info.coded_bytes else "",
                showing.bar(info.bits_per_weight / most_bits),
                error,
                *_part(info.coded_bytes, opened.file_bytes),
                drawing,
            ]
        )
    bits = 8 * opened.file_bytes / elements if elements else 0.0
    header = ["tensor", "shape", "type", "stored", ">bits", "bits", ">SQNR dB", ">bytes", ">of file", "bytes", "levels"]
    return showing.page(
        name,
        showing.lines(
            f"A .dcb file of format version {VERSION}, made from {opened.kind or 'arrays'}.",
            f"{nbytes:,} bytes of tensors in {opened.file_bytes:,} bytes, {bits:.3g} bits per weight.",
        ),
        showing.table(["", ">tensors", ">elements", ">bytes", ">of file", ""], summary),
        showing.table(header, rows),
        showing.lines(
            "SQNR: signal to quantisation noise, estimated from the step: 10 log10 of the mean square of the values by "
            "the mean square error that a quantiser of this step has at high rate.",
            "levels: how often each level occurs, a thousandth at either end left out; of a large tensor, of a part.",
        ),
    )


def _seen(opened: OpenFile | CodedFile, info: TensorInfo) -> tuple[str, showing.Drawing]:
    """The estimated SQNR of a quantised tensor, and a histogram of its levels."""
    if isinstance(opened, CodedFile) or info.method != "quantized" or not opened.has_levels(info.name) or not info.step:
        return "", showing.Drawing("")
    levels = opened.levels(info.name).levels.reshape(-1)[:_SAMPLE].astype(np.float64)
    noise = TRELLIS_NOISE if info.quantizer == "trellis" else SCALAR_NOISE
    power = float(np.square(levels).mean())
    scaled = info.row_scales or info.column_scales  # then the noise is another in each row or column
    error = f"{10 * np.log10(power / noise):.1f}" if power > 0 and not scaled else ""
    return error, showing.histogram(levels)


def _part(part: int, whole: int) -> list[str]:
    """Bytes, their share of the file in per cent, and as a bar."""
    return [f"{part:,}", f"{100 * part / whole:.1f} %", showing.bar(part / whole)]
