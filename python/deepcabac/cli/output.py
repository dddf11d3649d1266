"""Lines to stdout and stderr, and progress bars."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence

from ..dcb.reader import OnProgress
from ..trials.search import SearchProgress
from . import report


@contextlib.contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[OnProgress | None]:
    """A progress bar on stderr that goes away when it is done; None if nobody would see it."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    # Imported here: it takes longer than many a command.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Bytes(DownloadColumn):
        def render(self, task: Task) -> Text:
            return Text("") if task.total is None else super().render(task)

    class Left(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            return Text("") if task.time_remaining is None else super().render(task) + Text(" left")

    columns = (TextColumn("{task.description}"), BarColumn(None), Bytes(), Left())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, expand=True, redirect_stdout=False) as bar:
        task = bar.add_task(what, total=None)
        before, passes = 0, 1

        def update(done: int, total: int) -> None:
            nonlocal before, passes
            if done < before:  # a size is searched by coding all tensors again
                passes += 1
                bar.reset(task, description=f"{what}, pass {passes}")
            before = done
            bar.update(task, completed=done, total=total)

        yield update


class _Lines(logging.Handler):
    """Shows what the library logs, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        say(report.printable(record.getMessage()))


@contextlib.contextmanager
def logged(verbose: bool) -> Iterator[None]:
    """While it lasts, lines about single tensors go to stderr if ``verbose``. Warnings are shown as notes elsewhere."""
    log, handler = logging.getLogger("deepcabac"), _Lines() if verbose else logging.NullHandler()
    handler.addFilter(lambda record: record.levelno < logging.WARNING)
    log.addHandler(handler)
    log.setLevel(logging.INFO if verbose else logging.NOTSET)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


@contextlib.contextmanager
def search_progress(quiet: bool, verbose: bool) -> Iterator[Callable[[SearchProgress], None] | None]:
    """A bar on stderr with the best file so far; a line for each trial if ``verbose`` or where there is no terminal."""
    if quiet or sys.stderr is None:
        yield None
        return
    if verbose or not sys.stderr.isatty():
        yield lambda now: say(f"{now.done}/{now.total} {report.trial(now.trial)}{so_far(now)}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("searching", total=None)

        def update(now: SearchProgress) -> None:
            bar.update(task, completed=now.done, total=now.total, description=f"searching{so_far(now)}")

        yield update


def so_far(now: SearchProgress) -> str:
    """The best file so far, in a few words."""
    return "; none does yet" if now.best is None else f"; best: {now.best.bytes:,} bytes, lost {now.best.drop:.4g}"


def terminal_width() -> int | None:
    """Columns of the terminal on stdout; None if it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def print_lines(lines: Sequence[str], to_stderr: bool = False) -> None:
    """Print to stdout, or to stderr if stdout holds a file."""
    if to_stderr:
        for line in lines:
            say(line)
        return
    for line in lines:  # one by one: Python does not report a pipe that breaks within one large write
        print(line)


def say(line: str) -> None:
    """Print to stderr, if there is one."""
    with contextlib.suppress(OSError):  # nowhere left to complain
        print(line, file=sys.stderr, flush=True)
