"""Bytes at an equal metric: five trained networks, compressed by measured curvature, next to NNCodec 2.1.3.

    python bench/equal_accuracy.py [--models FOLDER] [--baselines FILE] [--only NAME] [--cache FOLDER] [--plot FILE]
    python bench/equal_accuracy.py --data-free [--no-test] ...    # rules for what each tensor gets: data_free.py

For each network: `deepcabac.torch.calibrate` on samples that are not the test's, then `deepcabac.save_file` with that
curvature at a fixed grid of SQNRs, biases and batch norms corrected afterwards; the file's bytes, and what the
network's own test says of the decoded tensors. baselines.jsonl holds NNCodec's bytes and metrics, with dependent
quantisation and `lambda_scale` 0 and 1. The bytes of both are read off their curves where these cross the same metric.
Needs torch, tokenizers, pillow; matplotlib to plot.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import _common
import data_free
import networks_torch
import torch
from networks_torch import Trained

import deepcabac
import deepcabac.torch
from deepcabac import curvature
from deepcabac.torch import calibration, collector, folding, running

CAVEATS = (
    "Bytes are whole files. Ours hold every tensor of the checkpoint, names and index; NNCodec's are as they were "
    "measured, once, elsewhere, and are not run here.",
    "At the target: of each codec's points those stay that no other point beats in both bytes and metric (NNCodec's of "
    "both lambda_scales together); between the two beside the target, the metric is linear in log(bytes).",
    "Ours are measured at a fixed grid of SQNRs, wide enough to reach beyond the target on both sides. Nothing else "
    "was chosen by the test, which says where the curves cross the target.",
    "Test sets are finite, and the best of many points is lucky; more points are luckier. 'at worst' reads ours just "
    "above the largest file that misses the target, and leaves NNCodec its best.",
    "Calibration sees CIFAR-10's training images, 200 ImageNet images that are not in the test, STS-B's dev sentences "
    "and stories that stories260K tells itself. NNCodec uses no data.",
    "stories260K is measured on text that it was trained on, the others on test data.",
    "Peak memory is this process's, with Python, PyTorch and the test's data; 'before' is what it held at the start. "
    "Seconds of calibration are without preparing the samples, of quantising with writing the file.",
)
PEER = "nncodec"
#: Points of ours on either side of the target, at least.
ENOUGH = 3


@dataclass(frozen=True)
class Case:
    """A network and how it is calibrated, measured and compared."""

    name: str  #: in the baselines
    title: str  #: for documents
    at: str  #: what may be lost, for documents
    load: Callable[[Path, Path | None], Trained]  #: of the models' folder and the cache
    metric: str
    within: float  #: what may be lost: of the metric itself if higher is better, else relative to it
    loss: str | None  #: for calibrate
    samples: int
    grid: tuple[float, ...]  #: SQNRs in dB
    fold: bool = False  #: batch norms into the convolutions before them; chosen on held-out calibration data
    correct: bool = True  #: biases and batch norms after quantisation
    higher_is_better: bool = True
    scale: float = 1.0  #: from the metric to what is shown
    digits: int = 2  #: as shown

    def target(self, original: float) -> float:
        """The metric to compare at."""
        return original - self.within if self.higher_is_better else original * (1 + self.within)

    def shown(self, value: float) -> str:
        """The metric for people."""
        return f"{self.scale * value:.{self.digits}f}"


def _decibels(low: int, high: int) -> tuple[float, ...]:
    return tuple(float(level) for level in range(low, high + 1))


CASES = (
    Case(
        "resnet20",
        "ResNet-20",
        "0.3 points less",
        lambda models, cache: networks_torch.resnet(models, 20),
        "top-1 %, CIFAR-10 test",
        within=0.003,
        loss=None,
        samples=2000,
        grid=_decibels(20, 32),
        fold=True,
        scale=100,
    ),
    Case(
        "resnet56",
        "ResNet-56",
        "0.3 points less",
        lambda models, cache: networks_torch.resnet(models, 56),
        "top-1 %, CIFAR-10 test",
        within=0.003,
        loss=None,
        samples=2000,
        grid=_decibels(18, 30),
        fold=True,
        scale=100,
    ),
    Case(
        "lite0",
        "EfficientNet-Lite0",
        "1 point less, 800 images",
        lambda models, cache: networks_torch.lite0(models),
        "top-1 %, 800 ImageNet images",
        within=0.01,
        loss=None,
        samples=200,
        grid=_decibels(36, 43),
        scale=100,
        digits=3,
    ),
    Case(
        "minilm",
        "all-MiniLM-L6-v2",
        "0.005 Spearman less",
        lambda models, cache: networks_torch.minilm(models),
        "Spearman x 100, STS-B test",
        within=0.005,
        loss=None,
        samples=1500,
        grid=_decibels(17, 26),
        scale=100,
        digits=3,
    ),
    Case(
        "stories260k",
        "stories260K",
        "2 % more perplexity",
        networks_torch.stories,
        "perplexity (lower is better)",
        within=0.02,
        loss="likelihood",
        samples=192,
        grid=_decibels(24, 36),
        correct=False,  # it has no biases
        higher_is_better=False,
        digits=4,
    ),
)


# Reading bytes off a curve


@dataclass(frozen=True)
class Point:
    """A file and what its network's test says."""

    bytes: int
    metric: float


