"""The picture of a search: bytes against the metric, trial by trial. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..atomic import AtomicFile
from ..errors import UnsupportedError
from .trials import Trial


def plot(trials: Sequence[Trial], best: Trial, max_drop: float, lower_is_better: bool, path: Path) -> list[Path]:
    """Draw ``trials`` (the original first) to ``path`` with the suffixes .png and .svg; the two paths.

    Raises :class:`UnsupportedError` without matplotlib, :class:`CheckpointError` if a file cannot be written.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise UnsupportedError("no plot without matplotlib: pip install 'deepcabac[plot]'") from error
    original = trials[0].metric
    allowed = original + max_drop if lower_is_better else original - max_drop
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, method in enumerate(dict.fromkeys(trial.method for trial in trials[1:])):
        mine = [trial for trial in trials[1:] if trial.method == method]
        axes.scatter([trial.bytes for trial in mine], [trial.metric for trial in mine], 18, f"C{number}", label=method)
    axes.scatter([best.bytes], [best.metric], 120, "none", edgecolors="black", label=f"chosen: {best.bytes:,} bytes")
    axes.axhline(original, color="gray", linewidth=1, linestyle="--", label="original")
    axes.axhline(allowed, color="gray", linewidth=1, label="allowed")
    # What lies far beyond what is allowed would flatten the part that matters.
    beyond = 6 * max(abs(original - allowed), abs(best.metric - original), 1e-3 * abs(original))
    worst = max if lower_is_better else min
    farthest = worst(trial.metric for trial in trials)
    limit = min(farthest, original + beyond) if lower_is_better else max(farthest, original - beyond)
    margin = 0.08 * (abs(limit - original) or 1.0)
    axes.set_ylim(min(limit, original) - margin, max(limit, original) + margin)
    axes.set(xscale="log", xlabel="bytes of the file", ylabel="metric" + " (lower is better)" * lower_is_better)
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize="small")
    written = []
    for suffix in (".png", ".svg"):
        with AtomicFile(path.with_suffix(suffix)) as file:
            figure.savefig(file.file, format=suffix[1:], dpi=150)
        written.append(path.with_suffix(suffix))
    pyplot.close(figure)
    return written
