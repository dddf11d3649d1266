"""Updates: differences to a base that come back on it, and on nothing else."""

import importlib
import json
import sys
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

import deepcabac
from deepcabac import cli, errors

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "reference"))
decode, encode = importlib.import_module("decode"), importlib.import_module("encode")
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
DTYPES += [np.int64, np.int8, np.uint32, np.uint8]


def base_arrays():
    random = np.random.default_rng(0)
    tensors = {np.dtype(dtype).name: (random.normal(size=(60, 40)) * 8 + 20).astype(dtype) for dtype in DTYPES}
    tensors |= {
        "flag": random.random((20, 30)) < 0.5,
        "scalar": np.array(3),
        "bias": random.random(50).astype(np.float32),
    }
    tensors["same"] = random.normal(size=(40, 40)).astype(np.float32)
    tensors["special"] = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45] * 30, np.float32)
    return tensors


def moved(tensors, seed=1, by=1e-3):
    random = np.random.default_rng(seed)
    changed = {}
    for name, array in tensors.items():
        changed[name] = array.copy()
        if array.dtype.kind in "fV" and array.size > 1 and name not in ("same", "special"):
            changed[name] = (array.astype(np.float64) * (1 + by * random.normal(size=array.shape))).astype(array.dtype)
    changed["int64"][5] += 3
    changed["flag"][2] ^= True
    changed["special"][4] = 0.0
    changed["special"][6] = np.float32(7)
    return changed


def same_bits(one, other):
    return [*one] == [*other] and all(
        one[name].tobytes() == other[name].tobytes() and one[name].dtype == other[name].dtype for name in one
    )


def test_a_lossless_update_gives_every_bit_on_its_base():
    base = base_arrays()
    new = moved(base) | {"new": np.ones((20, 20), np.float32)}
    del new["scalar"]
    data = deepcabac.compress(new, base=base, lossless=True)
    assert same_bits(deepcabac.decompress(data, base=base), new)
    assert same_bits(decode.read_file(data, base=base), new)
    assert len(data) < 0.8 * len(deepcabac.compress(new, lossless=True))


def test_what_did_not_change_costs_nothing():
    base = base_arrays()
    data = deepcabac.compress(base, base=base, lossless=True)
    assert same_bits(deepcabac.decompress(data, base=base), base)
    assert len(data) < 400


def test_chunks_that_did_not_change_are_references():
    base = {"w": np.random.default_rng(0).normal(size=(4000, 256)).astype(np.float32)}
    new = {"w": base["w"].copy()}
    new["w"][3990:] += np.float32(1e-3)
    data = deepcabac.compress(new, base=base, lossless=True)
    assert len(data) < 10 * 256 * 4
    assert same_bits(deepcabac.decompress(data, base=base), new)


def test_rows_that_did_not_change_cost_next_to_nothing():
    random = np.random.default_rng(0)
    base = {"embedding": random.normal(size=(3000, 64)).astype(np.float32)}
    new = {"embedding": base["embedding"].copy()}
    rows = random.choice(3000, 100, replace=False)
    new["embedding"][rows] += (random.normal(size=(100, 64)) * 1e-3).astype(np.float32)
    data = deepcabac.compress(new, base=base, lossless=True)
    assert same_bits(deepcabac.decompress(data, base=base), new)
    assert len(data) < 100 * 64 * 4 * 0.75


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_few_changes_take_few_bytes_whatever_they_are(dtype):
    """The base's exponents say where to expect them; values become any others, NaN and negative zero among them."""
    random = np.random.default_rng(3)
    base = {"w": (random.normal(size=(300, 500)) * 8 + 20).astype(dtype)}
    new = {"w": base["w"].copy()}
    pattern = new["w"].reshape(-1).view(f"<u{new['w'].itemsize}")
    places = random.choice(pattern.size, 1500, replace=False)
    pattern[places[:1480]] += pattern.dtype.type(1)
    pattern[places[1480:]] = random.integers(0, 2 ** (8 * pattern.itemsize) - 1, 20, pattern.dtype, endpoint=True)
    pattern[places[-2:]] = [0, 1 << 8 * pattern.itemsize - 1]
    data = deepcabac.compress(new, base=base, lossless=True)
    assert same_bits(deepcabac.decompress(data, base=base), new)
    # One in a hundred: 0.08 bits each for where, one for the direction.
    assert len(data) < 1500 * (8.1 + 1.3) / 8 + 20 * 8 + 200
    with deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=None) as opened:
        assert opened.info("w").coding == "changes"