def _quality(point: Point, higher_is_better: bool) -> float:
    return point.metric if higher_is_better else -point.metric


def best(points: Iterable[Point], higher_is_better: bool) -> list[Point]:
    """Those that no other point beats: with no more bytes and at least as good a metric. By rising bytes and metric."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.bytes, -_quality(one, higher_is_better))):
        if not kept or _quality(point, higher_is_better) > _quality(kept[-1], higher_is_better):
            kept.append(point)
    return kept


def worst(points: Iterable[Point], higher_is_better: bool) -> list[Point]:
    """Those that beat no other point: the ones to be found by whoever has no luck. By rising bytes and metric."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (-one.bytes, _quality(one, higher_is_better))):
        if not kept or _quality(point, higher_is_better) < _quality(kept[-1], higher_is_better):
            kept.append(point)
    return kept[::-1]


def bytes_at(curve: Sequence[Point], target: float) -> float | None:
    """Where a curve of :func:`best` or :func:`worst` has the target's metric, which is linear in log(bytes).

    None if the target is not between two of its points.
    """
    for low, high in pairwise(curve):
        if min(low.metric, high.metric) <= target <= max(low.metric, high.metric):
            share = (target - low.metric) / (high.metric - low.metric)
            return math.exp((1 - share) * math.log(low.bytes) + share * math.log(high.bytes))
    return None


@dataclass(frozen=True)
class Baseline:
    """What is known of a network from elsewhere."""

    original: float  #: the metric of the float32 weights
    bytes: int  #: of those
    points: dict[str, list[Point]]  #: NNCodec's, by setting


