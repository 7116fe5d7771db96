"""Models of every kind that the Fisher has to get right, and comparisons of two of them."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

RELATIVE = {torch.float64: 1e-6, torch.float32: 1e-5}


class Twice(nn.Module):
    """One linear layer used twice."""

    def __init__(self):
        super().__init__()
        self.shared, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.shared(self.shared(x).tanh()).tanh())


class Recurrent(nn.Module):
    def __init__(self, cell, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        self.cell, self.out = cell(4, 5, batch_first=batch_first), nn.Linear(5, 3)

    def forward(self, x):
        if not self.batch_first:
            return self.out(self.cell(x.transpose(0, 1))[0][-1])
        return self.out(self.cell(x)[0][:, -1])


class Attention(nn.Module):
    """Embedding with repeated tokens, self-attention, layer norm, and the embedding's weight as the output layer."""

    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(6, 8, padding_idx=0)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.mix, self.out = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 6)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x)
        h = self.norm(h + self.attend(h, h, h, need_weights=False)[0])
        return self.out(self.mix(h).tanh().mean(1))


class OutsideItsLayer(nn.Module):
    """A layer called once, whose weight is also used without the layer: no rule can know."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(functional.linear(self.layer(x).tanh(), self.layer.weight))


class SequenceFirst(nn.Module):
    """Rows of the inner layers are positions, and there are as many as the probe has samples."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):  # (N, 2, 4)
        return self.out(self.layer(x.transpose(0, 1)).tanh().sum(0))


class SumOfWeights(nn.Module):
    """Autograd hands out one tensor as the gradient of both weights."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(3, 5))

    def forward(self, x):
        return x @ (self.a + self.b).T


class Views(nn.Module):
    """Parameters that are used through views, and one whose elements lie in the same place."""

    def __init__(self):
        super().__init__()
        self.row, self.flat = nn.Parameter(torch.randn(1, 5) / 8), nn.Parameter(torch.randn(18))
        self.expanded = nn.Parameter(torch.randn(1, 1).expand(6, 5))
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        weight = self.row.expand(6, 5) * torch.arange(1, 7, dtype=x.dtype).unsqueeze(1) + self.expanded
        hidden = (x @ weight.T).tanh()
        return self.out(hidden) + hidden @ self.flat.view(3, 6).T


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(self.second(self.first(x).tanh()).tanh())


class Tokens(nn.Module):
    """Embeddings of tokens that come several times in a sample."""

    def __init__(self, **options):
        super().__init__()
        self.embed, self.out = nn.Embedding(6, 4, **options), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.embed(x).sum(1).tanh())


class Checkpointed(nn.Module):
    """A layer that runs again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(checkpoint(lambda x: self.layer(x).tanh(), x, use_reentrant=False))


def normed():
    parametrizations = nn.utils.parametrizations
    first, last = parametrizations.weight_norm(nn.Linear(5, 4)), parametrizations.spectral_norm(nn.Linear(4, 3))
    return nn.Sequential(first, nn.Tanh(), last)


def conv(**options):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, **options),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (1, 2), groups=2, bias=False),
        nn.GroupNorm(3, 6),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def frozen_weight():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    model[0].weight.requires_grad_(False)
    return model


IMAGES, VECTORS, SEQUENCES = (2, 7, 7), (5,), (6, 4)
MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)), VECTORS),
    "mlp with batch norm and dropout": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(), nn.ReLU(), nn.Linear(7, 3)),
        VECTORS,
    ),
    "mlp on sequences": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Flatten(), nn.Linear(30, 3)),
        SEQUENCES,
    ),
    "frozen weight": (frozen_weight, VECTORS),
    "conv, padding": (lambda: conv(padding=1), IMAGES),
    "conv, stride, dilation, groups": (lambda: conv(padding=2, stride=2, dilation=2, groups=2), IMAGES),
    "conv, circular": (lambda: conv(padding=(2, 1), padding_mode="circular"), IMAGES),
    "conv, same": (lambda: conv(padding="same"), IMAGES),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(6, 4, 3, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)),
        SEQUENCES,
    ),
    "conv3d has no rule": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(24, 3)),
        (1, 3, 3, 4),
    ),
    "a layer used twice": (Twice, VECTORS),
    "a weight used outside its layer": (OutsideItsLayer, VECTORS),
    "sequence first": (SequenceFirst, (2, 4)),
    "rnn": (lambda: Recurrent(nn.RNN), SEQUENCES),
    "gru": (lambda: Recurrent(nn.GRU, batch_first=False), SEQUENCES),
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCES),
    "attention": (Attention, None),
    "attention, tied": (lambda: Attention(tied=True), None),
}
ODD_MODELS = {
    "sum of weights": (SumOfWeights, VECTORS),
    "views": (Views, VECTORS),
    "tied layers": (Tied, VECTORS),
    "tokens, by frequency": (lambda: Tokens(scale_grad_by_freq=True, padding_idx=0), None),
    "checkpointed": (Checkpointed, VECTORS),
    "weight and spectral norm": (normed, VECTORS),
}


ALL_MODELS = MODELS | ODD_MODELS
"""Those that use their parameters in layers, and those that do so otherwise."""


def make(name, samples=5, dtype=torch.float64):
    torch.manual_seed(0)
    build, shape = ALL_MODELS[name]
    model = build().double()
    for module in model.modules():  # running statistics unlike those of the batch
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    if shape is None:
        x = torch.randint(0, 6, (samples, 4))
    else:
        x = torch.randn(samples, *shape, dtype=torch.float64).to(dtype)
    return model.to(dtype), x, torch.randint(0, 3, (samples,))


def batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def assert_same(fisher, expected, relative=None):
    assert fisher.keys() == expected.keys()
    for name, value in fisher.items():
        limit = RELATIVE[value.dtype] if relative is None else relative
        largest = float(expected[name].max())
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=limit, atol=limit * largest)
