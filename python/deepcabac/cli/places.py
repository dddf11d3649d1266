"""The files that a command line names: standard input and output, folders, and files that must not be replaced."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from ..atomic import ExistsError, reason
from ..checkpoint import kind_of_path, open_checkpoint
from ..curvature import Curvature
from ..dcb.container import MAGIC
from ..errors import CheckpointError, DamagedFileError, DeepCabacError, WrongKindError
from ..nnc.syntax import recognises
from ..options import Options
from ..temporaries import TemporaryFolder
from .output import say
from .parameters import DAMAGED, STANDARD, USAGE, Failure
from .report import printable

_SAID = "standard input"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Input:
    """A file to read."""

    name: str  #: for people
    path: Path  #: of the file, or of a copy of standard input


def each(paths: Sequence[Path], act: Callable[[Path], None]) -> None:
    """Call ``act`` for each path. An error does not keep it from the paths that follow; the worst exit code is that of
    the command.
    """
    if len(paths) == 1:
        act(paths[0])
        return
    worst = 0
    for path in paths:
        try:
            act(path)
        except (DeepCabacError, MemoryError, Failure) as error:
            failure = as_failure(error)
            say(f"error: {printable(failure)}")
            worst = max(worst, failure.exit_code)
    if sys.stdout is not None:
        sys.stdout.flush()  # before the exit code says that all is well
    click.get_current_context().exit(worst)


def as_failure(error: Exception) -> Failure:
    """An error with its exit code."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, MemoryError):
        return Failure("out of memory")
    damaged = isinstance(error, DamagedFileError) and not isinstance(error, WrongKindError)
    return Failure(str(error), DAMAGED if damaged else USAGE)


# What is read


@contextlib.contextmanager
def reading(path: Path, *others: Path | None) -> Iterator[Input]:
    """``path`` to read, or a copy of standard input. Errors begin with its name, or with that of one of ``others``."""
    if path != STANDARD:
        with naming_paths(path, *others):
            yield Input(str(path), path)
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise Failure("standard input is a terminal: send a file into it, as in 'deepcabac verify - < model.dcb'")
    # A copy, since files are not read from front to back.
    with TemporaryFolder() as temporary:
        folder = str(temporary.path)
        copy = temporary.path / "input"
        try:
            with copy.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file, _BLOCK)
        except OSError as error:
            raise Failure(f"{_SAID}: cannot be copied to {folder}: {reason(error)}") from error
        copy = copy.rename(copy.with_suffix(_suffix(copy)))
        try:
            with naming_paths(copy, *others):
                yield Input(_SAID, copy)
        except (DeepCabacError, Failure) as error:
            failure = as_failure(error)
            said = str(failure).replace(f"{copy}: ", f"{_SAID}: ").replace(str(copy), "-")
            raise Failure(said.replace(folder + os.sep, ""), failure.exit_code) from error


def _suffix(path: Path) -> str:
    """The suffix that suits a file by its content; none if nothing does."""
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                return ".npz" if all(name.endswith(".npy") for name in archive.namelist()) else ".pt"
        except (OSError, ValueError, zipfile.BadZipFile):
            return ".npz"  # its reader says what is wrong
    if head[8:9] == b"{":
        return ".safetensors"
    if head.startswith(b"GGUF"):
        return ".gguf"
    if head.startswith(b"\x80"):  # a pickle
        return ".pt"
    return ".onnx" if head.startswith(b"\x08") else ""  # an ONNX file begins with its version


def is_compressed(path: Path) -> bool:
    """Whether a file begins like a .dcb or .nnc file."""
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError:
        return False
    return head == MAGIC or recognises(head)


@contextlib.contextmanager
def naming_paths(*paths: Path | None) -> Iterator[None]:
    """Begin messages of errors with the first path, unless they begin with one of ``paths`` already."""
    try:
        yield
    except ExistsError as error:
        raise _exists(error.path) from error
    except DeepCabacError as error:
        named = [path for path in paths if path and str(error).startswith((f"{path}: ", f"{str(path)!r}: "))]
        path = named[0] if named else paths[0]
        assert path is not None
        foreign = isinstance(error, DamagedFileError) and path.suffix == ".nnc" and not is_compressed(path)
        if foreign or isinstance(error, WrongKindError):
            checkpoint = f"'deepcabac compress {path}' compresses a checkpoint"
            hint = "check its name" if kind_of_path(path) is None else checkpoint
            raise Failure(f"{path}: is neither a .dcb nor a .nnc file", USAGE, hint) from error
        if named:
            raise
        raise type(error)(f"{path}: {error}") from error
    except OSError as error:  # e.g. a pipe, in which nothing can be sought
        raise CheckpointError(f"{paths[0]}: cannot be read: {reason(error)}") from error


