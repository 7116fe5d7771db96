"""Variants of the digits, and the benchmarks made of them."""

from __future__ import annotations

import dataclasses
from statistics import fmean, median

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from benchmarks.data.digit_variants import VARIANTS, noise_image, paint, soup, vary, zoom
from benchmarks.harness.papers import paper

IMAGES = arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=9))


def _stack(dataset) -> tuple[torch.Tensor, torch.Tensor]:
    items = [dataset[i] for i in range(len(dataset))]
    return torch.stack([item[0] for item in items]), torch.tensor([item[1] for item in items])


def _bytes(dataset) -> np.ndarray:
    return (_stack(dataset)[0][:, 0] * 255).round().numpy().astype(np.uint8)


def test_backgrounds_change_and_strokes_keep_their_grey_level():
    image = np.array([[[0, 51, 255]]], np.uint8)
    assert vary(image, "base").tolist() == [[[85, 102, 170]]]
    assert vary(image, "black").tolist() == [[[0, 34, 170]]]
    assert vary(image, "white").tolist() == [[[255, 238, 170]]]
    assert paint(image, 170).tolist() == [[[170, 170, 170]]]


@given(IMAGES)
def test_flipping_twice_changes_nothing_and_both_flips_are_one_after_the_other(images):
    base = vary(images, "base")
    assert np.array_equal(vary(images[:, :, ::-1], "hflip"), base)
    assert np.array_equal(vary(images[:, ::-1], "vflip"), base)
    assert np.array_equal(vary(images[:, ::-1, ::-1], "hvflip"), base)
    assert np.array_equal(vary(images, "hflip")[:, ::-1], vary(images, "hvflip"))
    assert np.array_equal(vary(images, "hflip")[:, :, 0], base[:, :, -1])
    assert np.array_equal(vary(images, "vflip")[:, 0], base[:, -1])


@given(IMAGES, st.integers(0, 5), st.sampled_from([0.0, 0.1, 0.5, 10.0]))
def test_the_noise_is_the_same_on_every_image(images, seed, noise):
    added = vary(images, "noisy", seed=seed, noise=noise).astype(int) - vary(images, "base")
    assert np.array_equal(added, np.broadcast_to(noise_image(*images.shape[1:], seed=seed, std=noise), added.shape))


def test_the_noise_has_its_standard_deviation_and_its_seed():
    noise = noise_image(100, 100, seed=0, std=0.1)
    assert noise.std() == pytest.approx(25.5, rel=0.03)
    assert noise.mean() == pytest.approx(0, abs=0.8)
    assert abs(noise_image(100, 100, seed=0, std=1.0)).max() == 85
    assert np.array_equal(noise, noise_image(100, 100, seed=0, std=0.1))
    assert not np.array_equal(noise, noise_image(100, 100, seed=1, std=0.1))


def test_zoom_shrinks_to_the_lower_right_corner_of_a_grey_image():
    image = np.full((1, 28, 28), 170, np.uint8)
    zoomed = zoom(image)
    assert np.array_equal(zoomed[0, 7:, 7:], np.full((21, 21), 170))
    zoomed[0, 7:, 7:] = 85
    assert np.array_equal(zoomed, np.full((1, 28, 28), 85))
    assert zoom(np.full((1, 8, 8), 170, np.uint8))[0, 2:, 2:].min() == 170  # digits: 6 of 8
    assert np.array_equal(vary(np.zeros((2, 28, 28), np.uint8), "zoom"), np.full((2, 28, 28), 85))
    step = np.full((1, 4, 4), 85, np.uint8)
    step[:, :, 2:] = 169
    # Three pixels for four: the middle one straddles the step, the outer ones reach a sixth of a pixel past it.
    middle = zoom(step)[0, 2, 1:].astype(int)
    assert middle[1] == 127
    assert middle[0] + middle[2] == 85 + 169


def test_zoom_keeps_the_mean_of_what_it_shrinks(digits_arrays):
    images = vary(digits_arrays.x_train, "base")
    small = zoom(images)[:, 2:, 2:].astype(float)
    assert small.mean() == pytest.approx(images.astype(float).mean(), abs=1.0)


def test_every_variant_makes_new_contiguous_bytes(digits_arrays):
    before = digits_arrays.x_train.copy()
    found = [vary(digits_arrays.x_train, variant) for variant in VARIANTS]
    for images in found:
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous
        assert images.shape == before.shape
    assert np.array_equal(digits_arrays.x_train, before)
    assert len({images.tobytes() for images in found}) == len(VARIANTS) == 8


