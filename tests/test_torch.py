"""Models and state dicts of PyTorch."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

import deepcabac

torch = pytest.importorskip("torch")

from deepcabac.torch import load_model, save_model  # noqa: E402 - only with torch

FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
NAMES = [*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool"]
NAMES += [name for name in ("uint64", "uint32", "uint16") if hasattr(torch, name)]


def bits(tensor):
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same_bits(one, two):
    return one.dtype == two.dtype and one.shape == two.shape and bits(one) == bits(two)


def make_model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.Flatten(), torch.nn.Linear(144, 40)
    )


class Tied(torch.nn.Module):
    """An embedding whose weights are the output layer's, as in language models."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(100, 32)
        self.head = torch.nn.Linear(32, 100, bias=False)
        self.head.weight = self.embedding.weight


def close(one, two, decibels=29):
    noise = ((one.double() - two.double()) ** 2).sum()
    return noise <= (one.double() ** 2).sum() * 10 ** (-decibels / 10)


def test_a_model_comes_back_into_another_of_its_kind(tmp_path):
    model, other = make_model(0), make_model(1)
    model[1].num_batches_tracked.fill_(7)
    report = save_model(model, tmp_path / "m.dcb", sqnr=30)
    before = [parameter.data_ptr() for parameter in other.parameters()]
    assert load_model(tmp_path / "m.dcb", other) is other
    assert [parameter.data_ptr() for parameter in other.parameters()] == before
    assert all(parameter.requires_grad for parameter in other.parameters())
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert close(one, two), name
    assert torch.equal(model[0].bias, other[0].bias) and other[1].num_batches_tracked == 7
    assert report.file_bytes == (tmp_path / "m.dcb").stat().st_size < 4 * sum(p.numel() for p in model.parameters())


def test_without_a_model_the_state_dict_comes_back_as_it_was(tmp_path):
    state = make_model().state_dict()
    state["_extra"] = {"epoch": 3, "note": "trained"}
    save_model(state, tmp_path / "m.dcb", sqnr=100)
    result = load_model(tmp_path / "m.dcb")
    assert type(result) is OrderedDict and list(result) == list(state) and result._metadata == state._metadata
    assert result["_extra"] == state["_extra"]
    state.pop("_extra")
    assert all(close(tensor, result[name], 98) for name, tensor in state.items() if tensor.is_floating_point())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(6, 8), (5,), (), (0, 3)])