def test_a_step_of_an_optimiser_takes_what_its_entropy_is():
    """Weights of many sizes in bfloat16, moved by as much: small ones change far more often."""
    random = np.random.default_rng(4)
    weights = random.normal(size=(400, 1000)).astype(np.float32) * 0.04
    base = {"w": weights.astype(ml_dtypes.bfloat16)}
    new = {"w": (weights + random.normal(size=weights.shape).astype(np.float32) * 3e-6).astype(ml_dtypes.bfloat16)}
    before, after = (one["w"].view(np.uint16).astype(np.int64) for one in (base, new))
    step, exponents = np.where(before >> 15, before - after, after - before), before >> 7 & 255
    entropy = 0.0
    for exponent in np.unique(exponents):
        counts = np.unique(step[exponents == exponent], return_counts=True)[1]
        entropy -= (counts * np.log2(counts / counts.sum())).sum() / 8
    data = deepcabac.compress(new, base=base, lossless=True)
    assert same_bits(deepcabac.decompress(data, base=base), new)
    assert len(data) < 1.04 * entropy + 200


def test_what_changed_widely_is_coded_as_a_difference_or_alone():
    random = np.random.default_rng(5)
    base = {"w": random.normal(size=(200, 300)).astype(np.float32)}
    for by, coding in ((1e-3, "difference"), (10, "coded")):
        new = {"w": (base["w"] + by * random.normal(size=(200, 300))).astype(np.float32)}
        data = deepcabac.compress(new, base=base, lossless=True)
        assert same_bits(deepcabac.decompress(data, base=base if coding == "difference" else None), new)
        with deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=None) as opened:
            assert opened.info("w").coding == coding


def test_damage_in_changes_is_found_or_does_not_decode_to_nonsense():
    """Every byte of a chunk of changes turned, its checksum made right: an error, or values of the type."""
    base = {"w": np.random.default_rng(6).normal(size=(50, 60)).astype(ml_dtypes.bfloat16)}
    new = {"w": base["w"].copy()}
    new["w"].view(np.uint16)[::3, ::11] += 1
    data = deepcabac.compress(new, base=base, lossless=True)
    offset = int.from_bytes(data[16:24], "little")
    fields = decode.Fields(data[offset:])
    count = fields.varint()
    plain = bytearray(decode.decode_bytes(fields.rest(), count))
    crc = zlib.crc32(data[32:offset]).to_bytes(4, "little")
    at = plain.index(crc)
    outcomes = set()
    for place in range(32, offset):
        for bit in (1, 128):
            payload = bytearray(data[32:offset])
            payload[place - 32] ^= bit
            plain[at : at + 4] = zlib.crc32(payload).to_bytes(4, "little")
            hostile = encode.write_file(bytes(plain), bytes(payload))
            try:
                arrays = deepcabac.decompress(hostile, base=base)
                assert arrays["w"].shape == (50, 60)
                assert same_bits(decode.read_file(hostile, base=base), arrays)
                outcomes.add("other values")
            except errors.DamagedFileError:
                with pytest.raises(decode.Damaged):
                    decode.read_file(hostile, base=base)
                outcomes.add("damaged")
    assert "damaged" in outcomes


def test_a_quantised_update_reaches_its_sqnr():
    base = base_arrays()
    new = moved(base)
    for sqnr in (None, 3, 20):
        data = deepcabac.compress(new, base=base, **({} if sqnr is None else {"sqnr": sqnr}))
        back, again = deepcabac.decompress(data, base=base), decode.read_file(data, base=base)
        assert same_bits(back, again)
        for name in ("float32", "float64"):
            difference = new[name].astype(np.float64) - base[name]
            error = new[name].astype(np.float64) - back[name]
            reached = 10 * np.log10((difference**2).sum() / (error**2).sum())
            assert abs(reached - (sqnr or 10)) < 0.2
        for name in ("float16", "bfloat16", "int64", "flag", "special"):
            assert back[name].tobytes() == new[name].tobytes()


def test_positive_vectors_stay_positive():
    variance = np.geomspace(1e-6, 1, 200).astype(np.float32)
    new = (variance * 1.3).astype(np.float32)
    data = deepcabac.compress({"v": new}, base={"v": variance}, sqnr=3)
    back = deepcabac.decompress(data, base={"v": variance})["v"]
    assert (np.abs(back - new) < 0.2 * new).all()


def test_another_base_is_refused():
    base = base_arrays()
    data = deepcabac.compress(moved(base), base=base, lossless=True)
    wrong = {name: array.copy() for name, array in base.items()}
    wrong["float32"][3, 3] += 1
    with pytest.raises(errors.OptionError, match="not the one that the update was made from"):
        deepcabac.decompress(data, base=wrong)
    del wrong["float32"]
    with pytest.raises(errors.OptionError, match="has no tensor 'float32'"):
        deepcabac.decompress(data, base=wrong)
    with pytest.raises(errors.OptionError, match="give it as base"):
        deepcabac.decompress(data)
    with pytest.raises(errors.OptionError, match="need none"):
        deepcabac.decompress(deepcabac.compress(base), base=base)
    # What the update does not change does not matter.
    assert same_bits(deepcabac.decompress(data, base=base | {"more": np.ones(3)}), moved(base))


