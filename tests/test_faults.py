"""What is left when a process is ended, a disk is full or a file system fails: the old file or the new one, no more."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deepcabac
from deepcabac import atomic, errors, temporaries
from deepcabac.atomic import AtomicFile, AtomicFolder
from deepcabac.checkpoint.npz import NpzReader

TENSORS = {name: np.random.default_rng(0).normal(size=(60, 60)).astype(np.float32) for name in "abc"}
OTHERS = {name: array + 1 for name, array in TENSORS.items()}

#: Runs ``call`` and ends itself without a word at the k-th of the system calls that change files.
ENDED = """
import os, signal, sys
from deepcabac import atomic, temporaries
import deepcabac, numpy as np
left = int(sys.argv[1])
def counted(function):
    def call(*given, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **more)
    return call
atomic._TemporaryFile.write = counted(atomic._TemporaryFile.write)
atomic._TemporaryFile.close = counted(atomic._TemporaryFile.close)
for name in ("replace", "rename", "chmod"):
    setattr(os, name, counted(getattr(os, name)))
exec(sys.argv[2])
"""
CALLS = {
    "a file": "deepcabac.compress_checkpoint('old.npz', 'new/out', overwrite=True)",
    "a checkpoint": "deepcabac.decompress_checkpoint('old.dcb', 'new/out.npz', overwrite=True)",
    "a folder": "deepcabac.compress_folder('plain', 'new/out')",
}


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_process_that_is_ended_leaves_the_old_or_the_new(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    for folder in ("new", "plain"):
        Path(folder).mkdir()
    np.savez("old.npz", **TENSORS)
    np.savez("plain/model.npz", **TENSORS)
    deepcabac.save_file(TENSORS, "old.dcb", lossless=True)
    old = b"old" if "folder" not in call else None
    name = call.split("'")[3].removeprefix("new/")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def state():
        path = Path("new", name)
        return {file.name: file.read_bytes() for file in path.iterdir()} if path.is_dir() else path.read_bytes()

    def run(at):
        command = [sys.executable, "-c", ENDED, str(at), call]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)

    if old:
        Path("new", name).write_bytes(old)
    done = run(0)
    assert done.returncode == 0, done.stderr
    new = state()
    at = 0
    while True:
        at += 1
        if old is None:
            temporaries.shutil.rmtree(Path("new", name), ignore_errors=True)
        else:
            Path("new", name).write_bytes(old)
        done = run(at)
        present = state() if Path("new", name).exists() else None
        assert present == new or (done.returncode == -9 and present == old)
        # At most what this one left: the next one has removed it from the one before.
        assert len(os.listdir("new")) - Path("new", name).exists() <= (done.returncode == -9)
        if done.returncode == 0:
            break
    assert at > 3  # it was ended before, at each of its steps


def test_what_another_process_is_writing_is_left_alone(tmp_path, monkeypatch):
    with AtomicFile(tmp_path / "a") as one, AtomicFolder(tmp_path / "b") as two:
        (two.path / "half").write_text("half")
        temporaries._swept.clear()
        code = "import sys, pathlib; from deepcabac import temporaries; temporaries.sweep(pathlib.Path(sys.argv[1]))"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, timeout=60)
        assert len(os.listdir(tmp_path)) == 2
        one.file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole" and (tmp_path / "b" / "half").exists()


def test_what_is_left_of_others_is_not_ours_to_remove(tmp_path):
    foreign = [".deepcabac-01234567-0123456789ab.partial", "deepcabac.partial", ".deepcabac.partial"]
    for name in foreign:
        (tmp_path / name).write_text("of another machine, or of nobody")
    left = tmp_path / f".deepcabac-{temporaries._machine()}-0123456789ab.partial"
    left.symlink_to(tmp_path / foreign[0])
    with AtomicFile(tmp_path / "new"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([*foreign, left.name, "new"])


def _replaced_both_ways(folder, fault):
    """Compress over a file and decompress over another under ``fault``: an error of one line, and all is as it was."""
    deepcabac.save_file(TENSORS, folder / "old.dcb")
    np.savez(folder / "old.npz", **TENSORS)
    files = sorted(os.listdir(folder))
    for call in (
        lambda: deepcabac.compress_checkpoint(folder / "old.npz", folder / "old.dcb", overwrite=True, sqnr=20),
        lambda: deepcabac.decompress_checkpoint(folder / "old.dcb", folder / "old.npz", overwrite=True),
    ):
        before = {name: (folder / name).read_bytes() for name in files}
        with pytest.raises(errors.CheckpointError) as caught, fault():
            call()
        assert "old." in str(caught.value) and "\n" not in str(caught.value) and "partial" not in str(caught.value)
        assert {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))} == before


@pytest.mark.parametrize("room", [0, 1, 33, 1000])
def test_a_disk_without_room_leaves_the_old_file(tmp_path, room):
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limited():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    _replaced_both_ways(tmp_path, limited)


@pytest.mark.parametrize("what", ["close", "replace"])
def test_an_error_at_the_end_leaves_the_old_file(tmp_path, what):
    """As a network file system says it when a file is closed."""

    class Failing(atomic._TemporaryFile):
        def close(self):
            if not self.closed:
                super().close()
                raise OSError(122, "Disk quota exceeded")

    def refused(*_):
        raise OSError(5, "Input/output error")

    @contextlib.contextmanager
    def fault():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*((atomic, "_TemporaryFile", Failing) if what == "close" else (os, "replace", refused)))
            yield

    _replaced_both_ways(tmp_path, fault)


@pytest.mark.parametrize("read", [1, 2, 3])
def test_a_base_that_changes_while_it_is_read(tmp_path, monkeypatch, read):
    """What comes of it is an update of what was read, or an error: no update is applied to another base."""
    base, path = tmp_path / "base.npz", tmp_path / "update.dcb"
    np.savez(base, **TENSORS)
    honest, count = NpzReader.read, 0

    def changing(self, name):
        nonlocal count
        count += self.path == base
        if count == read and self.path == base:
            np.savez(base, **OTHERS)
        return honest(self, name)

    np.savez(tmp_path / "new.npz", **OTHERS)
    monkeypatch.setattr(NpzReader, "read", changing)
    with contextlib.suppress(errors.CheckpointError):
        deepcabac.compress_checkpoint(tmp_path / "new.npz", path, base=base, lossless=True)
    monkeypatch.undo()
    assert count >= read
    if path.exists():
        for arrays in (TENSORS, OTHERS):
            with contextlib.suppress(errors.OptionError):
                back = deepcabac.load_file(path, base=arrays)
                assert all(np.array_equal(back[name], OTHERS[name]) for name in OTHERS)
