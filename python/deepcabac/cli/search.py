"""``deepcabac search``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .. import files
from ..errors import UnsupportedError
from ..trials import plotting
from ..trials.search import EVALUATIONS, METHODS
from ..trials.search import search as find
from ..trials.trials import Reference
from . import report
from .compress import compress
from .output import print_lines, say, search_progress
from .parameters import OUTPUT, QUIET, examples, keep_apart, measured_options, naming_paths, parse_path
from .report import printable


@click.command(
    short_help="Find the smallest file that keeps a metric.",
    epilog=examples(
        "deepcabac search model.safetensors --eval my_model:accuracy --max-drop 0.003",
        "deepcabac search model.pt --eval my_model:loss --lower-is-better --max-drop 0.01",
    ),
)
@click.argument("model", type=parse_path)
@OUTPUT
@click.option(
    "--eval",
    "evaluate",
    required=True,
    metavar="MODULE:FUNCTION",
    help="Takes a dict of arrays by name, returns a number. MODULE is imported, or the path of a .py file.",
)
@click.option(
    "--max-drop", type=float, required=True, metavar="X", help="What the metric may lose, in its own unit, 0 or more."
)
@click.option("--lower-is-better", is_flag=True, help="The metric is a loss: less is better.")
@click.option(
    "--evaluations", type=int, metavar="N", default=EVALUATIONS, show_default=True, help="Evaluations at most."
)
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="Try this one. Can be repeated.")
@click.option("--grid", is_flag=True, help="Try a full grid instead, whatever that takes.")
@click.option("--jobs", type=int, metavar="N", default=1, show_default=True, help="Trials at once.")
@click.option("--patience", type=float, metavar="SECONDS", help="What one evaluation may take. [default: no limit]")
@click.option("--trials", type=parse_path, metavar="CSV", help="Where trials are kept. [default: OUT.search.csv]")
@QUIET
def search(
    model: Path,
    output: Path | None,
    evaluate: str,
    trials: Path | None,
    methods: Sequence[str],
    quiet: bool,
    curvature: Path | None,
    importance: Path | None,
    max_drop: float,
    lower_is_better: bool,
    evaluations: int,
    grid: bool,
    jobs: int,
    patience: float | None,
    **settings: Any,
) -> None:
    """Find the smallest .dcb file of MODEL that loses at most X of its metric.

    FUNCTION measures the decoded tensors. What it measures on chooses the file, so
    give it other data than you will report on. Trials are kept as they finish:
    after Ctrl-C the same command goes on where it was.

    Writes the .dcb file, a CSV file of all trials, and plots of them (.png and
    .svg, if matplotlib is installed). The file that is chosen is decoded and
    measured once more.
    """
    target = output or files.default_output(model)
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(measured_options(settings, curvature, importance))
        stack.enter_context(naming_paths(model, target, curvature, importance, trials))
        for read in (model, curvature, importance):
            if read is not None:
                keep_apart(read, target)
        watch = stack.enter_context(search_progress(quiet))
        result = find(
            model,
            Reference(evaluate),
            max_drop=max_drop,
            output=target,
            lower_is_better=lower_is_better,
            evaluations=evaluations,
            methods=list(methods) or None,
            grid=grid,
            jobs=jobs,
            patience=patience,
            trials=trials,
            options=options,
            progress=watch,
        )
    if not quiet:
        print_lines(report.searched(result))
    try:
        drawn = plotting.plot(result.trials, result.best, max_drop, lower_is_better, target.with_suffix(".search.png"))
        if not quiet:
            print_lines([f"plots    {', '.join(printable(path) for path in drawn)}"])
    except UnsupportedError as error:
        say(f"note: {error}")


#: Settings of compress that a search leaves as they are.
_FIXED = ("overrides", "preset", "depthwise", "quantizer", "states", "curvature", "importance", "threads")
search.params += [parameter for parameter in compress.params if parameter.name in _FIXED]
