"""examples/reader: .dcb files read in Rust and in C."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import deepcabac

ROOT = Path(__file__).parents[1]
READER = ROOT / "examples" / "reader"

pytestmark = [
    pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo is not installed"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
    pytest.mark.skipif(os.name != "posix", reason="how to link is said for Linux"),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The programs in Rust and in C."""
    target = tmp_path_factory.mktemp("reader")
    command = ["cargo", "build", "--quiet", "--offline", "--locked", "--target-dir", str(target)]
    subprocess.run([*command, "--manifest-path", str(READER / "Cargo.toml")], check=True)
    library = target / "debug" / "libdeepcabac_reader.a"
    options = ["-Wall", "-Wextra", "-Werror", "-lpthread", "-ldl", "-lm", "-o", str(target / "in_c")]
    subprocess.run(["cc", str(READER / "main.c"), str(library), *options], check=True)
    return target / "debug" / "deepcabac-reader", target / "in_c"


def run(program, path):
    return subprocess.run([str(program), str(path)], capture_output=True, text=True, check=False, timeout=120)


def tensors():
    rng = np.random.default_rng(3)
    wide = rng.standard_normal((90, 70)).astype(np.float32)
    half, numbers = wide.astype(np.float16), np.arange(5)
    return {"wide": wide, "same": wide.copy(), "half": half, "numbers": numbers, "one": wide[0, 0]}


@pytest.mark.parametrize("options", [{}, {"preset": "fast"}, {"preset": "small"}, {"lossless": True}], ids=str)
def test_both_have_the_values_of_python(programs, options, tmp_path):
    path = tmp_path / "model.dcb"
    path.write_bytes(deepcabac.compress(tensors(), **options))
    back = deepcabac.decompress(path.read_bytes())
    sums = {name: int(np.frombuffer(array.tobytes(), np.uint8).sum()) for name, array in back.items()}
    in_rust, in_c = (run(program, path) for program in programs)
    shapes = {name: list(array.shape) for name, array in back.items()}
    assert in_rust.stdout.splitlines() == [
        f"{name} {back[name].dtype} {shapes[name]} {total}" for name, total in sums.items()
    ]
    assert in_c.stdout.splitlines() == [f"{name} {back[name].nbytes} {total}" for name, total in sums.items()]
    assert (in_rust.returncode, in_c.returncode) == (0, 0)


def test_a_damaged_file_is_an_error(programs, tmp_path):
    data = bytearray(deepcabac.compress(tensors()))
    data[100] ^= 1
    path = tmp_path / "model.dcb"
    path.write_bytes(data)
    for program in programs:
        done = run(program, path)
        assert done.returncode == 1 and "is damaged" in done.stderr and "panicked" not in done.stderr
