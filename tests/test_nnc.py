"""Streams of ISO/IEC 15938-17 and of 2019: vectors, golden files, round trips, damage, the command line."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import deepcabac
from deepcabac import _streams, cli, dc2019, nnc
from deepcabac.errors import DamagedFileError, DeepCabacError, LimitError, OptionError, UnsupportedError
from deepcabac.nnc import reading, syntax
from deepcabac.nnc.bits import BitReader, BitWriter

GOLDEN = Path(__file__).parent / "golden"
VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors"
needs_vectors = pytest.mark.skipif(not VECTORS.exists(), reason="../shared/vectors is not there")
sys.path.insert(0, str(Path(__file__).parents[1] / "attacks"))

import sweep  # noqa: E402

spec = importlib.util.spec_from_file_location("make_nnc", GOLDEN / "make_nnc.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


def names(folder, suffix):
    return sorted(path.stem for path in folder.glob(f"*{suffix}")) if folder.exists() else []


def same(got, want):
    assert set(got) == set(want)
    for name in want:
        assert got[name].dtype == want[name].dtype and got[name].shape == want[name].shape, name
        np.testing.assert_array_equal(got[name].view(np.uint8), want[name].view(np.uint8), name)


def predecessors(folder, name):
    stem, _, step = name.rpartition("_step")
    return [folder / f"{stem}_step{number}.nnc" for number in range(int(step))] if stem else []


@needs_vectors
@pytest.mark.parametrize("name", names(VECTORS / "nnc", ".nnc"))
def test_what_nncodec_wrote_decodes_to_what_it_decodes(name):
    folder = VECTORS / "nnc"
    got = deepcabac.load_file(folder / f"{name}.nnc", base=predecessors(folder, name))
    same(got, np.load(folder / f"{name}.npz"))


@needs_vectors
@pytest.mark.parametrize("sequence", ["tca", "tca_plain_rowskip"])
def test_an_update_is_applied_to_the_sum_of_those_before_it(sequence):
    folder = VECTORS / "nnc"
    path = folder / f"{sequence}_step3.nnc"
    got = deepcabac.load_file(path, base=predecessors(folder, path.stem), apply=True)
    steps = [np.load(folder / f"{sequence}_step{number}.npz") for number in range(4)]
    want = {name: steps[0][name] for name in steps[0]}
    for step in steps[1:]:
        want = {name: want[name] + step[name] if name in step else want[name] for name in want}
    same(got, want)


@needs_vectors
@pytest.mark.parametrize("name", names(VECTORS / "dc2019", ".npz"))
def test_streams_of_2019_decode_exactly_and_are_encoded_byte_for_byte(name):
    vector = np.load(VECTORS / "dc2019" / f"{name}.npz")
    count = sum(key.startswith("weight_") for key in vector)
    decoded = dc2019.decode(vector["stream"])
    same(dict(enumerate(decoded)), {number: vector[f"decoded_{number}"] for number in range(count)})
    parts = ("weight", "interval", "stepsize", "lambda")
    layers = [[vector[f"{part}_{number}"] for part in parts] for number in range(count)]
    assert dc2019.encode(layers) == vector["stream"].tobytes()


def golden_bases(name):
    return {"update1": ["dependent"], "update2": ["dependent", "update1"]}.get(name, [])


@pytest.mark.parametrize("name", names(GOLDEN / "nnc", ".nnc"))
def test_golden_streams_decode_for_ever(name):
    bases = [GOLDEN / "nnc" / f"{each}.nnc" for each in golden_bases(name)]
    same(deepcabac.load_file(GOLDEN / "nnc" / f"{name}.nnc", base=bases), np.load(GOLDEN / "nnc" / f"{name}.npz"))


def test_the_golden_stream_of_2019_decodes_and_is_encoded_again():
    code = (GOLDEN / "nnc" / "layers.dc2019").read_bytes()
    want = np.load(GOLDEN / "nnc" / "layers.npz")
    same({str(i): layer for i, layer in enumerate(dc2019.decode(code))}, want)
    assert dc2019.encode(make.layers()) == code


@pytest.mark.parametrize("threads", [1, 3])
def test_the_encoder_writes_the_golden_streams_on_any_number_of_threads(threads):
    for name, chosen in make.SETTINGS.items():
        code = nnc.encode(make.model(0), threads=threads, **chosen)
        assert code == (GOLDEN / "nnc" / f"{name}.nnc").read_bytes(), name


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.integers(-40, -8),
    st.booleans(),
    st.sampled_from([0, 0, 1, 2]),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([0.0, 1.0, 5.0]),
)
def test_what_is_written_comes_back_within_a_step(shape, seed, qp, dependent, scan, unary, codebook, rate):
    random = np.random.default_rng(seed)
    weights = (random.laplace(size=shape) * (random.random(shape) < random.random())).astype(np.float32)
    whole = random.integers(-1000, 1000, shape, dtype=np.int32)
    code = nnc.encode(
        {"w": weights, "i": whole},
        qp=qp,
        vector_qp=qp,
        dependent=dependent,
        scan=scan,
        unary=unary,
        codebook=codebook,
        rate_distortion=rate,
        threads=1,
    )
    back = nnc.decode(code, threads=1)
    np.testing.assert_array_equal(back["i"], whole)
    assert back["w"].shape == weights.shape
    if rate == 0:
        step = reading.step_size(qp, 2)
        # Dependent quantisation may take the second nearest value.
        assert np.abs(back["w"] - weights).max(initial=0) <= step * (2 if dependent else 0.51) + 1e-6


def test_numbers_of_headers_come_back():
    writer = BitWriter()
    values = [0, 1, 2, 3, 7, 8, 100, 12345, 2**20]
    for value in values:
        for order in (0, 1, 7):
            writer.golomb(order, value)
            writer.signed_golomb(order, -value)
        writer.signed(40, -value)
    writer.align()
    reader = BitReader(writer.data())
    for value in values:
        for order in (0, 1, 7):
            assert (reader.golomb(order), reader.signed_golomb(order)) == (value, -value)
        assert reader.signed(40) == -value
    reader.align()
    assert reader.byte == len(writer.data())


def block_stream(profile=1):
    """A layer's tensors in one unit, as NNCodec writes them with batch-norm folding and local scales."""

    random = np.random.default_rng(0)
    roles = ("weight.ls", "bias", "weight")
    shapes = ((6,), (6,), (6, 10))
    levels = [random.integers(-3, 4, shape).astype(np.int32) for shape in shapes]
    jobs = [
        _streams.NncTensor(level.reshape(reading.matrix_shape(level.shape)), qp_bits=8, qp=-8, extended=profile == 1)
        for level in levels
    ]
    header = syntax.DataHeader(syntax.Payload.BLOCK, ("w_scaling", "b", "w"), shapes, roles)
    payload = _streams.nnc_encode(jobs)
    code = syntax.write_beginning(2, False, profile) + syntax.write_data(header, payload, False, profile)
    return code, dict(zip(header.names, levels, strict=True))


