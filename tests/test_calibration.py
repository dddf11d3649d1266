"""Curvature of PyTorch models, against brute force."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from deepcabac import CalibrationError, CheckpointError, OptionError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - only with torch
from torch.nn import functional as F  # noqa: E402

from deepcabac.torch import Curvature, calibrate  # noqa: E402


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="calibration: ")
        yield


def inner(outputs, batch):
    """A loss with known gradients at the output: the batch's second tensor."""
    return (outputs * batch[1]).sum()


def first(model, batch):
    return model(batch[0])


def measure(model, batches, **more):
    return calibrate(model, batches, inner, forward=first, **more)


def pairs(model, make, batches=3, samples=4):
    torch.manual_seed(1)
    inputs = [make(samples) for _ in range(batches)]
    return [(x, torch.randn_like(model(x))) for x in inputs]


def close(got, wanted, tolerance=1e-4):
    wanted = np.asarray(wanted)
    assert got.dtype == np.float32 and got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()


def folds(products):
    """Sums of [n, ...] over even and odd samples of each batch."""
    return np.stack([sum(product[fold::2].sum(0) for product in products) for fold in (0, 1)])


def gradients(model, name, batches):
    """The gradient of each batch, as float64."""
    parameter = dict(model.named_parameters())[name]
    return [torch.autograd.grad(inner(model(x), (x, v)), parameter)[0].double() for x, v in batches]


class Same(nn.Conv2d):
    """Pads in forward as TensorFlow does."""

    def forward(self, x):
        pads = []
        for axis in (1, 0):
            size, side, stride = x.shape[2 + axis], self.kernel_size[axis], self.stride[axis]
            total = max((math.ceil(size / stride) - 1) * stride + side - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 5, 3), (3, 8, 7)),
    "stride and padding": (nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 2)), (3, 8, 7)),
    "stride with a remainder": (nn.Conv2d(3, 5, 3, stride=2), (3, 8, 8)),
    "dilation": (nn.Conv2d(2, 3, 3, dilation=2, padding=1), (2, 9, 8)),
    "same": (nn.Conv2d(2, 3, (3, 4), padding="same"), (2, 6, 6)),
    "circular": (nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), (2, 6, 5)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, stride=2, bias=False), (4, 7, 7)),
    "one": (nn.Conv1d(3, 4, 3, stride=2, padding=2), (3, 9)),
    "three": (nn.Conv3d(2, 3, (2, 3, 1), padding=(0, 1, 0)), (2, 4, 3, 3)),
    "TensorFlow": (Same(3, 4, 3, stride=2), (3, 8, 9)),
    "TensorFlow depthwise": (Same(4, 4, 5, stride=2, groups=4, bias=False), (4, 10, 10)),
}


