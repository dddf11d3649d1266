"""The native library is made of many small functions: a large one takes a compiler minutes."""

import shutil
import subprocess
from pathlib import Path

import pytest

import deepcabac

#: Bytes. Loops have 2 to 23 kB on x86-64.
LARGEST = 48_000


def symbols(library: Path) -> dict[str, int]:
    """Bytes of each function of the library."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (of binutils) is not installed")
    done = subprocess.run([nm, "--print-size", str(library)], capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return {line[3]: int(line[1], 16) for line in lines if len(line) == 4 and line[2] in "tT"}


def test_no_function_of_the_core_is_large() -> None:
    libraries = list((Path(deepcabac.__file__).parent / "_native").glob("*.so"))
    sizes = symbols(libraries[0]) if libraries else {}
    if not any("apart" in name for name in sizes):
        pytest.skip("the library is not an ELF file with a table of its symbols")
    large = {name: size for name, size in sizes.items() if size > LARGEST}
    assert not large, "loops become functions of their own by Machine::apart (src/model/context.rs)"
