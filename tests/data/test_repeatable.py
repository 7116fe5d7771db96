"""Random transforms are told, however seldom they change a sample, and no random state is touched."""

import pickle
import random

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset
from loading_cases import Pictures, assert_same, build, run
from torch import nn
from torch.utils.data import TensorDataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from avl_plugins.data.loading import InMemoryLoaderPlugin
from avl_plugins.data.random_state import random_state_kept
from avl_plugins.data.serving import TensorLoader


def image(transform):
    """A transform of images, for vectors of 64 numbers."""
    return lambda x: transform(x.view(1, 8, 8)).reshape(64)


def bytes_of(transform):
    """A transform of images of bytes."""
    return image(lambda x: transform((x * 99).to(torch.uint8)).float())


class OwnGenerator:
    """A flip that draws from a generator of its own."""

    def __init__(self, p):
        self.p, self.generator = p, np.random.default_rng(0)

    def __call__(self, x):
        return x.flip(0) if self.generator.random() < self.p else x


class OnLargeNumbers:
    """Noise on some samples only."""

    def __call__(self, x):
        return x + torch.rand(()) if x.max() > 2.5 else x


RARE = {"p": 0.02}
RANDOM = {
    "torch": lambda x: x + torch.rand(()),
    "numpy": lambda x: x + np.random.rand(),  # noqa: NPY002
    "numpy, every second from the last": lambda x: x + np.random.randn(),  # noqa: NPY002
    "python": lambda x: x + random.random(),
    "rare flip": image(v1.RandomHorizontalFlip(**RARE)),
    "rare flip, v2": image(v2.RandomHorizontalFlip(**RARE)),
    "a flip that never comes": image(v1.RandomHorizontalFlip(p=0)),
    "nested": image(v1.Compose([nn.Identity(), v1.Compose([v1.RandomApply([v1.GaussianBlur(3)], **RARE)])])),
    "nested, v2": image(v2.Compose([v2.Identity(), v2.RandomApply([v2.GaussianBlur(3)], **RARE)])),
    "one of": image(v2.RandomChoice([nn.Identity(), v2.RandomVerticalFlip(1)], p=[0.98, 0.02])),
    "order": image(v1.RandomOrder([nn.Identity(), nn.Identity()])),
    "crop": image(v1.RandomCrop(8, padding=1)),
    "erasing": image(v1.RandomErasing(**RARE)),
    "rotation": image(v2.RandomRotation(1)),
    "affine": image(v2.RandomAffine(1)),
    "AutoAugment": bytes_of(v1.AutoAugment()),
    "RandAugment": bytes_of(v2.RandAugment(num_ops=1)),
    "TrivialAugment": bytes_of(v1.TrivialAugmentWide()),
    "AugMix": bytes_of(v2.AugMix()),
    "own generator": OwnGenerator(0.5),
    "own generator, rare": OwnGenerator(0.05),
    "some samples": OnLargeNumbers(),
}
FIXED = {
    "arithmetic": lambda x: (x - 0.5) / 2,
    "resize": image(v1.Compose([v1.CenterCrop(6), v1.Resize(8)])),
    "v2": image(v2.Compose([v2.Pad(1), v2.CenterCrop(8), v2.ToDtype(torch.float32)])),
    "nan": lambda x: x * torch.tensor(float("nan")),
    "own generator, never": OwnGenerator(0.0),
}


def benchmark(**transforms):
    data = Pictures()
    return nc_benchmark(data, data, 2, task_labels=True, shuffle=False, **transforms)


def states():
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))  # noqa: NPY002


@pytest.mark.parametrize("name", RANDOM)
def test_random_transforms_are_told_and_no_random_state_is_touched(name):
    strategy = build(InMemoryLoaderPlugin(strict=True))
    np.random.randn()  # noqa: NPY002 - the next number is there already
    before = states()
    with pytest.raises(ValueError, match="transforms are random"):
        strategy.train(benchmark(train_transform=RANDOM[name]).train_stream[1])
    assert states() == before


@pytest.mark.parametrize("name", ["torch", "rare flip", "python", "numpy", "some samples"])
def test_random_transforms_are_left_to_avalanches_loader(name, caplog):
    made = benchmark(train_transform=RANDOM[name])
    ends = []
    for plugins in ([InMemoryLoaderPlugin()], []):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        ends.append(run(made, *plugins))
    assert_same(*ends)
    assert TensorLoader in ends[0][0].loaders, "evaluation has no transforms"
    assert caplog.text.count("are random") == 1


@pytest.mark.parametrize("name", FIXED)
def test_others_are_served(name):
    made = benchmark(train_transform=FIXED[name], eval_transform=FIXED[name])
    ours = run(made, InMemoryLoaderPlugin(strict=True))
    assert set(ours[0].loaders) == {TensorLoader}
    if name != "nan":
        assert_same(ours, run(made))


def test_random_labels_of_tensors_are_told():
    """Their map is asked once for each class, and it is asked again."""
    data = TensorDataset(torch.randn(40, 64), torch.arange(40) % 10)

    def experience(change):
        made = AvalancheDataset([data], transform_groups={"train": (None, change), "eval": None})
        return benchmark_from_datasets(train=[made]).train_stream[0]

    strategy = build(InMemoryLoaderPlugin(strict=True))
    strategy.train(experience(lambda y: int(y) // 2))
    with pytest.raises(ValueError, match="are random"):
        strategy.train(experience(lambda y: int(y) if random.random() > 0.02 else 0))


@pytest.mark.parametrize(
    "draw",
    [random.random, lambda: random.gauss(0, 1), np.random.rand, np.random.randn, lambda: torch.rand(1)],
)
def test_a_random_number_is_noticed_and_given_back(draw):
    before = states()
    with random_state_kept() as moved:
        assert not moved()
        draw()
        assert moved()
    assert states() == before
    with pytest.raises(IndexError), random_state_kept():
        [draw()][1]
    assert states() == before
