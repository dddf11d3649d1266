"""Which tensor gets how much, without data: `python bench/equal_accuracy.py --data-free`.

Every network is compressed by each rule at a grid of qualities: `quality` is the package's own rule, `equal SQNR` gives
every tensor the same SQNR (and depthwise kernels 10 dB more), as all versions before did. For each file, how far the
outputs are from the original's on calibration samples, and what the network's own test says. NNCodec's points are
those of equal_accuracy.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _common
import networks_torch
import numpy as np
import torch
from networks_torch import Trained

import deepcabac

if TYPE_CHECKING:
    from equal_accuracy import Baseline, Case

CAVEATS = (
    "Bytes are whole files. NNCodec's are as they were measured, once, elsewhere, and are not run here.",
    "KL: mean divergence of the predicted classes (all-MiniLM-L6-v2: mean squared distance of the embeddings) from "
    "those of the float32 weights, on samples that are not the test's. 'At equal KL' reads both rules' bytes off "
    "straight lines through log(bytes) and log(KL), at three places where both were measured.",
    "At the metric: as equal_accuracy.py reads it. Nothing was chosen by the test, which says where curves cross it.",
    "The rule's exponents were found on these networks' curvatures, the two numbers about inputs of convolutions on "
    "ResNet-20's calibration images alone: docs/design/quantisation.md.",
)
RULES = ("equal SQNR", "quality")
#: Samples on which the divergence is measured.
SAMPLES = {"resnet20": 1000, "resnet56": 500, "lite0": 200, "minilm": 200, "stories260k": 48}
#: Qualities by rule: wide enough to reach beyond what may be lost on both sides.
GRIDS = {
    "resnet20": (range(18, 29), range(11, 22)),
    "resnet56": (range(14, 25), range(8, 19)),
    "lite0": (range(28, 38), range(20, 30)),
    "minilm": (range(12, 23), range(9, 20)),
    "stories260k": (range(25, 36), range(23, 34)),
}
#: dB that depthwise kernels got.
DEPTHWISE = 10


@dataclass(frozen=True)
class Row:
    """A network by a rule at a quality."""

    network: str
    rule: str
    quality: float
    bytes: int
    divergence: float
    metric: float | None


def settings(rule: str, quality: float, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """How to compress by a rule."""
    if rule == "quality":
        return {"quality": quality}
    depthwise = {name: {"offset": DEPTHWISE} for name, one in tensors.items() if one.ndim > 2 and one.shape[1] == 1}
    return {"sqnr": quality, "overrides": depthwise}


@torch.no_grad()
def outputs(trained: Trained, batches: Sequence[Any], tensors: Mapping[str, Any]) -> torch.Tensor:
    """What the network makes of the batches with these tensors: [samples or positions, outputs]."""
    known = trained.model.state_dict()
    values = {name: torch.from_numpy(np.array(one)) for name, one in tensors.items() if name in known}
    trained.model.load_state_dict(values, strict=False)
    found = [trained.model(*batch) if isinstance(batch, tuple) else trained.model(batch) for batch in batches]
    return torch.cat([one.flatten(0, -2) for one in found])


def measure(case: Case, trained: Trained, test: bool) -> list[Row]:
    """All rules at all qualities. Without ``test``, only the divergence."""
    batches = trained.batches(SAMPLES[case.name])
    original = outputs(trained, batches, trained.tensors)
    rows = []
    with tempfile.TemporaryDirectory(prefix="deepcabac-data-free-") as folder:
        path = Path(folder) / "model.dcb"
        for rule, grid in zip(RULES, GRIDS[case.name], strict=True):
            for quality in grid:
                deepcabac.save_file(trained.tensors, path, **settings(rule, quality, trained.tensors))
                decoded = deepcabac.load_file(path)
                found = outputs(trained, batches, decoded)
                if case.name == "minilm":
                    apart = float((found - original).square().sum(1).mean())
                else:
                    apart = networks_torch.divergence(original, found)
                metric = trained.measure(decoded).value if test else None
                rows.append(Row(case.name, rule, quality, path.stat().st_size, apart, metric))
                shown = "" if metric is None else f", {case.shown(metric)}"
                _common.note(f"{case.name}, {rule} {quality}: {rows[-1].bytes:,} bytes, KL {apart:.5f}{shown}")
    return rows


def at_equal_divergence(rows: Sequence[Row]) -> list[tuple[float, float, float]]:
    """Bytes by both rules at three divergences: [(divergence, equal SQNR, quality)]."""
    lines, least, most = [], 0.0, float("inf")
    for rule in RULES:
        mine = [row for row in rows if row.rule == rule]
        sizes, apart = (np.log([getattr(row, name) for row in mine]) for name in ("bytes", "divergence"))
        lines.append(np.polyfit(sizes, apart, 1))
        fitted = np.exp(np.polyval(lines[-1], [sizes.max(), sizes.min()]))
        least, most = max(least, float(fitted[0])), min(most, float(fitted[1]))
    places = np.exp(np.linspace(np.log(least), np.log(most), 3))
    return [
        (float(place), *(float(np.exp((np.log(place) - offset) / slope)) for slope, offset in lines))
        for place in places
    ]


def run(
    cases: Sequence[Case],
    baselines: dict[str, Baseline],
    models: Path,
    cache: Path,
    about: dict[str, str],
    test: bool,
    json: Path | None,
    results: bool,
) -> None:
    """Measure, print, and write bench/results/data_free.csv if ``results``."""
    from equal_accuracy import Point, best, bytes_at

    rows: list[Row] = []
    equal, metric = [], []
    for case in cases:
        trained = case.load(models, cache)
        mine = measure(case, trained, test)
        rows += mine
        print(f"{case.title}\n")
        heads = ["rule, quality", "bytes", "KL", case.metric]
        _common.print_table(heads, [_cells(case, one) for one in mine])
        for place, before, now in at_equal_divergence(mine):
            saved = f"{100 * (1 - now / before):.1f} %"
            equal.append([case.title, f"{place:.4f}", f"{before:,.0f}", f"{now:,.0f}", saved])
        if not test:
            continue
        up = case.higher_is_better
        target = case.target(baselines[case.name].original)
        curves = [best((point for one in baselines[case.name].points.values() for point in one), up)]
        for rule in RULES:
            points = [Point(one.bytes, one.metric) for one in mine if one.rule == rule and one.metric is not None]
            curves.append(best(points, up))
        sizes = [bytes_at(curve, target) for curve in curves]
        shares = [
            "-" if size is None or sizes[-1] is None else f"{100 * (1 - sizes[-1] / size):.1f} %" for size in sizes[:-1]
        ]
        metric.append([case.title, case.at, *("-" if size is None else f"{size:,.0f}" for size in sizes), *shares])
    print("At equal KL\n")
    heads = ["network", "KL", "equal SQNR, bytes", "quality, bytes", "saved"]
    _common.print_table(heads, equal)
    _common.save_table(results, "data_free", about, heads, equal, keys=2)
    if test:
        print("At the metric\n")
        heads = ["network", "at", "NNCodec, bytes", "equal SQNR, bytes", "quality, bytes"]
        heads += ["saved to NNCodec", "to equal SQNR"]
        _common.print_table(heads, metric)
        _common.save_table(results, "data_free_metric", about, heads, metric)
    _common.write_json(json, about, points=[asdict(row) for row in rows])


def _cells(case: Case, row: Row) -> list[str]:
    shown = "-" if row.metric is None else case.shown(row.metric)
    return [f"{row.rule} {row.quality:g}", f"{row.bytes:,}", f"{row.divergence:.5f}", shown]