def brute_force_patches(layer, x):
    """[n, groups, places, d]: columns of the layer's Jacobian, found by feeding the layer unit kernels."""
    out = []
    d = layer.weight[0].numel()
    for group in range(layer.groups):
        rows = slice(group * (layer.out_channels // layer.groups), (group + 1) * (layer.out_channels // layer.groups))
        taken = []
        for column in range(d):
            with torch.no_grad():
                probe = torch.zeros_like(layer.weight)
                probe[rows.start].view(-1)[column] = 1
                kept, layer.weight.data = layer.weight.data, probe
                bias, layer.bias = layer.bias, None
                taken.append(layer(x)[:, rows.start].flatten(1))
                layer.weight.data, layer.bias = kept, bias
        out.append(torch.stack(taken, -1))
    return torch.stack(out, 1).double()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_factors_of_convolutions(kind):
    layer, shape = CONVOLUTIONS[kind]
    model = nn.Sequential(layer)
    batches = pairs(model, lambda n: torch.randn(n, *shape))
    found = measure(model, batches, positions=1000)
    assert not any("instead" in note for note in found.notes)
    factors = found["0.weight"]
    patches = [brute_force_patches(layer, x) for x, _ in batches]
    close(factors.columns, folds([torch.einsum("ngpd,ngpe->ngde", p, p).numpy() for p in patches]))
    grads = gradients(model, "0.weight", batches)
    if layer.groups == 1:
        outs = [v.flatten(2).double() for _, v in batches]
        close(factors.rows, folds([torch.einsum("nrp,nsp->nrs", g, g).numpy() for g in outs]))
    else:
        close(factors.rows, sum(g.square().flatten(1).sum(1) for g in grads).numpy())
    assert factors.total == pytest.approx(sum(float(g.square().sum()) for g in grads) / 12, rel=1e-4)
    if layer.bias is not None:
        close(found["0.bias"].diagonal, sum(g.square() for g in gradients(model, "0.bias", batches)).numpy() / 12)
        assert found["0.bias"].total == pytest.approx(float(found["0.bias"].diagonal.sum()), rel=1e-4)


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 2, 3, 6), (5, 4, 6), (12, 5, 6)])
def test_factors_of_linear_layers(shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):  # which has samples first; the layer may see them elsewhere
            x = x.transpose(0, 1) if shape == (5, 4, 6) else x.flatten(0, 1) if shape == (12, 5, 6) else x
            y = self.linear(x)
            return y.transpose(0, 1) if shape == (5, 4, 6) else y.unflatten(0, (4, 3)) if shape == (12, 5, 6) else y

    model = Net()
    outer = {(5, 4, 6): (5, 6), (12, 5, 6): (3, 5, 6)}.get(shape, shape[1:])
    batches = pairs(model, lambda n: torch.randn(n, *outer))
    factors = measure(model, batches)["linear.weight"]
    flat = [(x.reshape(4, -1, 6).double(), v.reshape(4, -1, 3).double()) for x, v in batches]
    close(factors.columns, folds([torch.einsum("npd,npe->nde", x, x).numpy() for x, _ in flat])[:, None])
    close(factors.rows, folds([torch.einsum("npd,npe->nde", v, v).numpy() for _, v in flat]))
    grads = gradients(model, "linear.weight", batches)
    assert factors.total == pytest.approx(sum(float(g.square().sum()) for g in grads) / 12, rel=1e-4)


@pytest.mark.parametrize("padding", [None, 2])
def test_factors_of_embeddings(padding):
    model = nn.Sequential(nn.Embedding(9, 3, padding_idx=padding))
    batches = pairs(model, lambda n: torch.randint(0, 8, (n, 5)))
    factors = measure(model, batches)["0.weight"]
    masked = [(x, v.double() * (x != (-1 if padding is None else padding))[..., None]) for x, v in batches]
    close(factors.columns, folds([torch.einsum("npd,npe->nde", v, v).numpy() for _, v in masked])[:, None])
    counts = torch.bincount(torch.cat([x.flatten() for x, _ in batches]), minlength=9)
    if padding is not None:
        counts[padding] = 0
    close(factors.rows, counts.numpy())
    grads = gradients(model, "0.weight", batches)
    assert factors.total == pytest.approx(sum(float(g.square().sum()) for g in grads) / 12, rel=1e-4)


def test_single_samples_alternate_between_the_folds():
    model = nn.Sequential(nn.Linear(3, 2))
    batches = pairs(model, lambda n: torch.randn(n, 3), batches=5, samples=1)
    columns = measure(model, batches)["0.weight"].columns
    products = np.stack([(x.T @ x).numpy() for x, _ in batches])
    close(columns[:, 0], np.stack([products[0::2].sum(0), products[1::2].sum(0)]))


def test_total_is_the_mean_of_squared_gradients_of_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    x = torch.randn(6, 2, 5, 5)
    found = calibrate(model, list(x.split(3)), draws=300)
    for name, parameter in model.named_parameters():
        exact = 0.0
        for sample in x:
            jacobian = torch.func.jacrev(
                lambda p, s=sample, n=name: torch.func.functional_call(model, {n: p}, (s[None],))
            )(parameter)
            exact += float(jacobian.detach().square().sum()) / len(x)
        assert found[name].total == pytest.approx(exact, rel=0.15), name


