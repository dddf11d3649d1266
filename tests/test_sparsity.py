"""Making weights zero while a model trains."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import deepcabac  # noqa: E402
import deepcabac.torch as dt  # noqa: E402
from deepcabac import OptionError, UnsupportedError  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def network():
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 24), nn.ReLU(), nn.Linear(24, 3)
    )


def task(count=600):
    """Images [n, 1, 8, 8] of three kinds, in noise."""
    y = torch.arange(count) % 3
    x = torch.randn(count, 1, 8, 8) / 2
    for kind in range(3):
        x[y == kind, 0, 2 * kind + 1] += 1
    return x, y


def train(net, optimizer, x, y, epochs, after=lambda: None, extra=lambda: 0.0):
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(50):
            optimizer.zero_grad()
            (torch.nn.functional.cross_entropy(net(x[batch]), y[batch]) + extra()).backward()
            optimizer.step()
            after()


def accuracy(net, x, y):
    net.eval()
    return float((net(x).argmax(1) == y).float().mean())


def zeros(net):
    weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def test_pruning_with_training_keeps_accuracy_and_zeros_stay_in_the_file(tmp_path):
    (x, y), (x_test, y_test) = task(), task()
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    train(net, optimizer, x, y, 8)
    before = accuracy(net, x_test, y_test)
    pruning = dt.sparsify(net, sparsity=0.95, steps=60, every=10)
    shares = []
    train(net.train(), optimizer, x, y, 8, lambda: (pruning.step(), shares.append(pruning.sparsity)))
    assert shares == sorted(shares) and shares[5] == 0 < shares[20] < 0.95
    assert shares[-1] == pytest.approx(0.95, abs=0.001) and zeros(net) == pytest.approx(0.95, abs=0.001)
    assert accuracy(net, x_test, y_test) > before - 0.05 and before > 0.9
    original = {name: value.numpy() for name, value in net.state_dict().items()}
    for settings in ({}, {"sqnr": 10}, {"quantizer": "scalar", "step": 0.05}):
        dt.save_model(net, tmp_path / "m.dcb", **settings)
        found = deepcabac.load_file(tmp_path / "m.dcb")
        assert all(not found[name][value == 0].any() for name, value in original.items() if name.endswith("weight"))


@pytest.mark.parametrize(("preset", "coder"), [("fast", "fast"), ("default", "sparse"), ("small", "sparse")])
def test_pruned_tensors_have_a_coder_of_their_own(tmp_path, preset, coder):
    random = np.random.default_rng(0)
    dense = random.standard_normal((300, 400)).astype(np.float32)
    pruned = np.where(np.abs(dense) > 2, dense, 0)
    deepcabac.save_file({"dense": dense, "pruned": pruned}, tmp_path / "m.dcb", preset=preset, sqnr=30)
    with deepcabac.open_file(tmp_path / "m.dcb") as file:
        info = {name: file.info(name) for name in file}
        back = file["pruned"]
    assert info["pruned"].coder == coder
    assert info["dense"].coder == ("fast" if preset == "fast" else "binary")
    assert not back[pruned == 0].any()
    # Where the weights are; a sign and, at 30 dB, a magnitude of eight to sixteen steps.
    share = np.mean(pruned != 0)
    where = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    assert 8 * info["pruned"].coded_bytes < pruned.size * (where + 4.5 * share)


def test_small_weights_go_first_and_the_schedule_is_cubic():
    net = torch.nn.Linear(100, 40)
    magnitudes = net.weight.detach().abs().reshape(-1).sort().values
    pruning = dt.sparsify(net, sparsity=0.8, steps=4, every=1)
    for step in range(1, 7):
        pruning.step()
        share = 0.8 * (1 - (1 - min(step / 4, 1)) ** 3)
        assert pruning.sparsity == pytest.approx(share, abs=1 / 4000)
    left = net.weight.detach().abs()
    assert left[left > 0].min() >= magnitudes[3199]


def test_layers_compete_by_their_share_and_none_loses_all():
    net = torch.nn.Sequential(torch.nn.Linear(50, 50), torch.nn.Linear(50, 50))
    with torch.no_grad():
        net[0].weight.mul_(1e-4)
    dt.sparsify(net, sparsity=0.9, steps=1).step()
    shares = [float((layer.weight == 0).float().mean()) for layer in net]
    assert shares[0] == pytest.approx(shares[1], abs=0.05)  # the size of a whole layer makes no difference


def test_layers_can_have_a_sparsity_of_their_own():
    net = network()
    dt.sparsify(net, sparsity={"0.*": 0.5, "3.weight": 0.9}, steps=1).step()
    shares = [float((net[number].weight == 0).float().mean()) for number in (0, 3, 5)]
    assert shares == pytest.approx([0.5, 0.9, 0], abs=0.01)
    assert not any((layer.bias == 0).any() for layer in (net[0], net[3], net[5]))


def test_what_is_zero_already_stays_zero():
    net = torch.nn.Linear(20, 20)
    with torch.no_grad():
        net.weight[:5] = 0
    pruning = dt.sparsify(net, sparsity=0, steps=1)
    with torch.no_grad():
        net.weight.add_(1)
    pruning.step()
    assert not net.weight[:5].any() and net.weight[5:].all()


def test_variational_dropout_finds_what_is_of_no_use():
    (x, y), (x_test, y_test) = task(), task()
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    with dt.sparsify(net, "variational", samples=len(y), warm_up=100) as dropout:
        optimizer.add_param_group({"params": list(dropout.parameters()), "lr": 3e-2})
        train(net, optimizer, x, y, 40, dropout.step, dropout.penalty)
        share = dropout.sparsity
        found = accuracy(net, x_test, y_test)
        sigma = dropout.standard_deviations(net)
        with pytest.raises(UnsupportedError, match="forward of its own"):
            dt.sparsify(net, "variational", samples=3)
    assert share > 0.7 and found > 0.9
    assert sigma.keys() == {"0.weight", "3.weight", "5.weight"} and sigma["3.weight"].shape == (24, 216)
    assert zeros(net) == pytest.approx(share) and accuracy(net, x_test, y_test) == pytest.approx(found)
    assert not any("forward" in vars(module) for module in net.modules())
    assert set(net.state_dict()) == set(network().state_dict())


def test_layers_with_noise_put_out_the_mean_and_the_variance_of_their_weights():
    torch.manual_seed(1)
    for layer, x in (
        (torch.nn.Linear(10, 4), torch.randn(3, 10)),
        (torch.nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.randn(2, 4, 5, 5)),
    ):
        expected = layer(x)
        dropout = dt.sparsify(layer, "variational", samples=10)
        (log_variance,) = dropout.parameters()
        with torch.no_grad():
            log_variance.fill_(np.log(0.04))
            layer.train()
            draws = torch.stack([layer(x) for _ in range(4000)])
            ones = torch.full_like(layer.weight, 0.04)
            variance = layer._conv_forward(x * x, ones, None) if x.dim() == 4 else x * x @ ones.T
        assert torch.allclose(draws.mean(0), expected, atol=0.1)
        assert torch.allclose(draws.var(0), variance, rtol=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0, "steps": 5}, "sparsity must be at least 0 and below 1"),
        ({"sparsity": True, "steps": 5}, "sparsity must be at least 0 and below 1"),
        ({"sparsity": 0.5, "steps": 0}, "steps must be a whole number"),
        ({"sparsity": 0.5, "steps": 5, "every": 0.5}, "every must be a whole number"),
        ({"sparsity": {"no.*": 0.5}, "steps": 5}, "no layer's weight matches 'no.*'"),
        ({"method": "variational", "samples": 0}, "samples must be a whole number"),
        ({"method": "variational", "samples": 4, "warm_up": -1}, "warm_up must be a whole number"),
        ({"method": "random"}, "method must be magnitude or variational"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(OptionError, match=message):
        dt.sparsify(network(), **settings)


def test_a_model_without_layers_is_refused():
    with pytest.raises(UnsupportedError, match="no Linear or convolution layer"):
        dt.sparsify(torch.nn.LayerNorm(4), sparsity=0.5, steps=1)
    with pytest.raises(OptionError, match=r"model must be a torch.nn.Module"):
        dt.sparsify({}, sparsity=0.5, steps=1)