def read_arrays(path: Path) -> dict[str, Any]:
    """All tensors of a checkpoint."""
    with naming_paths(path), open_checkpoint(path) as source:
        return {spec.name: source.read(spec.tied_to or spec.name) for spec in source.specs}


@contextlib.contextmanager
def measured_options(
    settings: Mapping[str, Any], curvature: Path | None, importance: Path | None
) -> Iterator[Options]:
    """``settings`` with what these files say about the weights."""
    options = Options(**settings, importance=None if importance is None else read_arrays(importance))
    if curvature is None:
        yield options
        return
    with opened_curvature(curvature) as held:
        yield replace(options, curvature=held)


@contextlib.contextmanager
def opened_curvature(path: Path) -> Iterator[Curvature]:
    """A curvature's file. Exit code 1 is for damaged models and .dcb files; what is wrong with this one is mended
    by giving another.
    """
    try:
        with Curvature.load(path) as curvature:
            yield curvature
    except DamagedFileError as error:
        if not str(error).startswith(f"{path}: "):
            raise
        raise Failure(str(error)) from error


# What is written


class Outputs:
    """Where results go: beside their inputs, into a folder, to one file, or to standard output."""

    def __init__(self, paths: Sequence[Path], output: Path | None, force: bool) -> None:
        """Raise :class:`Failure` if ``paths`` cannot all be written to ``output``."""
        self._output, self._force, self._count = output, force, len(paths)
        self._written: dict[Path, Path] = {}
        standard = output == STANDARD or (output is None and STANDARD in paths)
        if len(paths) > 1 and standard:
            raise Failure("standard output takes one file: give one input, or name a folder with -o")
        if len(paths) > 1 and output is not None and not os.path.isdir(output):
            raise Failure(f"{output}: is not a folder, which several inputs need: make one, or leave -o out")
        if standard and (sys.stdout is None or sys.stdout.isatty()):
            raise Failure("standard output is a terminal: redirect it to a file or a pipe, or name a file with -o")

    def of(self, path: Path, default: Path, *others: Path | None) -> Path:
        """The file to write for the input ``path``: called and placed like ``default`` if the command line names none.

        Raises :class:`Failure` if it is one of the files to read, or exists and is not to be replaced.
        """
        target = self._output or (STANDARD if path == STANDARD else default)
        if target == STANDARD:
            return target
        if path.is_dir() and self._count == 1:  # then OUT is the folder to write itself
            return target
        if self._output is not None and os.path.isdir(target):
            if path == STANDARD:
                raise Failure(f"{target}: is a folder, and standard input has no name: name a file with -o")
            target = target / default.name
        keep_apart(target, path, *others)
        place = target.absolute()
        if place in self._written:
            raise Failure(f"{target}: holds what {self._written[place]} became; compress one at a time, with -o")
        refuse_to_replace(target, force=self._force)
        self._written[place] = path
        return target


def name_of(target: Path) -> str:
    """What a file to write is called, for people."""
    return "standard output" if target == STANDARD else str(target)


def keep_apart(target: Path, *sources: Path | None) -> None:
    """Refuse to write onto what is read, by whatever name or link."""
    for source in sources:
        with contextlib.suppress(OSError):  # one of them does not exist, or worse, which is said when it is opened
            if source is not None and target.samefile(source):
                raise Failure(f"{target}: is the file to read; name another file to write")


def refuse_to_replace(*targets: Path, force: bool) -> None:
    """Raise :class:`Failure` if a file exists, unless ``force`` is given. Other things are refused when written to."""
    for target in targets:  # not by Path's methods, which raise an OSError for a name that is too long
        if not force and (os.path.isfile(target) or os.path.islink(target)):
            raise _exists(target)


def _exists(target: Path) -> Failure:
    return Failure(f"{target}: exists; --force replaces it, -o names another file")


@contextlib.contextmanager
def writing(target: Path, suffix: str) -> Iterator[Path]:
    """The path to write to: ``target``, or a temporary file that goes to standard output when it is complete."""
    if target != STANDARD:
        yield target
        return
    with TemporaryFolder() as folder:
        path = folder.path / f"output{suffix}"
        yield path
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer, _BLOCK)
