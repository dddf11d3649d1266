"""Files and folders that are under construction, and what is left of them when a process is ended: the next process
that writes into the same folder removes it.

A process holds a lock on what it makes, which the system lets go of however the process ends. The name tells the
machine, since locks on a network file system may not reach others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

try:
    import fcntl
except ImportError:  # Windows, where nothing is removed
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from typing_extensions import Self

Made = TypeVar("Made")

#: What the name of everything under construction matches.
PATTERN = ".deepcabac-*.partial"
_ATTEMPTS = 4
#: Folders in which this process has looked for what others left.
_swept: set[str] = set()


@functools.cache
def _machine() -> str:
    """Eight digits for this machine since it was started; containers on it have the same."""
    try:
        who = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        who = platform.node()
    return hashlib.sha256(who.encode()).hexdigest()[:8]


def make(folder: Path, create: Callable[[Path], Made], number_of: Callable[[Made], int]) -> tuple[Path, Made]:
    """A path in ``folder`` that nobody has, what ``create`` makes of it, and a lock on that.

    ``number_of`` says its file descriptor. Raises what ``create`` raises.
    """
    sweep(folder)
    for attempt in range(_ATTEMPTS):
        # Not made from the target's name, which may already be as long as a file name can be.
        path = folder / f".deepcabac-{_machine()}-{secrets.token_hex(6)}.partial"
        made = create(path)
        if (_lock(number_of(made)) is not False and path.exists()) or attempt == _ATTEMPTS - 1:
            break
        # Another process took it for one that was left, before it was locked.
    return path, made


def _lock(number: int) -> bool | None:
    """Whether a file is locked now; None if this file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sweep(folder: Path) -> None:
    """Remove what processes of this user and this machine left in ``folder``. Looks once in each folder."""
    with contextlib.suppress(OSError, ValueError):
        place = os.path.realpath(folder)
        if fcntl is None or place in _swept:
            return
        _swept.add(place)
        begin = f".deepcabac-{_machine()}-"
        for entry in os.scandir(place):
            if entry.name.startswith(begin) and entry.name.endswith(".partial"):
                _remove(Path(entry.path))


def _remove(path: Path) -> None:
    """Remove a file or folder that nobody has locked."""
    with contextlib.suppress(OSError):
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            about = os.fstat(number)
            if about.st_uid != os.getuid() or not _lock(number):
                return
            if stat.S_ISDIR(about.st_mode):
                shutil.rmtree(path, ignore_errors=True)
            elif stat.S_ISREG(about.st_mode):
                path.unlink()
        finally:
            os.close(number)


class TemporaryFolder:
    """A folder that is removed when it is closed, and if the process is ended before, by the next one.

    In ``parent``, or where the system has temporary files. Raises ``OSError``.
    """

    def __init__(self, parent: Path | None = None) -> None:
        def create(path: Path) -> int:
            path.mkdir(mode=0o777 if parent else 0o700)
            return os.open(path, os.O_RDONLY) if fcntl is not None else -1

        self.path, self._number = make(parent or Path(tempfile.gettempdir()), create, lambda number: number)

    def close(self) -> None:
        """Remove it, if it is still there. Safe to call more than once."""
        shutil.rmtree(self.path, ignore_errors=True)
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
