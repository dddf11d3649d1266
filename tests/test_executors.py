"""Folders whose files are compressed and restored by other processes, one of which is ended in mid-work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from deepcabac import DamagedFileError, compress_folder, decompress_folder
from deepcabac.cli import program

SHARDS = 6


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(2)
    (tmp_path / "model").mkdir()
    for number in range(SHARDS):
        tensors = {f"layer{number}.weight": rng.standard_normal((300, 400)).astype(np.float32)}
        save_file(tensors, tmp_path / "model" / f"model-{number}.safetensors")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "x"}')
    return tmp_path / "model"


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def processes():
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


@pytest.mark.parametrize("format", ["dcb", "transformers"])
@pytest.mark.parametrize("make", [processes, lambda: ThreadPoolExecutor(2)], ids=["processes", "threads"])
def test_other_processes_make_the_same_bytes(model, tmp_path, make, format):
    seen = []
    report = compress_folder(model, tmp_path / "one", format=format, sqnr=25)
    with make() as executor:
        again = compress_folder(
            model,
            tmp_path / "two",
            format=format,
            sqnr=25,
            threads=1,
            executor=executor,
            progress=lambda done, total: seen.append((done, total)),
        )
        assert contents(tmp_path / "one") == contents(tmp_path / "two")
        assert (list(again.files), again.file_bytes) == (list(report.files), report.file_bytes)
        assert len(seen) == SHARDS and seen[-1][0] == seen[-1][1]
        decompress_folder(tmp_path / "two", tmp_path / "back", executor=executor)
    decompress_folder(tmp_path / "one", tmp_path / "alone")
    assert contents(tmp_path / "back") == contents(tmp_path / "alone")


def test_an_error_in_another_process_is_the_caller_s_and_leaves_nothing(model, tmp_path):
    report = compress_folder(model)
    damaged = report.path / "model-3.safetensors.dcb"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with processes() as executor, pytest.raises(DamagedFileError, match="model-3"):
        decompress_folder(report.path, tmp_path / "back", executor=executor)
    assert sorted(os.listdir(tmp_path)) == ["model", "model-dcb"]


def test_a_lost_pool_leaves_nothing(model, tmp_path):
    executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    lost = executor.submit(os._exit, 1)
    with pytest.raises(Exception, match="process"):
        lost.result()
    with pytest.raises(Exception, match="process"):
        compress_folder(model, executor=executor)
    assert os.listdir(tmp_path) == ["model"]


def test_what_an_ended_process_left_does_not_get_into_the_folder(model, tmp_path):
    class Interrupted(ThreadPoolExecutor):
        def submit(self, call, *arguments):
            (call.place.parent / ".deepcabac-0123.partial").write_text("half")
            return super().submit(call, *arguments)

    with Interrupted(1) as executor:
        compress_folder(model, tmp_path / "out", executor=executor)
    assert not any("partial" in name for name in os.listdir(tmp_path / "out"))


# Dask


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    settings = {"processes": True, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(n_workers=2, **settings) as cluster, distributed.Client(cluster) as client:
        yield cluster, client


def slow_first(path):
    """A worker's compress_checkpoint that ends its process the first time that it works on ``path``."""
    import deepcabac.folders as folders

    original = folders.compress_checkpoint

    def compress(file, place, **settings):
        flag = Path(path)
        if not flag.exists():
            flag.write_text("ended")
            (Path(place).parent / ".deepcabac-beef.partial").write_text("half a file")
            os._exit(1)
        return original(file, place, **settings)

    folders.compress_checkpoint = compress