@pytest.fixture
def chain(tmp_path):
    versions = [base_arrays()]
    deepcabac.save_file(versions[0], tmp_path / "v0.dcb", lossless=True)
    for number in (1, 2, 3):
        versions.append(moved(versions[-1], seed=number))
        deepcabac.save_file(
            versions[-1], tmp_path / f"v{number}.dcb", base=tmp_path / f"v{number - 1}.dcb", lossless=True
        )
    return tmp_path, versions


def test_a_chain_finds_its_files_beside_it(chain):
    folder, versions = chain
    assert same_bits(deepcabac.load_file(folder / "v3.dcb"), versions[3])
    with deepcabac.open_file(folder / "v2.dcb") as opened:
        assert opened.base_name == "v1.dcb" and len(opened.base_digest) == 64
        assert opened["float16"].tobytes() == versions[2]["float16"].tobytes()
        assert opened.info("float16").update and opened.info("float16").coding in ("difference", "changes")


def test_a_chain_may_be_named(chain, tmp_path_factory):
    folder, versions = chain
    away = tmp_path_factory.mktemp("away")
    paths = [folder / f"v{number}.dcb" for number in range(4)]
    moved_path = away / "last.dcb"
    moved_path.write_bytes(paths[3].read_bytes())
    with pytest.raises(errors.OptionError, match=r"made from 'v2\.dcb'"):
        deepcabac.load_file(moved_path)
    assert same_bits(deepcabac.load_file(moved_path, base=paths[:3]), versions[3])
    assert same_bits(deepcabac.load_file(moved_path, base=paths[2]), versions[3])
    assert same_bits(deepcabac.load_file(moved_path, base=versions[2]), versions[3])
    with pytest.raises(errors.OptionError, match="not the one"):
        deepcabac.load_file(moved_path, base=paths[:2])
    with pytest.raises(errors.OptionError, match="base must be"):
        deepcabac.load_file(moved_path, base=[])
    with pytest.raises(errors.OptionError, match="not an update"):
        deepcabac.load_file(paths[0], base=paths[1])


def test_an_update_that_rests_on_itself_is_refused(chain):
    folder, _ = chain
    (folder / "v0.dcb").write_bytes((folder / "v1.dcb").read_bytes())
    with pytest.raises(errors.OptionError, match="circular chain of bases"):
        deepcabac.load_file(folder / "v1.dcb")


def test_the_command_line_makes_and_applies_updates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    old = {"w": random.normal(size=(50, 40)).astype(np.float32), "n": np.arange(100)}
    new = old | {"w": old["w"] + np.float32(1e-4)}
    np.savez("old.npz", **old)
    np.savez("new.npz", **new)

    def run(*arguments, code=0):
        result = CliRunner().invoke(cli.program, [*arguments], prog_name="deepcabac")
        assert result.exit_code == code, result.output
        return result.output

    run("compress", "new.npz", "--base", "old.npz", "--lossless", "-o", "update.dcb")
    shown = run("inspect", "update.dcb")
    assert "difference" in shown and "from npz, an update of old.npz\n" in shown
    listed = json.loads(run("inspect", "update.dcb", "--json"))
    assert listed["base"]["name"] == "old.npz" and [one["update"] for one in listed["tensors"]] == [True, True]
    run("verify", "update.dcb")
    run("decompress", "update.dcb", "-o", "back.npz")
    run("decompress", "update.dcb", "--base", "old.npz", "-o", "again.npz")
    for name in ("back.npz", "again.npz"):
        with np.load(name) as archive:
            assert same_bits({key: archive[key] for key in old}, new)
    assert "not the one" in run("decompress", "update.dcb", "--base", "new.npz", "-o", "x.npz", code=2)
    assert not Path("x.npz").exists()
    Path("old.npz").unlink()
    assert "give it as base" in run("decompress", "update.dcb", "-o", "x.npz", code=2)
    assert "choose one of" in run("compress", "new.npz", "--lossless", "--sqnr", "3", code=2)


def test_dropped_errors_arrive_later():
    random = np.random.default_rng(0)
    accumulation = deepcabac.ErrorAccumulation()
    wanted, arrived = np.zeros((60, 80), np.float32), np.zeros((60, 80), np.float32)
    for _ in range(30):
        update = random.normal(size=wanted.shape).astype(np.float32)
        wanted += update
        arrived += deepcabac.decompress(accumulation.compress({"w": update}, sqnr=3))["w"]
    # What is missing is of the last updates, not of all: without accumulation it would be half of the sum's energy.
    assert np.allclose(wanted - arrived, accumulation.dropped["w"], atol=1e-4)
    assert np.square(wanted - arrived).mean() < 3
    with pytest.raises(errors.OptionError, match="in the update before"):
        accumulation.compress({"w": np.ones(3, np.float32)})
