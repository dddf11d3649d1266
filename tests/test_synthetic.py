"""Inputs that a network makes itself, for calibration without data."""

import math

import pytest

import deepcabac

torch = pytest.importorskip("torch", reason="needs PyTorch")

from torch import nn  # noqa: E402 - only with torch

from deepcabac.torch import calibrate, synthetic_inputs, synthetic_tokens  # noqa: E402


def images(count, seed):
    """Smooth images whose channels have a mean and a deviation of their own: what the network was "trained" on."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
    return smooth * torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1) + torch.tensor([0.3, -0.2, 0.1]).reshape(3, 1, 1)


@pytest.fixture(scope="module")
def network():
    """Batch norms that have seen :func:`images`."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16, momentum=None), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32, momentum=None), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )
    model.train()
    with torch.no_grad():
        for seed in range(4):
            model(images(256, seed))
    return model.eval()


def apart(network, inputs):
    """Mean squared distance of the second norm's inputs from its statistics, in standard deviations."""
    with torch.no_grad():
        seen = network[:4](inputs)
    norm = network[4]
    mean, variance = seen.mean((0, 2, 3)), seen.var((0, 2, 3))
    means = (mean - norm.running_mean).square() / norm.running_var
    return float((means + (variance / norm.running_var).log().square()).mean())


def test_inputs_fit_the_batch_norms(network):
    (noise,) = synthetic_inputs(network, (3, 16, 16), 32, steps=0)
    (made,) = synthetic_inputs(network, (3, 16, 16), 32)
    assert made.shape == (32, 3, 16, 16)
    assert made.dtype == torch.float32
    assert apart(network, made) < apart(network, noise) / 10
    assert not made.requires_grad


def test_they_stand_in_for_data(network):
    """At the same bytes, a calibration on them leaves much less error on real inputs than none."""
    curvature = calibrate(network, synthetic_inputs(network, (3, 16, 16), 128, steps=40))
    original = {name: value.clone() for name, value in network.state_dict().items()}
    real = images(256, 9)

    @torch.no_grad()
    def error(**settings):
        before = network(real)
        network.load_state_dict(deepcabac.torch.load(deepcabac.torch.save(original, bits=3, **settings)))
        after = network(real)
        network.load_state_dict(original)
        return float((after - before).square().mean())

    assert error(curvature=curvature) < 0.8 * error()


def test_the_model_is_left_as_it_was(network):
    network.train()
    network[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    synthetic_inputs(network, (3, 16, 16), 8, steps=2)
    assert network.training
    assert not network[0].weight.requires_grad
    assert network[3].weight.requires_grad
    assert all(value.grad is None for value in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    network[0].weight.requires_grad_(True)
    network.eval()


def test_seed_and_batches(network):
    one, two = synthetic_inputs(network, (3, 16, 16), 12, batch=8, steps=1)
    assert (len(one), len(two)) == (8, 4)
    again = synthetic_inputs(network, (3, 16, 16), 12, batch=8, steps=1)
    other = synthetic_inputs(network, (3, 16, 16), 12, batch=8, steps=1, seed=1)
    assert torch.equal(one, again[0])
    assert not torch.equal(one, other[0])


def test_vectors():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)).eval()
    (made,) = synthetic_inputs(model, (8,), 32, steps=2)
    assert made.shape == (32, 8)


def test_what_cannot_be_matched_is_said(network):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(14))
    with pytest.raises(deepcabac.CalibrationError, match="no batch norm that says what its inputs were like"):
        synthetic_inputs(plain, (3, 16, 16))
    with pytest.raises(deepcabac.CalibrationError, match="no batch norm was reached"):
        synthetic_inputs(network, (3, 16, 16), forward=lambda model, batch: batch.flatten(1))
    with pytest.raises(deepcabac.CalibrationError, match="not finite"):
        synthetic_inputs(network, (3, 16, 16), forward=lambda model, batch: model(batch * math.inf))
    for wrong in ({"shape": ()}, {"shape": (3, 0, 16)}, {"samples": 0}, {"batch": 0}, {"steps": -1}):
        with pytest.raises(deepcabac.OptionError):
            synthetic_inputs(network, **{"shape": (3, 16, 16), **wrong})


class Bigrams(nn.Module):
    """After token a comes b with a probability that depends on a alone."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))

    def forward(self, ids):
        return self.table[ids]


def test_tokens_follow_the_model():
    model = Bigrams()
    batches = synthetic_tokens(model, 64, 200, start=3, batch=16)
    ids = torch.cat(batches)
    assert [len(batch) for batch in batches] == [16] * 4
    assert ids.shape == (64, 200)
    assert ids.dtype == torch.int64
    assert (ids[:, 0] == 3).all()
    counts = torch.zeros(5, 5)
    counts.index_put_((ids[:, :-1].flatten(), ids[:, 1:].flatten()), torch.ones(64 * 199), accumulate=True)
    expected = model.table.detach().softmax(1)
    assert (counts / counts.sum(1, keepdim=True) - expected).abs().max() < 0.05
    assert torch.equal(ids, torch.cat(synthetic_tokens(model, 64, 200, start=3, batch=16)))


def test_prompts_and_logits_by_name():
    prompts = torch.tensor([[1, 2, 4], [0, 3, 2]])
    (ids,) = synthetic_tokens(Bigrams(), 2, 10, start=prompts, forward=lambda model, ids: {"logits": model(ids)})
    assert torch.equal(ids[:, :3], prompts)


def test_what_is_no_language_model_is_said():
    with pytest.raises(deepcabac.CalibrationError, match="causal language model"):
        synthetic_tokens(Bigrams(), 2, 10, forward=lambda model, ids: model(ids).mean(1))
    for wrong in ({"samples": 0}, {"length": 1}, {"batch": 0}, {"start": torch.zeros(3, 2, dtype=torch.long)}):
        with pytest.raises(deepcabac.OptionError):
            synthetic_tokens(Bigrams(), **{"samples": 2, "length": 10, **wrong})
