"""Trials of a search: a setting, the file that it makes, and what the user's function says of the decoded tensors.

Trials are kept in a CSV file, one line each as soon as it is finished. A search that is run again asks for the same
trials in the same order, and is answered from there.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import importlib
import importlib.util
import json
import math
import multiprocessing
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .._parallel import thread_count
from ..atomic import reading, reason
from ..checkpoint.base import Array, TensorSpec
from ..dcb import writer
from ..dcb.reader import open_path
from ..dcb.writer import Report
from ..errors import CheckpointError, DeepCabacError, EvaluationError, OptionError
from ..options import Options
from ..quantize.coupling import Calibrated
from ..source import Correct, Source
from ..temporaries import TemporaryFolder

if TYPE_CHECKING:
    from typing_extensions import Self

Evaluate = Callable[[dict[str, Array]], float]
#: Fields of :class:`Options` that a trial chooses, by name.
Choice = Mapping[str, Any]

#: The original, bit for bit.
EXACT: Choice = {"overrides": {"*": {"exact": True}}}
_FIELDS = ("search", "trial", "method", "settings", "bytes", "ratio", "metric", "drop", "within", "seconds")


@dataclass(frozen=True)
class Trial:
    """A setting that was tried."""

    number: int  #: from 1
    method: str
    settings: Choice  #: fields of :class:`Options`
    bytes: int  #: of the file
    metric: float
    drop: float  #: from the original's metric; above 0 is worse
    within: bool  #: whether that is no more than what may be lost
    seconds: float  #: of compressing, decoding and evaluating


@dataclass(frozen=True)
class Reference:
    """A function by ``MODULE:FUNCTION``, which other processes can find too."""

    text: str

    def resolve(self) -> Evaluate:
        """The function. Raises :class:`OptionError`."""
        module, colon, name = self.text.rpartition(":")
        if not (colon and module and name):
            raise OptionError(f"{self.text!r} is not like MODULE:FUNCTION, such as my_model:accuracy")
        try:
            found = _imported(module)
        except Exception as error:
            raise OptionError(f"{module} cannot be imported: {type(error).__name__}: {_line(error)}") from error
        function = getattr(found, name, None)
        if not callable(function):
            raise OptionError(f"{module} has no function {name!r}")
        return function  # type: ignore[no-any-return]

    def __call__(self, tensors: dict[str, Array]) -> float:
        return self.resolve()(tensors)


@functools.lru_cache
def _imported(module: str) -> ModuleType:
    """A module by its name, looked for in the working directory too, or by its file's path."""
    if not module.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")
        return importlib.import_module(module)
    path = Path(module)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # it is the path of a .py file
    found = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as for a script
    spec.loader.exec_module(found)
    return found


def measured(evaluate: Evaluate, path: Path) -> float:
    """The metric of a file's tensors. Raises :class:`EvaluationError`."""
    with open_path(path) as opened:
        tensors = dict(opened.items())
    try:
        value = evaluate(tensors)
    except DeepCabacError:
        raise
    except Exception as error:
        raise EvaluationError(f"the evaluation failed: {type(error).__name__}: {_line(error)}") from error
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise EvaluationError(f"the evaluation returned {_line(repr(value))}: it must be a number") from None
    if math.isnan(number):
        raise EvaluationError("the evaluation returned NaN: does the model overflow? Return a number, or infinity")
    return number


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]


class _Worker:
    """A process that evaluates files, and can be stopped when it takes too long."""

    def __init__(self, evaluate: Evaluate, patience: float | None) -> None:
        self._evaluate, self._patience = evaluate, patience
        self._process: Any = None
        self._line: Connection | None = None

    def measure(self, path: Path) -> float:
        """The metric of a file's tensors. Raises :class:`EvaluationError`."""
        context = multiprocessing.get_context("spawn")  # a fork would share locks of whatever threads there are
        if self._process is None:
            self._line, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other, self._evaluate), daemon=True)
            try:
                self._process.start()
            except Exception as error:  # whatever pickle raises
                self._process = None
                raise OptionError(
                    "the evaluation cannot be sent to other processes: give a function that is defined in a module, "
                    f"or one job and no patience ({_line(error)})"
                ) from error
            other.close()
        assert self._line is not None
        try:
            self._line.send(path)
            if not self._line.poll(self._patience):
                self.stop()
                raise EvaluationError(f"the evaluation took longer than {self._patience:g} seconds")
            result = self._line.recv()
        except (EOFError, OSError) as error:
            self.stop()
            raise EvaluationError("the evaluation's process ended without a result: out of memory?") from error
        if isinstance(result, DeepCabacError):
            raise result
        return float(result)

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._line is not None:
            self._line.close()