def test_the_last_stage_has_the_same_images_whatever_comes_before(digits_arrays):
    alone = soup(digits_arrays, [("vflip", 30)], seed=1).train_stream[0].dataset
    second = soup(digits_arrays, [("base", 100), ("vflip", 30)], seed=1)
    third = soup(digits_arrays, [("noisy", 50), ("base", 100), ("vflip", 30)], seed=1)
    for other in (second.train_stream[1].dataset, third.train_stream[2].dataset):
        assert torch.equal(_stack(alone)[0], _stack(other)[0])
        assert torch.equal(_stack(alone)[1], _stack(other)[1])
    source, again = second.train_stream[0].dataset, third.train_stream[1].dataset
    assert torch.equal(_stack(source)[0], _stack(again)[0])
    other_seed = soup(digits_arrays, [("vflip", 30)], seed=2).train_stream[0].dataset
    assert not torch.equal(_stack(alone)[0], _stack(other_seed)[0])


def test_stages_and_held_out_images_share_no_training_image(digits_arrays):
    counts = {"base": 150, "hflip": 100, "vflip": 50}
    benchmark = soup(digits_arrays, list(counts.items()), seed=0, validation=100)
    assert [len(e.dataset) for e in benchmark.train_stream] == [150, 100, 50]
    assert [len(e.dataset) for e in benchmark.streams["valid"]] == [100] * 3
    assert [e.task_labels for e in benchmark.train_stream] == [[0], [1], [2]]
    back = (lambda x: x, lambda x: x[:, :, ::-1], lambda x: x[:, ::-1])
    parts = [f(_bytes(e.dataset)) for f, e in zip(back, benchmark.train_stream, strict=True)]
    parts.append(_bytes(benchmark.streams["valid"][0].dataset))
    together = sorted(image.tobytes() for part in parts for image in part)
    assert together == sorted(image.tobytes() for image in vary(digits_arrays.x_train, "base"))


def test_test_images_are_varied_and_the_same_ones_under_every_seed(digits_arrays):
    stages = [("noisy", 5), ("hvflip", 5)]
    benchmark = soup(digits_arrays, stages, seed=3, noise=0.2)
    whole = dataclasses.astuple(digits_arrays)[2]
    assert benchmark.n_classes == 10
    assert _stack(benchmark.test_stream[0].dataset)[0].shape == (200, 1, 8, 8)
    assert np.array_equal(_bytes(benchmark.test_stream[0].dataset), vary(whole, "noisy", seed=3, noise=0.2))
    assert np.array_equal(_bytes(benchmark.test_stream[1].dataset), vary(whole, "hvflip"))
    few, other = (soup(digits_arrays, [("base", 5)], seed=seed, test=50).test_stream[0].dataset for seed in (0, 1))
    assert len(few) == 50
    assert torch.equal(_stack(few)[0], _stack(other)[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a: vary(a.x_train, "blue"), "variant must be one of base, noisy, .*, got 'blue'"),
        (lambda a: vary(a.x_train[..., None], "base"), r"images must be \(N, H, W\) uint8, got \(400, 8, 8, 1\)"),
        (lambda a: vary(a.x_train.astype(float), "base"), "got .* float64"),
        (lambda a: vary(a.x_train, "noisy", noise=-0.1), "noise must not be negative, got -0.1"),
        (lambda a: soup(a, [], seed=0), "stages must name at least one variant"),
        (lambda a: soup(a, [("base", 0)], seed=0), "at least one image each"),
        (lambda a: soup(a, [("base", 300), ("white", 60)], seed=0, validation=41), r"got \[300, 60\] and 41"),
        (lambda a: soup(a, [("base", 3)], seed=0, test=201), "test must be between 1 and 200 test images, got 201"),
    ],
)
def test_wrong_use_is_refused(digits_arrays, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(digits_arrays)


def test_the_paper_s_cells_reproduce_its_table():
    numbers = paper("progressive")
    for arm, count in (
        ("baseline2", 21),
        ("baseline3", 21),
        ("baseline4", 8),
        ("progressive2", 21),
        ("progressive3", 6),
    ):
        cells = [score for targets in numbers["soup"][arm].values() for score in targets.values()]
        table = numbers["table1"]["soup"][arm]
        assert len(cells) == count
        assert set().union(*numbers["soup"][arm].values()) <= set(VARIANTS)
        assert median(cells) == pytest.approx(table["median"], abs=0.011)
        if max(cells) < numbers["soup"]["clipped_at"]:
            assert fmean(cells) == pytest.approx(table["mean"], abs=0.002)
        else:
            assert fmean(cells) < table["mean"]
