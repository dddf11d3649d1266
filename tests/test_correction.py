import numpy as np
import pytest

import deepcabac

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import deepcabac.torch  # noqa: E402


def network(seed=0, bias=False):
    """Convolutions with batch norms whose statistics are those of :func:`samples`."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=bias),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, bias=bias),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )
    for norm in (model[1], model[4]):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        norm.momentum = None
    with torch.no_grad():
        model(torch.cat(samples()))
    return model.eval()


def samples(seed=1, batches=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(64, 3, 8, 8, generator=generator) + 0.5 for _ in range(batches)]


def arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def restored(model, path, bias=False):
    other = network(bias=bias)
    deepcabac.torch.load_model(path, other)
    return other.eval()


def error(model, other, batches):
    with torch.no_grad():
        return float(sum((model(batch) - other(batch)).square().sum() for batch in batches))


@pytest.mark.parametrize("mode", ["match", "means"])
@pytest.mark.parametrize("bias", [False, True])
def test_correction_makes_outputs_better_on_other_samples(tmp_path, mode, bias):
    model, new = network(bias=bias), samples(seed=2)
    found = []
    for correct in (None, deepcabac.torch.correction(model, samples(), batch_norm=mode)):
        report = deepcabac.torch.save_model(model, tmp_path / "m.dcb", sqnr=10, correct=correct)
        found.append((error(model, restored(model, tmp_path / "m.dcb", bias), new), report.file_bytes))
    (plain, plain_bytes), (corrected, corrected_bytes) = found
    assert corrected < 0.9 * plain
    assert abs(corrected_bytes - plain_bytes) < 0.02 * plain_bytes


def test_correction_leaves_the_levels_of_other_tensors_as_they_are(tmp_path):
    model = network()
    before = deepcabac.decompress(deepcabac.compress(arrays(model), sqnr=12))
    correct = deepcabac.torch.correction(model, samples())
    deepcabac.save_file(arrays(model), tmp_path / "m.dcb", sqnr=12, correct=correct)
    after = deepcabac.load_file(tmp_path / "m.dcb")
    assert list(after) == list(before)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"1.weight", "1.bias", "4.weight", "4.bias", "7.bias"}


def test_nothing_is_corrected_where_nothing_was_lost():
    model = network()
    corrected = deepcabac.torch.correction(model, samples())(arrays(model))
    for name, array in corrected.items():
        np.testing.assert_allclose(array, arrays(model)[name], rtol=1e-5, atol=1e-6)


def test_a_shifted_layer_is_set_back_exactly():
    model = network()
    shifted = arrays(model) | {"3.weight": 1.1 * arrays(model)["3.weight"]}
    corrected = shifted | deepcabac.torch.correction(model, samples())(shifted)
    other = network()
    other.load_state_dict({name: torch.from_numpy(array) for name, array in corrected.items()})
    assert error(model, other.eval(), samples(seed=2)) < 1e-6
    assert not np.allclose(corrected["4.weight"], shifted["4.weight"])


def test_estimate_gives_what_torch_estimates():
    model = network()
    for norm in (model[1], model[4]):
        norm.running_mean += 0.3
    found = deepcabac.torch.correction(model, samples(batches=1), batch_norm="estimate")(arrays(model))
    model.train()
    for norm in (model[1], model[4]):
        norm.reset_running_stats()
    with torch.no_grad():
        model(samples(batches=1)[0])
    for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
        # torch normalises by the variance of the batch, and keeps the one of the population
        np.testing.assert_allclose(found[name], arrays(model)[name], rtol=1e-3, atol=1e-3)


def test_batch_norm_without_weights_is_corrected_by_its_statistics():
    def make():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12, affine=False), nn.ReLU(), nn.Linear(12, 4)).eval()

    model, batches = make(), [torch.randn(256, 8)]
    shifted = arrays(model) | {"0.weight": 1.1 * arrays(model)["0.weight"], "0.bias": arrays(model)["0.bias"] + 0.2}
    corrected = shifted | deepcabac.torch.correction(model, batches)(shifted)
    found = []
    for values in (shifted, corrected):
        other = make()
        other.load_state_dict({name: torch.from_numpy(np.asarray(array)) for name, array in values.items()})
        found.append(error(model, other, batches))
    assert found[1] < 1e-3 * found[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_tensors_may_be_of_any_type(tmp_path, dtype):
    model = network()
    values = {n: t.to(dtype) if t.ndim > 1 else t for n, t in model.state_dict().items()}
    correct = deepcabac.torch.correction(model, samples())
    deepcabac.torch.save_model(values, tmp_path / "m.dcb", sqnr=10, correct=correct)
    restored_values = deepcabac.torch.load_model(tmp_path / "m.dcb")
    assert restored_values["0.weight"].dtype == dtype
    assert not torch.equal(restored_values["1.bias"], values["1.bias"])


def test_the_model_is_left_as_it_was():
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deepcabac.torch.correction(model, samples())(arrays(model))
    assert model.training and not model[0]._forward_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda m: deepcabac.torch.correction("model", samples()), deepcabac.OptionError, "torch.nn.Module"),
        (lambda m: deepcabac.torch.correction(m, samples(), batch_norm="best"), deepcabac.OptionError, "batch_norm"),
        (lambda m: deepcabac.torch.correction(m, [])(arrays(m)), deepcabac.CalibrationError, "no samples"),
        (lambda m: deepcabac.torch.correction(m, samples())({"x": np.ones(3)}), deepcabac.OptionError, "no tensor"),
        (
            lambda m: deepcabac.torch.correction(m, samples())(arrays(m) | {"0.weight": np.ones((2, 2))}),
            deepcabac.OptionError,
            "0.weight",
        ),
        (
            lambda m: deepcabac.torch.correction(m, [torch.full((2, 3, 8, 8), torch.nan)])(arrays(m)),
            deepcabac.CalibrationError,
            "not finite",
        ),
    ],
)
def test_bad_input_is_named(make, error, says):
    with pytest.raises(error, match=says):
        make(network())


@pytest.mark.parametrize("changed", [{"nothing": np.ones(3)}, {"1.bias": np.ones(3)}, {"1.bias": np.full(16, np.nan)}])
def test_a_correction_that_does_not_fit_writes_nothing(tmp_path, changed):
    with pytest.raises(deepcabac.OptionError, match="correction"):
        deepcabac.save_file(arrays(network()), tmp_path / "m.dcb", correct=lambda decoded: changed)
    assert not list(tmp_path.iterdir())


# Folding


@pytest.mark.parametrize("bias", [False, True])
def test_folded_model_computes_the_same(bias):
    model = network(bias=bias)
    folded = deepcabac.torch.fold_batch_norm(model, samples()[0])
    assert error(model, folded, samples(seed=2)) < 1e-6
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (model, folded)]
    assert shapes[0] == shapes[1]
    for norm in (folded[1], folded[4]):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight)) and not norm.running_mean.any()
    network(bias=bias).load_state_dict(folded.state_dict())


def test_what_is_used_elsewhere_too_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
            nn.init.uniform_(self.norm.weight, 2, 3)

        def forward(self, x):
            y = self.layer(x)
            return self.norm(y) + y

    with pytest.raises(deepcabac.OptionError, match="something else"):
        deepcabac.torch.fold_batch_norm(Shared().eval(), torch.randn(5, 4))


def test_nothing_to_fold():
    with pytest.raises(deepcabac.OptionError, match="nothing to fold"):
        deepcabac.torch.fold_batch_norm(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)), torch.randn(5, 4))