@pytest.mark.parametrize("profile", [0, 1])
def test_blocks_of_several_tensors_in_both_profiles(profile):
    code, levels = block_stream(profile)
    got = nnc.decode(code)
    same(got, {name: level.astype(np.float32) * np.float32(0.25) for name, level in levels.items()})


def test_a_base_is_asked_for_and_checked():
    read = {name: (GOLDEN / "nnc" / f"{name}.nnc").read_bytes() for name in ("dependent", "update1", "update2")}
    temporal = syntax.read(read["update2"])
    assert all(header.parent for header, _, _ in temporal.units)
    forced = [nnc.encode(make.model(number), threads=1, bases=[read["dependent"]], qp=-20) for number in (1,)]
    model = nnc.decode(forced[0], [read["dependent"]], apply=True)
    for name, want in make.model(1).items():
        # A rate term may take the second nearest value.
        assert np.abs(model[name] - want).max() <= 2 * reading.step_size(-20, 2), name
    with pytest.raises(OptionError, match="apply needs a base"):
        nnc.decode(read["update1"], apply=True)
    with pytest.raises(OptionError, match=r"'conv[.]weight' that the new version lacks"):
        nnc.encode({"other": np.zeros(3)}, bases=[read["dependent"]])
    with pytest.raises(OptionError, match="'other' is not in the base"):
        nnc.encode(make.model(0) | {"other": np.zeros(3)}, bases=[read["dependent"]])


