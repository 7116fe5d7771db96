"""Data of the DEN experiments: MNIST-Variation, made or read, and AwA2's features."""

import numpy as np
import pytest
import torch

from benchmarks.data.arrays import digits
from benchmarks.data.awa import FILES as AWA_FILES
from benchmarks.data.awa import awa2, one_vs_rest_features
from benchmarks.data.mnist_variation import (
    FILES,
    mnist_variation,
    one_vs_rest,
    over_photographs,
    rotated,
    split_by_class,
)


def test_rotation():
    """Angles differ from image to image, and what is turned keeps its distance from the centre."""
    image = np.zeros((400, 29, 29), np.uint8)
    image[:, 14, 22] = 255
    turned = rotated(image, seed=0)
    y, x = np.unravel_index(turned.reshape(400, -1).argmax(1), (29, 29))
    distance = np.hypot(y - 14, x - 14)
    assert np.abs(distance - 8).max() < 1
    angles = np.arctan2(y - 14, x - 14)
    counts, _ = np.histogram(angles, 4, (-np.pi, np.pi))
    assert counts.min() > 60, "all directions"
    assert np.array_equal(rotated(image, seed=0), turned)
    assert not np.array_equal(rotated(image, seed=1), turned)


def test_photographs_show_behind_the_digit():
    photograph = np.random.default_rng(0).random((40, 40)).astype(np.float32)
    strokes = np.zeros((3, 8, 8), np.float32)
    strokes[:, 2:4] = 1.0
    made = over_photographs(strokes, [photograph], seed=0, contrast=0.5)
    assert (made[:, 2:4] == 255).all()
    behind = np.delete(made, [2, 3], axis=1)
    assert behind.max() <= 128
    assert behind.std() > 20
    assert not np.array_equal(made[0], made[1])
    flat = np.full((40, 40), 0.5, np.float32)
    flat[10:, 10:] = photograph[10:, 10:]
    assert over_photographs(strokes, [flat], seed=0)[:, 5].std(1).min() > 0, "flat patches are drawn again"


def test_published_files_are_read(tmp_path):
    random = np.random.default_rng(0)
    for name, n in zip(FILES, (30, 40), strict=True):
        pixels = random.integers(0, 256, (n, 28, 28))
        labels = np.arange(n) % 10
        # Columns of an image one after the other, as the published files have them.
        rows = np.hstack([pixels.transpose(0, 2, 1).reshape(n, -1) / 255, labels[:, None]])
        np.savetxt(tmp_path / name, rows, fmt="%.6f")
    parts = mnist_variation(tmp_path, seed=0, per_class=(3, 1, 2))
    assert parts.name == "mnist-rot-back-image"
    assert [len(y) for _, y in (parts.train, parts.valid, parts.test)] == [30, 10, 20]
    assert all((np.bincount(y) == n).all() for (_, y), n in ((parts.train, 3), (parts.valid, 1), (parts.test, 2)))
    everything = {image.tobytes() for x, _ in (parts.train, parts.valid, parts.test) for image in x}
    assert pixels[7].astype(np.uint8).tobytes() in everything or len(everything) == 60
    assert not np.array_equal(mnist_variation(tmp_path, seed=1, per_class=(3, 1, 2)).train[0], parts.train[0])
    np.savetxt(tmp_path / FILES[0], rows[:, :-1])
    with pytest.raises(ValueError, match="expected 784 grey levels and a label a line, got 784 columns"):
        mnist_variation(tmp_path, seed=0)


def test_one_vs_rest_tasks():
    arrays = digits()
    parts = split_by_class(arrays.x_train, arrays.y_train, (20, 5, 10), seed=0, name="x")
    benchmark = one_vs_rest(parts, tasks=4)
    assert [len(e.dataset) for e in benchmark.train_stream] == [200] * 4
    assert [len(e.dataset) for e in benchmark.streams["valid"]] == [50] * 4
    for task, experience in enumerate(benchmark.test_stream):
        assert sum(experience.dataset.targets) == 10
        x, _, label = experience.dataset[0]
        assert (x.shape, label) == ((64,), task)
    assert np.array_equal(np.array(benchmark.train_stream[2].dataset.targets), (parts.train[1] == 2).astype(int))
    with pytest.raises(ValueError, match="per_class: 1020 samples of class 0 asked for, there are"):
        split_by_class(arrays.x_train, arrays.y_train, (1000, 10, 10), seed=0, name="x")


def test_awa2_files(tmp_path):
    """In the official format: a line of numbers an image, and its class from 1 on in the other file."""
    with pytest.raises(FileNotFoundError, match=r"no AwA2-features\.txt and no AwA2-labels\.txt under"):
        awa2(tmp_path)
    random = np.random.default_rng(0)
    labels = np.repeat([1, 2, 3], 12)
    features = random.normal(size=(36, 30)) + 5 * np.eye(3)[labels - 1] @ random.normal(size=(3, 30))
    np.savetxt(tmp_path / AWA_FILES[0], features)
    np.savetxt(tmp_path / AWA_FILES[1], labels, fmt="%d")
    x, y = awa2(tmp_path)
    assert np.allclose(x, features, atol=1e-4)
    assert y.tolist() == (labels - 1).tolist()
    options = {"per_class": (5, 3, 4), "dimensions": 6}
    benchmark = one_vs_rest_features(x, y, tasks=3, seed=0, **options)
    train = torch.stack([row[0] for row in benchmark.train_stream[1].dataset])
    assert train.shape == (15, 6)
    assert torch.allclose(train.mean(0), torch.zeros(6), atol=1e-5), "PCA is fitted on the training samples"
    assert float(train[:, 0].std()) == pytest.approx(1.0, rel=1e-4)
    products = train.T @ train
    assert torch.allclose(products, products.diag().diag(), atol=1e-3)
    assert [sum(e.dataset.targets) for e in benchmark.streams["valid"]] == [3, 3, 3]
    assert [row[2] for row in (benchmark.test_stream[0].dataset[0], benchmark.test_stream[2].dataset[0])] == [0, 2]
    with pytest.raises(ValueError, match="tasks: expected 1 to 3"):
        one_vs_rest_features(x, y, tasks=4, seed=0, **options)
    np.savetxt(tmp_path / AWA_FILES[1], labels[:-1], fmt="%d")
    with pytest.raises(ValueError, match=r"AwA2-features\.txt has 36 lines, AwA2-labels\.txt 35"):
        awa2(tmp_path)
