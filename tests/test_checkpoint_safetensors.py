"""safetensors files, one or in shards: what is restored, and what is refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from deepcabac.checkpoint import TensorSpec, create_checkpoint, open_checkpoint
from deepcabac.checkpoint import sharded as sharded_module
from deepcabac.checkpoint.base import EXACT_DTYPES, packed_bytes
from deepcabac.checkpoint.packing import pack
from deepcabac.checkpoint.safetensors_file import DTYPE_OF_TAG
from deepcabac.errors import CheckpointError, DamagedFileError, UnsupportedError

F4 = np.dtype("<f4")
INDEX = "model.safetensors.index.json"


def copy(source, target):
    with (
        open_checkpoint(source) as reader,
        create_checkpoint(
            target, kind=reader.kind, specs=reader.specs, extra=reader.extra, extra_kind=reader.kind
        ) as writer,
    ):
        for spec in reader.specs:
            writer.write(spec.name, reader.read(spec.name))


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start, end, dtype="U8", shape=None):
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def test_every_dtype_survives_bit_for_bit_and_the_library_opens_the_result(tmp_path):
    rng = np.random.default_rng(0)
    header, data = {"__metadata__": {"format": "pt", "zeta": "ü", "alpha": '"'}}, b""
    for tag, dtype in DTYPE_OF_TAG.items():
        values = rng.integers(0, 2 if tag == "BOOL" else 256, packed_bytes(dtype, 24), dtype=np.uint8).tobytes()
        header["t." + tag] = entry(len(data), len(data) + len(values), tag, [2, 3, 4])
        data += values
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    source.write_bytes(raw(header, data))
    copy(source, target)
    for path in (source, target):
        with open_checkpoint(path) as reader:
            assert [spec.name for spec in reader.specs] == list(header)[1:]
            assert b"".join(pack(reader.read(spec.name)).tobytes() for spec in reader.specs) == data
            assert json.loads(reader.extra) == header["__metadata__"]
    with safetensors.safe_open(target, "np") as opened:
        assert opened.metadata() == header["__metadata__"]
        assert set(opened.keys()) == set(header) - {"__metadata__"}
        assert opened.get_tensor("t.F32").tobytes() == data[slice(*header["t.F32"]["data_offsets"])]


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_a_file_that_the_library_wrote_is_restored_byte_for_byte(tmp_path, metadata):
    rng = np.random.default_rng(0)
    tensors = {f"layer.{i}.wéight\n": rng.standard_normal((3, i)).astype("f2" if i % 2 else "f4") for i in range(5)}
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    save_file(tensors, source, metadata)
    copy(source, target)
    assert target.read_bytes() == source.read_bytes()


def test_tensors_come_in_the_order_of_the_data_whatever_the_order_of_the_header(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw({"b": entry(2, 3), "empty": entry(2, 2), "a": entry(0, 2)}, b"xyz"))
    with open_checkpoint(path) as reader:
        assert [spec.name for spec in reader.specs] == ["a", "empty", "b"]
        assert reader.read("b").tobytes() == b"z"


GOOD = {"a": entry(0, 4)}
HOSTILE = {
    "only a length": struct.pack("<Q", 2),
    "fewer than eight bytes": b"\x02",
    "a huge header": raw(GOOD, b"abcd", length=1 << 40),
    "a header just over the cap": raw(GOOD, b"abcd", length=100_000_001),
    "a header longer than the file": raw(GOOD, b"", length=5000),
    "a header that is a list": raw(b"[]"),
    "a header that is not UTF-8": raw(b'{"\xff": 1}'),
    "a header nested without end": raw(b'{"a":' * 100_000),
    "a header with an endless number": raw(b'{"a":' + b"9" * 10_000 + b"}"),
    "a name twice": raw(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4)).encode(),) * 2), b"abcd"),
    "half a UTF-16 pair": raw(b'{"\\ud800":%s}' % json.dumps(entry(0, 4)).encode(), b"abcd"),
    "overlapping tensors": raw({"a": entry(0, 4), "b": entry(2, 6)}, b"abcdef"),
    "two tensors at one place": raw({"a": entry(0, 4), "b": entry(0, 4)}, b"abcd"),
    "a hole": raw({"a": entry(0, 2), "b": entry(4, 6)}, b"abcdef"),
    "a late start": raw({"a": entry(2, 4)}, b"abcd"),
    "bytes after the last tensor": raw(GOOD, b"abcde"),
    "offsets beyond the end": raw(GOOD, b"abc"),
    "offsets backwards": raw({"a": {"dtype": "U8", "shape": [0], "data_offsets": [4, 0]}}, b"abcd"),
    "negative offsets": raw({"a": {"dtype": "U8", "shape": [4], "data_offsets": [-4, 0]}}, b"abcd"),
    "one offset": raw({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4]}}, b"abcd"),
    "a shape larger than the data": raw({"a": entry(0, 4, "F32", [2])}, b"abcd"),
    "a shape that overflows": raw({"a": entry(0, 0, "U8", [1 << 32, 1 << 32, 0])}),
    "a negative shape": raw({"a": entry(0, 4, "U8", [-2, -2])}, b"abcd"),
    "a fractional shape": raw({"a": entry(0, 4, "U8", [4.0])}, b"abcd"),
    "a Boolean shape": raw({"a": entry(0, 1, "U8", [True])}, b"a"),
    "too many dimensions": raw({"a": entry(0, 1, "U8", [1] * 100)}, b"a"),
    "an entry that is a number": raw({"a": 1}),
    "a dtype that is a number": raw({"a": entry(0, 4, 7)}, b"abcd"),
    "metadata that is not text": raw({"__metadata__": {"a": 1}}),
    "metadata that is a list": raw({"__metadata__": []}),
}


LENIENT = {
    "a field of an entry that nobody knows": raw({"a": {**entry(0, 4), "x": {"y": [1]}}}, b"abcd"),
    "metadata twice": raw(b'{"__metadata__":{"k":"1","k":"2"},"a":%s}' % json.dumps(entry(0, 4)).encode(), b"abcd"),
    "no metadata": raw(b'{"__metadata__":null,"a":%s}' % json.dumps(entry(0, 4)).encode(), b"abcd"),
    "spaces before the header": raw(b' \n{"a":%s}' % json.dumps(entry(0, 4)).encode(), b"abcd"),
    "spaces after it": raw(b'{"a":%s} \n' % json.dumps(entry(0, 4)).encode(), b"abcd"),
}


@pytest.mark.parametrize("oddity", LENIENT)
def test_a_header_that_the_library_accepts_is_no_damage(tmp_path, oddity):
    path = tmp_path / "m.safetensors"
    path.write_bytes(LENIENT[oddity])
    with open_checkpoint(path) as reader:
        assert reader.read("a").tobytes() == b"abcd"
        assert reader.metadata == ({"k": "2"} if oddity == "metadata twice" else None)
    safetensors = pytest.importorskip("safetensors.numpy")
    assert safetensors.load(LENIENT[oddity])["a"].tobytes() == b"abcd"


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path, attack):
    path = tmp_path / "m.safetensors"
    path.write_bytes(HOSTILE[attack])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_dtype_that_is_not_supported_is_named_with_its_tensor(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw({"the.weight": entry(0, 8, "C128", [1])}, bytes(8)))
    with pytest.raises(UnsupportedError, match=r"'the\.weight' has dtype C128"):
        open_checkpoint(path)


def test_narrow_elements_that_do_not_fill_their_last_byte_are_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(raw({"w": entry(0, 2, "F4", [3])}, bytes(2)))
    with pytest.raises(CheckpointError, match="shape needs"):
        open_checkpoint(tmp_path / "m.safetensors")
    spec = TensorSpec("w", EXACT_DTYPES["float4_e2m1fn"], (3,))
    with pytest.raises(UnsupportedError, match="do not fill their last byte"):
        create_checkpoint(tmp_path / "n.safetensors", kind="safetensors", specs=[spec], extra=b"", extra_kind="")


def test_every_truncation_is_noticed_at_once(tmp_path):
    path = tmp_path / "m.safetensors"
    whole = raw({"a": entry(0, 4), "b": entry(4, 8)}, b"abcdefgh")
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


@pytest.mark.parametrize("extra", [b"{", b"[]", b'{"a":1}', b'{"a":"b","a":"c"}', b"\xff", b"null"])
def test_malformed_stored_metadata_is_damage(tmp_path, extra):
    with pytest.raises(DamagedFileError):
        create_checkpoint(
            tmp_path / "m.safetensors", kind="safetensors", specs=[], extra=extra, extra_kind="safetensors"
        )
    assert list(tmp_path.iterdir()) == []


def test_names_that_safetensors_cannot_hold_are_refused(tmp_path):
    for name in ("__metadata__", "\ud800"):
        with pytest.raises(UnsupportedError):
            create_checkpoint(
                tmp_path / "m.safetensors",
                kind="safetensors",
                specs=[TensorSpec(name, F4, ())],
                extra=b"",
                extra_kind="npz",
            )


# Shards


def make_sharded(folder, shards=None, index=None, stem="model"):
    """An index as transformers writes it, and its shards."""
    shards = shards or {
        f"{stem}-00001-of-00002.safetensors": {"b": np.arange(4, dtype=F4), "a": np.ones((2, 2), F4)},
        f"{stem}-00002-of-00002.safetensors": {"c": np.zeros((0, 3), F4), "d": np.array(2, np.int64)},
    }
    weight_map = {}
    for shard, tensors in shards.items():
        save_file(tensors, folder / shard, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, shard))
    index = index or {"metadata": {"total_size": 40}, "weight_map": weight_map}
    path = folder / f"{stem}.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return path


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_sharded_checkpoint_is_restored_byte_for_byte(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    source = make_sharded(tmp_path / "one")
    copy(source, tmp_path / "two" / source.name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_under_another_stem_the_shards_are_renamed_and_the_original_stays(tmp_path):
    source = make_sharded(tmp_path)
    before = contents(tmp_path)
    copy(source, tmp_path / "other.safetensors.index.json")
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "other.safetensors.index.json",
        "other-00001-of-00002.safetensors",
        "other-00002-of-00002.safetensors",
    }
    with open_checkpoint(tmp_path / "other.safetensors.index.json") as reader:
        assert reader.read("b").tolist() == [0, 1, 2, 3]


def test_a_shard_of_another_checkpoint_is_not_overwritten(tmp_path):
    source = make_sharded(tmp_path, {"part.safetensors": {"a": np.ones(2, F4)}})
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"part\.safetensors: exists"):
        copy(source, tmp_path / "other.safetensors.index.json")
    copy(source, source)  # its own shards, though, are replaced
    assert contents(tmp_path) == before


def test_a_tensor_that_the_index_forgot_is_kept(tmp_path):
    shard = {"model-1.safetensors": {"a": np.ones(2, F4), "forgotten": np.ones(3, F4)}}
    path = make_sharded(tmp_path, shard, {"weight_map": {"a": "model-1.safetensors"}})
    with open_checkpoint(path) as reader:
        assert [spec.name for spec in reader.specs] == ["a", "forgotten"]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../x.safetensors"}, "beside or below"),
        ({"a": "/etc/x.safetensors"}, "beside or below"),
        ({"a": "sub/../../x.safetensors"}, "beside or below"),
        ({"a": "sub//x.safetensors"}, "beside or below"),
        ({"a": ".hidden/x.safetensors"}, "beside or below"),
        ({"a": "sub/x.safetensors"}, "fetch every shard"),
        ({"a": "sub\\x.safetensors"}, "beside or below"),
        ({"a": "C:x.safetensors"}, "beside or below"),
        ({"a": ".safetensors"}, "beside or below"),
        ({"a": "passwd"}, "beside or below"),
        ({"a": "gone.safetensors"}, "fetch every shard"),
        ({"zz": "model-00001-of-00002.safetensors"}, "but it is not"),
        ({"a": 1}, "weight_map"),
        ([], "weight_map"),
    ],
)
def test_an_index_that_is_wrong_or_leaves_the_folder_is_refused(tmp_path, weight_map, message):
    make_sharded(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / INDEX)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards = {"x-1.safetensors": {"a": np.ones(2, F4)}, "x-2.safetensors": {"a": np.ones(2, F4)}}
    weight_map = {"a": "x-1.safetensors", "b": "x-2.safetensors"}
    make_sharded(tmp_path, shards, {"weight_map": weight_map})
    with pytest.raises(CheckpointError, match="in both"):
        open_checkpoint(tmp_path / INDEX)


def plan(**changes):
    shard = {"name": "x.safetensors", "tensors": 1, "metadata": None}
    return {"stem": "model", "sorted": True, "index": {}, "shards": [{**shard, **changes.pop("shard", {})}], **changes}


@pytest.mark.parametrize(
    "stored",
    [
        plan(shard={"name": "../x.safetensors"}),
        plan(shard={"name": "/tmp/x.safetensors"}),
        plan(shard={"name": "..\\x.safetensors"}),
        plan(shard={"name": "authorized_keys"}),
        plan(shard={"name": "a\n.safetensors"}),
        plan(shard={"name": "x" * 300 + ".safetensors"}),
        plan(shard={"name": 3}),
        plan(shard={"tensors": 2}),
        plan(shard={"tensors": -1}),
        plan(shard={"metadata": {"a": 1}}),
        plan(shards=[{"name": "x.safetensors", "tensors": n, "metadata": None} for n in (0, 1)]),
        plan(index=[]),
        plan(index={"weight_map": {}}),
        plan(sorted=1),
        plan(more=1),
        [],
    ],
)
def test_a_hostile_stored_index_is_damage_and_writes_nothing(tmp_path, stored):
    target = tmp_path / "sub" / INDEX
    target.parent.mkdir()
    with pytest.raises(DamagedFileError):
        create_checkpoint(
            target,
            kind="safetensors-sharded",
            specs=[TensorSpec("a", F4, ())],
            extra=json.dumps(stored).encode(),
            extra_kind="safetensors-sharded",
        )
    assert list(tmp_path.iterdir()) == [target.parent] and list(target.parent.iterdir()) == []


def test_without_an_original_the_tensors_are_cut_into_shards_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded_module, "SHARD_BYTES", 20)
    specs = [TensorSpec(name, F4, (n,)) for name, n in (("a", 2), ("b", 3), ("c", 9), ("d", 0))]
    with create_checkpoint(
        tmp_path / INDEX, kind="safetensors-sharded", specs=specs, extra=b"", extra_kind="npz"
    ) as writer:
        for spec in specs:
            writer.write(spec.name, np.ones(spec.shape, F4))
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 56}
    first, second, third = (f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
    # "d" is empty, but the shard with "c" is already beyond the limit
    assert index["weight_map"] == {"a": first, "b": first, "c": second, "d": third}
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([INDEX, first, second, third])
