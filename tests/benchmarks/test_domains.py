"""Two domains of the same digits: what is done to images, and benchmarks that show one after the other."""

import base64
import io
from dataclasses import replace
from hashlib import md5

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SVHN

from benchmarks.data.arrays import Arrays, digits, split
from benchmarks.data.domains import domain_pair, in_turn, on_photographs, padded, svhn
from benchmarks.dgr import chain as dgr_chain
from benchmarks.dgr import classes as dgr_classes
from benchmarks.dgr import samples as dgr_samples
from benchmarks.harness.experiment import Context


@pytest.fixture
def svhn_files(tmp_path, monkeypatch):
    """Small files in SVHN's format, H x W x C x N and label 10 for the digit 0, which torchvision takes as whole."""
    random = np.random.default_rng(0)
    images = {}
    for part, n in (("train", 5), ("test", 3)):
        x, file = random.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), tmp_path / f"{part}_32x32.mat"
        savemat(file, {"X": x, "y": np.array([[10], [1], [2], [9], [10]][:n], dtype=np.uint8)})
        images[part] = x
        entry = SVHN.split_list[part]
        monkeypatch.setitem(SVHN.split_list, part, [*entry[:2], md5(file.read_bytes()).hexdigest()])
    return tmp_path, images


def test_svhn_is_read_as_torchvision_reads_it(svhn_files):
    root, images = svhn_files
    arrays = svhn(root)
    assert arrays.x_train.shape == (5, 32, 32, 3)
    assert arrays.x_train.dtype == np.uint8
    assert np.array_equal(arrays.x_train[3], images["train"][..., 3])
    assert arrays.y_train.tolist() == [0, 1, 2, 9, 0]
    assert arrays.y_test.tolist() == [0, 1, 2]
    whole = SVHN(str(root), split="test")
    assert np.array_equal(np.asarray(whole[1][0]), arrays.x_test[1])
    assert split(arrays, 5, flat=False).train_stream[0].dataset[0][0].shape == (3, 32, 32)


def test_absent_svhn_names_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train_32x32\.mat.*download=True.*mnist-negative"):
        svhn(tmp_path)


def test_mnist_beside_svhn(svhn_files, monkeypatch):
    plain = Arrays(*(np.full((4, 28, 28), 7, np.uint8), np.zeros(4, np.int64)) * 2, name="mnist")
    monkeypatch.setattr("benchmarks.data.domains.mnist", lambda root: plain)
    ours, other = domain_pair("svhn", svhn_files[0])
    assert ours.x_train.shape[1:] == other.x_train.shape[1:] == (32, 32, 3)
    assert int(ours.x_train[0].astype(int).sum()) == 7 * 28 * 28 * 3


def test_negatives():
    plain, negative = domain_pair("digits-negative", "unused")
    assert np.array_equal(plain.x_train.astype(int) + negative.x_train, np.full_like(plain.x_train, 255).astype(int))
    assert np.array_equal(plain.y_test, negative.y_test)
    assert (plain.name, negative.name) == ("digits", "digits-negative")
    assert negative.x_test.mean() > 128 > plain.x_test.mean()


def test_photographs():
    """On black digits a patch, on white ones its negative; patches come from all over the photograph."""
    photographs = np.arange(2 * 6 * 6 * 3, dtype=np.uint8).reshape(2, 6, 6, 3)
    black, white = (np.full((200, 4, 4), value, np.uint8) for value in (0, 255))
    patches = on_photographs(black, photographs, seed=3)
    places = {(k, i, j) for k in (0, 1) for i in range(3) for j in range(3)}
    found = [
        next((k, i, j) for k, i, j in places if np.array_equal(patch, photographs[k, i : i + 4, j : j + 4]))
        for patch in patches
    ]
    assert set(found) == places
    assert np.array_equal(on_photographs(white, photographs, seed=3), 255 - patches)
    assert not np.array_equal(on_photographs(black, photographs, seed=4), patches)


def test_padded():
    image = np.full((1, 28, 28), 9, np.uint8)
    assert padded(image).shape == (1, 32, 32, 3)
    assert (padded(image)[0, 2:30, 2:30] == 9).all()
    assert padded(image)[0, :2].max() == 0


def test_domains_in_turn():
    plain, negative = domain_pair("digits-negative", "unused")
    benchmark = in_turn(plain, negative, seed=1, validation=100, task_labels=True)
    first, second = benchmark.train_stream
    x, _, t = second.dataset[0]
    assert (x.shape, t, first.dataset[0][2]) == ((1, 8, 8), 1, 0)
    assert len(first.dataset) == len(second.dataset) == len(plain.y_train) - 100
    assert [len(e.dataset) for e in benchmark.streams["valid"]] == [100, 100]
    assert torch.allclose(first.dataset[0][0] + x, torch.ones(1, 8, 8)), "the same images are held out in both"
    assert benchmark.n_classes == 10
    assert in_turn(plain, negative, seed=1).train_stream[1].dataset[0][2] == 0


def test_bad_domains(tmp_path):
    with pytest.raises(ValueError, match=r"domain must be one of svhn, mnist-negative, mnist-m, .* got 'usps'"):
        domain_pair("usps", tmp_path)
    plain = digits()
    with pytest.raises(ValueError, match="images of digits and larger have different shapes"):
        in_turn(plain, Arrays(*(np.zeros((3, 9, 9), np.uint8), plain.y_train[:3]) * 2, name="larger"), seed=0)
    with pytest.raises(ValueError, match="validation must be between 0 and"):
        in_turn(plain, plain, seed=0, validation=5000)


@pytest.mark.filterwarnings("ignore:No loggers specified")
def test_replay_experiments_take_colour(svhn_files, monkeypatch):
    """Classes, chain and samples run on SVHN's format: 3 x 32 x 32, here a few images of noise."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8), np.arange(60) % 10
    noise = Arrays(x, y, x[:20], y[:20], "svhn")
    monkeypatch.setattr("benchmarks.training.supervised.svhn", lambda root: noise)
    for experiment in (dgr_classes, dgr_chain, dgr_samples):
        settings = replace(experiment.EXPERIMENT.scales["smoke"], data="svhn", iterations=2)
        if hasattr(settings, "validation"):
            settings = replace(settings, validation=10)
        found = experiment.measure(settings, "gr", 0, Context())
        image = Image.open(io.BytesIO(base64.b64decode(found["grids"][0])))
        assert (image.mode, image.size) == ("RGB", (8 * 33 + 1, 8 * 33 + 1)), "eight images of 32 and their borders"
