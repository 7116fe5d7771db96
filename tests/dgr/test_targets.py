"""What outputs mean: losses on answers against the formulas written out, and targets that do not fit."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avl_plugins import one_vs_rest_loss
from avl_plugins.dgr.scholar import Answers, Scholar, Solver, replay_loss, solver_from_state, solver_state
from avl_plugins.dgr.targets import Bernoulli, Categorical, Gaussian, choose_likelihood, targets_of


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request):
    return request.param


def cross_entropy(z, y):
    """Slow: -log of the softmax, sample by sample, for classes or probabilities."""
    rows = []
    for logits, target in zip(z.double(), y, strict=True):
        log_p = logits - logits.exp().sum().log()
        rows.append(-(log_p[int(target)] if target.dim() == 0 else (target.double() * log_p).sum()))
    return torch.stack(rows).mean()


def binary(z, y):
    """Slow: -y log s - (1 - y) log(1 - s), the mean over all values."""
    s = 1 / (1 + (-z.double()).exp())
    return -(y.double() * s.log() + (1 - y.double()) * (1 - s).log()).mean()


def one_hot(labels, width):
    return torch.tensor([[float(k == label) for k in range(width)] for label in labels.tolist()])


def answers_and_new(targets, dtype, old_width=3, new_width=3):
    """Old outputs of some width for six inputs, and a linear model with as many or more."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Linear(4, new_width).to(dtype)
    x = torch.randn(6, 4, generator=generator, dtype=dtype)
    old = 2 * torch.randn(6, old_width, generator=generator, dtype=dtype)
    return Answers(x, [(None, old)], targets), model, old, model(x)


HARD = {
    "classes": (Categorical(), nn.CrossEntropyLoss(), lambda old, new: cross_entropy(new, old.argmax(1))),
    "log-probabilities": (
        Categorical(),
        lambda z, y: F.nll_loss(z.log_softmax(1), y),
        lambda old, new: cross_entropy(new, old.argmax(1)),
    ),
    "probabilities": (
        Categorical("values", torch.float32),
        nn.CrossEntropyLoss(),
        lambda old, new: cross_entropy(new, one_hot(old.argmax(1), new.shape[1])),
    ),
    "values in [0, 1]": (
        Bernoulli("values", torch.float32),
        F.binary_cross_entropy_with_logits,
        lambda old, new: binary(new[:, :3], old > 0),
    ),
    "one against the rest": (
        Bernoulli("classes", torch.int64),
        one_vs_rest_loss,
        lambda old, new: binary(new, one_hot(old.argmax(1), new.shape[1])),
    ),
    "means": (
        Gaussian("values", torch.float32),
        nn.MSELoss(),
        lambda old, new: (new[:, :3] - old).double().square().mean(),
    ),
}


@pytest.mark.parametrize("grown", [3, 5])
@pytest.mark.parametrize("case", HARD)
def test_hard_answers_by_hand(case, grown, dtype):
    """Of an output that came later: another class where classes compete, no answer where they are values."""
    targets, criterion, by_hand = HARD[case]
    answers, model, old, new = answers_and_new(targets, dtype, new_width=grown)
    if targets.dtype.is_floating_point:
        targets = type(targets)(targets.shape, dtype)
        answers.targets = targets
    found = replay_loss(model, answers, answers="hard", temperature=2.0, criterion=criterion)
    torch.testing.assert_close(found.double(), by_hand(old, new))
    own = replay_loss(model, answers, answers="hard", temperature=2.0)
    torch.testing.assert_close(own.double(), by_hand(old, new))


@pytest.mark.parametrize("grown", [3, 5])
def test_soft_answers_by_hand(grown, dtype):
    """T^2 times the cross-entropy of probabilities at T; a class that came later had the probability 0."""
    temperature = 3.0
    for shape in ("classes", "values"):
        answers, model, old, new = answers_and_new(Bernoulli(shape), dtype, new_width=grown)
        found = replay_loss(model, answers, answers="soft", temperature=temperature)
        p = (old / temperature).sigmoid()
        if shape == "classes":
            p = torch.cat([p, torch.zeros(6, grown - 3, dtype=dtype)], 1)
        expected = temperature**2 * binary(new[:, : p.shape[1]] / temperature, p)
        torch.testing.assert_close(found.double(), expected)
    answers, model, old, new = answers_and_new(Gaussian("values"), dtype, new_width=grown)
    huber = F.smooth_l1_loss
    found = [replay_loss(model, answers, answers=k, temperature=3.0, criterion=huber) for k in ("hard", "soft")]
    assert found[0] == found[1] == huber(new[:, :3], old), "means have no temperature"


