"""A fuzz target for everything that opens bytes of strangers. See README.md.

The first byte of an input chooses what the rest is:

0  a .dcb file, for ``decompress``
1  coded levels, for ``decode``
2  a decoded index behind its length (2 bytes), then payload: a .dcb file is made of them. The index of a file is
   arithmetically coded, so a change of one of its bytes changes all that follow; this way a change stays where it is
3  the length of coding parameters (1 byte), these, the number of levels (2 bytes), a chunk: for the native decoder

Checksums match whatever they are compared with, so that the fuzzer gets past them. Anything but a DeepCabacError, or
arrays of the shapes and types declared, is a finding.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

MAX_BYTES = 1 << 22


class _Matches(int):
    """A checksum that is equal to every other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def _patch_checksums() -> None:
    real = zlib.crc32
    zlib.crc32 = lambda data, value=0, /: _Matches(real(data, value))  # type: ignore[assignment]


def one_input(data: bytes) -> str:
    """Run one input; what came of it. Raises on a finding."""
    if not data:
        return "empty"
    mode, rest = data[0] % 4, data[1:]
    if mode == 0:
        return mutate.open_file(rest, MAX_BYTES)
    if mode == 1:
        return mutate.open_levels(rest, MAX_BYTES)
    if mode == 2:
        length = int.from_bytes(rest[:2], "little")
        return mutate.open_file(forge.Parts(rest[2 + length :], rest[2 : 2 + length]).file(), MAX_BYTES)
    return _chunk(rest)


def _chunk(data: bytes) -> str:
    length = data[0] % 24 if data else 0
    params, count, code = data[1 : 1 + length], data[1 + length : 3 + length], data[3 + length :]
    try:
        each = _core.chunk_levels(params)
    except deepcabac.DeepCabacError as error:
        return type(error).__name__
    size = min(int.from_bytes(count, "little"), each)
    levels, again, values = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.float32)
    jobs = [_core.Job(params, code, out, 0.5) for out in (levels, again, values)]
    good = _core.decode(jobs)
    if len(set(good)) != 1:
        raise AssertionError("a chunk is good and bad")
    if not good[0]:
        return "refused"
    if not (levels == again).all() or not (values == levels.astype(np.float32) * np.float32(0.5)).all():
        raise AssertionError("a chunk decodes to different levels")
    if size:
        once_more = _core.encode(params, levels)
        if _core.decode([_core.Job(params, once_more, again)]) != [True] or not (levels == again).all():
            raise AssertionError("decoded levels do not come back")
    return "opened"


def replay(paths: list[Path]) -> None:
    """Run inputs from files without atheris."""
    for path in paths:
        print(f"{path}: {one_input(path.read_bytes())}")


def _import(atheris: object = None) -> None:
    """Import what is fuzzed, instrumented if atheris is given."""
    global _core, deepcabac, forge, mutate, np
    sys.path.insert(0, str(Path(__file__).parents[1] / "attacks"))
    import numpy as np

    if atheris is None:
        import forge
        import mutate

        import deepcabac
        from deepcabac import _core
    else:
        with atheris.instrument_imports(include=["deepcabac"]):  # type: ignore[attr-defined]
            import forge
            import mutate

            import deepcabac
            from deepcabac import _core


def main() -> None:
    """The command: files after ``--replay``, else atheris with libFuzzer's own arguments."""
    if sys.argv[1:2] == ["--replay"]:
        _import()
        _patch_checksums()
        replay([Path(name) for name in sys.argv[2:]])
        return
    import atheris

    _import(atheris)
    _patch_checksums()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
