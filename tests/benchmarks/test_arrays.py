"""The arrays, the benchmarks made of them, and the ways MNIST is fetched."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.data.arrays import Arrays, cifar100, digits, permuted, split
from benchmarks.harness.experiment import Context


def _stack(dataset) -> tuple[torch.Tensor, torch.Tensor]:
    items = [dataset[i] for i in range(len(dataset))]
    return torch.stack([item[0] for item in items]), torch.tensor([item[1] for item in items])


def test_data_root_prefers_the_option_then_the_variable_then_the_cache(monkeypatch):
    monkeypatch.setenv("AVL_DATA_ROOT", "/from/variable")
    assert Context(data_root_override="/from/option").data_root == Path("/from/option")
    assert Context().data_root == Path("/from/variable")
    monkeypatch.delenv("AVL_DATA_ROOT")
    assert Context().data_root == Path.home() / ".cache" / "avl_plugins"


def test_digits_are_split_the_same_way_each_time():
    first, second = digits(), digits()
    assert first.x_train.shape == (1437, 8, 8)
    assert first.x_test.shape == (360, 8, 8)
    assert first.x_train.dtype == np.uint8
    assert first.x_train.max() == 255
    np.testing.assert_array_equal(first.x_test, second.x_test)
    np.testing.assert_array_equal(np.unique(first.y_test), np.arange(10))


def test_permuted_tasks_hold_the_same_pixels_in_another_order(digits_arrays):
    benchmark = permuted(digits_arrays, 3, seed=1, identity_first=True)
    original, labels = _stack(benchmark.train_stream[0].dataset)
    assert torch.equal(original, torch.from_numpy(digits_arrays.x_train).flatten(1).float() / 255)
    for experience in list(benchmark.train_stream)[1:]:
        images, own = _stack(experience.dataset)
        assert torch.equal(own, labels)
        assert not torch.equal(images, original)
        assert torch.equal(images.sort(1).values, original.sort(1).values)


def test_training_and_test_images_share_a_tasks_permutation(digits_arrays):
    same = dataclasses.replace(digits_arrays, x_test=digits_arrays.x_train, y_test=digits_arrays.y_train)
    benchmark = permuted(same, 2, seed=1)
    for train, test in zip(benchmark.train_stream, benchmark.test_stream, strict=True):
        assert torch.equal(_stack(train.dataset)[0], _stack(test.dataset)[0])


def test_a_task_has_the_same_permutation_whatever_the_number_of_tasks(digits_arrays):
    few, many = (permuted(digits_arrays, n, seed=4).train_stream[1].dataset[7][0] for n in (2, 5))
    assert torch.equal(few, many)
    assert not torch.equal(few, permuted(digits_arrays, 2, seed=5).train_stream[1].dataset[7][0])


@pytest.mark.parametrize("square", [1, 4, 5])
def test_a_square_permutation_moves_only_the_centre(digits_arrays, square):
    benchmark = permuted(digits_arrays, 1, seed=0, square=square, flat=False)
    images, _ = _stack(benchmark.train_stream[0].dataset)
    original = torch.from_numpy(digits_arrays.x_train)[:, None].float() / 255
    assert images.shape == original.shape
    inside = torch.zeros(8, 8, dtype=torch.bool)
    start = (8 - square) // 2
    inside[start : start + square, start : start + square] = True
    assert torch.equal(images[..., ~inside], original[..., ~inside])
    assert torch.equal(images[..., inside], original[..., inside]) == (square == 1)
    assert torch.equal(images[..., inside].sort(-1).values, original[..., inside].sort(-1).values)


def test_colours_move_with_their_pixel():
    pixels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
    colour = np.concatenate([pixels, pixels + 100, pixels + 200], axis=-1)
    labels = np.arange(2)
    benchmark = permuted(Arrays(colour, labels, colour, labels, "toy"), 1, seed=0, flat=False)
    image = (benchmark.train_stream[0].dataset[1][0] * 255).round()
    assert image.shape == (3, 4, 4)
    assert torch.equal(image[1] - image[0], torch.full((4, 4), 100.0))
    assert torch.equal(image[2] - image[0], torch.full((4, 4), 200.0))


def test_held_out_images_leave_training_and_are_the_same_for_each_task(digits_arrays):
    benchmark = permuted(digits_arrays, 2, seed=0, validation=50)
    train, valid = benchmark.train_stream[1].dataset, benchmark.streams["valid"][1].dataset
    assert (len(train), len(valid)) == (350, 50)
    whole = permuted(digits_arrays, 2, seed=0).train_stream[1].dataset
    together = torch.cat([_stack(train)[0], _stack(valid)[0]])
    assert sorted(together.tolist()) == sorted(_stack(whole)[0].tolist())
    first, second = (_stack(e.dataset)[0].sort(1).values for e in benchmark.streams["valid"])
    assert torch.equal(first, second)


def test_split_numbers_each_experiences_classes_from_zero(digits_arrays):
    benchmark = split(digits_arrays, 5)
    original = torch.from_numpy(digits_arrays.y_train)
    for task, experience in enumerate(benchmark.train_stream):
        assert experience.task_labels == [task]
        assert experience.classes_in_this_experience == [0, 1]
        assert set(experience.dataset.targets_task_labels) == {task}
        images, labels = _stack(experience.dataset)
        rows = (original == 2 * task) | (original == 2 * task + 1)
        assert torch.equal(labels, original[rows] - 2 * task)
        assert torch.equal(images * 255, torch.from_numpy(digits_arrays.x_train)[rows].flatten(1).float())


def test_split_without_task_labels_keeps_the_class_numbers(digits_arrays):
    benchmark = split(digits_arrays, 5, task_labels=False)
    for number, experience in enumerate(benchmark.test_stream):
        assert experience.task_labels == [0]
        assert experience.classes_in_this_experience == [2 * number, 2 * number + 1]


def test_split_can_shuffle_the_classes_and_hold_some_images_out(digits_arrays):
    benchmark = split(digits_arrays, 2, seed=3, shuffle_classes=True, class_ids_from_zero=False, validation=40)
    first, second = (set(e.classes_in_this_experience) for e in benchmark.train_stream)
    assert first | second == set(range(10))
    assert first != set(range(5))
    assert sum(len(e.dataset) for e in benchmark.streams["valid"]) == 40
    assert sum(len(e.dataset) for e in benchmark.train_stream) == 360
    renumbered = split(digits_arrays, 2, seed=3, shuffle_classes=True, validation=40)
    plain_labels = benchmark.test_stream[1].dataset.targets
    new_labels = renumbered.test_stream[1].dataset.targets
    pairs = set(zip(plain_labels, new_labels, strict=True))
    assert sorted(new for _, new in pairs) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: permuted(a, 0, seed=0), "n_tasks must be at least 1, got 0"),
        (lambda a: permuted(a, 1, seed=0, square=9), "square must be between 1 and the image's side 8, got 9"),
        (lambda a: permuted(a, 1, seed=0, validation=400), "validation must be between 0 and 399"),
        (lambda a: split(a, 3), "n_experiences must divide the 10 classes, got 3"),
    ],
)
def test_wrong_settings_are_refused(digits_arrays, make, message):
    with pytest.raises(ValueError, match=message):
        make(digits_arrays)


def test_cifar100_from_npz_and_its_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar100\.npz.*x_train"):
        cifar100(tmp_path)
    images = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    labels = np.array([3, 99], dtype=np.uint8)
    np.savez(tmp_path / "cifar100.npz", x_train=images, y_train=labels, x_test=images[:1])
    with pytest.raises(ValueError, match="no array named y_test"):
        cifar100(tmp_path)
    np.savez(tmp_path / "cifar100.npz", x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1])
    arrays = cifar100(tmp_path)
    np.testing.assert_array_equal(arrays.x_train, images)
    assert arrays.y_train.dtype == np.int64
    assert arrays.n_classes == 100
    image = split(dataclasses.replace(arrays), 100, flat=False).train_stream[99].dataset[0][0]
    assert torch.equal(image * 255, torch.from_numpy(images[1]).permute(2, 0, 1).float())