def test_a_single_logit_is_answered_by_its_sign(dtype):
    """Beside classes (N,), beside values (N, 1), and without the dimension."""
    old = torch.tensor([[-1.0], [0.5], [-0.1], [3.0]], dtype=dtype)
    for targets, wanted in (
        (Bernoulli("classes", torch.int64), torch.tensor([0, 1, 0, 1])),
        (Bernoulli("values", dtype), torch.tensor([[0.0], [1], [0], [1]], dtype=dtype)),
    ):
        found = targets.hard(old, old)
        assert torch.equal(found, wanted)
        assert found.dtype == targets.dtype
        assert targets.classes(old).tolist() == [0, 1, 0, 1]
        torch.testing.assert_close(targets.loss(old, found), binary(old, wanted.view(-1, 1)).to(dtype))
    assert torch.equal(Bernoulli("values", dtype).hard(old[:, 0], old[:, 0]), torch.tensor([0.0, 1, 0, 1], dtype=dtype))


def test_maps_are_answered_place_by_place(dtype):
    """Classes of old outputs (N, C, H, W), those that were not known left out; hard and soft as for each place."""
    generator = torch.Generator().manual_seed(2)
    model = nn.Conv2d(2, 4, 1).to(dtype)
    x = torch.rand(3, 2, 5, 6, generator=generator, dtype=dtype)
    solver = Solver(model, classes=[0, 3])
    ((_, old),) = solver.logits(x)
    assert set(old.argmax(1).unique().tolist()) <= {0, 3}
    assert (old[:, 1:3] == -math.inf).all()
    new = nn.Conv2d(2, 4, 1).to(dtype)

    def places(z):
        return z.permute(0, 2, 3, 1).reshape(-1, 4)

    for kind in ("hard", "soft"):
        found = replay_loss(new, Answers(x, [(None, old)]), answers=kind, temperature=2.0)
        flat = Answers(x, [(None, places(old))])
        expected = replay_loss(lambda x: places(new(x)), flat, answers=kind, temperature=2.0)
        torch.testing.assert_close(found, expected)
    assert Categorical().classes(old) is None


FITS = [
    ("categorical", (4, 3), torch.tensor([0, 1, 2, 0]), Categorical("classes", torch.int64), [0, 1, 2]),
    ("categorical", (2, 3, 2), torch.tensor([[0, 2], [2, -100]]), Categorical("classes", torch.int64), [0, 2]),
    ("categorical", (2, 3), torch.tensor([[0.4, 0.0, 0.6], [1, 0, 0]]), Categorical("values", torch.float32), [0, 2]),
    ("bernoulli", (4, 1), torch.tensor([0, 1, 1, 0]), Bernoulli("classes", torch.int64), [0, 1]),
    ("bernoulli", (4, 1), torch.tensor([0.0, 1, 1, 0]), Bernoulli("classes", torch.float32), [0, 1]),
    ("bernoulli", (4, 1), torch.ones(4, 1), Bernoulli("values", torch.float32), [1]),
    ("bernoulli", (4,), torch.tensor([0.0, 1, 1, 0]), Bernoulli("values", torch.float32), [0, 1]),
    ("bernoulli", (3, 5), torch.tensor([4, 1, 1]), Bernoulli("classes", torch.int64), [1, 4]),
    ("bernoulli", (2, 3), torch.tensor([[0.0, 1, 1], [0, 0, 0]]), Bernoulli("values", torch.float32), []),
    ("bernoulli", (2, 2), torch.tensor([[0, 1], [1, 1]]), Bernoulli("values", torch.int64), []),
    ("gaussian", (4,), torch.arange(4), Gaussian("values", torch.int64), []),
    ("gaussian", (4, 2), torch.randn(4, 2), Gaussian("values", torch.float32), []),
]


@pytest.mark.parametrize("case", range(len(FITS)))
def test_targets_that_fit(case):
    likelihood, shape, y, targets, classes = FITS[case]
    found = targets_of(likelihood, torch.randn(shape), y)
    assert found == targets
    assert found.classes_in(y) == classes


@pytest.mark.parametrize(
    ("likelihood", "shape", "y"),
    [
        ("categorical", (4,), torch.zeros(4)),
        ("categorical", (4, 1), torch.zeros(4)),
        ("categorical", (4, 1), torch.zeros(4, 1)),
        ("categorical", (4, 3), torch.zeros(4)),
        ("categorical", (4, 3), torch.zeros(4, 1, dtype=torch.int64)),
        ("categorical", (2, 5, 3), torch.zeros(2, 5, dtype=torch.int64)),
        ("bernoulli", (4, 3), torch.zeros(4)),
        ("bernoulli", (4, 1), torch.tensor([0, 1, 2, 1])),
        ("bernoulli", (4, 1), torch.tensor([[-1.0], [1], [1], [1]])),
        ("bernoulli", (2, 3), torch.tensor([[0.0, 1, 2], [0, 0, 0]])),
        ("bernoulli", (4,), torch.zeros(4, 1)),
        ("gaussian", (4, 1), torch.zeros(4)),
        ("gaussian", (4,), torch.zeros(4, 1)),
        ("gaussian", (4, 3), torch.zeros(4, dtype=torch.int64)),
    ],
)
def test_targets_that_do_not_fit(likelihood, shape, y):
    """Among them what broadcasts, silently: (N,) beside (N, 1), and logits with classes last."""
    with pytest.raises(ValueError, match=f"do not fit outputs of shape .* likelihood='{likelihood}', which needs"):
        targets_of(likelihood, torch.zeros(shape), y)