def test_dask_does_the_files_of_a_lost_worker_again(model, tmp_path, cluster):
    _, client = cluster
    compress_folder(model, tmp_path / "one")
    client.run(slow_first, str(tmp_path / "flag"))
    executor = client.get_executor(pure=False, retries=5)
    compress_folder(model, tmp_path / "two", threads=1, executor=executor)
    assert (tmp_path / "flag").exists()  # a worker was ended in mid-work
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_dask_on_the_command_line(model, tmp_path, cluster, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = cluster[0].scheduler_address
    run = CliRunner().invoke
    result = run(program, ["compress", "model", "--dask", address, "-o", "two"])
    assert result.exit_code == 0, result.stderr
    compress_folder(model, tmp_path / "one")
    assert contents("one") == contents("two")
    assert run(program, ["decompress", "two", "--dask", address, "-o", "back"]).exit_code == 0
    assert set(contents("back")) == set(contents("model"))


def test_dask_addresses_that_lead_nowhere(model, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("deepcabac.cli.cluster._PATIENCE", 0.2)
    begun = time.monotonic()
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        result = CliRunner().invoke(program, ["compress", str(model), "--dask", address])
        assert result.exit_code == 2 and "no Dask scheduler answers there" in result.stderr, result.stderr
    assert time.monotonic() - begun < 30 and os.listdir(tmp_path) == ["model"]
    result = CliRunner().invoke(program, ["compress", str(model / "model-0.safetensors"), "--dask", "tcp://x"])
    assert result.exit_code == 2 and "--dask is for folders" in result.stderr


def calibrated_part(number, folder):
    """The samples of one worker. The first attempt at part 1 ends its process before the last group of layers."""
    import torch

    from deepcabac.torch import calibrate

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
    samples = list(torch.rand(2, 16, 20, generator=torch.Generator().manual_seed(number)))
    path = Path(folder) / f"part-{number}.curvature"
    flag, passes = Path(folder) / "ended", 0

    class Batches(list):
        def __iter__(self):
            nonlocal passes
            passes += 1
            if number == 1 and passes > 1 and not flag.exists():
                flag.write_text("ended")
                os._exit(1)
            return super().__iter__()

    calibrate(model, Batches(samples), seed=number, layers_at_once=1, checkpoint=path).close()
    return str(path)


@pytest.mark.filterwarnings("ignore:calibration")
def test_calibration_on_dask_goes_on_after_a_worker_is_lost(tmp_path, cluster):
    pytest.importorskip("torch")
    from deepcabac import Curvature

    executor = cluster[1].get_executor(pure=False, retries=5)
    parts = [executor.submit(calibrated_part, number, str(tmp_path)) for number in range(3)]
    Curvature.merged([Curvature.load(part.result()) for part in parts]).save(tmp_path / "dask")
    assert (tmp_path / "ended").exists()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "ended").touch()
    alone = [calibrated_part(number, str(tmp_path / "alone")) for number in range(3)]
    Curvature.merged(map(Curvature.load, alone)).save(tmp_path / "here")
    assert sorted(path.name for path in tmp_path.glob("*.partial")) == []
    with Curvature.load(tmp_path / "dask") as one, Curvature.load(tmp_path / "here") as other:
        assert one.names() == other.names() and one.samples == other.samples == 96
        for name in one:
            for kind in ("columns", "rows", "diagonal"):
                a, b = getattr(one[name], kind), getattr(other[name], kind)
                assert (a is None and b is None) or np.allclose(a, b, rtol=1e-4)


# Ray and MPI: the code of the guide's page, where they are installed

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guide" / "machines.md"
ENDING = """
import os
from dataclasses import dataclass
from pathlib import Path

@dataclass
class Ending:  # ends its process the first time
    call: object

    def __call__(self, *arguments):
        if not Path("ended").exists():
            Path("ended").write_text("ended")
            (self.call.place.parent / ".deepcabac-beef.partial").write_text("half a file")
            os.kill(os.getpid(), 9)
        return self.call(*arguments)
"""


def script(engine, folder):
    """The page's code for an engine, in a file beside the model that it compresses."""
    blocks = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (text,) = (block for block in blocks if engine in block)
    (folder / "model").rename(folder / "my-model")
    (folder / "ending.py").write_text(ENDING)
    (folder / "script.py").write_text(text)
    return folder / "script.py"


def ran(folder, *command):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300)


def test_ray_does_the_file_of_a_lost_worker_again(model, tmp_path):
    pytest.importorskip("ray")
    path = script("ray", tmp_path)
    path.write_text(
        path.read_text()
        .replace("return run.remote(call,", "return run.remote(Ending(call),")
        .replace("import deepcabac", "from ending import Ending\nimport deepcabac")
        .replace("ray.init()", "ray.init(num_cpus=2, include_dashboard=False)")
    )
    done = ran(tmp_path, sys.executable, str(path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ended").exists()
    compress_folder(tmp_path / "my-model", tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "my-model-dcb")
    assert not list(tmp_path.glob(".deepcabac*"))


def test_mpi_makes_the_same_bytes_and_ends_as_a_whole_when_a_worker_is_lost(model, tmp_path):
    pytest.importorskip("mpi4py")
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    if mpiexec is None:
        pytest.skip("there is no mpiexec")
    path = script("mpi4py", tmp_path)
    lost = path.with_name("lost.py")
    lost.write_text(
        path.read_text()
        .replace("import deepcabac", "import deepcabac\nfrom ending import Ending")
        .replace("executor=executor", "executor=Submits(executor)")
        .replace(
            "if __name__",
            "class Submits:\n"
            "    def __init__(self, executor):\n"
            "        self.executor = executor\n"
            "    def submit(self, call):\n"
            "        return self.executor.submit(Ending(call))\n\n"
            "if __name__",
        )
    )
    command = (mpiexec, "-n", "3", sys.executable, "-m", "mpi4py.futures")
    done = ran(tmp_path, *command, str(lost))
    assert done.returncode != 0 and (tmp_path / "ended").exists() and not (tmp_path / "my-model-dcb").exists()
    done = ran(tmp_path, *command, str(path))
    assert done.returncode == 0, done.stderr
    compress_folder(tmp_path / "my-model", tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "my-model-dcb")