@needs_vectors
def test_a_missing_or_wrong_base_is_named():
    read = [(VECTORS / "nnc" / f"tca_step{number}.nnc").read_bytes() for number in range(4)]
    for bases in ([], read[:1], read[:3], [read[1], read[0], read[0]]):
        with pytest.raises(DeepCabacError, match=r"base|damaged"):
            nnc.decode(read[2], bases)


def test_what_the_format_cannot_hold_is_named():
    with pytest.raises(UnsupportedError, match="'w' has NaN"):
        nnc.encode({"w": np.array([np.nan])})
    with pytest.raises(UnsupportedError, match="'i' has integers that need more than 32 bits"):
        nnc.encode({"i": np.array([1 << 40])})
    with pytest.raises(OptionError, match="quantisation parameter"):
        nnc.encode({"w": np.zeros(3)}, qp=1000)
    with pytest.raises(OptionError, match="unknown setting 'quality'"):
        nnc.encode({"w": np.zeros(3)}, quality=3)
    with pytest.raises(UnsupportedError, match="'c' has dtype complex"):
        nnc.encode({"c": np.zeros(3, complex)})


def test_levels_that_would_not_fit_raise_the_quantisation_parameter():
    code = nnc.encode({"w": np.full((2, 3), 1e9, np.float32)}, qp=-75)
    np.testing.assert_allclose(nnc.decode(code)["w"], 1e9, rtol=1e-6)


def test_a_codebook_of_one_value_has_entry_points_as_any_other():
    # NNCodec goes to each of them, though there is nothing to decode.
    code = nnc.encode({"w": np.zeros((70, 13), np.float32)}, codebook=True, dependent=False, scan=3)
    stream = syntax.read(code)
    [(header, payload, _)] = stream.units
    assert len(header.codebook.values) == 1 and len(header.entries) == 2
    same(nnc.decode(code), {"w": np.zeros((70, 13), np.float32)})
    for number in range(2):
        wrong = [entry + 8 * (at == number) for at, entry in enumerate(header.entries)]
        unit = syntax.write_data(replace(header, entries=tuple(wrong)), bytes(payload), False)
        with pytest.raises(DamagedFileError):
            nnc.decode(syntax.write_beginning(2, False) + unit)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("scan", [0, 1, 4])
@pytest.mark.parametrize("width", [12, 13, 64])
def test_rows_of_zeros_are_skipped_where_nothing_is_lost(width, scan, dependent):
    random = np.random.default_rng(width)
    weights = random.normal(size=(90, width)) * (random.random((90, 1)) < 0.2)
    chosen = {"qp": -12, "dependent": dependent, "scan": scan, "rate_distortion": 0.0}
    long = nnc.encode({"w": weights}, row_skipping=False, **chosen)
    short = nnc.encode({"w": weights}, row_skipping=True, **chosen)
    same(nnc.decode(short), nnc.decode(long))
    # Blocks, rows of several pieces and dependent quantisation: the state must come back after four zeros.
    kept = dependent and scan == 1 and width == 13
    assert short == long if kept else len(short) < len(long)
    nothing = {"w": np.zeros_like(weights, np.float32)}
    for skip in (False, True):
        same(nnc.decode(nnc.encode(nothing, row_skipping=skip, **chosen)), nothing)


def test_units_that_are_not_supported_are_named():
    start = syntax.write_beginning(2, False)
    for kind, word in ((2, "NNR_LPS"), (4, "NNR_QNT"), (6, "NNR_AGG"), (9, "kind 9")):
        with pytest.raises(UnsupportedError, match=word):
            nnc.decode(start + syntax._unit(kind, b"\0\0\0"))
    with pytest.raises(UnsupportedError, match="profile 7"):
        nnc.decode(b"\0\4\2\7" + start[4:])


def test_a_claim_of_many_elements_is_refused_before_memory_is_taken():
    for shape, error in (((1 << 15, 1 << 15), LimitError), ((1 << 40,), DamagedFileError)):
        header = syntax.DataHeader(syntax.Payload.FLOATS, ("w",), (shape,), ("",))
        code = syntax.write_beginning(2, False) + syntax.write_data(header, bytes(64), False)
        with pytest.raises((error, DamagedFileError)):
            nnc.decode(code)
    with pytest.raises(LimitError, match="max_bytes"):
        nnc.decode((GOLDEN / "nnc" / "dependent.nnc").read_bytes(), max_bytes=100)


