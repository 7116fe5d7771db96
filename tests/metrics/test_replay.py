"""What is measured of replay: distance in closed form, classes, images, losses."""

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from dgr_cases import net, vae
from silent import Silent

from avl_plugins import DGR
from avl_plugins.dgr.frechet import frechet_distance, small_classifier
from avl_plugins.metrics import replay_metrics
from avl_plugins.metrics.pictures import Picture


def test_frechet_distance_in_closed_form():
    """Gaussians along the axes: ||m_1 - m_2||^2 + sum (s_1 - s_2)^2, whatever rotation both get."""
    x = torch.randn(400, 3, dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # covariance exactly 1
    s1, s2 = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 0.0])
    shift = torch.tensor([1.0, -2.0, 0.5])
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    one = (white * s1) @ rotation
    other = (white * s2 + shift) @ rotation
    expected = float(shift.square().sum() + (s1 - s2).square().sum())
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(one[:, :1], other[:, :1]) > 0
    for wrong in (one[:1], one[:, :2], one * float("nan")):
        with pytest.raises(ValueError, match="features: expected"):
            frechet_distance(wrong, other)


def test_small_classifier_leaves_the_random_state_and_tells_classes_apart():
    x, y = torch.randn(300, 2, 3), torch.arange(300) % 3
    x[:, 0, 0] += 4 * y
    random = torch.get_rng_state()
    features = small_classifier(x, y)
    assert torch.equal(torch.get_rng_state(), random)
    h = features(x)
    assert h.shape == (300, 32)
    centres = torch.stack([h[y == c].mean(0) for c in range(3)])
    assert (torch.cdist(h, centres).argmin(1) == y).float().mean() > 0.9


def run(digits_classes, metrics, epochs=10, **options):
    torch.manual_seed(0)
    model = net()
    strategy = DGR(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        generator=options.pop("generator", None),
        train_mb_size=20,
        train_epochs=epochs,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), metrics, loggers=[Silent()]),
        **options,
    )
    strategy.train(digits_classes.train_stream[:2])
    return strategy


def test_shares_of_classes(digits_classes):
    """Exact replay has the classes of the data, as the solver answers them; a classifier of one's own is believed."""
    strategy = run(digits_classes, replay_metrics(images=False, losses=False), epochs=60, replay="exact")
    last = strategy.evaluator.get_last_metrics()
    shares = {int(k.split("class")[1].split("/")[0]): v for k, v in last.items() if k.startswith("dgr/ReplayShare")}
    assert set(shares) == {0, 1, 2, 3}
    assert sum(shares.values()) == pytest.approx(1)
    y = torch.cat([torch.as_tensor(e.dataset.targets[:]) for e in digits_classes.train_stream[:2]])
    for c, share in shares.items():
        assert share == pytest.approx(float((y == c).float().mean()), abs=0.06)
    imbalance = next(v for k, v in last.items() if k.startswith("dgr/ReplayImbalance"))
    assert imbalance == pytest.approx(4 * max(shares.values()))
    metrics = replay_metrics(images=False, losses=False, classifier=lambda x: torch.full((len(x),), 3))
    last = run(digits_classes, metrics, replay="exact").evaluator.get_last_metrics()
    assert [v for k, v in last.items() if k.startswith("dgr/ReplayShare/class3")] == [1.0]


def test_images_losses_and_a_run_that_is_the_same_with_and_without(digits_classes):
    metrics = replay_metrics(shape=(1, 8, 8), distance=True, samples=200)
    options = {"generator_iterations": 30}
    torch.manual_seed(1)
    first = vae()
    measured = run(digits_classes, metrics, generator=first, **options)
    torch.manual_seed(1)
    plain = run(digits_classes, [], generator=vae(), **options)
    for a, b in zip(measured.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)
    found = measured.evaluator.get_all_metrics()
    image = measured.evaluator.get_last_metrics()[next(k for k in found if k.startswith("dgr/ReplayImages"))]
    assert isinstance(image, Picture)
    assert image.image.shape == (3, 8 * 9 + 1, 8 * 9 + 1)
    x, values = next(v for k, v in found.items() if k.startswith("dgr/GeneratorLoss/kl"))
    assert x == next(v[0] for k, v in found.items() if k.startswith("dgr/ReplayImages"))
    assert values[1] == pytest.approx(sum(measured.dgr.generator_losses["kl"][-3:]) / 3)
    assert len(next(v for k, v in found.items() if k.startswith("dgr/GeneratorLosses"))[1]) == 2
    distances = next(v for k, v in found.items() if k.startswith("dgr/ReplayDistance"))[1]
    assert len(distances) == 2
    assert all(d > 0 for d in distances)


def test_exact_replay_is_near_the_data_and_noise_is_far(digits_classes):
    metrics = replay_metrics(images=False, classes=False, losses=False, distance=True, samples=300)
    near, far = (
        run(digits_classes, metrics, replay=replay).evaluator.get_last_metrics() for replay in ("exact", "noise")
    )
    near, far = (next(v for k, v in m.items() if k.startswith("dgr/ReplayDistance")) for m in (near, far))
    assert near < 0.1 * far


def test_vectors_that_are_no_images_are_left_out(digits_classes, caplog):
    """Of two experiences, with one line in the log; the rest is measured."""
    measured = run(digits_classes, replay_metrics(), replay="exact")
    found = measured.evaluator.get_all_metrics()
    assert not any("ReplayImages" in name for name in found)
    assert len(next(v for k, v in found.items() if k.startswith("dgr/ReplayImbalance"))[1]) == 2
    assert [r.getMessage() for r in caplog.records if r.name == "avl_plugins.metrics.replay"] == [
        "no ReplayImages of inputs of the shape (64,): pass shape=(C, H, W)"
    ]


def test_says_no(digits_classes):
    with pytest.raises(ValueError, match=r"shape must have as many numbers as the inputs, of the shape \(64,\), got"):
        run(digits_classes, replay_metrics(shape=(1, 28, 28)), replay="exact")
    model = net()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        evaluator=EvaluationPlugin(replay_metrics(), loggers=[Silent()]),
    )
    with pytest.raises(ValueError, match="replay_metrics needs a strategy with a DGRPlugin"):
        strategy.train(digits_classes.train_stream[0])