def test_every_dtype_is_exact_when_asked_for(tmp_path, name, shape):
    dtype = getattr(torch, name)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = torch.randint(0, 2 if name == "bool" else 256, (size,), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(shape)
    save_model({"x": tensor}, tmp_path / "m.dcb", overrides={"*": {"exact": True}})
    assert same_bits(load_model(tmp_path / "m.dcb")["x"], tensor)


@pytest.mark.parametrize("name", FLOATS)
def test_every_float_dtype_is_quantised_within_its_target(tmp_path, name):
    tensor = torch.randn(256, 128).to(getattr(torch, name))
    target = 12 if "float8" in name else 30
    save_model({"x": tensor}, tmp_path / "m.dcb", sqnr=target)
    result = load_model(tmp_path / "m.dcb")["x"]
    assert result.dtype == tensor.dtype and close(tensor, result, target * 0.98)
    assert deepcabac.open_file(tmp_path / "m.dcb").info("x").method == "quantized"


def test_bfloat16_goes_into_a_model_without_a_detour(tmp_path):
    model, other = make_model(0).to(torch.bfloat16), make_model(1).to(torch.bfloat16)
    save_model(model, tmp_path / "m.dcb", overrides={"*": {"exact": True}})
    load_model(tmp_path / "m.dcb", other)
    assert all(same_bits(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_another_dtype_is_cast_as_load_state_dict_does(tmp_path):
    save_model(make_model(0), tmp_path / "m.dcb")
    other = load_model(tmp_path / "m.dcb", make_model(1).half())
    state = load_model(tmp_path / "m.dcb")
    assert other[3].weight.dtype == torch.float16 and torch.equal(other[3].weight, state["3.weight"].half())


def test_values_may_be_views_of_any_kind(tmp_path):
    base = torch.randn(40, 60)
    state = {
        "transposed": base.t(),
        "every other": base[::2, 1::3],
        "expanded": torch.randn(1, 50).expand(30, 50),
        "parameter": torch.nn.Parameter(torch.randn(30, 30)),
        "gradient": torch.randn(30, 30, requires_grad=True),
        "channels last": torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last),
        "negated": torch.complex(torch.randn(9, 9), torch.randn(9, 9)).conj().imag,
    }
    assert state["negated"].is_neg()
    save_model(state, tmp_path / "m.dcb", overrides={"*": {"exact": True}})
    result = load_model(tmp_path / "m.dcb")
    for name, tensor in state.items():
        assert torch.equal(tensor, result[name]), name
    assert isinstance(result["parameter"], torch.nn.Parameter) and result["gradient"].requires_grad
    assert not result["transposed"].requires_grad


def test_tied_parameters_are_stored_once_and_stay_tied(tmp_path):
    model = Tied()
    report = save_model(model, tmp_path / "m.dcb")
    assert [tensor.method for tensor in report.tensors] == ["quantized", "tied"]
    state = load_model(tmp_path / "m.dcb")
    assert state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr()
    other = load_model(tmp_path / "m.dcb", Tied(1))
    assert other.head.weight is other.embedding.weight and torch.equal(other.head.weight, state["head.weight"])


def test_overlapping_views_are_not_tied(tmp_path):
    base = torch.randn(64, 64)
    state = {"all": base, "transposed": base.t(), "part": base[:32], "bits": base.view(torch.int32)}
    report = save_model(state, tmp_path / "m.dcb", overrides={"*": {"exact": True}})
    assert not any(tensor.method == "tied" for tensor in report.tensors)
    assert all(torch.equal(tensor, load_model(tmp_path / "m.dcb")[name]) for name, tensor in state.items())


def test_the_file_decompresses_to_a_pt_file(tmp_path):
    state = make_model().state_dict()
    save_model(state, tmp_path / "m.dcb")
    path = deepcabac.decompress_checkpoint(tmp_path / "m.dcb")
    assert path == tmp_path / "m.pt"
    loaded, decoded = torch.load(path, weights_only=True), load_model(tmp_path / "m.dcb")
    assert list(loaded) == list(state) and all(same_bits(loaded[name], decoded[name]) for name in state)


def test_a_file_of_arrays_loads_into_a_model(tmp_path):
    model = make_model()
    deepcabac.save_file({name: tensor.numpy() for name, tensor in model.state_dict().items()}, tmp_path / "m.dcb")
    arrays = deepcabac.load_file(tmp_path / "m.dcb")
    other = load_model(tmp_path / "m.dcb", make_model(1))
    assert all(np.array_equal(tensor.numpy(), arrays[name]) for name, tensor in other.state_dict().items())
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in load_model(tmp_path / "m.dcb").items())


def stepped(model, size=1e-4):
    """The next version."""
    other = make_model()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += size * torch.randn_like(parameter)
    return other


def test_an_update_of_a_model_goes_into_the_model_itself(tmp_path):
    old = make_model()
    new = stepped(old)
    alone = save_model(new, tmp_path / "new.dcb", lossless=True)
    update = save_model(new, tmp_path / "update.dcb", base=old, lossless=True)
    assert update.file_bytes < 0.8 * alone.file_bytes
    restored = load_model(tmp_path / "update.dcb", base=old.state_dict())
    assert all(same_bits(value, restored[name]) for name, value in new.state_dict().items())
    assert load_model(tmp_path / "update.dcb", old, base=old) is old
    assert all(same_bits(value, old.state_dict()[name]) for name, value in new.state_dict().items())
    with pytest.raises(deepcabac.OptionError, match="base"):
        load_model(tmp_path / "update.dcb", old, base=old)  # no longer the base


def test_an_update_of_a_file_finds_it_and_takes_a_chain(tmp_path):
    first = make_model()
    second = stepped(first)
    third = stepped(second)
    save_model(first, tmp_path / "1.dcb", lossless=True)
    save_model(second, tmp_path / "2.dcb", base=tmp_path / "1.dcb", lossless=True)
    save_model(third, tmp_path / "3.dcb", base=tmp_path / "2.dcb", sqnr=20)
    found = load_model(tmp_path / "3.dcb")
    named = load_model(tmp_path / "3.dcb", make_model(5), base=[tmp_path / "1.dcb", tmp_path / "2.dcb"]).state_dict()
    for name, before in second.state_dict().items():
        assert same_bits(found[name], named[name])
        change, wanted = found[name] - before, third.state_dict()[name] - before
        assert close(wanted, change, 19), name


def test_a_base_that_is_not_needed_is_refused(tmp_path):
    model = make_model()
    save_model(model, tmp_path / "m.dcb")
    with pytest.raises(deepcabac.OptionError, match="needs none"):
        load_model(tmp_path / "m.dcb", base=model)
    with pytest.raises(deepcabac.OptionError, match="base must be"):
        save_model(model, tmp_path / "n.dcb", base=3)
    assert not (tmp_path / "n.dcb").exists()


def test_what_does_not_fit_is_an_error_and_changes_nothing(tmp_path):
    state = make_model().state_dict()
    state["more"] = torch.ones(3)
    del state["0.bias"]
    state["3.weight"] = torch.ones(40, 143)
    save_model(state, tmp_path / "m.dcb")
    model = make_model(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(deepcabac.CheckpointError) as error:
        load_model(tmp_path / "m.dcb", model)
    text = str(error.value)
    assert "missing from the file: 0.bias" in text and "not in the model: more" in text and "\n" not in text
    assert "3.weight ([40, 143] for [40, 144])" in text
    with pytest.raises(deepcabac.CheckpointError, match="other shape"):  # as load_state_dict, even if not strict
        load_model(tmp_path / "m.dcb", model, strict=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_not_strict_loads_what_fits(tmp_path):
    state = make_model().state_dict()
    state["more"] = torch.ones(3)
    del state["0.bias"]
    save_model(state, tmp_path / "m.dcb", sqnr=30)
    model = make_model(1)
    bias = model[0].bias.clone()
    assert load_model(tmp_path / "m.dcb", model, strict=False) is model
    assert torch.equal(model[0].bias, bias) and close(state["3.weight"], model[3].weight)


def test_a_model_that_customises_loading_is_asked_to_load(tmp_path):
    class Renaming(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.new = torch.nn.Linear(20, 20)
            self.register_load_state_dict_pre_hook(self._rename)

        @staticmethod
        def _rename(module, state, prefix, *others):
            for name in ("weight", "bias"):
                if f"{prefix}old.{name}" in state:
                    state[f"{prefix}new.{name}"] = state.pop(f"{prefix}old.{name}")

    if not hasattr(torch.nn.Module, "register_load_state_dict_pre_hook"):
        pytest.skip("torch before 2.5")
    bias = torch.randn(20)
    save_model({"old.weight": torch.randn(20, 20), "old.bias": bias}, tmp_path / "m.dcb")
    assert torch.equal(load_model(tmp_path / "m.dcb", Renaming()).new.bias, bias)
    save_model({"old.weight": torch.randn(20, 20)}, tmp_path / "m.dcb")
    with pytest.raises(deepcabac.CheckpointError, match=r"does not fit the model.*new\.bias"):
        load_model(tmp_path / "m.dcb", Renaming())


def test_loading_holds_no_second_copy(tmp_path):
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(48)))  # 192 MiB
    for layer in model:
        torch.nn.init.zeros_(layer.weight)
    save_model(model, tmp_path / "m.dcb")
    tracemalloc.start()  # numpy reports its arrays to it
    load_model(tmp_path / "m.dcb", model)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20


def test_limits_and_threads_are_passed_on(tmp_path):
    save_model(make_model(), tmp_path / "m.dcb", threads=1)
    data = (tmp_path / "m.dcb").read_bytes()
    save_model(make_model(), tmp_path / "m.dcb", threads=3)
    assert (tmp_path / "m.dcb").read_bytes() == data
    for model in (None, make_model()):
        with pytest.raises(deepcabac.LimitError):
            load_model(tmp_path / "m.dcb", model, max_bytes=1000)
    assert "3.weight" in load_model(tmp_path / "m.dcb", max_bytes=1 << 20, threads=2)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"x": torch.eye(4).to_sparse()}, "sparse"),
        ({"x": torch.zeros(4, dtype=torch.int4)}, "int4"),
        ({"x": torch.zeros(4, device="meta")}, "meta"),
        ({"x": object()}, "builtins.object"),
        ([torch.ones(3)], "a model or a state dict"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_leaves_no_file(tmp_path, what, message):
    with pytest.raises(deepcabac.DeepCabacError, match=message):
        save_model(what, tmp_path / "m.dcb")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_loaded_into_is_refused(tmp_path):
    save_model(make_model(), tmp_path / "m.dcb")
    with pytest.raises(deepcabac.OptionError, match="to_empty"), torch.device("meta"):
        load_model(tmp_path / "m.dcb", make_model())
    with pytest.raises(deepcabac.OptionError, match="device"):
        load_model(tmp_path / "m.dcb", make_model(), device="cpu")
    save_model({"model": {"x": torch.ones(3)}, "numbers": [1, 2]}, tmp_path / "nested.dcb")
    with pytest.raises(deepcabac.CheckpointError, match="does not fit"):
        load_model(tmp_path / "nested.dcb", make_model())
    assert torch.equal(load_model(tmp_path / "nested.dcb")["model"]["x"], torch.ones(3))


def test_the_device_is_where_the_tensors_arrive(tmp_path):
    save_model(make_model(), tmp_path / "m.dcb")
    state = load_model(tmp_path / "m.dcb", device="meta")  # a device that every machine has
    assert all(tensor.is_meta for tensor in state.values())
    if torch.cuda.is_available():
        model = make_model(1).cuda()
        load_model(tmp_path / "m.dcb", model)
        assert close(model[3].weight.cpu(), load_model(tmp_path / "m.dcb")["3.weight"], 90)
        save_model(model, tmp_path / "again.dcb", overrides={"*": {"exact": True}})
        assert same_bits(load_model(tmp_path / "again.dcb", device="cuda")["3.weight"], model[3].weight)


def test_without_torch_the_import_says_what_to_install():
    program = """
import sys
sys.modules["torch"] = None  # makes "import torch" fail
import deepcabac
for expected in (deepcabac.DeepCabacError, ImportError):
    try:
        import deepcabac.torch
    except expected as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["deepcabac.torch needs torch: pip install 'deepcabac[torch]'"] * 2
