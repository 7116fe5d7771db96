"""Pictures: what each logger reads of them, and what a checkpoint keeps."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from avl_plugins.checkpoint.plain import from_plain, to_plain
from avl_plugins.metrics._layers import readable_layers
from avl_plugins.metrics.pictures import Picture


def figure():
    drawn = Figure(figsize=(3, 2), dpi=50)
    drawn.subplots().plot([0, 1], [0, 1])
    return drawn


def test_a_figure_is_drawn_once_and_when_it_is_looked_at(monkeypatch):
    drawn, draws = figure(), []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: draws.append(1) or draw(self, renderer))
    picture = Picture(drawn)
    assert draws == []
    assert picture.image.shape == (3, 100, 150)
    assert picture.image.dtype == torch.uint8
    assert np.array_equal(np.array(picture), picture.image.permute(1, 2, 0).numpy())
    assert draws == [1]
    assert len(np.unique(np.array(picture))) > 2, "something is drawn"


def test_numbers_become_bytes():
    picture = Picture(torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0]).view(1, 1, 5).expand(3, 2, 5))
    assert np.asarray(picture).dtype == np.uint8
    assert np.asarray(picture).shape == (2, 5, 3)
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert np.asarray(picture, dtype=np.float32).dtype == np.float32


def test_checkpoints_keep_figures_small_and_images_as_they_are():
    picture = Picture(figure())
    kept = from_plain(to_plain(picture, "history"))
    assert np.array_equal(np.asarray(kept), np.asarray(picture))
    assert len(picture.png) < picture.image.numel() / 10
    image = Picture(torch.rand(3, 4, 5))
    assert torch.equal(from_plain(to_plain(image, "history")).image, image.image)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (["0.weight", "0.bias", "3.weight", "6.weight"], {"0": "layer 1", "3": "layer 2", "6": "layer 3"}),
        (
            ["features.0.weight", "features.4.weight", "classifier.weight", "classifier.bias"],
            {
                "features.0": "features layer 1",
                "features.4": "features layer 2",
                "classifier": "classifier",
            },
        ),
        (["net.fc1.weight", "scale"], {"net.fc1": "net.fc1", "scale": "scale"}),
        ([], {}),
    ],
)
def test_layers_are_called_so_that_one_knows_them(parameters, expected):
    assert readable_layers(parameters) == expected
    assert list(readable_layers(parameters)) == list(expected)
