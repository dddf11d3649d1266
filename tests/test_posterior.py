"""A diagonal Fisher matrix, and standard deviations trained for single weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import deepcabac  # noqa: E402
import deepcabac.torch as dt  # noqa: E402
from deepcabac import CalibrationError, OptionError  # noqa: E402

cross_entropy = torch.nn.functional.cross_entropy


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def labelled(count=400, width=12):
    x = torch.randn(count, width) * torch.linspace(0.2, 2, width)
    return x, (x[:, -1] > 0).long() + (x[:, -2] > 1).long()


def network(width=12):
    return torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def of_samples(net, x, loss):
    """Squared gradients, sample by sample, averaged."""
    sums = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for number in range(len(x)):
        net.zero_grad()
        loss(net(x[number : number + 1]), number).backward()
        for name, p in net.named_parameters():
            sums[name] += p.grad**2 / len(x)
    net.zero_grad()
    return sums


def test_the_fisher_of_a_loss_of_ones_own_is_that_of_single_samples():
    net, (x, y) = network(), labelled(60)
    expected = of_samples(net, x, lambda out, n: cross_entropy(out, y[n : n + 1]))
    found = dt.fisher(
        net,
        [(x[k : k + 10], y[k : k + 10]) for k in range(0, 60, 10)],
        lambda out, batch: cross_entropy(out, batch[1], reduction="none"),
        forward=lambda model, batch: model(batch[0]),
        draws=1500,
    )
    for name, values in expected.items():
        assert found[name].dtype == np.float32 and found[name].shape == tuple(values.shape)
        assert np.allclose(found[name], values, rtol=0.3, atol=0.03 * float(values.max()))


def test_the_fisher_by_likelihood_is_the_mean_over_the_models_own_labels():
    net, (x, _) = network(), labelled(40)

    def expected_loss(out, number):
        # sum_y p(y) |grad log p(y)|^2, by one label at a time below
        return cross_entropy(out, torch.tensor([label]))

    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for number in range(40):
        share = net(x[number : number + 1]).softmax(1).detach()[0]
        for label in range(3):
            one = of_samples(net, x[number : number + 1], expected_loss)
            for name in expected:
                expected[name] += share[label] * one[name] / 40
    found = dt.fisher(net, list(x.split(8)), draws=3000)
    for name, values in expected.items():
        assert np.allclose(found[name], values, rtol=0.3, atol=0.03 * float(values.max()))


def test_the_model_is_left_as_it_was():
    net, (x, _) = network(), labelled(20)
    net.train()
    net[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    found = dt.fisher(net, [x])
    dt.variational(net, [x], lambda out, batch: out.square().mean(), passes=1)
    assert net.training and not net[0].weight.requires_grad and net[0].bias.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found["0.weight"].any()
    assert all(np.array_equal(found[name], other) for name, other in dt.fisher(net, [x]).items())


def test_standard_deviations_are_small_where_a_change_hurts():
    x, y = labelled()
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    pairs = list(zip(x.split(50), y.split(50), strict=True))
    sigma = dt.variational(
        net,
        pairs,
        lambda out, batch: cross_entropy(out, batch[1]),
        forward=lambda model, batch: model(batch[0]),
        passes=20,
    )
    assert sigma.keys() == net.state_dict().keys()
    assert all(values.dtype == np.float32 and (values > 0).all() for values in sigma.values())
    # Inputs are ten times as large at one end as at the other.
    first = sigma["0.weight"]
    assert np.median(first[:, 0]) > 1.5 * np.median(first[:, -1])

    def loss_with(noise):
        state = {name: value.clone() for name, value in net.state_dict().items()}
        total = 0.0
        for seed in range(10):
            generator = torch.Generator().manual_seed(seed)
            moved = {
                n: v + torch.from_numpy(noise[n]) * torch.randn(v.shape, generator=generator) for n, v in state.items()
            }
            total += float(cross_entropy(torch.func.functional_call(net, moved, (x,)), y).detach()) / 10
        return total

    # Noise of the same energy, spread evenly in each tensor, hurts more.
    even = {name: np.full_like(values, np.sqrt((values**2).mean())) for name, values in sigma.items()}
    assert loss_with(sigma) < loss_with(even)
    importance = {name: 1 / values**2 for name, values in sigma.items()}
    data = deepcabac.compress({n: v.numpy() for n, v in net.state_dict().items()}, importance=importance, sqnr=25)
    restored = {n: torch.from_numpy(v) for n, v in deepcabac.decompress(data).items()}
    assert float(cross_entropy(torch.func.functional_call(net, restored, (x,)), y).detach()) < loss_with(sigma)


def test_parameters_that_no_sample_reaches_are_left_out_with_a_warning():
    net = network()
    net.unused = torch.nn.Linear(3, 3)
    net.forward = lambda x: net[2](net[1](net[0](x)))
    with pytest.warns(UserWarning, match=r"no sample reached unused.weight, unused.bias"):
        found = dt.fisher(net, [labelled(20)[0]])
    assert found.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net, x: dt.fisher(net, []), CalibrationError, "no samples"),
        (lambda net, x: dt.fisher(net, [x], "hinge"), OptionError, "loss must be one of"),
        (lambda net, x: dt.fisher(net, [x], draws=0), OptionError, "draws must be"),
        (lambda net, x: dt.fisher({}, [x]), OptionError, r"must be a torch.nn.Module"),
        (lambda net, x: dt.fisher(net, [x * torch.nan]), CalibrationError, "not finite"),
        (lambda net, x: dt.fisher(torch.nn.ReLU(), [x]), OptionError, "no parameters"),
        (lambda net, x: dt.variational(net, iter([x]), torch.mean), OptionError, "not a generator"),
        (lambda net, x: dt.variational(net, [x], "likelihood"), OptionError, "loss must be a function"),
        (lambda net, x: dt.variational(net, [x], torch.mean, passes=0), OptionError, "passes must be"),
        (lambda net, x: dt.variational(net, [x], torch.mean, samples=0), OptionError, "samples must be"),
        (lambda net, x: dt.variational(net, [x], torch.mean, learning_rate=0), OptionError, "learning_rate must be"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(network(), labelled(20)[0])