def _serve(line: Connection, evaluate: Evaluate) -> None:
    """Evaluate files until the other side hangs up."""
    while True:
        try:
            path = line.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            line.send(measured(evaluate, path))
        except DeepCabacError as error:
            line.send(error)


class Trials:
    """Runs trials, several at once if asked to, and keeps them."""

    def __init__(
        self,
        source: Source,
        evaluate: Evaluate,
        options: Options,
        *,
        max_drop: float,
        lower_is_better: bool,
        correct: Correct | None,
        path: Path,
        jobs: int,
        patience: float | None,
        watch: Callable[[Trial], None] | None,
    ) -> None:
        self._source: Source = _Locked(source) if jobs > 1 else source
        self._evaluate, self._correct, self._watch = evaluate, correct, watch
        self._options = replace(options, threads=max(1, thread_count(options.threads) // jobs))
        self._max_drop, self._sign = max_drop, -1.0 if lower_is_better else 1.0
        self._calibrated = None if options.curvature is None else Calibrated(options.curvature, source)
        self._folder = TemporaryFolder()
        self._workers: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        self._all = [_Worker(evaluate, patience) if jobs > 1 or patience else None for _ in range(jobs)]
        for worker in self._all:
            self._workers.put(worker)
        self._jobs = jobs
        self._lock = threading.Lock()
        self.path = path
        self.key = _fingerprint(source, options, evaluate)
        self._kept = _read(path, self.key)
        self.done: list[Trial] = []  #: in the order they were asked for
        self.original = math.nan  #: metric of the original, once :meth:`start` has run
        #: Bytes of all tensors.
        self.raw_bytes = sum(spec.nbytes for spec in source.specs if spec.tied_to is None)
        self.repeated = 0  #: trials that were answered from the CSV file

    def start(self) -> None:
        """Measure the original."""
        (trial,) = self.run([("original", EXACT)])
        if not math.isfinite(trial.metric):
            raise EvaluationError(f"the evaluation of the original returned {trial.metric}: it must be a finite number")
        self.original = trial.metric

    def judged(self, trial: Trial) -> Trial:
        """``trial`` with what it lost, next to the original."""
        if math.isnan(self.original):
            return trial
        drop = self._sign * (self.original - trial.metric)
        # Rounding must not decide: metrics often are float32.
        return replace(trial, drop=drop, within=drop <= self._max_drop + 1e-6 * abs(self.original))

    def run(self, asked: Sequence[tuple[str, Choice]]) -> list[Trial]:
        """Try settings, each with the name of its method. Finished ones are kept if another one fails."""
        numbers = range(len(self.done) + 1, len(self.done) + 1 + len(asked))
        if self._jobs == 1:
            found = [self._one(number, *one) for number, one in zip(numbers, asked, strict=True)]
        else:
            with ThreadPoolExecutor(self._jobs) as executor:
                futures = [executor.submit(self._one, number, *one) for number, one in zip(numbers, asked, strict=True)]
                try:
                    found = [future.result() for future in futures]
                except BaseException:
                    for future in futures:
                        future.cancel()
                    raise
        self.done += found
        return found

    def _one(self, number: int, method: str, settings: Choice) -> Trial:
        text = json.dumps(settings, sort_keys=True)
        start = time.perf_counter()
        if text in self._kept:
            size, metric, seconds = self._kept[text]
            self.repeated += 1
        else:
            path = self._folder.path / f"{number}.dcb"
            try:
                size = self.write(settings, path).file_bytes
                metric = self.measure(path)
            except EvaluationError as error:
                raise EvaluationError(f"trial {number} ({method}, {text}): {error}; {self._where()}") from error
            finally:
                path.unlink(missing_ok=True)
            seconds = time.perf_counter() - start
        trial = self.judged(Trial(number, method, settings, size, metric, 0.0, True, seconds))
        with self._lock:
            if text not in self._kept:
                self._keep(trial, text)
            if self._watch is not None:
                self._watch(trial)
        return trial

    def _where(self) -> str:
        return f"{len(self._kept)} finished trials are kept in {self.path}"

    def write(self, settings: Choice, path: Path) -> Report:
        """Compress with these settings."""
        overrides = {**self._options.overrides, **settings.get("overrides", {})}
        options = replace(self._options, **{**settings, "overrides": overrides})
        with path.open("w+b") as file:
            # A correction is for what quantisation does.
            correct = None if settings is EXACT else self._correct
            return writer.compress(self._source, file, options, correct=correct, calibrated=self._calibrated)

    def again(self, trial: Trial, target: BinaryIO) -> Trial:
        """Write a trial's file to ``target``, and measure what that decodes to."""
        path = self._folder.path / "chosen.dcb"
        size = self.write(trial.settings, path).file_bytes
        metric = self.measure(path)
        with path.open("rb") as file:
            shutil.copyfileobj(file, target)
        return self.judged(replace(trial, bytes=size, metric=metric))

    def sizes(self, settings: Choice) -> dict[str, int]:
        """Bytes of each tensor that is quantised, in the order of the file."""
        path = self._folder.path / "sizes.dcb"
        report = self.write(settings, path)
        path.unlink()
        return {tensor.name: tensor.coded_bytes for tensor in report.tensors if tensor.method == "quantized"}

    def measure(self, path: Path) -> float:
        """The metric of a file's tensors."""
        worker = self._workers.get()
        try:
            return measured(self._evaluate, path) if worker is None else worker.measure(path)
        finally:
            self._workers.put(worker)

    def _keep(self, trial: Trial, text: str) -> None:
        self._kept[text] = (trial.bytes, trial.metric, trial.seconds)
        try:
            new = not self.path.exists() or self.path.stat().st_size == 0
            with self.path.open("a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(_FIELDS)
                made = (trial.number, trial.method, text, trial.bytes, f"{self.raw_bytes / trial.bytes:.3f}")
                found = (trial.metric, trial.drop, int(trial.within), f"{trial.seconds:.2f}")
                writer.writerow((self.key, *made, *found))
        except OSError as error:
            raise CheckpointError(f"{self.path}: trials cannot be kept: {reason(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._all:
            if worker is not None:
                worker.stop()
        self._folder.close()


class _Locked:
    """A source for several threads."""

    def __init__(self, source: Source) -> None:
        self.kind, self.specs, self.extra = source.kind, source.specs, source.extra
        self._source, self._lock = source, threading.Lock()

    kind: str
    specs: list[TensorSpec]
    extra: bytes

    def read(self, name: str) -> Array:
        with self._lock:
            return self._source.read(name)

    def roles(self) -> dict[str, str]:
        return self._source.roles()

    def without(self, names: Collection[str]) -> bytes:
        return self._source.without(names)


def _read(path: Path, key: str) -> dict[str, tuple[int, float, float]]:
    """Bytes, metric and seconds of earlier trials of the same search, by settings."""
    if not path.exists():
        return {}
    kept = {}
    with reading(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        rows = csv.DictReader(text.splitlines())
        if rows.fieldnames is not None and tuple(rows.fieldnames) != _FIELDS:
            raise OptionError(f"{path}: holds something else than trials; name another file")
        for row in rows:
            if row["search"] == key and row["seconds"]:
                kept[row["settings"]] = (int(row["bytes"]), float(row["metric"]), float(row["seconds"]))
    except (ValueError, TypeError, csv.Error) as error:
        raise OptionError(f"{path}: is damaged ({_line(error)}); delete it to start anew") from error
    return kept


def _fingerprint(source: Source, options: Options, evaluate: Evaluate) -> str:
    """Of whatever a trial's result depends on, besides its settings."""
    digest = hashlib.sha256()
    for spec in source.specs:
        digest.update(f"{spec.name} {spec.dtype} {spec.shape} {spec.tied_to}\n".encode())
        if spec.tied_to is None:
            digest.update(np.ascontiguousarray(source.read(spec.name)).reshape(-1).view(np.uint8).data)
    plain = {name: value for name, value in vars(options).items() if name not in ("threads", *_ARRAYS)}
    digest.update(repr(sorted(plain.items())).encode())
    for name in _ARRAYS:
        values = getattr(options, name, None) or {}
        for key in sorted(values):
            value = values[key]
            said = value.total if hasattr(value, "total") else float(np.sum(value, dtype=np.float64))
            digest.update(f"{name} {key} {said!r}\n".encode())
    name = getattr(evaluate, "__qualname__", type(evaluate).__name__)
    digest.update((evaluate.text if isinstance(evaluate, Reference) else name).encode())
    return digest.hexdigest()[:12]


#: Options that map names to arrays.
_ARRAYS = ("curvature", "importance")
