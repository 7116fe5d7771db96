"""Samples of generators in images and numbers: resumed after any look at them they end the same."""

import numpy as np
import pytest
import torch

from benchmarks.dgr import _samples as samples
from benchmarks.dgr import samples as dgr_samples
from benchmarks.harness.experiment import Context

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")
SETTINGS = dgr_samples.EXPERIMENT.scales["smoke"]


@pytest.mark.parametrize("arm", ["gr", "vae"])
def test_resumed_training_of_a_generator_ends_the_same(tmp_path, monkeypatch, arm):
    expected = dgr_samples.measure(SETTINGS, arm, 0, Context())
    assert len(expected["grids"]) == len(expected["distance"]) == len(SETTINGS.parts)
    learn, calls = samples.learn_generator, []

    def interrupted(*arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return learn(*arguments)

    file = tmp_path / "state"
    monkeypatch.setattr(samples, "learn_generator", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dgr_samples.measure(SETTINGS, arm, 0, Context(checkpoint=file))
    monkeypatch.setattr(samples, "learn_generator", learn)
    torch.manual_seed(99)
    assert dgr_samples.measure(SETTINGS, arm, 0, Context(checkpoint=file, resume=True)) == expected


def test_rarest_class_is_among_those_so_far(monkeypatch):
    """An autoencoder trained on two classes, then on all ten of digits, gives both of the first two at first."""
    found = dgr_samples.measure(
        dgr_samples.Settings(
            data="digits", tasks=5, width=60, iterations=300, batch_size=32, latent=8, maps=8, vae_iterations=600
        ),
        "vae-classes",
        0,
        Context(),
    )
    assert len(found["rarest"]) == len(found["distance"]) == len(found["grids"]) == 5
    assert 0.5 < found["rarest"][0] <= 1.0, "0 and 1, each about half of the samples"
    assert all(0 <= share <= 1 for share in found["rarest"])
    assert np.isfinite(found["distance"]).all()
