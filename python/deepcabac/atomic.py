"""Files that appear complete or not at all: written beside their target, then renamed onto it."""

from __future__ import annotations

import abc
import contextlib
import io
import os
import shutil
import stat
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from . import temporaries
from .errors import CheckpointError, DeepCabacError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer
    from typing_extensions import Self  # in typing itself only from Python 3.11 on


def reason(error: BaseException) -> str:
    """The first line of an error's own words, without an ``OSError``'s number and path, to follow a colon."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    text = text.splitlines()[0]
    return text[:1].lower() + (text[1:] if len(text) <= 200 else text[1:200] + "...")


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an ``OSError`` raised inside into a :class:`CheckpointError` that says ``path`` cannot be read."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from error


@contextlib.contextmanager
def writing_to(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an ``OSError`` raised inside into a :class:`CheckpointError` that says ``path`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {reason(error)}") from error


class ExistsError(OptionError):
    """A file would be replaced, which nobody asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: exists; overwrite=True replaces it")
        self.path = path


class _TemporaryFile(io.FileIO):
    """A raw file whose failing writes name the file that the user asked for, not the temporary one."""

    def __init__(self, temporary: Path, target: Path) -> None:
        self._target = target
        # 0o666 is cut down by the umask, as for any file a program makes; O_EXCL never follows a planted link.
        super().__init__(temporary, "x+b", opener=lambda name, flags: os.open(name, flags, 0o666))

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise CheckpointError(f"{self._target}: cannot be written: {reason(error)}") from error


class Committed(abc.ABC):
    """Something under construction: as a context manager it commits when the block ends, and aborts when it raises."""

    @abc.abstractmethod
    def commit(self) -> None:
        """Put it in place."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Remove what was made so far. Safe to call more than once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.commit()
        else:
            self.abort()


class AtomicFile(Committed):
    """A file under construction: a temporary in the target's folder until :meth:`commit` renames it into place.

    ``file`` is binary, buffered, seekable, and open for reading and writing. Used as a context manager it commits
    when the block ends and aborts when the block raises (``KeyboardInterrupt`` included). A new file gets the
    permissions that the umask allows; a replaced file keeps its own.

    Raises :class:`CheckpointError` when the file cannot be made, written (no space left), or renamed, and
    :class:`ExistsError`, at the start and at the end, when there is one already and ``overwrite`` is false.
    """

    file: io.BufferedRandom

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        self.path, self._overwrite = Path(path), overwrite
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError:
            mode = None
        except (OSError, ValueError) as error:  # a name too long or with a null byte: said now, not after hours of work
            raise CheckpointError(f"{str(self.path)!r}: cannot be written: {reason(error)}") from error
        if mode is not None and stat.S_ISDIR(mode):
            raise CheckpointError(f"{self.path}: is a directory; give the name of a file to write")
        if mode is not None and not stat.S_ISREG(mode):
            raise CheckpointError(f"{self.path}: is not a regular file; give the name of a file to write")
        self._check_free()
        try:
            self._temporary, raw = temporaries.make(
                self.path.parent, lambda temporary: _TemporaryFile(temporary, self.path), io.FileIO.fileno
            )
            self.file = io.BufferedRandom(raw, buffer_size=1 << 18)
        except FileNotFoundError as error:
            folder = self.path.parent
            raise CheckpointError(f"{self.path}: cannot be written: the folder {folder} does not exist") from error
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written: {reason(error)}") from error

    def _check_free(self) -> None:
        if not self._overwrite and os.path.lexists(self.path):
            raise ExistsError(self.path)

    def finish(self) -> None:
        """Flush and close the temporary. Afterwards :meth:`commit` only renames it; nothing can lack space."""
        try:
            self.file.close()
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written: {reason(error)}") from error

    def commit(self) -> None:
        """Rename the finished file onto the target. On failure the temporary is removed and the target is as before."""
        try:
            self.finish()
            self._check_free()
            with contextlib.suppress(OSError):  # keeping the old mode is a courtesy: no target, or no right to, is fine
                os.chmod(self._temporary, stat.S_IMODE(self.path.stat().st_mode))
            os.replace(self._temporary, self.path)
        except BaseException as error:
            self.abort()
            if isinstance(error, OSError):
                raise CheckpointError(f"{self.path}: cannot be written: {reason(error)}") from error
            raise

    def abort(self) -> None:
        """Remove the temporary. Safe to call at any time, more than once, and after a failed :meth:`commit`."""
        with contextlib.suppress(OSError, CheckpointError):  # closing flushes, and the disk may be full
            self.file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()


def commit_together(files: list[AtomicFile]) -> None:
    """Commit several files, in order, only after every one of them is completely written.

    A rename can still fail midway (a folder's rights changed under us); then the rest are removed and the error is
    raised.
    """
    try:
        for file in files:
            file.finish()
        for file in files:
            file.commit()
    except BaseException:
        for file in files:
            file.abort()
        raise


class AtomicFolder(Committed):
    """A folder under construction: a temporary one beside its target until :meth:`commit` puts it in place.

    ``path`` is where to write. Used as a context manager it commits when the block ends, and removes everything when
    the block raises (``KeyboardInterrupt`` included). An empty folder may be there already. With ``overwrite`` another
    one may too: then its files of the same names are replaced, and the rest stays.

    Raises :class:`CheckpointError` when it cannot be made, and :class:`ExistsError`, at the start and at the end, when
    there is something else already.
    """

    def __init__(self, target: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.target, self._overwrite = Path(target), overwrite
        self._check_free()
        try:
            self._temporary = temporaries.TemporaryFolder(self.target.parent)
        except FileNotFoundError as error:
            folder = self.target.parent
            raise CheckpointError(f"{self.target}: cannot be made: the folder {folder} does not exist") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.target}: cannot be made: {reason(error)}") from error
        self.path = self._temporary.path

    def _check_free(self) -> None:
        try:
            there = os.path.lexists(self.target)
            inside = list(os.scandir(self.target)) if there and self.target.is_dir() else None
        except (OSError, ValueError) as error:  # a name too long or with a null byte
            raise CheckpointError(f"{str(self.target)!r}: cannot be written: {reason(error)}") from error
        if there and inside is None:
            raise CheckpointError(f"{self.target}: is not a folder; give the name of one to write")
        if inside and not self._overwrite:
            raise ExistsError(self.target)

    def commit(self) -> None:
        """Put the folder in place, by one rename if nothing is there."""
        try:
            for left in self.path.rglob(temporaries.PATTERN):  # of a process that was ended while it wrote
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            self._check_free()
            if self.target.is_dir() and not any(self.target.iterdir()):
                self.target.rmdir()
            if not self.target.exists():
                os.rename(self.path, self.target)
                return
            made = [path for path in sorted(self.path.rglob("*")) if not path.is_dir()]
            places = [self.target / path.relative_to(self.path) for path in made]
            for place in places:  # before the first one is replaced
                if place.is_dir():
                    raise CheckpointError(f"{place}: is a folder where a file is to be written; move it away")
            for path, place in zip(made, places, strict=True):
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
        except OSError as error:
            raise CheckpointError(f"{self.target}: cannot be written: {reason(error)}") from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove the temporary folder. Safe to call more than once."""
        self._temporary.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if isinstance(error, DeepCabacError) and str(self.path) in str(error):
            # What failed is part of the folder that the user named.
            said = str(error).replace(str(self.path), str(self.target))
            raise (type(error) if not isinstance(error, ExistsError) else OptionError)(said) from error
