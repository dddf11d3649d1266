"""The border to the native core: its declared types are the real ones, statuses mean the right errors."""

import gc
import re
import runpy
import weakref
from pathlib import Path

import cffi
import numpy as np
import pytest

from deepcabac import DamagedFileError, DeepCabacError, OptionError, _border, _core, _native_types, _streams, nnc
from deepcabac._border import ffi, lib, pointer, result, structure
from deepcabac._native_types import DcMeasure, DcSample


def test_what_is_declared_is_what_was_built():
    expected, found = _native_types.declared(), _native_types.built(ffi, lib)
    assert found == expected and _native_types.differences(ffi, lib) == []
    assert len(found) == 54 and sum(name.startswith("dc_") for name in found) == 32
    assert found["DcSums"] == "double energy, double error, double correlation, double levels"
    assert found["dc_measure"] == "DcStatus(float *, uintptr_t, DcMeasure *)"


class Built:
    """A library of functions and constants with these declarations."""

    def __init__(self, names):
        for name, kind in names.items():
            setattr(self, name, 0 if kind == "constant" else kind.replace("(", "(*)(", 1))

    def __dir__(self):
        return list(vars(self))


def build(names):
    """What cffi would make of these declarations."""
    maker = cffi.FFI()
    maker.cdef("typedef enum DcStatus { OK } DcStatus;")
    for name, kind in names.items():
        if name.startswith("Dc"):
            maker.cdef(f"typedef struct {name} {{ {kind.replace(',', ';')}; }} {name};")
    return maker, Built({name: kind for name, kind in names.items() if not name.startswith("Dc")})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dc_measure", None),
        ("dc_measure", "DcStatus(float *, uintptr_t)"),
        ("dc_measure", "DcStatus(double *, uintptr_t, DcMeasure *)"),
        ("dc_measure", "DcStatus(float *, uint32_t, DcMeasure *)"),
        ("dc_measure", "DcStatus(float *, uintptr_t, DcSums *)"),
        ("dc_measure", "int32_t(float *, uintptr_t, DcMeasure *)"),
        ("dc_more", "DcStatus(float *)"),
        ("dc_most_bins", "constant"),
        ("DcLayer", None),
        ("DcMore", "double more"),
        ("DcMeasure", "double energy, double largest"),
        ("DcMeasure", "double largest, double energy, uintptr_t special"),
        ("DcMeasure", "double energy, float largest, uintptr_t special"),
        ("DcMeasure", "double energy, double largest, uintptr_t special, double more"),
        ("DC_STATUS_RANGE", None),
        ("DC_STATUS_MORE", "constant"),
    ],
)
def test_a_difference_is_found_in_either_direction(name, kind):
    names = _native_types.declared()
    assert _native_types.differences(*build(names)) == [] and names.get(name) != kind
    different = {name}
    if kind:
        names[name] = kind
    else:
        del names[name]
    if name == "DcLayer":  # cffi refuses functions that take what is not there
        del names["dc_dc2019_encode"]
        different.add("dc_dc2019_encode")
    assert set(_native_types.differences(*build(names))) == different


def test_a_native_module_of_another_version_is_refused_at_import(monkeypatch):
    monkeypatch.setattr(_native_types, "differences", lambda ffi, lib: ["dc_fit", "DcSums"])
    with pytest.raises(ImportError, match=r"they differ in dc_fit, DcSums\): reinstall deepcabac"):
        runpy.run_module("deepcabac._border")


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        ("DAMAGED", DamagedFileError, "not what an encoder wrote"),
        ("RANGE", OptionError, "choose a larger step"),
        ("ARGUMENT", AssertionError, "report this as a bug"),
        ("ROOM", AssertionError, "report this as a bug"),
        ("BUG", AssertionError, "report this as a bug"),
    ],
)
def test_a_status_is_an_error(status, error, message):
    with pytest.raises(error, match=message):
        _border.checked(getattr(lib, f"DC_STATUS_{status}"))
    _border.checked(lib.DC_STATUS_OK)


def test_what_has_no_code_is_an_error_of_the_step_not_of_the_data():
    weights = np.array([1e9, 1], np.float32)
    with pytest.raises(OptionError, match="choose a larger step"):
        _streams.dc2019_encode([_streams.Layer(weights, np.ones(1, np.float32), 1e-3, 0.0)])
    job = _streams.NncTensor(np.zeros((1, 2), np.int32))
    assert not _streams.nnc_quantize(job, weights, 1e-3, 0.0)
    assert not _streams.nnc_quantize(job, np.array([np.nan, 0], np.float32), 1.0, 0.0)
    assert _streams.nnc_quantize(job, weights, 1.0, 0.0) and job.levels.tolist() == [[10**9, 1]]
    with pytest.raises(OptionError, match="choose a larger step"):
        _streams.nnc_encode([_streams.NncTensor(np.full((1, 2), -(2**31), np.int32))])


def test_integers_that_a_stream_cannot_hold_are_no_bug():
    with pytest.raises(DeepCabacError):
        nnc.encode({"w": np.array([[-(2**31), 1]], np.int32)})


def test_a_result_larger_than_its_room_is_fetched_again():
    data = np.random.default_rng(0).bytes(100)
    given = _border.bytes_pointer(data)
    code = _border.deliver(lambda out: lib.dc_encode_bytes(given, len(data), out), 0)
    assert code == _core.encode_bytes(data) and _core.decode_bytes(code, 100) == data


def test_pointers_know_the_type_and_the_layout_of_an_array():
    out = result(DcMeasure)
    with pytest.raises(TypeError, match="float"):
        lib.dc_measure(pointer(np.zeros(4)), 4, out)
    with pytest.raises((ValueError, BufferError), match="contiguous"):
        pointer(np.zeros((4, 4), np.float32)[:, 0])
    with pytest.raises(TypeError):
        lib.dc_measure(pointer(np.zeros(4, np.float32)), 4)


def test_a_structure_keeps_alive_what_it_points_to():
    array = np.zeros(4, np.float32)
    alive = weakref.ref(array)
    native = structure(DcSample(levels=pointer(None), weights=pointer(array), count=4, step=1.0))
    del array
    gc.collect()
    assert alive() is not None
    del native
    gc.collect()
    assert alive() is None


def test_every_function_of_the_core_is_called_somewhere():
    called = set()
    for module in _core, _streams:
        called |= set(re.findall(r"lib\.(dc_\w+)", Path(module.__file__).read_text(encoding="utf-8")))
    assert called == {name for name in dir(lib) if name.startswith("dc_")}
