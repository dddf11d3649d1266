"""The functions that replace safetensors', and single slices of tensors."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import deepcabac
import deepcabac.numpy
from deepcabac import Curvature, DeepCabacError, OptionError, UnsupportedError, safe_open
from deepcabac.curvature import Factors

RNG = np.random.default_rng(5)
LEFT_OUT = ("backend", "force_contiguous")  # how a mapped file is read, which there is none of


def normal(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


#: Every way in which a tensor is stored, in more than one chunk.
TENSORS = {
    "levels": normal(3, 300, 200),
    "half": normal(700, 300, dtype=np.float16),
    "brain": normal(700, 300, dtype=ml_dtypes.bfloat16),
    "sparse": normal(700, 300) * (RNG.random((700, 300)) < 0.05),
    "integers": RNG.integers(-500, 500, (1500, 300)),
    "few": RNG.choice(np.float32([-1, 0.5, 3, 9]), (1600, 200)),
    "raw": RNG.integers(0, 1 << 64, (3, 100_000), dtype=np.uint64),
    "bools": RNG.random((1000, 1200)) < 0.5,
    "scalar": np.array(2.5),
    "empty": np.empty((0, 7), np.float32),
}
INDICES = [
    np.s_[...],
    np.s_[:],
    np.s_[0],
    np.s_[-1],
    np.s_[1:3],
    np.s_[2:1],
    np.s_[::2],
    np.s_[::-1],
    np.s_[-3:],
    np.s_[1, 5:90],
    np.s_[-1, ::-7],
    np.s_[:, 2],
    np.s_[:, [1, 2]],
    np.s_[[0, 2]],
    np.s_[0, 0],
    np.s_[None],
    np.s_[..., 1],
    np.s_[10**7],
    np.s_[0, 0, 0, 0],
    np.s_[np.int64(1), True],
    (),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("slices") / "m.dcb"
    deepcabac.save_file(TENSORS | {"tied": TENSORS["levels"]}, path, metadata={"format": "pt"})
    return path


def at(array, index):
    """What indexing gives, or that it is an error."""
    try:
        return np.asarray(array[index])
    except IndexError:
        return None


@pytest.mark.parametrize("options", [{"preset": one} for one in deepcabac.options.PRESETS] + [{"lossless": True}])
def test_a_slice_is_what_indexing_the_whole_tensor_gives(tmp_path, options):
    path = tmp_path / "m.dcb"
    deepcabac.save_file(TENSORS | {"tied": TENSORS["levels"]}, path, **options)
    whole = deepcabac.load_file(path)
    with safe_open(path, "np") as file:
        for name, array in whole.items():
            part = file.get_slice(name)
            assert (part.get_shape(), np.dtype(array.dtype)) == (list(array.shape), array.dtype)
            for index in INDICES:
                expected, found = at(array, index), at(part, index)
                assert (expected is None) == (found is None), (name, index)
                if expected is not None:
                    assert found.dtype == expected.dtype and found.shape == expected.shape, (name, index)
                    assert found.tobytes() == expected.tobytes(), (name, index)


def test_every_way_to_store_is_there(path):
    with deepcabac.open_file(path) as file:
        infos = [file.info(name) for name in file]
        assert {info.coding or info.coder for info in infos} >= {"binary", "coded", "codebook", "raw", None}
        assert all(len(file._index.entries[number].chunks) > 1 for number in range(8))


def test_scales_of_rows_stay_with_their_rows(tmp_path):
    variances = np.exp(2 * normal(300_000))
    factors = Factors(None, None, 5.0, RNG.random(300_000).astype(np.float32))
    curvature = Curvature({"v": factors}, samples=100, loss="custom")
    deepcabac.save_file({"v": variances}, tmp_path / "m.dcb", curvature=curvature, sqnr=10)
    with deepcabac.open_file(tmp_path / "m.dcb") as file:
        assert file.info("v").row_scales == 300_000 and len(file._index.entries[0].chunks) > 1
        assert np.array_equal(file.span("v", 200_001, 250_007), file["v"][200_001:250_007])


def test_only_chunks_of_the_slice_are_read(path):
    with safe_open(path, "np") as file:
        opened = file._opened
        entry = opened._index.entries[0]
        read, original = [], opened._read
        opened._read = lambda offset, length: read.append(offset) or original(offset, length)
        file.get_slice("levels")[1, 20:22]
        assert 0 < len(read) < len(entry.chunks) and {chunk.offset for chunk in entry.chunks} > set(read)
        read.clear()
        file.get_slice("tied")[1, 20:22]
        assert 0 < len(read) < len(entry.chunks)


def test_a_span_outside_the_tensor_is_an_error(path):
    with deepcabac.open_file(path) as file:
        for start, stop in ((-1, 3), (5, 4), (0, 180_001)):
            with pytest.raises(OptionError, match="180,000 elements"):
                file.span("levels", start, stop)


def test_slices_of_an_update_include_its_base(tmp_path):
    base = {"w": normal(1000, 200), "same": normal(1000, 200)}
    new = {"w": base["w"] + 1e-3 * normal(1000, 200), "same": base["same"]}
    deepcabac.save_file(new, tmp_path / "u.dcb", base=base)
    whole = deepcabac.load_file(tmp_path / "u.dcb", base=base)
    with safe_open(tmp_path / "u.dcb", "np", base=base) as file:
        for name, array in whole.items():
            assert np.array_equal(file.get_slice(name)[300:310], array[300:310])


def test_a_damaged_chunk_shows_where_it_is_read_and_nowhere_else(path, tmp_path):
    with deepcabac.open_file(path) as file:
        last = file._index.entries[0].chunks[-1]
    data = bytearray(path.read_bytes())
    data[last.offset] ^= 1
    (tmp_path / "bad.dcb").write_bytes(data)
    with safe_open(tmp_path / "bad.dcb", "np") as file:
        assert file.get_slice("levels")[0, 0].shape == (200,)
        with pytest.raises(deepcabac.DamagedFileError, match=r"bad\.dcb: tensor 'levels'"):
            file.get_slice("levels")[2, -1]


def test_max_bytes_limits_what_is_decoded(path):
    with safe_open(path, "np", max_bytes=600_000) as file:
        assert file.get_slice("levels")[0, :5].shape == (5, 200)
        with pytest.raises(deepcabac.LimitError):
            file.get_tensor("levels")


def test_names_and_metadata(path, tmp_path):
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.keys() == sorted(TENSORS | {"tied": 0}) and file.offset_keys() == [*TENSORS, "tied"]
        assert list(file.get_tensors()) == file.offset_keys()
        assert [file.get_slice(name).get_dtype() for name in ("levels", "half", "brain")] == ["F32", "F16", "BF16"]
        with pytest.raises(OptionError, match="unknown tensor 'level': did you mean 'levels'"):
            file.get_tensor("level")
        with pytest.raises(OptionError, match="unknown tensor"):
            file.get_slice("level")
    with pytest.raises(OptionError, match="closed"):
        file.keys()
    deepcabac.save_file({"a": np.ones(3)}, tmp_path / "plain.dcb")
    with safe_open(tmp_path / "plain.dcb", "np") as file:
        assert file.metadata() is None


def test_metadata_reaches_the_restored_checkpoint(tmp_path):
    from safetensors import safe_open as original

    deepcabac.numpy.save_file({"a": np.ones(3)}, tmp_path / "m.dcb", {"format": "pt", "who": "ü"})
    with original(deepcabac.decompress_checkpoint(tmp_path / "m.dcb"), "np") as file:
        assert file.metadata() == {"format": "pt", "who": "ü"}
    deepcabac.compress_checkpoint(tmp_path / "m.safetensors", tmp_path / "again.dcb")
    with safe_open(tmp_path / "again.dcb", "np") as file:
        assert file.metadata() == {"format": "pt", "who": "ü"}


def test_metadata_of_shards_is_put_together(tmp_path):
    from safetensors.numpy import save_file

    for shard in "12":
        save_file({f"t{shard}": np.ones(3)}, tmp_path / f"m-{shard}.safetensors", {"format": "pt", shard: shard})
    index = '{"weight_map": {"t1": "m-1.safetensors", "t2": "m-2.safetensors"}}'
    (tmp_path / "m.safetensors.index.json").write_text(index)
    deepcabac.compress_checkpoint(tmp_path / "m.safetensors.index.json")
    with safe_open(tmp_path / "m.dcb", "np") as file:
        assert file.metadata() == {"format": "pt", "1": "1", "2": "2"}


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, "text"])
def test_other_metadata_is_refused(tmp_path, metadata):
    with pytest.raises(OptionError, match="metadata must map strings to strings"):
        deepcabac.save_file({"a": np.ones(3)}, tmp_path / "m.dcb", metadata=metadata)


@pytest.mark.parametrize(("framework", "device"), [("np", "cuda"), ("flax", "cpu"), (None, "cpu")])
def test_other_frameworks_and_devices_are_refused(path, framework, device):
    with pytest.raises(DeepCabacError):
        safe_open(path, framework, device)


def test_numpy_functions_do_what_those_of_the_package_do(tmp_path):
    tensors = {"a": normal(50, 40)}
    report = deepcabac.numpy.save_file(tensors, tmp_path / "m.dcb", sqnr=20)
    assert (tmp_path / "m.dcb").read_bytes() == deepcabac.numpy.save(tensors, sqnr=20)
    assert report.tensors[0].sqnr == pytest.approx(20, abs=0.5)
    loaded = deepcabac.numpy.load_file(tmp_path / "m.dcb")["a"]
    assert np.array_equal(loaded, deepcabac.numpy.load(deepcabac.numpy.save(tensors, sqnr=20))["a"])


@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_parameters_have_safetensors_names_in_its_order(module):
    pytest.importorskip(module)
    ours = __import__(f"deepcabac.{module}", fromlist=["save"])
    theirs = __import__(f"safetensors.{module}", fromlist=["save"])
    for name in ("save", "save_file", "load", "load_file"):
        expected = [one for one in inspect.signature(getattr(theirs, name)).parameters if one not in LEFT_OUT]
        assert list(inspect.signature(getattr(ours, name)).parameters)[: len(expected)] == expected, name
    assert ours.safe_open is safe_open


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kernel": np.ones(3)}, "flatten nested ones first, as to 'params.kernel'"),
        ([[1, 2], [3]], "cannot become a numpy array"),
        (object(), "of dtype object, not an array of numbers"),
        ("text", "dtype <U4"),
    ],
)
def test_what_is_no_array_is_refused_by_name(value, message):
    with pytest.raises(UnsupportedError, match="tensor 'params'") as error:
        deepcabac.compress({"params": value})
    assert message in str(error.value)


@pytest.mark.parametrize("path", [io.BytesIO(), b"m.dcb", 3, None])
def test_what_is_no_path_is_refused(path):
    calls = [
        lambda: deepcabac.save_file({"a": np.ones(3)}, path),
        lambda: deepcabac.load_file(path),
        lambda: deepcabac.open_file(path),
        lambda: safe_open(path, "np"),
        lambda: deepcabac.compress_checkpoint(path),
    ]
    for call in calls:
        with pytest.raises(OptionError, match="give the path of a file"):
            call()
    with pytest.raises(OptionError, match="load_file takes a path"):
        deepcabac.decompress("m.dcb")


def test_patterns_that_match_nothing_are_reported(tmp_path, caplog):
    settings = {"overrides": {"a*": {"exact": True}, "b*": {"exact": True}}}
    report = deepcabac.save_file({"a": np.ones(3)}, tmp_path / "m.dcb", **settings)
    assert report.unmatched == ["b*"] and report.notes == ["no tensor's name matches the pattern 'b*'"]
    assert [record.getMessage() for record in caplog.records] == [report.notes[0] + " of overrides"]


def test_no_torch_is_needed_or_imported():
    code = "import sys, deepcabac.numpy; from deepcabac import safe_open; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# With PyTorch


def test_torch_tensors_of_every_kind_can_be_saved_by_every_function(tmp_path):
    torch = pytest.importorskip("torch")
    import deepcabac.torch

    linear = torch.nn.Linear(40, 30)
    tensors = {
        "brain": torch.randn(50, 40, dtype=torch.bfloat16),
        "parameter": linear.weight,
        "transposed": linear.weight.T,
        "count": torch.tensor(3),
        "complex": torch.complex(torch.randn(3, 5), torch.randn(3, 5)),
        "conjugate": torch.complex(torch.ones(3), torch.randn(3)).conj(),
    }
    deepcabac.save_file(tensors, tmp_path / "one.dcb", lossless=True)
    deepcabac.torch.save_file(tensors, tmp_path / "two.dcb", lossless=True)
    assert (tmp_path / "one.dcb").read_bytes() == (tmp_path / "two.dcb").read_bytes()
    assert deepcabac.torch.save(tensors, lossless=True) == (tmp_path / "two.dcb").read_bytes()
    loaded = deepcabac.torch.load_file(tmp_path / "two.dcb")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert all(loaded[name].dtype == tensors[name].dtype and not loaded[name].requires_grad for name in tensors)
    unknown = torch.zeros(3, dtype=torch.uint8).view(torch.int4)
    for bad in (torch.randn(3).to_sparse(), torch.empty(3, device="meta"), unknown):
        with pytest.raises(UnsupportedError, match="tensor 'bad'"):
            deepcabac.compress({"bad": bad})


def test_safe_open_gives_torch_tensors(path):
    torch = pytest.importorskip("torch")
    whole = deepcabac.load_file(path)
    with safe_open(path, "pt", device="cpu") as file:
        brain = file.get_tensor("brain")
        assert brain.dtype == torch.bfloat16
        assert torch.equal(file.get_slice("brain")[5:9, ::-2], brain[5:9].flip(1)[:, ::2])
        assert np.array_equal(file.get_slice("levels")[1:].numpy(), whole["levels"][1:])
        assert file.get_slice("raw")[0].dtype == getattr(torch, "uint64", None)
        assert file.get_tensor("empty").shape == (0, 7)


def test_load_file_of_torch_takes_device_and_dtype(path):
    torch = pytest.importorskip("torch")
    from deepcabac.torch import load, load_file

    loaded = load_file(path, device="cpu", dtype=torch.float16)
    assert {one.dtype for name, one in loaded.items() if name in ("levels", "brain", "half")} == {torch.float16}
    assert loaded["integers"].dtype == torch.int64
    assert loaded["tied"].data_ptr() == loaded["levels"].data_ptr()
    assert load_file(path, "meta")["levels"].is_meta
    assert torch.equal(load(path.read_bytes())["half"], load_file(path)["half"])
    for wrong in ({"device": "gpu"}, {"device": object()}, {"dtype": torch.int8}, {"dtype": "float16"}):
        with pytest.raises(OptionError):
            load_file(path, **wrong)


@pytest.mark.parametrize("tensors", [{"a": 3.0}, {"a": {"b": 1}}, [1], {1: None}])
def test_save_file_of_torch_takes_tensors_by_name_alone(tensors, tmp_path):
    pytest.importorskip("torch")
    from deepcabac.torch import save_file

    with pytest.raises(DeepCabacError):
        save_file(tensors, tmp_path / "m.dcb")
    assert not (tmp_path / "m.dcb").exists()


def test_load_model_says_that_the_file_comes_first(path):
    torch = pytest.importorskip("torch")
    from deepcabac.torch import load_model

    with pytest.raises(OptionError, match="the file first"):
        load_model(torch.nn.Linear(2, 2), path)
