"""deepcabac.torch.Publisher and apply: weights sent step by step, exactly, in place, or not at all."""

import tracemalloc

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import deepcabac  # noqa: E402
from deepcabac.dcb import reader  # noqa: E402
from deepcabac.torch import Publisher, apply  # noqa: E402


class Network(torch.nn.Module):
    """Tied weights, a buffer of integers, a scalar, something of each size."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(200, 32)
        self.layer = torch.nn.Linear(32, 32)
        self.norm = torch.nn.BatchNorm1d(32)
        self.out = torch.nn.Linear(32, 200, bias=False)
        self.out.weight = self.embedding.weight


def step(model, seed, by=1e-4):
    """Weights move a little, as an optimiser moves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
        model.norm.num_batches_tracked += 1


def bits(model):
    return {name: tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in model.items()}


def cast(model, dtype):
    """What a publisher of that dtype has to bring."""
    return bits({k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_step_arrives_bit_for_bit_in_the_models_own_memory(dtype):
    trained, used = Network(), Network(1).to(dtype)
    places = {name: tensor.data_ptr() for name, tensor in used.state_dict().items()}
    publisher = Publisher(trained, every=3, dtype=dtype)
    sizes = []
    for number in range(7):
        data = publisher.publish()
        with reader.open_bytes(data, max_bytes=None, threads=None) as opened:
            assert (opened.base_name is None) == (number % 3 == 0)
        apply(data, used)
        assert bits(used.state_dict()) == cast(trained, dtype)
        sizes.append(len(data))
        step(trained, number, 1e-5)
    assert places == {name: tensor.data_ptr() for name, tensor in used.state_dict().items()}
    assert used.out.weight is used.embedding.weight and publisher.published == 7
    if dtype == torch.bfloat16:
        assert max(sizes[1:3]) < sizes[0] / 5


def test_files_and_dicts_of_tensors_will_do(tmp_path):
    tensors = {"w": torch.randn(50, 40).bfloat16(), "n": torch.tensor(3)}
    used = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    publisher = Publisher(tensors, every=0)
    for number in range(3):
        report = publisher.publish_file(tmp_path / f"{number}.dcb")
        assert report.raw_bytes == 50 * 40 * 2 + 8
        apply(tmp_path / f"{number}.dcb", used)
        assert bits(used) == bits(tensors)
        tensors["w"][number] *= 1.01
        tensors["n"] += 1


def test_what_changed_widely_or_not_at_all_arrives_too():
    tensors = {"all": torch.randn(64, 64), "none": torch.randn(64, 64), "new": torch.randn(3, 3)}
    tensors["bool"] = torch.ones(99) > 0
    used = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    publisher = Publisher(tensors)
    apply(publisher.publish(), used)
    tensors["all"].normal_()
    tensors["new"].fill_(float("nan"))
    tensors["bool"][7] = False
    apply(publisher.publish(), used)
    assert bits(used) == bits(tensors)


def test_out_of_order_memory_is_written_in_place():
    weight = torch.randn(30, 40)
    tensors, used = {"w": weight}, {"w": torch.zeros(40, 30).T}
    publisher = Publisher(tensors)
    apply(publisher.publish(), used)
    weight[3, 5] += 1
    apply(publisher.publish(), used)
    assert torch.equal(used["w"], weight) and not used["w"].is_contiguous()


def test_a_missed_update_is_refused_until_the_next_whole_model():
    trained, used = Network(), Network(1)
    publisher = Publisher(trained)
    apply(publisher.publish(), used)
    step(trained, 1)
    publisher.publish()
    step(trained, 2)
    late, before = publisher.publish(), bits(used.state_dict())
    with pytest.raises(deepcabac.OptionError, match="not the one that the update was made from"):
        apply(late, used)
    assert bits(used.state_dict()) == before
    apply(publisher.publish(whole=True), used)
    assert bits(used.state_dict()) == bits(trained.state_dict())


def test_a_refused_update_leaves_the_model_as_it_was():
    trained, used = Network(), Network(1).to(torch.bfloat16)
    publisher = Publisher(trained, dtype=torch.bfloat16)
    whole = publisher.publish()
    apply(whole, used)
    step(trained, 1)
    update, before = publisher.publish(), bits(used.state_dict())
    refused = 0
    for data in (whole, update):
        for place in range(32, len(data), max(len(data) // 60, 1)):
            damaged = bytearray(data)
            damaged[place] ^= 1
            with pytest.raises(deepcabac.DamagedFileError):
                apply(bytes(damaged), used)
            assert bits(used.state_dict()) == before
            refused += 1
    assert refused > 100
    for other in (Network(2), torch.nn.Linear(3, 3), Network(1).to(torch.float16)):
        with pytest.raises(deepcabac.DeepCabacError):
            apply(update, other)
    with pytest.raises(deepcabac.LimitError):
        apply(whole, used, max_bytes=1000)
    assert bits(used.state_dict()) == before
    apply(update, used)
    assert bits(used.state_dict()) == cast(trained, torch.bfloat16)


def test_a_chunk_that_does_not_decode_is_found_before_anything_is_written(monkeypatch):
    """Checksums that fit are no promise: the last tensor of a hostile update does not decode."""
    tensors = {name: torch.randn(100, 100).bfloat16() for name in "abc"}
    used = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    publisher = Publisher(tensors)
    apply(publisher.publish(), used)
    for tensor in tensors.values():
        tensor[::9, ::7] *= 1.1
    update, before, decoded = publisher.publish(), bits(used), []
    original = reader.exact.changed

    def broken(form, code, base):
        decoded.append(base.size)
        return None if len(decoded) == 3 else original(form, code, base)

    monkeypatch.setattr(reader.exact, "changed", broken)
    with pytest.raises(deepcabac.DamagedFileError, match="does not decode"):
        apply(update, used, threads=1)
    assert bits(used) == before and len(decoded) == 3


def test_a_failed_publication_is_as_if_it_had_not_been(tmp_path):
    tensors = {"w": torch.randn(50, 50)}
    used = {"w": torch.zeros(50, 50)}
    publisher = Publisher(tensors)
    apply(publisher.publish(), used)
    tensors["w"][0] += 1
    with pytest.raises(deepcabac.CheckpointError):
        publisher.publish_file(tmp_path / "missing" / "step.dcb")
    apply(publisher.publish(), used)
    assert torch.equal(tensors["w"], used["w"]) and publisher.published == 2


def test_an_update_takes_next_to_no_memory_besides_the_model():
    tensors = {f"{k}": torch.randn(500, 1000).bfloat16() for k in range(8)}
    used = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    publisher = Publisher(tensors)
    apply(publisher.publish(), used, threads=1)
    for tensor in tensors.values():
        tensor.view(torch.int16).view(-1)[:: 97] += 1
    update = publisher.publish()
    tracemalloc.start()
    apply(update, used, threads=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bits(used) == bits(tensors)
    assert peak < 8 * 500 * 1000 * 2 / 2


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(deepcabac.OptionError, match="every"):
        Publisher(Network(), every=-1)
    with pytest.raises(deepcabac.OptionError, match="dtype"):
        Publisher(Network(), dtype=torch.int8)
    with pytest.raises(deepcabac.OptionError, match="first file"):
        Publisher(Network()).publish(whole=False)
    with pytest.raises(deepcabac.UnsupportedError, match="flat dict"):
        Publisher({"a": {"b": torch.zeros(3)}}).publish()
    with pytest.raises(deepcabac.OptionError, match="a model or a flat dict"):
        apply(b"", np.zeros(3))
