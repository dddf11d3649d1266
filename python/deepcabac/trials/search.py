"""The smallest file that keeps a network's metric: DeepCABAC's outer loop (Wiedemann et al. 2020), with fewer trials.

The paper compresses, decodes and measures over a grid of steps (or S) and lambdas. Here every way to choose steps is a
curve, on which bytes and metric follow one quality in dB. The smallest file of a curve that keeps the metric is found
by bracketing; what is lost grows about tenfold in 10 dB, which tells where to look. Several curves race: after a few
trials the worse half is dropped (successive halving, Jamieson & Talwalkar 2016). Then parts of the network are made
worse one by one to see how much each matters, and get their bits accordingly.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import files, folders, showing
from ..atomic import AtomicFile, AtomicFolder
from ..checkpoint import open_checkpoint
from ..errors import OptionError, unknown
from ..options import MAX_SQNR, TARGETS, Options, SearchFields
from ..quantize.steps import FLOAT_DTYPES
from ..source import Arrays, Correct, Source
from .trials import Choice, Evaluate, Reference, Trial, Trials

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing itself only from Python 3.11 on

#: Evaluations that a search may spend.
EVALUATIONS = 40
#: Of a curve, in dB: where it begins, how far it looks without knowing better, and when it is near enough.
_FIRST, _STRIDE, _FARTHEST, _NEAR = 30.0, 8.0, 10.0, 0.25
#: How far below a quality that does to look once more, in dB.
_LOOKS = (0.7, 1.5)
#: Of a full grid, in dB.
_GRID = tuple(np.arange(12.0, 46.0, 2.0))
#: Lambda as a multiple of theory's, of the curves with one step for all tensors.
_LAMBDAS = (0.5, 1.0, 2.0, 4.0)
#: Trials of each curve before the worse half is dropped, each time.
_RUNG = 3
#: Sensitivities: parts of the network at most, and by how much each is made worse to be measured, in dB.
_PARTS, _WORSE = 8, 9.0
#: What a part can get above or below the others, in dB.
_MOST_OFFSET = 6.0
#: Measured sensitivities are noisy: what is made of their logarithms.
_TRUST = 0.5
#: A loss too small to be seen is taken to be this share of what may be lost.
_UNSEEN = 0.05

METHODS = ("curvature", "importance", "dc-v2", "quality", "sensitivity", "sqnr")
#: Without being asked for.
_USUAL = METHODS[:-1]

OnTrial = Callable[["SearchProgress"], None]


@dataclass(frozen=True)
class SearchProgress:
    """How far a search is."""

    trial: Trial  #: the latest
    best: Trial | None  #: the smallest file so far that keeps the metric
    done: int
    total: int  #: evaluations at most


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    path: Path  #: the .dcb file, or the folder
    best: Trial  #: its settings; bytes and metric are those of the file at ``path``, decoded and measured again
    original: float  #: metric of the original
    raw_bytes: int  #: of all its tensors
    trials: list[Trial]  #: all of them, the original first
    trials_path: Path  #: the same as CSV
    repeated: int  #: how many of them an earlier, interrupted search had measured

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        tried = sorted((trial for trial in self.trials if trial.method != "original"), key=lambda trial: trial.bytes)
        rows = [
            [
                trial.method,
                ", ".join(f"{name}={value:.4g}" for name, value in trial.settings.items() if name != "overrides"),
                f"{trial.bytes:,}",
                f"{trial.metric:.6g}",
                f"{trial.drop:.4g}",
                "kept" if trial.within else "lost too much",
            ]
            for trial in tried
        ]
        words = showing.lines(
            f"{self.path}: {self.best.bytes:,} bytes for {self.raw_bytes:,} bytes of tensors",
            f"metric {self.best.metric:.6g}, before {self.original:.6g}",
        )
        points = [(float(trial.bytes), trial.drop, trial.within) for trial in tried]
        header = ["method", "settings", ">bytes", ">metric", ">lost", "metric"]
        return words + showing.scatter(points, "bytes", "lost") + showing.table(header, rows, showing.ROWS)


def search(
    model: str | os.PathLike[str] | Mapping[str, npt.ArrayLike],
    evaluate: Evaluate,
    *,
    max_drop: float,
    output: str | os.PathLike[str] | None = None,
    lower_is_better: bool = False,
    evaluations: int = EVALUATIONS,
    methods: Sequence[str] | None = None,
    grid: bool = False,
    jobs: int = 1,
    patience: float | None = None,
    trials: str | os.PathLike[str] | None = None,
    correct: Correct | None = None,
    options: Options | None = None,
    progress: OnTrial | None = None,
    **settings: Unpack[SearchFields],
) -> SearchResult:
    """Find the smallest .dcb file of ``model`` whose metric is at most ``max_drop`` worse than the original's.

    ``model`` is a checkpoint's path, a folder's (then a folder is written, as by :func:`compress_folder`), or arrays by
    name. ``evaluate`` takes a dict of arrays, with the names, shapes and
    dtypes of the original, and returns the metric: a number, higher is better (with ``lower_is_better``, lower). The
    file is chosen by it, so measure on other data than the final test uses. ``evaluate`` runs at most ``evaluations``
    times, including once for the original and once for the chosen file.

    ``output`` is by default the checkpoint's name with .dcb. Every finished trial is kept in the CSV file ``trials``,
    by default the output's name with .search.csv. After an interruption, the same call continues from there. Delete
    the file if ``evaluate`` has changed.

    ``methods`` are the ways to choose steps, by default all that apply but ``"sqnr"``: ``"curvature"`` and
    ``"importance"`` need ``curvature=`` and ``importance=``; ``"quality"`` is what :func:`save_file` does without them;
    ``"dc-v2"`` has one step for all tensors, and lambda; ``"sqnr"`` one SQNR; ``"sensitivity"`` refines the best by
    measuring how much parts of the network matter (by default if nothing else says so). ``grid=True`` tries every
    combination of a full grid instead, however many evaluations that takes.

    ``jobs`` trials run at once, each in its own process; ``evaluate`` must then be a function that can be imported, and
    a script needs ``if __name__ == "__main__":``. The same holds with ``patience``, the seconds that one evaluation may
    take. The same arguments give the same trials, in whatever order they finish. ``correct`` is that of
    :func:`save_file`; ``settings`` are the fields of :class:`Options` other than targets.

    Raises :class:`OptionError` (arguments; or no trial keeps the metric), :class:`EvaluationError` (``evaluate``
    raises, returns no number, or takes too long; finished trials are kept), and what :func:`save_file` raises.
    """
    chosen = Options.of(options, settings)
    folder = Path(model) if isinstance(model, str | os.PathLike) and os.path.isdir(model) else None
    if isinstance(evaluate, Reference):
        evaluate.resolve()  # what is wrong with it is said before anything else is done
    elif not callable(evaluate):
        raise OptionError(f"evaluate must be a function of a dict of arrays, not {evaluate!r}")
    _check(chosen, max_drop, evaluations, jobs, patience)
    with ExitStack() as stack:
        if isinstance(model, Mapping):
            source: Source = Arrays(model)
            if output is None:
                raise OptionError("name the output: arrays have no name of their own")
        elif folder is not None:
            together = stack.enter_context(folders.FolderReader(folder))
            single = [name for name in ("curvature", "importance") if getattr(chosen, name) is not None]
            single += ["correct"] * (correct is not None)
            if correct is not None or (single and len(together.files) > 1):
                raise OptionError(f"{folder}: {single[0]} is for a file of weights, not for a folder of several")
            source = together
        else:
            source = stack.enter_context(open_checkpoint(Path(model)))
        # A place that cannot be written to is said now, not in an hour.
        if folder is not None:
            target = folders.default_compressed(folder) if output is None else Path(output)
            folders.keep_out(target, folder)
            AtomicFolder(target, overwrite=True).abort()
        else:
            target = files.check_output(
                files.default_output(Path(model)) if output is None else Path(output)  # type: ignore[arg-type]
            )
            AtomicFile(target).abort()
        seen: list[Trial] = []

        def watch(trial: Trial) -> None:
            seen.append(trial)
            if progress is not None:
                progress(SearchProgress(trial, _smallest(seen), len(seen), total))

        runner = stack.enter_context(
            Trials(
                source,
                evaluate,
                chosen,
                max_drop=max_drop,
                lower_is_better=lower_is_better,
                correct=correct,
                path=beside(target, ".search.csv", folder) if trials is None else Path(trials),
                jobs=jobs,
                patience=patience,
                watch=watch,
            )
        )
        curves = _curves(source, chosen, methods)
        # What a curvature or importance says needs no measuring, unless asked for.
        known = chosen.curvature is not None or chosen.importance is not None
        refine = not known if methods is None else "sensitivity" in methods
        total = 2 + len(_GRID) * len(curves) if grid else evaluations
        runner.start()
        if grid:
            runner.run([(curve.name, curve.settings(float(quality))) for curve in curves for quality in _GRID])
        else:
            _Race(runner, curves, total - 2).run(refine, source, max_drop)
        return _finish(runner, target, folder, chosen)


def beside(target: Path, suffix: str, folder: Path | None) -> Path:
    """What a file at ``target``, or what ``folder`` becomes, gives its name to."""
    return target.with_suffix(suffix) if folder is None else target.with_name(target.name + suffix)


def _check(options: Options, max_drop: float, evaluations: int, jobs: int, patience: float | None) -> None:
    given = [name for name in TARGETS if getattr(options, name) is not None] + ["lossless"] * options.lossless
    if given:
        raise OptionError(f"{given[0]} is chosen by the search: leave it out")
    if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float)) or not 0 <= max_drop < math.inf:
        raise OptionError(f"max_drop must be a number, 0 or more, in the metric's unit, not {max_drop!r}")
    for name, value, least in (("evaluations", evaluations, 4), ("jobs", jobs, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(f"{name} must be a whole number of at least {least}, not {value!r}")
    if patience is not None and not (isinstance(patience, (int, float)) and patience > 0):
        raise OptionError(f"patience must be a number of seconds above 0, not {patience!r}")


def _smallest(trials: Sequence[Trial]) -> Trial | None:
    """The smallest file that keeps the metric; the original is no choice."""
    kept = [trial for trial in trials if trial.within and trial.method != "original"]
    return min(kept, key=lambda trial: (trial.bytes, trial.number), default=None)


def _finish(runner: Trials, target: Path, folder: Path | None, options: Options) -> SearchResult:
    """Write the best file again, decode it, and measure that. Of a ``folder``, a folder is written with its settings,
    where each file has an index of its own.
    """
    tried = [trial for trial in runner.done if trial.method != "original"]
    left = [trial for trial in tried if trial.within]
    if not left:
        closest = min(tried, key=lambda trial: trial.drop)
        raise OptionError(
            f"no trial keeps the metric of {runner.original:g}: the closest lost {closest.drop:g} in {closest.bytes:,} "
            f"bytes; allow more, or more evaluations; {len(runner.done)} trials are kept in {runner.path}"
        )
    best = min(left, key=lambda trial: (trial.bytes, trial.number))
    with AtomicFile(target) if folder is None else tempfile.TemporaryFile() as file:
        again = runner.again(best, file.file if isinstance(file, AtomicFile) else file)
        if not again.within:
            raise OptionError(
                f"the chosen file measured {best.metric:g} at first and {again.metric:g} now: the evaluation must "
                "return the same for the same tensors"
            )
    if folder is not None:
        settings = {**best.settings, "overrides": {**options.overrides, **best.settings.get("overrides", {})}}
        report = folders.compress_folder(folder, target, options=options, overwrite=True, **settings)
        again = replace(again, bytes=report.file_bytes)
    return SearchResult(target, again, runner.original, runner.raw_bytes, runner.done, runner.path, runner.repeated)


# The curves


@dataclass
class _Curve:
    """A way to choose steps, by a quality in dB, and what is known of it."""

    name: str
    settings: Callable[[float], Choice]
    low: float = 1.0
    high: float = MAX_SQNR / 2
    start: float = _FIRST
    tried: list[tuple[float, Trial]] = field(default_factory=list)

    def bracket(self) -> tuple[float | None, float | None]:
        """The best quality that is known to be too low, and below the lowest that is known to do; that one."""
        enough = min((quality for quality, trial in self.tried if trial.within), default=None)
        short = [quality for quality, trial in self.tried if not trial.within and (enough is None or quality < enough)]
        return max(short, default=None), enough

    def following(self, max_drop: float) -> float | None:
        """The quality to try next; None if there is nothing to be gained."""
        if not self.tried:
            return self.start
        short, enough = self.bracket()
        guess = self._guess(max_drop)
        if enough is None:
            assert short is not None
            wish = short + _STRIDE if guess is None else min(max(guess + 0.5, short + 1), short + _FARTHEST)
            return min(wish, self.high) if short < self.high else None
        if short is None:
            wish = enough - _STRIDE if guess is None else max(min(guess, enough - 1), enough - _FARTHEST)
            return max(wish, self.low) if enough > self.low else None
        width = enough - short
        if width <= _NEAR:
            return self._second_look(enough)
        middle = (short + enough) / 2
        return middle if guess is None else min(max(guess, short + 0.2 * width), enough - 0.2 * width)

    def _second_look(self, enough: float) -> float | None:
        """A quality below one that did: metrics on few samples are noisy, and what did not may have had no luck."""
        for below in _LOOKS:
            quality = max(enough - below, self.low)
            if all(abs(quality - tried) > _NEAR for tried, _ in self.tried):
                return quality
        return None

    def _guess(self, max_drop: float) -> float | None:
        """Where the loss should be what is allowed: it is about in proportion to the noise."""
        known = [(quality, trial.drop) for quality, trial in self.tried if 0 < trial.drop < math.inf]
        if not known or max_drop <= 0:
            return None
        quality, drop = min(known, key=lambda one: abs(math.log(one[1] / max_drop)))
        return quality + 10 * math.log10(drop / max_drop)

    def promise(self) -> float:
        """About the bytes of the smallest file on it that does."""
        short, enough = self.bracket()
        size = {quality: trial.bytes for quality, trial in self.tried}
        if enough is None:
            return 2.0 * size[short] if short is not None else math.inf
        return math.sqrt(size[enough] * size[short]) if short is not None else float(size[enough])


def _curves(source: Source, options: Options, methods: Sequence[str] | None) -> list[_Curve]:
    """Those that apply, the ones with measured sensitivities first."""
    for method in methods or ():
        if method not in METHODS:
            raise OptionError(unknown("method", method, METHODS))
    needs = {"curvature": options.curvature, "importance": options.importance}
    for method, known in needs.items():
        if methods is not None and method in methods and known is None:
            raise OptionError(f"the method {method!r} needs {method}=")
    wanted = [method for method in METHODS if method in (_USUAL if methods is None else methods)]
    # With a curvature or importance, these are what those make of it; with a curvature there is no common step.
    measured = options.curvature is not None or options.importance is not None
    covered = {"sqnr", "quality"} if measured else set()
    if options.curvature is not None:
        covered.add("dc-v2")
    curves = []
    for method in wanted:
        if needs.get(method, True) is None or method in covered:
            continue
        curves += _curves_of(method, source)
    if not curves:
        raise OptionError(f"no method is left of {', '.join(methods or METHODS)}: name one that applies")
    return curves


def _curves_of(method: str, source: Source) -> list[_Curve]:
    if method == "sqnr":
        return [_Curve(method, lambda quality: {"sqnr": _short(quality)})]
    if method in ("curvature", "importance", "quality"):
        return [_Curve(method, lambda quality: {"quality": _short(quality)})]
    if method == "dc-v2":
        spread = _spread(source)

        def uniform(weight: float) -> Callable[[float], Choice]:
            return lambda quality: {
                "step": _short(math.sqrt(12) * spread * 10 ** (-quality / 20)),
                "rate_distortion": weight,
            }

        return [_Curve(f"dc-v2, lambda {one:g}", uniform(one)) for one in _LAMBDAS] if spread > 0 else []
    return []


def _short(value: float) -> float:
    """With four digits, so that it reads well and is the same after having been written down."""
    return float(f"{value:.4g}")


def _spread(source: Source) -> float:
    """Root of the mean square of all weights."""
    squares = count = 0.0
    for spec in source.specs:
        if spec.tied_to is None and len(spec.shape) > 1 and spec.dtype in FLOAT_DTYPES:
            values = source.read(spec.name).astype(np.float64)
            squares += float(np.sum(np.square(values, where=np.isfinite(values), out=np.zeros_like(values))))
            count += values.size
    return math.sqrt(squares / count) if count else 0.0


class _Race:
    """Spends evaluations on curves."""

    def __init__(self, runner: Trials, curves: list[_Curve], budget: int) -> None:
        self._runner, self._curves, self._budget = runner, curves, budget

    @property
    def _left(self) -> int:
        return self._budget - (len(self._runner.done) - 1)

    def run(self, refine: bool, source: Source, max_drop: float) -> None:
        """Find the best curve and its smallest file; then refine it."""
        reserved = self._left // 3 if refine and len(source.specs) > 1 else 0
        alive = list(self._curves)
        rounds = 0
        while self._left > reserved:
            wanted = [(curve, quality) for curve in alive if (quality := curve.following(max_drop)) is not None]
            if not wanted:
                break
            self._try(wanted[: self._left - reserved])
            rounds += 1
            if rounds % _RUNG == 0 and len(alive) > 1:
                alive = sorted(alive, key=_Curve.promise)[: (len(alive) + 1) // 2]
        if refine:
            self._refine(min(self._curves, key=_Curve.promise), max_drop)

    def _try(self, wanted: Sequence[tuple[_Curve, float]]) -> None:
        found = self._runner.run([(curve.name, curve.settings(quality)) for curve, quality in wanted])
        for (curve, quality), trial in zip(wanted, found, strict=True):
            curve.tried.append((quality, trial))

    def _refine(self, curve: _Curve, max_drop: float) -> None:
        """Give parts of the network bits by how much each matters."""
        base, enough = curve.bracket()[1], _smallest([trial for _, trial in curve.tried])
        count = min(_PARTS, self._left // 2)
        if base is None or enough is None or count < 2:
            return
        parts = self._parts(curve.settings(base), count)
        if len(parts) < 2:
            return
        probes = [_with_offsets(curve.settings(base), dict.fromkeys(part, -_WORSE)) for part in parts]
        found = self._runner.run([("sensitivity, measuring", probe) for probe in probes])
        least = max(_UNSEEN * max_drop, 1e-12)
        # The loss is a sum over parts of weight * noise. At its minimum for a number of bits, each part's share of the
        # loss is in proportion to the bits that a dB costs it.
        worth = [max(trial.drop - enough.drop, least) / max(enough.bytes - trial.bytes, 1) for trial in found]
        logs = [10 * math.log10(one) for one in worth]
        costs = [max(enough.bytes - trial.bytes, 1) for trial in found]
        mean = float(np.average(logs, weights=costs))
        offsets = {
            name: _short(min(max(_TRUST * (one - mean), -_MOST_OFFSET), _MOST_OFFSET))
            for part, one in zip(parts, logs, strict=True)
            for name in part
        }
        refined = _Curve(
            "sensitivity", lambda quality: _with_offsets(curve.settings(quality), offsets), curve.low, curve.high, base
        )
        while self._left > 0:
            quality = refined.following(max_drop)
            best = _smallest(self._runner.done)
            if quality is None or (len(refined.tried) >= _RUNG and best and refined.promise() > 1.05 * best.bytes):
                break
            self._try([(refined, quality)])

    def _parts(self, settings: Choice, count: int) -> list[list[str]]:
        """Names of quantised tensors in ``count`` parts of about as many bytes, neighbours together."""
        sizes = self._runner.sizes(settings)
        total = sum(sizes.values())
        parts: list[list[str]] = []
        before, last = 0, -1
        for name, size in sizes.items():
            # By the middle of each tensor, so that a large one has a part to itself.
            number = min(int(count * (before + size / 2) / total), count - 1) if total else 0
            if number != last:
                parts.append([])
            parts[-1].append(name)
            last = number
            before += size
        return parts


def _with_offsets(settings: Choice, offsets: Mapping[str, float]) -> Choice:
    """``settings`` with tensors that get more or less than the common quality, in dB."""
    return {**settings, "overrides": {_literal(name): {"offset": offset} for name, offset in offsets.items()}}


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