def read_baselines(path: Path) -> dict[str, Baseline]:
    """By network. Raises SystemExit if the file cannot be used."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        originals = {row["model"]: row for row in rows if row["codec"] == "fp32"}
        points: dict[str, dict[str, list[Point]]] = {name: {} for name in originals}
        for row in rows:
            if row["codec"].startswith(PEER):
                setting = f"{row['codec']}, {'DQ, ' if row['dq'] else ''}lambda_scale {row['lambda_scale']:g}"
                points[row["model"]].setdefault(setting, []).append(Point(row["bytes"], row["metric"]))
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{path}: no baselines: {type(error).__name__} {error}") from error
    return {name: Baseline(row["metric"], row["bytes"], points[name]) for name, row in originals.items()}


# Measuring


@dataclass(frozen=True)
class Cost:
    """What a call took."""

    seconds: float
    peak: int | None  #: bytes resident at most; None where the system does not say
    before: int | None  #: bytes resident at the start

    def cells(self) -> list[str]:
        """For a table: seconds, peak and before in GB."""
        sizes = ("-" if size is None else f"{size / 1e9:.2f}" for size in (self.peak, self.before))
        return [f"{self.seconds:.1f}", *sizes]


def costed(call: Callable[[], _common.Result]) -> tuple[Cost, _common.Result]:
    """One call and what it took."""
    before = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        known = True
    except OSError:
        known = False
    seconds, result = _common.timed(call)
    return Cost(seconds, _resident("VmHWM") if known else None, before), result


def _resident(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


@dataclass(frozen=True)
class Calibration:
    """What calibrating took."""

    cost: Cost  #: of the run that measured it, without making the batches
    cached: bool
    samples: int
    notes: tuple[str, ...]


def calibrate(case: Case, trained: Trained, cache: Path) -> tuple[deepcabac.Curvature, Calibration]:
    """The network's curvature, from the cache if it holds one of the same weights, samples, loss and code."""
    label = hashlib.sha256(f"{case.loss} {case.samples} {case.fold}".encode())
    code = (calibration, collector, running, curvature, folding, networks_torch)
    sources = (Path(str(module.__file__)) for module in code)
    for path in (trained.checkpoint, *sources):
        label.update(path.read_bytes())
    file = cache / f"{case.name}-{label.hexdigest()[:12]}.curvature"
    costs = file.with_suffix(".json")
    cached = file.exists() and costs.exists()
    if not cached:
        _common.note(f"{case.name}: {case.samples} samples ...")
        batches = trained.batches(case.samples)
        _common.note(f"{case.name}: calibrating ...")

        def measure() -> deepcabac.Curvature:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its notes are printed
                return deepcabac.torch.calibrate(trained.model, batches, case.loss)

        cost, found = costed(measure)
        found.save(file)
        costs.write_text(json.dumps(asdict(cost)))
    held = deepcabac.Curvature.load(file)
    cost = Cost(**json.loads(costs.read_text()))
    return held, Calibration(cost, cached, held.samples, held.notes)


@dataclass(frozen=True)
class Row:
    """A network of ours at a quality."""

    network: str
    sqnr: float  #: as asked for, dB
    bytes: int
    metric: float
    divergence: float | None  #: of the outputs from the original's, in nats a sample
    cost: Cost  #: of quantising and writing

    @property
    def point(self) -> Point:
        """For the curve."""
        return Point(self.bytes, self.metric)