@pytest.mark.parametrize("outputs", [(torch.zeros(2, 3),), {"logits": torch.zeros(2, 3)}, torch.zeros(())])
def test_outputs_have_to_be_a_tensor(outputs):
    with pytest.raises(ValueError, match="outputs and targets must be tensors with the samples along dimension 0"):
        targets_of("categorical", outputs, torch.zeros(2, dtype=torch.int64))


def own_loss(z, y):
    return (z - y).abs().mean()


def test_the_likelihood_is_the_criterions_or_the_one_asked_for():
    for asked, criterion, chosen in [
        (None, nn.CrossEntropyLoss(label_smoothing=0.1), "categorical"),
        (None, partial(F.cross_entropy, label_smoothing=0.1), "categorical"),
        (None, one_vs_rest_loss, "bernoulli"),
        (None, nn.MSELoss(), "gaussian"),
        ("gaussian", nn.L1Loss(), "gaussian"),
        ("categorical", own_loss, "categorical"),
        ("bernoulli", nn.BCEWithLogitsLoss(), "bernoulli"),
    ]:
        assert choose_likelihood(asked, criterion) == chosen
    for asked, criterion, message in [
        (None, own_loss, "likelihood must be one of 'categorical', 'bernoulli', 'gaussian' .* got None with own_loss"),
        (None, nn.L1Loss(), "likelihood must be one of .* got None with L1Loss"),
        ("gaussian", nn.CrossEntropyLoss(), "likelihood must be 'categorical', or None, with the criterion CrossEntro"),
        (None, nn.BCELoss(), "criterion must take logits, got BCELoss"),
        ("bernoulli", F.binary_cross_entropy, "criterion must take logits, got binary_cross_entropy"),
    ]:
        with pytest.raises(ValueError, match=message):
            choose_likelihood(asked, criterion)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize(
    ("targets", "width", "agree"),
    [
        (Categorical(), 3, lambda a, b: (a.argmax(1) == b.argmax(1)).float().mean() > 0.9),
        (Bernoulli("classes"), 3, lambda a, b: (a.argmax(1) == b.argmax(1)).float().mean() > 0.9),
        (Bernoulli("classes"), 1, lambda a, b: ((a > 0) == (b > 0)).float().mean() > 0.95),
        (Bernoulli("values", torch.float32), 3, lambda a, b: ((a > 0) == (b > 0)).float().mean() > 0.95),
        (Gaussian("values", torch.float32), 3, lambda a, b: (a - b).abs().max() < 0.1),
    ],
)
def test_a_scholar_teaches_what_its_outputs_mean(kind, targets, width, agree):
    """With the likelihood's own criterion, also after its solver has been through a state."""
    model = nn.Linear(5, width)
    solver = solver_from_state(model, solver_state(Solver(model, classes=None, targets=targets)))
    assert solver.targets == targets
    scholar = Scholar(lambda n, generator: torch.randn(n, 5, generator=generator), solver)
    pupil = nn.Linear(5, width)
    losses = scholar.teach(
        pupil, torch.optim.Adam(pupil.parameters(), lr=0.05), iterations=150, batch_size=50, answers=kind
    )
    assert losses[-1] < losses[0]
    x = torch.randn(200, 5)
    assert agree(pupil(x), model(x))


def test_balanced_needs_classes():
    scholar = Scholar(lambda n, generator: torch.randn(n, 5), Solver(nn.Linear(5, 3), classes=None, targets=Gaussian()))
    with pytest.raises(ValueError, match="balanced must be False, got True: the answers are not one class for each"):
        scholar.sample(10, balanced=True)
    one = Solver(nn.Linear(1, 1, bias=False), classes=None, targets=Bernoulli("classes"))
    one.tensors["weight"] = torch.ones(1, 1)
    x = torch.where(torch.arange(400) % 10 == 0, -1.0, 1.0)[:, None]
    even = Scholar(lambda n, generator: x[:n], one).sample(60, balanced=True)
    assert even.classes().bincount().tolist() == [24, 36]


def test_teaching_ends_where_the_loss_does():
    scholar = Scholar(lambda n, generator: torch.full((n, 2), math.inf), Solver(nn.Linear(2, 2), classes=None))
    pupil = nn.Linear(2, 2)
    before = pupil.weight.clone()
    with pytest.raises(ValueError, match="the loss is nan in iteration 1: lower the learning rate"):
        scholar.teach(pupil, torch.optim.SGD(pupil.parameters(), lr=0.1), iterations=3)
    assert torch.equal(pupil.weight, before)