def test_likelihood_and_logits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    x = 2 * torch.randn(8, 4)
    p = model(x).softmax(-1).detach().double()
    squares = x.double().square().sum(1)
    fisher = float(((1 - p.square().sum(1) * 2 + p.square().sum(1)) * squares).mean())
    assert calibrate(model, [x], "likelihood", draws=2000)["0.weight"].total == pytest.approx(fisher, rel=0.1)
    assert calibrate(model, [x], "logits", draws=500)["0.weight"].total == pytest.approx(
        float(2 * squares.mean()), rel=0.1
    )
    shifted = calibrate(model, [x], "logits", draws=5)["0.bias"]
    assert shifted.total < calibrate(model, [x], draws=5)["0.bias"].total


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.middle = nn.Linear(3, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.middle(self.embed(tokens))))


def share(traces, parts):
    """Each fold of each part scaled to its trace, and added."""
    return sum(
        trace * part / np.trace(part, axis1=-2, axis2=-1)[..., None, None]
        for trace, part in zip(traces, parts, strict=True)
    )


def test_an_embedding_tied_to_a_linear_layer():
    torch.manual_seed(0)
    model = Tied()
    batches = pairs(model, lambda n: torch.randint(0, 7, (n, 5)))
    found = measure(model, batches)
    factors = found["embed.weight"]
    a_in, g_in, counts, traces = [], [], torch.zeros(7), np.zeros(2)
    for tokens, v in batches:
        embedded = model.embed(tokens).detach().requires_grad_()
        hidden = torch.tanh(model.middle(embedded))
        head = model.head.weight.detach().requires_grad_()
        ge, gh = torch.autograd.grad((hidden @ head.T * v).sum(), [embedded, head])
        a_in.append(torch.einsum("npd,npe->nde", hidden, hidden).detach().numpy())
        g_in.append(torch.einsum("npd,npe->nde", ge, ge).numpy())
        counts += torch.bincount(tokens.flatten(), minlength=7)
        gradient = torch.zeros(7, 3).index_add_(0, tokens.flatten(), ge.flatten(0, 1))
        traces += [float(gradient.square().sum()), float(gh.square().sum())]
    close(factors.columns, share(traces, [folds(g_in), folds(a_in)])[:, None])
    out = sum(v.square().sum((0, 1)) for _, v in batches)
    close(factors.rows, (traces[0] * counts / counts.sum() + traces[1] * out / out.sum()).numpy())
    grads = gradients(model, "embed.weight", batches)
    assert factors.total == pytest.approx(sum(float(g.square().sum()) for g in grads) / 12, rel=1e-4)
    assert found["head.weight"] is factors and set(found) == set(model.state_dict())


def test_two_tied_linear_layers_keep_whole_rows(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    batches = pairs(model, lambda n: torch.randn(n, 4))
    found = measure(model, batches)
    assert found["0.weight"].rows.shape == (2, 4, 4) and found["0.weight"] is found["2.weight"]
    sides, outs, traces = [[], []], [[], []], np.zeros(2)
    for x, v in batches:
        h = model[0](x).detach().requires_grad_()
        (g,) = torch.autograd.grad((model[2](torch.tanh(h)) * v).sum(), h)
        for use, (a, b) in enumerate([(x, g), (torch.tanh(h).detach(), v)]):
            sides[use].append(torch.einsum("nd,ne->nde", a, a).numpy())
            outs[use].append(torch.einsum("nd,ne->nde", b, b).numpy())
            traces[use] += float((b.T @ a).square().sum())
    close(found["0.weight"].columns[:, 0], share(traces, [folds(side) for side in sides]))
    close(found["0.weight"].rows, share(traces, [folds(out) for out in outs]))


def test_a_matrix_that_is_used_as_an_argument_too_has_the_factors_of_both_uses():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 3)

        def forward(self, tokens):
            return F.linear(torch.tanh(self.embed(tokens)), self.embed.weight)

    model = Net()
    batches = pairs(model, lambda n: torch.randint(0, 7, (n, 5)))
    found = measure(model, batches)["embed.weight"]
    same = nn.Sequential(nn.Embedding(7, 3), nn.Tanh(), nn.Linear(3, 7, bias=False))
    with torch.no_grad():
        same[0].weight.copy_(model.embed.weight)
    same[2].weight = same[0].weight
    known = measure(same, batches)["0.weight"]
    close(found.columns, known.columns)
    close(found.rows, known.rows)


