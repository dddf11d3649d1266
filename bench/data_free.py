"""Which tensor gets how much, without data: `python bench/equal_accuracy.py --data-free`.

Every network is compressed by each rule at a grid of qualities: `quality` is the package's own rule, `equal SQNR` gives
every tensor the same SQNR (and depthwise kernels 10 dB more), and `synthetic` is a calibration on inputs that the
network makes itself: images that fit its batch norms, or text that it writes. For each file, how far the outputs are
from the original's on calibration samples, and what the network's own test says. NNCodec's points are those of
equal_accuracy.py.
"""

from __future__ import annotations

import tempfile
import warnings
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
    "Synthetic: the settings were chosen on ResNet-20. stories260K is calibrated and judged on text of its own, drawn "
    "with different seeds; its test is text of others.",
)
RULES = ("equal SQNR", "quality", "synthetic")
#: Samples on which the divergence is measured.
SAMPLES = {"resnet20": 1000, "resnet56": 500, "lite0": 200, "minilm": 200, "stories260k": 48}
#: Qualities by rule: wide enough to reach beyond what may be lost on both sides.
GRIDS = {
    "resnet20": (range(18, 30, 2), range(11, 23, 2), range(22, 34, 2)),
    "resnet56": (range(14, 26, 2), range(8, 20, 2), range(18, 30, 2)),
    "lite0": (range(28, 38, 2), range(20, 30, 2), range(24, 34, 2)),
    "minilm": (range(12, 24, 3), range(9, 21, 3), ()),
    "stories260k": (range(25, 37, 2), range(23, 35, 2), range(23, 35, 2)),
}
#: Synthetic images by network: shape of one, how many, and how many at once.
IMAGES = {"resnet20": ((3, 32, 32), 256, 64), "resnet56": ((3, 32, 32), 256, 64), "lite0": ((3, 224, 224), 64, 16)}
#: Sequences of synthetic text and their length.
TEXTS = (128, 256)
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


def synthetic(case: Case, trained: Trained) -> deepcabac.Curvature:
    """The curvature on inputs that the network makes itself."""
    fill(trained.model, trained.tensors)
    if case.name in IMAGES:
        shape, samples, batch = IMAGES[case.name]
        inputs = deepcabac.torch.synthetic_inputs(trained.model, shape, samples, batch=batch)
    else:
        inputs = deepcabac.torch.synthetic_tokens(trained.model, *TEXTS, seed=networks_torch.SEED + 1)
    _common.note(f"{case.name}: inputs made; calibrating ...")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are few samples
        return deepcabac.torch.calibrate(trained.model, inputs, case.loss)


def settings(rule: str, quality: float, trained: Trained, curvature: deepcabac.Curvature | None) -> dict[str, Any]:
    """How to compress by a rule."""
    if rule == "quality":
        return {"quality": quality}
    if rule == "synthetic":
        return {"sqnr": quality, "curvature": curvature}
    kernels = [name for name, one in trained.tensors.items() if one.ndim > 2 and one.shape[1] == 1]
    return {"sqnr": quality, "overrides": {name: {"offset": DEPTHWISE} for name in kernels}}


def fill(model: torch.nn.Module, tensors: Mapping[str, Any]) -> None:
    """Put tensors into a model, those that it has."""
    known = model.state_dict()
    values = {name: torch.from_numpy(np.array(one)) for name, one in tensors.items() if name in known}
    model.load_state_dict(values, strict=False)


@torch.no_grad()
def outputs(trained: Trained, batches: Sequence[Any], tensors: Mapping[str, Any]) -> torch.Tensor:
    """What the network makes of the batches with these tensors: [samples or positions, outputs]."""
    fill(trained.model, tensors)
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
            curvature = synthetic(case, trained) if rule == "synthetic" and grid else None
            for quality in grid:
                deepcabac.save_file(trained.tensors, path, **settings(rule, quality, trained, curvature))
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


def at_equal_divergence(rows: Sequence[Row]) -> list[tuple[float, list[float | None]]]:
    """Bytes by every rule (None: it was not tried) at three divergences."""
    lines, least, most = [], 0.0, float("inf")
    for rule in RULES:
        mine = [row for row in rows if row.rule == rule]
        if not mine:
            lines.append(None)
            continue
        sizes, apart = (np.log([getattr(row, name) for row in mine]) for name in ("bytes", "divergence"))
        lines.append(np.polyfit(sizes, apart, 1))
        fitted = np.exp(np.polyval(lines[-1], [sizes.max(), sizes.min()]))
        least, most = max(least, float(fitted[0])), min(most, float(fitted[1]))
    places = np.exp(np.linspace(np.log(least), np.log(most), 3))
    return [
        (float(place), [line if line is None else float(np.exp((np.log(place) - line[1]) / line[0])) for line in lines])
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
        for place, (before, *others) in at_equal_divergence(mine):
            saved = [_saved(before, one) for one in others]
            equal.append([case.title, f"{place:.4f}", *map(_shown, (before, *others)), *saved])
        if not test:
            continue
        up = case.higher_is_better
        target = case.target(baselines[case.name].original)
        curves = [best((point for one in baselines[case.name].points.values() for point in one), up)]
        for rule in RULES:
            points = [Point(one.bytes, one.metric) for one in mine if one.rule == rule and one.metric is not None]
            curves.append(best(points, up))
        sizes = [bytes_at(curve, target) for curve in curves]
        metric.append([case.title, case.at, *map(_shown, sizes), *(_saved(sizes[0], size) for size in sizes[2:])])
    print("At equal KL\n")
    heads = ["network", "KL", *(f"{rule}, bytes" for rule in RULES), *(f"{rule} saves" for rule in RULES[1:])]
    _common.print_table(heads, equal)
    _common.save_table(results, "data_free", about, heads, equal, keys=2)
    if test:
        print("At the metric\n")
        heads = ["network", "at", "NNCodec, bytes", *(f"{rule}, bytes" for rule in RULES)]
        heads += [f"{rule} saves to NNCodec" for rule in RULES[1:]]
        _common.print_table(heads, metric)
        _common.save_table(results, "data_free_metric", about, heads, metric)
    _common.write_json(json, about, points=[asdict(row) for row in rows])


def _shown(size: float | None) -> str:
    return "-" if size is None else f"{size:,.0f}"


def _saved(before: float | None, now: float | None) -> str:
    return "-" if before is None or now is None else f"{100 * (1 - now / before):.1f} %"


def _cells(case: Case, row: Row) -> list[str]:
    shown = "-" if row.metric is None else case.shown(row.metric)
    return [f"{row.rule} {row.quality:g}", f"{row.bytes:,}", f"{row.divergence:.5f}", shown]
