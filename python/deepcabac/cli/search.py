"""``deepcabac search``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .. import files, folders
from ..atomic import AtomicFolder
from ..errors import UnsupportedError
from ..trials import plotting
from ..trials.search import EVALUATIONS, METHODS, beside
from ..trials.search import search as find
from ..trials.trials import Reference
from . import report
from .compress import compress
from .output import print_lines, say, search_progress
from .parameters import FORCE, OTHER, QUIET, SEARCH, Command, FileType, examples, option, refuse_together
from .places import keep_apart, measured_options, naming_paths, refuse_to_replace
from .report import printable


@click.command(
    cls=Command,
    short_help="Find the smallest file that keeps a metric.",
    epilog=examples(
        "deepcabac search model.safetensors --eval my_model:score --max-drop 0.003",
        "deepcabac search model.pt --eval my.py:loss --lower-is-better --max-drop 0.1",
    ),
)
@click.argument("model", type=FileType())
@option("--output", "-o", type=FileType(), metavar="OUT.dcb", help="File to write. [default: MODEL's name with .dcb]")
@FORCE
@option(
    "--eval",
    "evaluate",
    required=True,
    metavar="MODULE:FUNCTION",
    help="Takes a dict of arrays by name, returns a number. MODULE is imported, or the path of a .py file.",
)
@option("--max-drop", type=float, required=True, metavar="X", help="What the metric may lose, in its own unit.")
@option("--lower-is-better", is_flag=True, help="The metric is a loss: less is better.")
@option(
    "--evaluations",
    type=int,
    metavar="N",
    default=EVALUATIONS,
    show_default=True,
    heading=SEARCH,
    help="Maximum number of evaluations.",
)
@option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(METHODS),
    heading=SEARCH,
    help="Try this method only. Repeatable.",
)
@option("--jobs", type=int, metavar="N", default=1, show_default=True, heading=SEARCH, help="Trials to run at once.")
@option(
    "--patience",
    type=float,
    metavar="SECONDS",
    heading=SEARCH,
    help="Time limit for one evaluation. [default: no limit]",
)
@option(
    "--trials", type=FileType(), metavar="CSV", heading=SEARCH, help="Where trials are kept. [default: OUT.search.csv]"
)
@QUIET
@option("--verbose", "-v", is_flag=True, heading=OTHER, help="Print a line for each trial, even on a terminal.")
def search(
    model: Path,
    output: Path | None,
    evaluate: str,
    trials: Path | None,
    methods: Sequence[str],
    force: bool,
    quiet: bool,
    verbose: bool,
    curvature: Path | None,
    importance: Path | None,
    max_drop: float,
    lower_is_better: bool,
    evaluations: int,
    jobs: int,
    patience: float | None,
    **settings: Any,
) -> None:
    """Find the smallest .dcb file of MODEL that loses at most X of its metric.

    FUNCTION measures the decoded tensors. The file is chosen by what it measures,
    so use other data than you will report on. Trials are kept as they finish: after
    Ctrl-C the same command continues where it was.

    MODEL is a checkpoint, or a folder of one: then OUT is a folder, as compress
    writes it. [default: MODEL's name with -dcb]

    Writes the .dcb file, a CSV file of all trials, and plots of them (.png and
    .svg, if matplotlib is installed). The chosen file is decoded and measured once
    more.
    """
    refuse_together("quiet", ["verbose"], "one prints less, the other more")
    folder = model if model.is_dir() else None
    target = output or (files.default_output(model) if folder is None else folders.default_compressed(folder))
    drawn = beside(target, ".search.png", folder)
    refuse_to_replace(target, drawn, drawn.with_suffix(".svg"), force=force)
    keep_apart(target, model, curvature, importance)
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(measured_options(settings, curvature, importance))
        stack.enter_context(naming_paths(model, target, curvature, importance, trials))
        if folder is not None:
            AtomicFolder(target, overwrite=force).abort()  # refuses to replace what is there
        watch = stack.enter_context(search_progress(quiet, verbose))
        result = find(
            model,
            Reference(evaluate),
            max_drop=max_drop,
            output=target,
            lower_is_better=lower_is_better,
            evaluations=evaluations,
            methods=list(methods) or None,
            jobs=jobs,
            patience=patience,
            trials=trials,
            options=options,
            progress=watch,
        )
    if not quiet:
        print_lines(report.searched(result))
    try:
        plots = plotting.plot(result.trials, result.best, max_drop, lower_is_better, drawn)
        if not quiet:
            print_lines([f"plots    {', '.join(printable(path) for path in plots)}"])
    except UnsupportedError as error:
        say(f"note: {error}")


#: Settings of compress that a search leaves as they are.
_FIXED = ("overrides", "preset", "quantizer", "states", "curvature", "importance", "threads")
search.params += [parameter for parameter in compress.params if parameter.name in _FIXED]