def measure(
    case: Case, trained: Trained, held: deepcabac.Curvature, grid: Sequence[float], states: int | None, preset: str
) -> tuple[float, list[Row]]:
    """The original's metric, and ours at each quality."""
    settings: dict[str, Any] = {"preset": preset} if states is None else {"preset": preset, "states": states}
    if case.correct:
        settings["correct"] = deepcabac.torch.correction(trained.model, trained.batches(case.samples))
    original = trained.measure(trained.tensors)
    _common.note(f"{case.name}: float32, {case.shown(original.value)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="deepcabac-equal-") as folder:
        path = Path(folder) / "model.dcb"
        for sqnr in grid:
            cost, _ = costed(partial(deepcabac.save_file, trained.tensors, path, curvature=held, sqnr=sqnr, **settings))
            found = trained.measure(deepcabac.load_file(path))
            differs = None
            if original.logits is not None and found.logits is not None:
                differs = networks_torch.divergence(original.logits, found.logits)
            rows.append(Row(case.name, sqnr, path.stat().st_size, found.value, differs, cost))
            _common.note(f"{case.name}: {sqnr:g} dB, {rows[-1].bytes:,} bytes, {case.shown(found.value)}")
    return original.value, rows


@dataclass(frozen=True)
class Result:
    """A network's comparison."""

    network: str
    metric: str
    original: float
    original_here: float
    target: float
    peer: float | None  #: bytes at the target
    ours: float | None
    ours_at_worst: float | None
    reaching: int  #: points of ours that are at least as good as the target
    missing: int  #: those that are not
    calibration: Calibration

    def saved(self, ours: float | None) -> float | None:
        """Per cent of the peer's bytes."""
        return None if ours is None or self.peer is None else 100 * (1 - ours / self.peer)


def compare(case: Case, baseline: Baseline, here: float, rows: Sequence[Row], found: Calibration) -> Result:
    """Read both curves at the target."""
    up = case.higher_is_better
    target = case.target(baseline.original)
    peer = bytes_at(best((point for points in baseline.points.values() for point in points), up), target)
    mine = [row.point for row in rows]
    at_best, at_worst = bytes_at(best(mine, up), target), bytes_at(worst(mine, up), target)
    reaching = sum(_quality(point, up) >= (target if up else -target) for point in mine)
    return Result(
        case.name,
        case.metric,
        baseline.original,
        here,
        target,
        peer,
        at_best,
        at_worst,
        reaching,
        len(mine) - reaching,
        found,
    )


# Printing


def print_points(case: Case, baseline: Baseline, rows: Sequence[Row]) -> None:
    """All points of ours."""

    def cells(row: Row) -> list[str]:
        return [
            f"{case.name}, {row.sqnr:g} dB",
            f"{row.bytes:,}",
            f"{baseline.bytes / row.bytes:.2f}x",
            case.shown(row.metric),
            f"{case.scale * (row.metric - baseline.original):+.{case.digits}f}",
            "-" if row.divergence is None else f"{row.divergence:.5f}",
            *row.cost.cells(),
        ]

    print(f"{case.name}: {case.metric}; float32 {case.shown(baseline.original)} in {baseline.bytes:,} bytes\n")
    heads = ["ours", "bytes", "ratio", "metric", "change", "KL, nats", "seconds", "peak, GB", "before, GB"]
    _common.print_table(heads, map(cells, rows))


def print_results(cases: Sequence[Case], results: Sequence[Result]) -> None:
    """Both codecs at the target, the average, and what has to be said about it."""

    def optional(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    def cells(case: Case, result: Result) -> list[str]:
        ratio = None if result.ours is None or result.peer is None else result.ours / result.peer
        return [
            f"{case.name}, {case.metric}",
            case.shown(result.original),
            case.shown(result.target),
            *(optional(size, ",.0f") for size in (result.peer, result.ours)),
            optional(ratio, ".3f"),
            *(optional(result.saved(size), ".1f") for size in (result.ours, result.ours_at_worst)),
        ]

    print("Bytes at the target\n")
    heads = ["network", "float32", "target", "NNCodec", "ours", "ratio", "saved, %", "at worst, %"]
    _common.print_table(heads, map(cells, cases, results))
    for result in results:
        for codec, size in (("NNCodec", result.peer), ("ours", result.ours)):
            if size is None:
                print(f"{result.network}: the points of {codec} do not reach beyond the target on both sides.")
        if min(result.reaching, result.missing) < ENOUGH:
            print(
                f"WARNING: {result.network}: {result.reaching} points of ours reach the target and {result.missing} do "
                "not. Where the grid ends there, it is luck that ended it: measure further."
            )
        if abs(result.original_here - result.original) > 1e-5 * result.original:
            here, there = result.original_here, result.original
            print(f"WARNING: {result.network}: float32 measures {here:.6f} here and {there:.6f} in the baselines.")
    saved = [share for result in results if (share := result.saved(result.ours)) is not None]
    if saved:
        print(f"Saved on average: {sum(saved) / len(saved):.1f} %, of {len(saved)} networks.\n")


def save(
    cases: Sequence[Case],
    baselines: dict[str, Baseline],
    results: Sequence[Result],
    rows: Sequence[Row],
    about: dict[str, str],
    wanted: bool,
) -> None:
    """Both codecs at the target, and our point that lies nearest to it, for README and docs/results.md."""
    lines, points = [], []
    for case, result in zip(cases, results, strict=True):
        baseline = baselines[case.name]
        sizes = ["" if size is None else f"{size:,.0f}" for size in (result.peer, result.ours)]
        shares = [result.saved(size) for size in (result.ours, result.ours_at_worst)]
        lines.append([case.title, case.at, *sizes, *("" if each is None else f"{each:.1f} %" for each in shares)])
        row = min((row for row in rows if row.network == case.name), key=lambda row: abs(row.metric - result.target))
        points.append(
            [
                case.title,
                case.metric,
                case.shown(baseline.original),
                f"{row.sqnr:g}",
                f"{row.bytes:,}",
                f"{baseline.bytes / row.bytes:.1f}x",
                case.shown(row.metric),
                f"{case.scale * (row.metric - baseline.original):+.{case.digits}f}",
            ]
        )
    heads = ["network", "at", "NNCodec, bytes", "`.dcb`, bytes", "saved", "at worst"]
    _common.save_table(wanted, "equal_accuracy", about, heads, lines)
    heads = ["network", "metric", "float32", "SQNR, dB", "bytes", "ratio", "after", "change"]
    _common.save_table(wanted, "equal_accuracy_points", about, heads, points)


def print_costs(cases: Sequence[Case], results: Sequence[Result], rows: Sequence[Row]) -> None:
    """Calibration and quantisation."""
    table, remarks = [], []
    for case, result in zip(cases, results, strict=True):
        found = result.calibration
        mine = [row.cost for row in rows if row.network == case.name]
        seconds = [cost.seconds for cost in mine]
        peaks = [cost.peak for cost in mine if cost.peak is not None]
        table.append(
            [
                f"{case.name}, loss {case.loss or 'outputs'}, {found.samples} samples",
                *found.cost.cells(),
                f"{min(seconds):.1f} to {max(seconds):.1f}",
                f"{max(peaks) / 1e9:.2f}" if peaks else "-",
            ]
        )
        if found.cached:
            remarks.append(f"{case.name}: its calibration was kept from an earlier run, which took what is shown.")
        remarks += [f"{case.name}: {remark}" for remark in found.notes]
    print("What it takes\n")
    heads = ["calibration", "seconds", "peak, GB", "before, GB", "quantising, s", "its peak, GB"]
    _common.print_table(heads, table)
    for remark in remarks:
        print(remark)


def plot(
    path: Path, cases: Sequence[Case], baselines: dict[str, Baseline], results: Sequence[Result], rows: Sequence[Row]
) -> None:
    """A panel for each network, as PNG and as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def draw(panel: Any, points: Iterable[Point], scale: float, style: str, **more: Any) -> None:
        ordered = sorted(points, key=lambda point: point.bytes)
        panel.plot([point.bytes for point in ordered], [scale * point.metric for point in ordered], style, **more)

    across = min(3, len(cases))
    down = -(-len(cases) // across)
    size = (5 * across, 4 * down)
    figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for panel in axes.flat[len(cases) :]:
        panel.set_visible(False)
    for panel, case, result in zip(axes.flat, cases, results, strict=False):
        mine = [row.point for row in rows if row.network == case.name]
        theirs = baselines[case.name].points
        everything = [point for points in theirs.values() for point in points]
        draw(panel, mine, case.scale, "o-", color="C0", markersize=4, label="deepcabac, calibrated")
        for (setting, points), style in zip(theirs.items(), "sD^v", strict=False):
            draw(panel, points, case.scale, style, color="C1", markersize=4, label=setting)
        peer_best = best(everything, case.higher_is_better)
        draw(panel, peer_best, case.scale, "--", color="C1", label="NNCodec, the best of these")
        panel.axhline(case.scale * result.target, color="gray", linewidth=1, label="compared here")
        # What lies far below the target would flatten the part that matters.
        lost = result.original - result.target
        panel.set_ylim(sorted(case.scale * value for value in (result.target - 8 * lost, result.original + 2 * lost)))
        panel.set_xscale("log")
        shown = [point.bytes for point in (*mine, *everything)]
        panel.set_xlim(0.9 * min(shown), 1.1 * max(shown))
        panel.set(title=case.name, xlabel="bytes", ylabel=case.metric)
        panel.grid(which="both", alpha=0.3)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=150)
        _common.note(f"written: {path.with_suffix(suffix)}")
    pyplot.close(figure)


def _sources() -> str:
    """Which Python sources of the package run: an editable install may be of another checkout than this one."""
    digest = hashlib.sha256()
    for path in sorted(Path(str(deepcabac.__file__)).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"deepcabac's Python files, sha256 {digest.hexdigest()[:12]}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    options = _common.parser(__doc__)
    _common.add_models(options)
    options.add_argument(
        "--baselines", type=Path, metavar="FILE", help="NNCodec's points (default: baselines.jsonl beside the models)"
    )
    options.add_argument("--only", metavar="TEXT", help="only networks with TEXT in their name")
    options.add_argument("--plot", type=Path, metavar="FILE", help="also draw the curves: FILE as .png and as .svg")
    options.add_argument("--cache", type=Path, metavar="FOLDER", help="keep calibrations here between runs")
    options.add_argument("--states", type=int, metavar="N", help="of the trellis (default: the package's)")
    options.add_argument("--data-free", action="store_true", help="compare rules that use no data instead")
    options.add_argument("--no-test", action="store_true", help="with --data-free: only the divergence, not the test")
    options.add_argument("--preset", default="default", help="fast, default or small")
    options.add_argument(
        "--sqnr", type=float, action="append", metavar="DB", help="instead of each network's grid; can be repeated"
    )
    return options.parse_args()


def main() -> None:
    """Calibrate, compress and measure every network; print, write, draw."""
    arguments = parse_arguments()
    baselines = read_baselines(arguments.baselines or arguments.models.parent / "baselines.jsonl")
    chosen = [case for case in CASES if (arguments.only or "").lower() in case.name and case.name in baselines]
    if not chosen:
        raise SystemExit(f"no network with baselines has {arguments.only!r} in its name")
    about = _common.environment(["numpy", "torch"])
    states = arguments.states or deepcabac.Options(preset=arguments.preset).states
    about["settings"] = f"preset {arguments.preset}, {states} states, "
    about["settings"] += f"{torch.get_num_threads()} threads in PyTorch, all cores in deepcabac"
    about["sources"] = _sources()
    if arguments.data_free:
        _common.print_head("Rules without data", data_free.CAVEATS, about)
        with tempfile.TemporaryDirectory(prefix="deepcabac-cache-") as folder:
            cache = arguments.cache or Path(folder)
            cache.mkdir(parents=True, exist_ok=True)
            places = (arguments.models, cache, about, not arguments.no_test, arguments.json, arguments.results)
            data_free.run(chosen, baselines, *places)
        return
    about["peer"] = "; ".join(dict.fromkeys(name for case in chosen for name in baselines[case.name].points))
    _common.print_head("Bytes at an equal metric", CAVEATS, about)
    rows: list[Row] = []
    results = []
    with tempfile.TemporaryDirectory(prefix="deepcabac-cache-") as folder:
        cache = arguments.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        for case in chosen:
            trained = case.load(arguments.models, cache)
            if case.fold:
                trained = networks_torch.folded(trained)
            held, found = calibrate(case, trained, cache)
            with held:
                grid = arguments.sqnr or case.grid
                original, mine = measure(case, trained, held, grid, arguments.states, arguments.preset)
            print_points(case, baselines[case.name], mine)
            rows += mine
            results.append(compare(case, baselines[case.name], original, mine, found))
    print_results(chosen, results)
    save(chosen, baselines, results, rows, about, arguments.results)
    print_costs(chosen, results, rows)
    _common.write_json(
        arguments.json, about, points=[asdict(row) for row in rows], results=[asdict(result) for result in results]
    )
    if arguments.plot:
        plot(arguments.plot, chosen, baselines, results, rows)


if __name__ == "__main__":
    main()
