"""Large models in little memory, and files that appear whole or not at all, whatever goes wrong."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import deepcabac
from deepcabac import CheckpointError
from deepcabac.dcb.container import HEADER
from deepcabac.dcb.reader import OpenFile

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and RLIMITs are Linux's")

TENSORS, ROWS, COLUMNS = 15, 2500, 2000  # 20 MB each
TOTAL = TENSORS * ROWS * COLUMNS * 4


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A .safetensors file of 300 MB."""
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < 4 * TOTAL:
        pytest.skip("needs 1.2 GB of disk")
    path = folder / "large.safetensors"
    header, at = {}, 0
    for n in range(TENSORS):
        size = ROWS * COLUMNS * 4
        header[f"w{n}"] = {"dtype": "F32", "shape": [ROWS, COLUMNS], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    tensor = rng.normal(scale=0.02, size=(ROWS, COLUMNS)).astype(np.float32)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(TENSORS):
            file.write(tensor.data)
    yield path
    shutil.rmtree(folder)


#: Prints the peak of memory in MB that a call adds to what the process had before.
MEASURE = """
import json, re, sys
from pathlib import Path
import deepcabac, numpy as np
def peak():
    # Not ru_maxrss: a new process takes over its parent's.
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
model, path = map(Path, sys.argv[1:3])
deepcabac.decompress(deepcabac.compress({"w": np.ones((300, 300), np.float32)}))
before = peak()
{call}
print(json.dumps(peak() - before))
"""


@linux
def test_a_model_is_compressed_and_restored_in_less_memory_than_it_has(large, tmp_path):
    path, back = tmp_path / "large.dcb", tmp_path / "back.safetensors"
    # step= and no rate-distortion: the least work for the same flow.
    options = "deepcabac.Options(step=0.02, rate_distortion=0, threads=2)"
    compress = MEASURE.replace("{call}", f"deepcabac.compress_checkpoint(model, path, options={options})")
    assert run(compress, large, path) < 100
    assert path.stat().st_size < TOTAL / 8
    restore = MEASURE.replace("{call}", "deepcabac.decompress_checkpoint(model, path, threads=2)")
    assert run(restore, path, back) < 110
    assert back.stat().st_size > TOTAL
    # One tensor takes its own memory and little more.
    single = MEASURE.replace("{call}", "assert deepcabac.open_file(model, threads=2)['w7'].nbytes == 20_000_000")
    assert run(single, path, path) < 45


def tensors(count=6):
    rng = np.random.default_rng(0)
    return {f"w{n}": rng.normal(size=(300, 400)).astype(np.float32) for n in range(count)}


class Counting(io.BytesIO):
    """A file that counts what is read from it."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize(
    "settings", [{"preset": preset} for preset in ("fast", "default", "small")] + [{"lossless": True}]
)
def test_opening_reads_the_index_and_a_tensor_reads_its_own_bytes_alone(settings):
    model = tensors() | {"large": np.random.default_rng(1).normal(size=(700, 800)).astype(np.float32)}
    model["tied"] = model["large"]
    data = deepcabac.compress(model, **settings)
    file = Counting(data)
    opened = OpenFile(file, threads=2)
    assert file.count == HEADER.size + opened.index_bytes < len(data) / 50
    for name in ("w3", "large", "w0", "tied"):
        file.count = 0
        assert opened[name].shape == model[name].shape
        assert file.count == opened.info("large" if name == "tied" else name).coded_bytes > 0
    assert sum(opened.info(name).coded_bytes for name in opened) + HEADER.size + opened.index_bytes == len(data)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt, MemoryError], ids=lambda error: error.__name__)
@pytest.mark.parametrize("existing", [False, True], ids=["new", "replaced"])
def test_an_exception_in_the_middle_leaves_the_old_file_or_none(tmp_path, error, existing):
    path = tmp_path / "model.dcb"
    if existing:
        path.write_bytes(b"old")

    def stop(done, total):
        if done > total / 2:
            raise error

    with pytest.raises(error):
        deepcabac.save_file(tensors(), path, progress=stop, threads=2)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"] * existing


def test_an_exception_while_restoring_leaves_no_file(tmp_path):
    path = tmp_path / "model.dcb"
    deepcabac.save_file(tensors(), path)

    def stop(done, total):
        if done > total / 2:
            raise Stopped

    with pytest.raises(Stopped):
        deepcabac.decompress_checkpoint(path, tmp_path / "model.safetensors", progress=stop)
    assert list(tmp_path.iterdir()) == [path]


def test_damage_in_the_last_tensor_leaves_no_checkpoint(tmp_path):
    path = tmp_path / "model.dcb"
    deepcabac.save_file(tensors(), path)
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(deepcabac.DamagedFileError):
        deepcabac.decompress_checkpoint(path, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == [path]


def test_a_source_that_fails_in_the_middle_leaves_no_file(tmp_path):
    from safetensors.numpy import save_file

    model = tmp_path / "model.safetensors"
    save_file(tensors(), model)
    os.truncate(model, model.stat().st_size - 1000)
    with pytest.raises(CheckpointError):
        deepcabac.compress_checkpoint(model, tmp_path / "model.dcb")
    assert list(tmp_path.iterdir()) == [model]


#: Limits the size of files to a number of bytes, runs a call, and prints the error it ends in.
LIMITED = """
import json, resource, sys
import deepcabac, numpy as np
rng = np.random.default_rng(0)
tensors = {f"w{n}": rng.normal(size=(300, 400)).astype(np.float32) for n in range(6)}
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    {call}
    print(json.dumps("no error"))
except deepcabac.DeepCabacError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@linux
@pytest.mark.parametrize("limit", [0, 31, 1000, 100_000, 300_000])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, limit):
    path = tmp_path / "model.dcb"
    script = LIMITED.replace("{call}", "deepcabac.save_file(tensors, sys.argv[1])")
    kind, message = run(script, path, limit)
    assert kind == "CheckpointError"
    assert str(path) in message and "cannot be written" in message and "partial" not in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_disk_that_lacks_one_byte_is_full_and_one_that_lacks_none_is_not(tmp_path):
    size = len(deepcabac.compress(tensors()))
    script = LIMITED.replace("{call}", "deepcabac.save_file(tensors, sys.argv[1])")
    assert run(script, tmp_path / "model.dcb", size - 1)[0] == "CheckpointError"
    assert list(tmp_path.iterdir()) == []
    assert run(script, tmp_path / "model.dcb", size) == "no error"
    assert (tmp_path / "model.dcb").stat().st_size == size


