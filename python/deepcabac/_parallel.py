"""Threads that stop when they are told to. The native calls release the interpreter lock, so threads use all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from .errors import OptionError

Result = TypeVar("Result")
#: What maps calls to their results, in order.
Run = Callable[[list[Any]], list[Any]]


def thread_count(threads: int | None) -> int:
    """``threads``, or the number of cores this process may use. Raises :class:`OptionError` if it is not positive."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise OptionError(f"threads must be a positive whole number, not {threads!r}")
    return threads


@contextmanager
def pool(threads: int | None) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads. On an error or Ctrl-C, calls not yet begun are dropped and begun ones (short) are awaited."""
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