def test_padding_that_a_forward_adds_by_itself():
    class Odd(nn.Conv2d):
        def forward(self, x):
            return super().forward(F.pad(x, [3, 0, 0, 3]))

    for odd in (Odd(2, 3, 3), Odd(2, 3, 1)):
        batches = pairs(odd, lambda n: torch.randn(n, 2, 6, 6))
        found = measure(nn.Sequential(odd), batches)
        plain = nn.Conv2d(2, 3, odd.kernel_size)
        plain.load_state_dict(odd.state_dict())
        known = measure(plain, [(F.pad(x, [3, 0, 0, 3]), v) for x, v in batches])
        close(found["0.weight"].columns, known["weight"].columns)
        close(found["0.weight"].rows, known["weight"].rows)


class Function(nn.Module):
    """Computes something of its input and a parameter."""

    def __init__(self, function, *shape):
        super().__init__()
        self.w, self.function = nn.Parameter(torch.randn(*shape)), function

    def forward(self, x):
        return self.function(x, self.w)


def moments(sides):
    """Sums over positions of [n, positions, d]'s outer products, by fold."""
    return folds([torch.einsum("nti,ntj->nij", side, side) for side in sides])


#: Of x [n, 5, 3] and w [3, 4].
ROWS_ARE_INPUTS = {
    "linear": lambda x, w: F.linear(x, w.T),
    "matmul": torch.matmul,
    "Conv1D of transformers": lambda x, w: torch.addmm(torch.ones(4), x.view(-1, 3), w).view(*x.shape[:-1], 4),
    "bmm": lambda x, w: torch.bmm(x, w.expand(len(x), -1, -1)),
    "baddbmm": lambda x, w: torch.baddbmm(torch.ones(1), x, w.expand(len(x), -1, -1)),
    "einsum": lambda x, w: torch.einsum("btd,dr->btr", x, w),
    "from the left": lambda x, w: (w.T @ x.mT).mT,
    "copied": lambda x, w: x @ w.clone().double().float(),
}
#: Of x [n, 5, 4] and w [3, 4].
ROWS_ARE_OUTPUTS = {
    "linear": F.linear,
    "matmul": lambda x, w: x @ w.T,
    "einsum": lambda x, w: torch.einsum("btd,rd->btr", x, w),
    "added to, as LoRA does": lambda x, w: F.linear(x, w + torch.ones(3, 2) @ torch.ones(2, 4)),
    "in parts": lambda x, w: torch.cat([x @ part.T for part in w.split(2)], -1),
}


@pytest.mark.parametrize("how", ROWS_ARE_INPUTS)
def test_factors_of_functions_of_a_matrix_whose_rows_are_inputs(how):
    model = Function(ROWS_ARE_INPUTS[how], 3, 4)
    batches = pairs(model, lambda n: torch.randn(n, 5, 3))
    found = measure(model, batches)["w"]
    close(found.rows, moments([x for x, _ in batches]))
    close(found.columns[:, 0], moments([v for _, v in batches]))


@pytest.mark.parametrize("how", ROWS_ARE_OUTPUTS)
def test_factors_of_functions_of_a_matrix_whose_rows_are_outputs(how):
    model = Function(ROWS_ARE_OUTPUTS[how], 3, 4)
    batches = pairs(model, lambda n: torch.randn(n, 5, 4))
    found = measure(model, batches)["w"]
    close(found.columns[:, 0] / found.columns.max(), (sums := moments([x for x, _ in batches])) / sums.max())
    rows = moments([v for _, v in batches])
    if "LoRA" in how:
        rows = sum(grad.square().sum(1) for grad in gradients(model, "w", batches)).numpy()
    elif "parts" in how:  # the rows of one are not known to go with those of another
        rows[:, :2, 2] = rows[:, 2, :2] = 0
    close(found.rows, rows)


