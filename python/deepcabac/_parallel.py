"""Threads that stop when they are told to. The native calls release the interpreter lock, so threads use all cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from .errors import OptionError

Result = TypeVar("Result")
#: What maps calls to their results, in order.
Run = Callable[[list[Any]], list[Any]]


@dataclass(frozen=True)
class Coding:
    """A call that codes a chunk of a tensor. Other calls take next to no time, so progress is counted by these."""

    call: Callable[[], Any]
    nbytes: int  #: of the chunk's values

    def __call__(self) -> Any:
        return self.call()


class Tally:
    """Bytes of tensors that are coded, and that are to be: more once a tensor has to be coded again. Thread-safe."""

    def __init__(self, total: int) -> None:
        self._lock = threading.Lock()
        self.done, self.total = 0, total

    def add(self, done: int, more: int = 0) -> None:
        """Count ``done`` bytes as coded, and ``more`` as still to be coded."""
        with self._lock:
            self.done += done
            self.total += more

    def counting(self, nbytes: int, run: Run) -> tuple[Run, Callable[[], None]]:
        """``run`` for a tensor of ``nbytes``, counted; and what is called when the tensor is done."""
        expected = nbytes

        def counted(calls: list[Any]) -> list[Any]:
            nonlocal expected
            planned = sum(call.nbytes for call in calls if isinstance(call, Coding))
            self.add(0, max(planned - expected, 0))
            expected = max(expected - planned, 0)
            return run([partial(self._call, call) if isinstance(call, Coding) else call for call in calls])

        return counted, lambda: self.add(expected)

    def _call(self, call: Coding) -> Any:
        result = call()
        self.add(call.nbytes)
        return result


def thread_count(threads: int | None) -> int:
    """``threads``, or the number of cores this process may use. Raises :class:`OptionError` if it is not positive."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise OptionError(f"threads must be a positive whole number, not {threads!r}")
    return threads


class _Here(Executor):
    """Calls functions when they are submitted, on the caller's thread: a second one would only wait for it."""

    def submit(self, call: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        future: Future[Result] = Future()
        try:
            future.set_result(call(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def pool(threads: int | None, watched: bool = False) -> Iterator[Executor]:
    """A pool of threads, or for one thread the caller's own, unless that has to say meanwhile how far the calls are
    (``watched``). On an error or Ctrl-C, calls not yet begun are dropped and begun ones (short) are awaited.
    """
    if thread_count(threads) == 1 and not watched:
        yield _Here()
        return
    executor = ThreadPoolExecutor(thread_count(threads), thread_name_prefix="deepcabac")
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def run_all(calls: Sequence[Callable[[], Result]], threads: int | None) -> list[Result]:
    """The results of ``calls`` in order, on several threads if there are several calls."""
    count = min(thread_count(threads), len(calls))
    if count <= 1:
        return [call() for call in calls]
    with pool(count) as executor:
        return [future.result() for future in [executor.submit(call) for call in calls]]
