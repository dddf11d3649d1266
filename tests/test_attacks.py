"""Every hostile file of attacks/ ends in the error it should, at once and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import deepcabac
from deepcabac import dc2019, errors, nnc

ROOT = Path(__file__).parents[1]
ATTACKS_FOLDER = ROOT / "attacks"
sys.path.insert(0, str(ATTACKS_FOLDER))

import make  # noqa: E402

NAMES = [attack.name for attack in make.ATTACKS]
attacks = pytest.mark.parametrize("attack", make.ATTACKS, ids=NAMES)


def check(attack, data):
    with pytest.raises(errors.DeepCabacError) as caught:
        make.open_file(attack.name, data)
    assert type(caught.value) is attack.error
    assert attack.says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@attacks
def test_a_hostile_file_is_refused_with_the_reason(attack):
    check(attack, make.data_of(attack))


@attacks
def test_a_hostile_file_made_by_the_present_writer_is_refused_too(attack):
    data = attack.make()
    assert len(data) < 4096
    check(attack, data)


def test_the_folder_holds_exactly_the_files_that_are_made():
    files = {path.name for path in ATTACKS_FOLDER.iterdir() if path.suffix in make.SUFFIXES}
    assert files == {name for name in NAMES if name.endswith(make.STORED)}


def test_what_the_attacks_start_from_is_good():
    tensors = deepcabac.decompress(make.good())
    assert [*tensors] == ["w", "b", "again"] and tensors["again"] is tensors["w"]
    assert make.one_tensor() == make.forge.Parts.of(make.one_tensor()).file()
    assert (deepcabac.decompress(make.one_tensor())["w"] == tensors["w"]).all()
    assert (deepcabac.decompress(make.scaled())["w"] == tensors["w"]).all()
    assert (deepcabac.decompress(make.scaled(b"\4" * 16, b"\xf8" * 20))["w"] == tensors["w"] / 2).all()
    assert (deepcabac.decode(make.good_levels()) == make.LEVELS_ARRAY).all()
    assert make.levels() == make.good_levels()
    assert (nnc.decode(make.streams.good())["w"] == make.streams.LEVELS / 4).all()
    assert (dc2019.decode(make.streams.layers())[0] == make.streams.LEVELS).all()
    assert deepcabac.decompress(make.zeros(1))["w"].shape == (1, 1 << 20)


def test_without_max_bytes_too_nothing_hostile_opens(tmp_path):
    for attack in make.ATTACKS:
        if attack.error is errors.LimitError:
            continue
        path = tmp_path / attack.name
        path.write_bytes(make.data_of(attack))
        with pytest.raises(attack.error):
            if attack.name.endswith(".dcb"):
                deepcabac.load_file(path)
            else:
                make.open_file(attack.name, path.read_bytes(), max_bytes=None)


#: Opens every attack in a process whose memory ends 64 MiB above what it has, and prints the seconds each takes.
CONFINED = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
import make, deepcabac
deepcabac.decompress(make.good(), threads=1)
data = [(a.name, make.data_of(a)) for a in make.ATTACKS]
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
seconds = {}
for name, bytes_ in data:
    start = time.process_time()
    try:
        make.open_file(name, bytes_, threads=1)
        sys.exit(name + " opened")
    except deepcabac.DeepCabacError:
        seconds[name] = time.process_time() - start
try:
    bytearray(80 << 20)
    sys.exit("memory was not confined")
except MemoryError:
    print(json.dumps(seconds))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS and /proc are Linux's")
def test_no_hostile_file_takes_memory_or_time():
    run = subprocess.run(
        [sys.executable, "-c", CONFINED, str(ATTACKS_FOLDER)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    seconds = json.loads(run.stdout)
    assert set(seconds) == set(NAMES)
    slow = {name: taken for name, taken in seconds.items() if taken > 2}
    assert not slow
