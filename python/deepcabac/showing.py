"""Tables and drawings in HTML: for notebooks, and for the page that ``deepcabac inspect --html`` writes.

Everything is escaped, since names in files may come from anyone, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

#: Rows of a table in a notebook.
ROWS = 30
_INK, _FILL = "#444", "#4878a8"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], most: int | None = None) -> str:
    """A table. Columns whose heading begins with ``>`` are flush right. A :class:`Drawing` is a cell as it is. Of more
    rows than ``most`` the rest is counted.
    """
    right = [heading.startswith(">") for heading in header]
    heads = "".join(f"<th{_align(one.startswith('>'))}>{escape(one.removeprefix('>'))}</th>" for one in header)
    lines = [
        "".join(f"<td{_align(flush)}>{_cell(cell)}</td>" for cell, flush in zip(row, right, strict=True))
        for row in rows[:most]
    ]
    if most is not None and len(rows) > most:
        lines.append(f'<td colspan="{len(header)}">and {len(rows) - most:,} more</td>')
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


class Drawing(str):
    """HTML that :func:`table` takes as it is."""


def _align(right: bool) -> str:
    return ' style="text-align:right"' if right else ' style="text-align:left"'


def _cell(cell: str) -> str:
    return cell if isinstance(cell, Drawing) else escape(cell)


def bar(share: float, width: int = 120) -> Drawing:
    """A bar, ``share`` of ``width`` long."""
    length = round(min(max(share, 0.0), 1.0) * width, 1)
    return Drawing(
        f'<svg width="{width}" height="10" role="img"><rect width="{length}" height="10" fill="{_FILL}"/></svg>'
    )


def histogram(values: npt.NDArray[np.int64] | npt.NDArray[np.float64], bins: int = 41, width: int = 123) -> Drawing:
    """How often values occur, those at the far ends (a thousandth on either side) left out."""
    if values.size == 0:
        return Drawing("")
    low, high = np.quantile(values, [0.001, 0.999])
    counts, _ = np.histogram(values, bins, (float(low), float(high) if high > low else float(low) + 1))
    largest = max(int(counts.max()), 1)
    step = width / bins
    bars = "".join(
        f'<rect x="{number * step:.1f}" y="{24 - 24 * count / largest:.1f}" width="{step:.1f}" '
        f'height="{24 * count / largest:.1f}" fill="{_FILL}"/>'
        for number, count in enumerate(counts)
        if count
    )
    return Drawing(f'<svg width="{width}" height="24" role="img">{bars}</svg>')


def scatter(points: Sequence[tuple[float, float, bool]], across: str, up: str, line: float | None = None) -> Drawing:
    """Points (x, y, filled), the axes called ``across`` and ``up``, and a dashed line at height ``line``."""
    points = [point for point in points if np.isfinite(point[:2]).all()]
    if not points:
        return Drawing("")
    width, height, left, below = 480, 260, 60, 30
    xs, ys = [point[0] for point in points], [point[1] for point in points] + ([] if line is None else [line])

    def place(value: float, values: Sequence[float], begin: float, end: float) -> float:
        low, high = min(values), max(values)
        return begin + (end - begin) * ((value - low) / (high - low) if high > low else 0.5)

    dots = "".join(
        f'<circle cx="{place(x, xs, left + 8, width - 8):.1f}" cy="{place(y, ys, height - below - 8, 8):.1f}" r="3.5" '
        f'stroke="{_FILL}" fill="{_FILL if filled else "none"}"/>'
        for x, y, filled in points
    )
    if line is not None:
        at = place(line, ys, height - below - 8, 8)
        dots += f'<path d="M{left} {at:.1f}H{width}" stroke="{_INK}" stroke-dasharray="4 3"/>'
    axes = f'<path d="M{left} 0V{height - below}H{width}" stroke="{_INK}" fill="none"/>'
    texts = [
        (left, height - 16, "start", f"{min(xs):,.6g}"),
        (width, height - 16, "end", f"{max(xs):,.6g}"),
        ((left + width) / 2, height - 4, "middle", across),
        (left - 4, height - below, "end", f"{min(ys):.3g}"),
        (left - 4, 10, "end", f"{max(ys):.3g}"),
    ]
    words = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="10">{escape(text)}</text>'
        for x, y, anchor, text in texts
    )
    words += (
        f'<text transform="translate(12 {(height - below) / 2}) rotate(-90)" text-anchor="middle" font-size="10">'
        f"{escape(up)}</text>"
    )
    return Drawing(f'<svg width="{width}" height="{height}" role="img">{axes}{dots}{words}</svg>')


def lines(*texts: str) -> str:
    """A paragraph of lines."""
    return "<p>" + "<br>".join(escape(text) for text in texts) + "</p>"


def page(title: str, *parts: str) -> str:
    """A whole page that needs no other file."""
    style = (
        "body{font:14px/1.4 system-ui,sans-serif;color:#222;margin:2em auto;max-width:75em;padding:0 1em}"
        "table{border-collapse:collapse;margin:1em 0}td,th{padding:.15em .7em;border-bottom:1px solid #ddd;"
        "vertical-align:middle}th{border-bottom:2px solid #888}td:first-child{overflow-wrap:anywhere}"
        "thead{display:table-header-group}tr{break-inside:avoid}@media print{body{margin:0;font-size:11px}}"
    )
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>'
    body = f"<h1>{escape(title)}</h1>{''.join(parts)}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