SEEDS = list(sweep.seeds())


@pytest.mark.parametrize("seed", SEEDS, ids=[seed.name for seed in SEEDS])
def test_mutants_of_a_stream_give_an_error_or_arrays_of_the_declared_shape(seed):
    # A sample; attacks/sweep.py takes every byte.
    outcomes, _ = sweep.sweep(seed, 2, max(1, len(seed.data) // 60))
    assert outcomes.total() > 60


def test_layers_of_2019_that_make_no_sense_are_refused():
    good = np.ones((2, 2), np.float32)
    for layer in (
        (good[None], 1.0, 0.1, 0.0),
        (good, 0.0, 0.1, 0.0),
        (good, 1.0, 0.0, 0.0),
        (good, 1.0, 1e-9, 0.0),
        (good, np.ones(3), 0.1, 0.0),
        (good * np.nan, 1.0, 0.1, 0.0),
        (good, 1.0, 0.1, -1.0),
    ):
        with pytest.raises(OptionError, match="layer 0"):
            dc2019.encode([layer])
    assert dc2019.decode(dc2019.encode([])) == []


def run(*arguments):
    result = CliRunner().invoke(cli.program, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_the_command_line_there_and_back(tmp_path):
    model, stream, back = tmp_path / "m.npz", tmp_path / "m.nnc", tmp_path / "back.npz"
    np.savez(model, **make.model(0))
    code, text = run("compress", model, "--format", "nnc", "--qp", "-24")
    assert code == 0 and "after" in text, text
    assert nnc.recognises(stream.read_bytes())
    assert "ISO/IEC 15938-17" in run("inspect", stream)[1]
    about = json.loads(run("inspect", stream, "--json")[1])
    assert {tensor["name"]: tuple(tensor["shape"]) for tensor in about["tensors"]} == {
        name: array.shape for name, array in make.model(0).items()
    }
    assert about["tensors"][0]["qp"] == -24
    assert run("verify", stream)[0] == 0
    assert run("decompress", stream, "-o", back)[0] == 0
    same(np.load(back), deepcabac.load_file(stream))


def test_updates_on_the_command_line(tmp_path):
    paths = []
    for number in range(3):
        model = tmp_path / f"m{number}.npz"
        np.savez(model, **make.model(number))
        bases = [argument for path in paths for argument in ("--base", path)]
        paths.append(tmp_path / f"m{number}.nnc")
        code, text = run("compress", model, "-o", paths[-1], "--qp", "-30", *bases)
        assert code == 0, text
    back = tmp_path / "back.npz"
    code, text = run("decompress", paths[2], "-o", back, "--apply", "--base", paths[0], "--base", paths[1])
    assert code == 0, text
    restored = np.load(back)
    for name, want in make.model(2).items():
        assert np.abs(restored[name] - want).max() < 0.02, name
    assert paths[1].stat().st_size < paths[0].stat().st_size / 2


def test_the_command_line_says_what_does_not_go_together(tmp_path):
    model = tmp_path / "m.npz"
    np.savez(model, w=np.ones((3, 3), np.float32))
    for arguments, word in (
        (["--qp", "3"], "--format nnc"),
        (["--format", "nnc", "--sqnr", "30"], "--qp"),
        (["--format", "nnc", "--lossless"], "--lossless"),
        (["--format", "nnc", "--preset", "small"], "--preset"),
        (["--format", "nnc", "--tensor", "w=exact"], "--tensor"),
        (["--format", "nnc", "-o", tmp_path / "x.npz"], "nnc"),
        (["--format", "nnc", "--qp", "999"], "quantisation parameter"),
    ):
        code, text = run("compress", model, *arguments)
        assert code == 2 and word in text, (arguments, text)
    assert not (tmp_path / "m.nnc").exists()
    damaged = tmp_path / "d.nnc"
    damaged.write_bytes((GOLDEN / "nnc" / "dependent.nnc").read_bytes()[:300])
    code, text = run("decompress", damaged)
    assert code == 1 and not (tmp_path / "d.safetensors").exists(), text