@linux
def test_a_full_disk_while_restoring_or_seeking_a_size_is_one_clear_error_too(tmp_path):
    deepcabac.save_file(tensors(), tmp_path / "model.dcb")
    call = "deepcabac.decompress_checkpoint(sys.argv[1], sys.argv[1].replace('.dcb', '.safetensors'))"
    kind, message = run(LIMITED.replace("{call}", call), tmp_path / "model.dcb", 1_000_000)
    assert kind == "CheckpointError" and "model.safetensors" in message and "cannot be written" in message
    assert [p.name for p in tmp_path.iterdir()] == ["model.dcb"]
    call = "deepcabac.save_file(tensors, sys.argv[1], bits=4)"
    kind, message = run(LIMITED.replace("{call}", call), tmp_path / "model.dcb", 200_000)
    assert kind == "CheckpointError"
    assert len(list(tmp_path.iterdir())) == 1 and len(deepcabac.load_file(tmp_path / "model.dcb")) == 6


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full_is_one_clear_error(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small disk here")
    try:
        with pytest.raises(CheckpointError, match="no space left"):
            deepcabac.save_file(tensors(), disk / "model.dcb")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("place", ["missing/model.dcb", "folder", "file/model.dcb"])
def test_a_place_that_cannot_be_written_is_said_before_any_work(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError):
        deepcabac.save_file(tensors(1), tmp_path / place, progress=lambda *_: pytest.fail("worked"))
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    for place in (tmp_path, tmp_path / "none.dcb"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            deepcabac.load_file(place)


def test_stopping_to_iterate_stops_the_work(tmp_path):
    path = tmp_path / "model.dcb"
    deepcabac.save_file(tensors(), path)
    with deepcabac.open_file(path) as file:
        items = file.items()
        assert next(items)[0] == "w0"
        items.close()
        assert [name for name, _ in file.items()] == file.keys()
