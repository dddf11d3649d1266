"""Work for other machines: ``--dask``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor

import click

from ..atomic import reason
from .parameters import OTHER, Failure, option

_PATIENCE = 10  # seconds until there has to be an answer
_RETRIES = 5  # of a file whose worker was lost

DASK = option(
    "--dask",
    metavar="ADDRESS",
    heading=OTHER,
    help="For folders: let the workers of this Dask scheduler, e.g. tcp://host:8786, do the files. They must see the "
    "folders under the same paths.",
)


@contextlib.contextmanager
def workers(address: str | None) -> Iterator[Executor | None]:
    """What runs calls on the workers of a Dask scheduler; None without one."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise Failure("--dask needs Dask: pip install distributed") from error
    try:
        client = Client(address, timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise Failure(f"{address}: no Dask scheduler answers there: {reason(error)}") from error
    with client:
        yield client.get_executor(pure=False, retries=_RETRIES)


def refuse_for_files(address: str | None, path: object) -> None:
    """Raise :class:`click.UsageError` if there is only one file to do."""
    if address is not None:
        raise click.UsageError(f"{path} is one file: --dask is for folders, whose files are done side by side")
