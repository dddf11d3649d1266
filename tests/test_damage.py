"""Damaged files: every byte, every length, and thousands of random changes that checksums do not find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepcabac
from deepcabac import _core
from deepcabac.dcb import container, reader
from deepcabac.errors import DamagedFileError, DeepCabacError, OptionError, UnsupportedError

sys.path.insert(0, str(Path(__file__).parents[1] / "attacks"))

import forge
import mutate

FEW = (0x01, 0x80, 0xFF, 0x55)


def replaced(data, at, value):
    return data[:at] + bytes([value]) + data[at + 1 :]


def test_every_other_value_of_every_byte_of_header_and_index_is_noticed():
    data = mutate.small()
    assert len(data) < 500
    offset = container.HEADER.unpack(data[: container.HEADER.size])[3]
    for at in [*range(container.HEADER.size), *range(offset, len(data))]:
        for value in range(256):
            if value != data[at]:
                with pytest.raises((DamagedFileError, UnsupportedError)):
                    deepcabac.decompress(replaced(data, at, value), threads=1)


def test_every_changed_bit_of_the_payload_is_noticed():
    data = mutate.small()
    offset = container.HEADER.unpack(data[: container.HEADER.size])[3]
    for at in range(container.HEADER.size, offset):
        for value in [data[at] ^ 1 << bit for bit in range(8)] + [data[at] ^ 0xFF]:
            with pytest.raises(DamagedFileError, match="checksum"):
                deepcabac.decompress(replaced(data, at, value), threads=1)


def test_every_other_value_of_every_byte_of_coded_levels_is_noticed():
    data = deepcabac.encode(np.arange(-30, 30).reshape(5, 4, 3))
    for at in range(len(data)):
        for value in range(256):
            if value != data[at]:
                with pytest.raises((DamagedFileError, UnsupportedError)):
                    deepcabac.decode(replaced(data, at, value), threads=1)


@pytest.mark.parametrize("name", ["small", "medium"])
def test_no_beginning_of_a_file_is_a_file(name):
    data = getattr(mutate, name)()
    for length in range(len(data)):
        with pytest.raises(DamagedFileError):
            deepcabac.decompress(data[:length], threads=1)


def test_no_beginning_of_coded_levels_is_coded_levels():
    data = mutate.some_levels()
    for length in range(len(data)):
        with pytest.raises(DamagedFileError):
            deepcabac.decode(data[:length], threads=1)


def test_no_tail_makes_a_longer_file():
    for tail in (b"\0", b"\xff", bytes(100), mutate.small()):
        with pytest.raises(DamagedFileError):
            deepcabac.decompress(mutate.small() + tail)
        with pytest.raises(DamagedFileError):
            deepcabac.decode(mutate.some_levels() + tail)


def test_changed_index_bytes_behind_right_checksums_are_refused_or_give_what_they_declare():
    parts = forge.Parts.of(mutate.small())
    outcomes = set()
    for at in range(len(parts.plain)):
        for flip in FEW:
            plain = replaced(parts.plain, at, parts.plain[at] ^ flip)
            outcomes.add(mutate.open_file(forge.Parts(parts.payload, plain).file()))
    assert "DamagedFileError" in outcomes


def test_changed_payload_bytes_behind_right_checksums_are_refused_or_give_what_they_declare():
    parts = forge.Parts.of(mutate.small())
    for at in range(len(parts.payload)):
        for flip in FEW:
            payload = replaced(parts.payload, at, parts.payload[at] ^ flip)
            assert mutate.open_file(forge.right_checksums(forge.Parts(payload, parts.plain))) in (
                "opened",
                "DamagedFileError",
            )


def test_every_other_value_of_every_coding_parameter_decodes_to_the_levels_asked_for_or_is_refused():
    for entry in forge.Parts.of(mutate.medium()).index().entries:
        weights = np.random.default_rng(0).normal(size=400, scale=2).astype(np.float32)
        code, _ = _core.quantize(entry.params, weights, 1.0, 0.0)
        for at in range(len(entry.params)):
            for value in range(256):
                params = replaced(entry.params, at, value)
                try:
                    each = _core.chunk_levels(params)
                except DamagedFileError:
                    continue
                assert 1 <= each <= 1 << 20
                out = np.zeros(min(400, each), np.int32)
                _core.decode([_core.Job(params, code, out)])


@given(code=st.binary(max_size=200), count=st.integers(1, 3000), data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_bytes_decode_or_are_refused_under_any_parameters(code, count, data):
    flags = data.draw(st.integers(0, 15))
    params = bytes([flags, data.draw(st.integers(0, 191))])
    params += container.varint(data.draw(st.integers(1, 70))) + container.varint(data.draw(st.integers(1, 50)))
    if flags & 1:
        params += data.draw(st.binary(min_size=2, max_size=2))
    if flags & 2:
        params += bytes([data.draw(st.integers(1, 64)), data.draw(st.integers(1, 128))])
        params += data.draw(st.binary(min_size=5, max_size=5))
    if flags & 8:
        params += bytes([data.draw(st.integers(3, 6))])
    count = min(count, _core.chunk_levels(params))
    out = np.zeros(count, np.int32)
    again = np.zeros(count, np.int32)
    other = np.zeros(count, np.int32)
    (good,) = _core.decode([_core.Job(params, code, out)])
    # The same alone and among others; levels that come out go in again and come out.
    assert _core.decode([_core.Job(params, code, again), _core.Job(params, code, other)]) == [good, good]
    if good:
        assert (out == again).all() and (out == other).all()
        # Indices so large that their levels do not fit 32 bits are not found again.
        if flags < 8 or (np.abs(out.astype(np.int64)) < 2**29).all():
            assert _core.decode([_core.Job(params, _core.encode(params, out), again)]) == [True]
            assert (out == again).all()


@given(data=st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused(data):
    for start in (b"", container.MAGIC, container.MAGIC + b"\1\0\0\0", b"\xdc\1"):
        for decode in (deepcabac.decompress, deepcabac.decode):
            with pytest.raises(DeepCabacError):
                decode(start + data)


def test_thousands_of_random_mutations_end_well():
    result = mutate.run(3000, seed=1)
    assert result["slowest"][0] < 10
    assert result["peak memory (KiB)"] - result["memory before (KiB)"] < 128 << 10


def test_damage_in_one_tensor_leaves_the_others_readable(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=(40, 50)).astype(np.float32) for name in "abc"}
    data = deepcabac.compress(tensors, sqnr=25)
    first = forge.Parts.of(data).index().entries[0].coded_bytes
    path = tmp_path / "model.dcb"
    path.write_bytes(replaced(data, container.HEADER.size + first + 5, data[container.HEADER.size + first + 5] ^ 1))
    with deepcabac.open_file(path) as file:
        assert file["a"].shape == file["c"].shape == (40, 50)
        with pytest.raises(DamagedFileError, match="'b'"):
            file["b"]
        assert [name for name, _ in file.check()] == ["b"]
        assert list(file.check(decode=False)) == list(file.check())
    with pytest.raises(DamagedFileError, match="'b'"):
        deepcabac.load_file(path)


def test_checksums_are_compared_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    tensors = {f"{k}": rng.normal(size=(3 * k, 50)).astype(np.float32) for k in range(40)} | {"again": np.zeros(3)}
    data = bytearray(deepcabac.compress(tensors, sqnr=25))
    monkeypatch.setattr(reader, "_BLOCK", 5000)
    with reader.open_bytes(bytes(data), max_bytes=None, threads=2) as file:
        seen: list[tuple[int, int]] = []
        assert not list(file.check(lambda *now: seen.append(now), decode=False))
        assert seen[-1][0] == seen[-1][1] == sum(file.info(name).coded_bytes for name in file) and len(seen) > 5
        entries = file._index.entries
    damaged = ["7", "8", "30", "39"]
    for entry in entries:
        if entry.name in damaged:
            data[entry.chunks[0].offset] ^= 1
            data[entry.chunks[-1].offset + entry.chunks[-1].length - 1] ^= 1
    with reader.open_bytes(bytes(data), max_bytes=None, threads=2) as file:
        assert [name for name, _ in file.check(decode=False)] == damaged


def test_checksums_of_an_update_need_no_base():
    rng = np.random.default_rng(0)
    old = {"w": rng.normal(size=(40, 50)).astype(np.float32)}
    data = deepcabac.compress({"w": old["w"] + np.float32(0.01)}, base=old)
    with reader.open_bytes(data, max_bytes=None, threads=1) as file:
        assert not list(file.check(decode=False))
        with pytest.raises(OptionError, match="give it as base"):
            list(file.check())


def test_a_file_that_shrinks_while_open_is_an_error_not_garbage(tmp_path):
    path = tmp_path / "model.dcb"
    deepcabac.save_file({"w": np.random.default_rng(0).normal(size=(99, 99)).astype(np.float32)}, path)
    with deepcabac.open_file(path) as file:
        with path.open("r+b") as other:
            other.truncate(100)
        with pytest.raises(DamagedFileError):
            file["w"]


def test_the_fuzzers_seeds_end_well(tmp_path):
    fuzz = Path(__file__).parents[1] / "fuzz"

    def run(*command):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(fuzz / "make_corpus.py", tmp_path)
    seeds = sorted(tmp_path.iterdir())
    outcomes = [line.rsplit(" ", 1)[1] for line in run(fuzz / "fuzz_decode.py", "--replay", *seeds).splitlines()]
    assert len(outcomes) == len(seeds) > 150
    assert outcomes.count("opened") >= 10