def test_factors_of_stacked_experts():
    def routed(x, w):  # the first half of the samples to one expert, the second to the other
        return torch.cat([part @ w[expert] for expert, part in enumerate(x.split(len(x) // 2))])

    def together(x, w):
        return torch.bmm(torch.stack(x.split(len(x) // 2)), w).flatten(0, 1)

    for function in (routed, together):
        model = Function(function, 2, 3, 80)
        batches = pairs(model, lambda n: torch.randn(n, 3), samples=8)
        found = measure(model, batches)["w"]
        for expert in range(2):
            outputs = [v.split(4)[expert] for _, v in batches]
            wanted = np.stack([sum(v[:2].T @ v[:2] for v in outputs), sum(v[2:].T @ v[2:] for v in outputs)])
            close(found.columns[:, expert], wanted)
        close(found.rows, sum(grad.square().sum(2).flatten() for grad in gradients(model, "w", batches)).numpy())


def test_factors_of_attention_and_recurrent_layers():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.inside(x, x, x, need_weights=False)[0]

    class Recurrent(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.inside = kind(4, 3, batch_first=True)

        def forward(self, x):
            return self.inside(x)[0]

    for model, name, height in (
        (Attention(), "inside.in_proj_weight", 12),
        (Recurrent(nn.LSTM), "inside.weight_ih_l0", 12),
        (Recurrent(nn.GRU), "inside.weight_ih_l0", 9),
    ):
        batches = pairs(model, lambda n: torch.randn(n, 5, 4))
        found = measure(model, batches)
        assert not any("instead" in note for note in found.notes)
        close(found[name].columns[:, 0], moments([x for x, _ in batches]))
        assert found[name].rows.shape == (2, height, height)
        if name.endswith("ih_l0"):  # what the states before were is in the outputs, shifted by one
            before = [F.pad(model(x).detach(), (0, 0, 1, -1)) for x, _ in batches]
            close(found["inside.weight_hh_l0"].columns[:, 0], moments(before))


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_factors_of_parametrized_layers(norm):
    layer = getattr(nn.utils.parametrizations, norm)(nn.Linear(4, 3)).eval()
    batches = pairs(layer, lambda n: torch.randn(n, 5, 4))
    found = measure(layer, batches)
    name = next(name for name, value in layer.named_parameters() if value.shape == (3, 4))
    close(found[name].columns[:, 0], moments([x for x, _ in batches]))
    close(found[name].rows, sum(grad.square().sum(1) for grad in gradients(layer, name, batches)).numpy())


@pytest.mark.parametrize("groups", [1, 2])
def test_factors_of_transposed_convolutions(groups):
    model = nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=groups)
    batches = pairs(model, lambda n: torch.randn(n, 4, 5))
    found = measure(model, batches)["weight"]
    # The gradient of the input is a convolution of that of the output: the input lies where its outputs lie.
    patches = [F.unfold(v[:, :, None], (1, 3), padding=(0, 1), stride=(1, 2)).mT for _, v in batches]
    wanted = np.stack([moments(part) for part in zip(*(p.chunk(groups, 2) for p in patches), strict=True)], 1)
    close(found.columns, wanted)
    if groups == 1:
        close(found.rows, moments([x.mT for x, _ in batches]))


def test_what_has_no_factors_is_named_in_one_note():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.other = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5, 4))
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x * self.gain + self.other)

    found = measure(Net(), pairs(Net(), lambda n: torch.randn(n, 5, 4), samples=40))
    assert found.notes == ("a diagonal instead of factors for gain, other (it is not what inputs are multiplied by)",)
    found = measure(Net(), pairs(Net(), lambda n: torch.randn(n, 5, 4), samples=40), largest=3)
    assert found.notes == ("a diagonal instead of factors for gain, other, linear.weight (more than 3 columns)",)


def test_other_parameters_have_diagonals():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.norm = nn.LayerNorm(4)
            self.up = nn.ConvTranspose1d(5, 2, 3)
            self.place = nn.Parameter(torch.randn(5, 4))

        def forward(self, x):
            x = x + self.place
            return self.up(self.norm(x + self.attention(x, x, x)[0]))

    model = Net().eval()
    batches = pairs(model, lambda n: torch.randn(n, 5, 4))
    found = measure(model, batches)
    assert list(found) == list(model.state_dict())
    assert sum(found[name].diagonal is not None for name in found) == 6
    for name in found:
        grads = gradients(model, name, batches)
        squares = sum(g.square() for g in grads).numpy() / 12
        if found[name].diagonal is not None:
            close(found[name].diagonal, squares)
        assert found[name].total == pytest.approx(float(squares.sum()), rel=1e-3)


def test_batch_norm_statistics_against_finite_differences():
    torch.manual_seed(3)
    model = nn.Sequential(nn.BatchNorm2d(3, eps=1e-2)).double().eval()
    norm = model[0]
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean):
            values.normal_()
        norm.running_var.uniform_(0.5, 2)
    batches = pairs(model, lambda n: torch.randn(n, 3, 4, 4).double())
    found = measure(model, batches)
    assert set(found) == {"0.weight", "0.bias", "0.running_mean", "0.running_var"}
    for name in ("running_mean", "running_var"):
        values = getattr(norm, name)
        wanted = np.zeros(3)
        for channel in range(3):
            for batch in batches:
                losses = []
                for step in (1e-6, -1e-6):
                    values[channel] += step
                    losses.append(float(inner(model(batch[0]), batch).detach()))
                    values[channel] -= step
                wanted[channel] += ((losses[0] - losses[1]) / 2e-6) ** 2 / 12
        close(found[f"0.{name}"].diagonal, wanted, 1e-3)


def small():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(400, 6),
        nn.Linear(6, 3),
    )
    return model, list(torch.randn(12, 2, 10, 10).split(4))


def bytes_of(curvature, path):
    curvature.save(path)
    return path.read_bytes()


def test_the_same_seed_gives_the_same_file_however_layers_are_grouped(tmp_path):
    model, batches = small()
    plain = bytes_of(calibrate(model, batches, positions=50), tmp_path / "a")
    assert bytes_of(calibrate(model, batches, positions=50), tmp_path / "b") == plain
    assert bytes_of(calibrate(model, iter(batches), positions=50), tmp_path / "b") == plain
    assert bytes_of(calibrate(model, batches, positions=50, layers_at_once=1), tmp_path / "b") == plain
    assert bytes_of(calibrate(model, batches, positions=50, seed=1), tmp_path / "b") != plain
    found = calibrate(model, batches, positions=50, max_memory=20_000)
    assert found["5.weight"].columns is None and found["5.weight"].diagonal.shape == (6, 400)
    assert found["0.weight"].columns is not None and any("memory" in note for note in found.notes)


def test_merged_parts_are_what_all_samples_together_give():
    """Samples are given out whole batches at a time; a loss of one's own has no random directions."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5)).eval()
    batches = [torch.randn(size, 2, 6, 6) for size in (8, 4, 10, 6)]

    def loss(outputs, batch):
        return outputs.logsumexp(1).sum() - outputs[:, 0].sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = calibrate(model, batches, loss)
        merged = Curvature.merged([calibrate(model, batches[:1], loss), calibrate(model, batches[1:], loss)])
    assert merged.names() == whole.names() and merged.samples == whole.samples == 28
    for name in whole:
        one, other = whole[name], merged[name]
        assert other.total == pytest.approx(one.total, rel=1e-5)
        for part in ("columns", "rows", "diagonal"):
            a, b = getattr(one, part), getattr(other, part)
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * abs(a).max())


def test_fewer_positions_are_close():
    model, batches = small()
    some, every = (calibrate(model, batches, positions=n)["0.weight"].columns.sum((0, 1)) for n in (50, 1000))
    assert np.abs(some - every).max() < 0.2 * every.max()


def test_an_interrupted_calibration_goes_on(tmp_path):
    model, batches = small()
    path = tmp_path / "checkpoint"
    whole = bytes_of(calibrate(model, batches, layers_at_once=1), tmp_path / "a")

    class Stopping:
        passes = 0

        def __iter__(self):
            self.passes += 1
            if self.passes == 3:
                raise KeyboardInterrupt
            return iter(batches)

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, Stopping(), layers_at_once=1, checkpoint=path)
    with pytest.raises(CheckpointError, match="interrupted"):
        Curvature.load(path)
    with pytest.raises(CheckpointError, match="other arguments"):
        calibrate(model, batches, layers_at_once=1, checkpoint=path, seed=1)
    again = Stopping()
    again.passes = 9
    found = calibrate(model, again, layers_at_once=1, checkpoint=path)
    assert again.passes == 10  # only the last group was left
    assert bytes_of(found, tmp_path / "b") == whole
    assert bytes_of(Curvature.load(path), tmp_path / "b") == whole
    with torch.no_grad():
        model[5].weight[0, 0] += 1
    with pytest.raises(CheckpointError, match="another model"):
        calibrate(model, batches, layers_at_once=1, checkpoint=path)


def state(model):
    hooks = [len(module._forward_hooks) for module in model.modules()]
    parameters = [(p.requires_grad, p.grad, p.detach().clone()) for p in model.parameters()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    return [module.training for module in model.modules()], hooks, parameters, buffers, torch.get_rng_state()


@pytest.mark.parametrize("fail", [None, "model", "loss", "batches"])
def test_the_model_is_left_as_it_was(fail):
    model, batches = small()
    model[0].eval()
    model[5].weight.requires_grad_(False)
    model[6].weight.grad = kept = torch.ones(3, 6)
    before = state(model)

    def loss(outputs, batch):
        if fail == "loss":
            raise ZeroDivisionError
        return outputs.sum()

    def give():
        yield from batches
        if fail == "batches":
            raise ZeroDivisionError

    if fail == "model":
        with pytest.raises(RuntimeError):  # torch's own
            calibrate(model, [*batches, torch.zeros(4, 3, 1)])
    elif fail:
        with pytest.raises(ZeroDivisionError):
            calibrate(model, give(), loss)
    else:
        assert "5.weight" in calibrate(model, give(), loss)
    after = state(model)
    assert before[:2] == after[:2] and torch.equal(before[4], after[4])
    for (wanted, grad, value), (wanted2, grad2, value2) in zip(before[2], after[2], strict=True):
        assert wanted == wanted2 and grad is grad2 and torch.equal(value, value2)
    assert all(map(torch.equal, before[3], after[3]))
    assert model[6].weight.grad is kept and bool((kept == 1).all())


def test_what_a_model_may_take_and_return():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x, scale=1.0, kind="tensor"):
            y = self.linear(x) * scale
            return {"tensor": y, "dict": {"other": y * 3, "logits": y}, "tuple": (torch.tensor(1), y)}[kind]

    model, x = Net(), torch.randn(4, 3)
    wanted = calibrate(model, [x])["linear.weight"].total
    for batch in ((x,), [x, 1.0], {"x": x}, {"x": x, "kind": "dict"}, (x, 1.0, "tuple")):
        assert calibrate(model, [batch])["linear.weight"].total == wanted


def test_recomputed_layers_are_counted_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Linear(3, 3)
            self.recompute = False

        def forward(self, x):
            if self.recompute:
                return torch.utils.checkpoint.checkpoint(self.inside, x, use_reentrant=False)
            return self.inside(x)

    model, x = Net(), torch.randn(4, 3)
    plain = calibrate(model, [x])["inside.weight"]
    model.recompute = True
    close(calibrate(model, [x])["inside.weight"].columns, plain.columns)
    model.inside = Function(torch.matmul, 3, 3)
    found = calibrate(model, [x])
    assert found["inside.w"].diagonal.shape == (3, 3) and any("gradient checkpointing" in one for one in found.notes)


def test_half_precision_is_summed_in_float32():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2).bfloat16())
    model[0].bfloat16()
    x = torch.randn(64, 8).bfloat16()
    found = calibrate(model, list(x.split(16)))
    assert found["0.weight"].columns is not None
    close(found["0.weight"].columns[:, 0].sum(0), (x.float().T @ x.float()).numpy())


def test_values_that_are_not_finite_name_the_module():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU6()), nn.Linear(3, 2))
    x = torch.randn(4, 3)
    with torch.no_grad():
        model[1][0].bias[1] = math.nan
    with pytest.raises(CalibrationError, match=r"module '1\.0'"):
        calibrate(model, [x])
    with pytest.raises(CalibrationError, match="batches"):
        calibrate(nn.Sequential(nn.Linear(3, 3)), [torch.full((4, 3), math.inf)])
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    with pytest.raises(CalibrationError, match=r"gradient of 1\.weight"):
        calibrate(model, [x], lambda outputs, batch: (outputs - outputs.detach()).abs().sqrt().sum())


def test_layers_that_are_never_reached():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    for more in ({}, {"layers_at_once": 1}):
        with pytest.warns(UserWarning, match=r"unused\.weight") as caught:
            found = calibrate(Net(), [torch.randn(40, 3)], **more)
        assert found.unreached == ("unused.weight", "unused.bias") and len(caught) == 1
        assert found.names() == ["used.weight", "used.bias"] and found.notes == ()


def test_few_samples_are_noted():
    found = calibrate(nn.Linear(30, 2), [torch.randn(12, 30)])
    assert any("12 samples are few" in note for note in found.notes)
    assert any("in weight: 12 for 30" in note for note in found.notes)


def test_wide_and_tall_layers_get_diagonals():
    found = calibrate(nn.Sequential(nn.Linear(30, 4), nn.Linear(4, 20)), [torch.randn(40, 30)], largest=10)
    assert found["0.weight"].diagonal.shape == (4, 30)
    assert found["1.weight"].columns.shape == (2, 1, 4, 4) and found["1.weight"].rows.shape == (20,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": 3}, "model"),
        ({"batches": torch.zeros(4, 3)}, "list"),
        ({"batches": 5}, "list"),
        ({"batches": []}, "no samples"),
        ({"batches": [torch.zeros(1, 3)]}, "one sample"),
        ({"batches": iter([torch.zeros(4, 3)]), "layers_at_once": 1}, "once"),
        ({"loss": "entropy"}, "entropy"),
        ({"loss": lambda outputs, batch: outputs}, "scalar"),
        ({"forward": 3}, "forward"),
        ({"forward": lambda model, batch: 3}, "int"),
        ({"forward": lambda model, batch: model(batch).detach()}, "no parameter had a gradient"),
        ({"forward": lambda model, batch: model(batch)[:, :1], "loss": "likelihood"}, "two or more classes"),
        ({"draws": 0}, "draws"),
        ({"seed": -1}, "seed"),
        ({"positions": 1.5}, "positions"),
        ({"max_memory": 0}, "max_memory"),
        ({"model": nn.Linear(3, 2, device="meta")}, "meta"),
        ({"model": nn.Flatten()}, "no parameters"),
    ],
)
def test_arguments_that_make_no_sense(arguments, words):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises((OptionError, CalibrationError), match=words):
        calibrate(**({"model": model, "batches": [torch.randn(4, 3)]} | arguments))


def test_a_checkpoint_that_cannot_be_written_is_said_at_once(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        calibrate(nn.Linear(3, 2), [None], checkpoint=tmp_path / "missing" / "file")
