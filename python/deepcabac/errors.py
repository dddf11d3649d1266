"""Everything that deepcabac raises on bad input or bad arguments.

One base class, so that a caller needs one ``except``; the subclasses say whose turn it is to act.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class DeepCabacError(Exception):
    """All errors caused by bad input or bad arguments derive from this class.

    The message is one line: what was wrong, where, and what to do about it.
    """


class DamagedFileError(DeepCabacError):
    """The bytes are not what a writer of this format wrote: truncated, altered, or another format."""


class WrongKindError(DamagedFileError):
    """The file does not begin as a .dcb file does: it is of another kind, or its very first bytes are damaged."""


class UnsupportedError(DeepCabacError):
    """The input is well formed, but uses a version, data type or feature that this release does not handle."""


class OptionError(DeepCabacError, ValueError):
    """An argument or a combination of arguments makes no sense."""


class CheckpointError(DeepCabacError):
    """A model file cannot be opened, understood or written."""


class CalibrationError(DeepCabacError):
    """A model cannot be calibrated with these samples: nothing to measure, or values that are not finite."""


class EvaluationError(DeepCabacError):
    """The function that measures a model in a search failed: it raised, returned no number, or took too long."""


class LimitError(DeepCabacError):
    """Decoding would need more memory than the caller allowed with ``max_bytes``."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors raised inside begin with ``name``, the file they are about."""
    try:
        yield
    except DeepCabacError as error:
        if not name or str(error).startswith(name):
            raise
        raise type(error)(f"{name}: {error}") from error


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist: the nearest one that does, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"unknown {what} {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}")


def similar(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name or pattern that matches nothing: the nearest name, if there is one."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
