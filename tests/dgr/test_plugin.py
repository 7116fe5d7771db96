"""Deep Generative Replay in Avalanche: its loss, its scholar, other plugins, and resuming."""

import copy
import math

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import loss_metrics
from avalanche.models import IncrementalClassifier, MTSimpleMLP
from avalanche.training import Naive
from checkpoint_cases import differences
from dgr_cases import Recorder, build, gan, net, vae
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from avl_plugins import EWCPlugin, InMemoryLoaderPlugin
from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.dgr.plugin import DGRPlugin
from avl_plugins.dgr.scholar import Answers, Scholar, Solver, replay_loss, solver_from_state, solver_state

pytestmark = pytest.mark.slow


def test_replay_loss_by_hand():
    """Hard: cross-entropy on the old class; soft: T^2 * cross-entropy of probabilities at T, old ones of known classes,
    new ones of all, also of one that the old solver had no output for.
    """
    model = nn.Linear(3, 5).double()
    x, old = torch.randn(6, 3).double(), torch.randn(6, 4).double()
    answers = Answers(x, [(None, old)])
    hard = replay_loss(model, answers, answers="hard", temperature=2.0)
    torch.testing.assert_close(hard, F.cross_entropy(model(x), old.argmax(1)))
    old[:, [1, 3]] = float("-inf")  # not known then
    soft = replay_loss(model, Answers(x, [(None, old)]), answers="soft", temperature=3.0)
    p = (old[:, [0, 2]] / 3).softmax(1)
    q = (model(x) / 3).softmax(1)[:, [0, 2]]
    torch.testing.assert_close(soft, -9 * (p * q.log()).sum(1).mean())
    soft.backward()
    assert model.bias.grad[[1, 3, 4]].min() > 0, "a step lowers the classes that were not known"


def test_the_solver_answers_among_the_classes_it_knew():
    model = net()
    solver = Solver(model, classes=[2, 5])
    ((head, logits),) = solver.logits(torch.randn(50, 64))
    assert head is None
    assert set(logits.argmax(1).tolist()) <= {2, 5}
    assert (logits[:, [0, 1, 3, 4, 6, 7, 8, 9]] == -math.inf).all()
    assert not logits.requires_grad


def test_the_old_solver_does_not_grow_or_move():
    """Its answers keep their bits while the model is trained and its classifier grows; also from a state."""

    class Experience:
        classes_in_this_experience = (0, 1, 2, 3)

    model = nn.Sequential(nn.Linear(64, 30), nn.BatchNorm1d(30), nn.ReLU(), IncrementalClassifier(30))
    model[3].active_units += 1
    x = torch.randn(20, 64)
    solver = Solver(model, classes=[0, 1])
    ((_, before),) = solver.logits(x)
    assert before.shape == (20, 2)
    model[3].adaptation(Experience())
    model.train()(torch.randn(9, 64)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    for kept in (solver, solver_from_state(model, solver_state(solver))):
        ((_, after),) = kept.logits(x)
        assert torch.equal(before, after)
        assert all(not t.requires_grad for t in kept.tensors.values())


def test_loss_is_the_papers_equation_1(digits_classes):
    """r L(real) + (1 - r) L(replayed), r = 1/t; the real batch stays the strategy's."""
    seen = []

    class Watch(DGRPlugin):
        def before_backward(self, strategy, **kwargs):
            real = strategy.loss.detach().clone()
            before = (strategy.mb_x, strategy.mb_y, strategy.mb_output)
            super().before_backward(strategy, **kwargs)
            assert all(a is b for a, b in zip(before, (strategy.mb_x, strategy.mb_y, strategy.mb_output), strict=True))
            seen.append((self.tasks, float(real), self.last_replay_loss, float(strategy.loss.detach())))

    plugin = Watch(generator=vae(), generator_iterations=5)
    strategy = build(strategy=Naive, plugins=[plugin])
    strategy.train(digits_classes.train_stream[:3])
    assert {tasks for tasks, *_ in seen} == {0, 1, 2}
    for tasks, real, replayed, total in seen:
        r = 1 / (tasks + 1)
        expected = real if tasks == 0 else r * real + (1 - r) * float(replayed)
        assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_gradients_are_the_same_in_either_order_with_ewc(digits_classes, kind):
    """r grad L + (1 - r) grad L' + grad penalty, whichever plugin comes first."""
    gradients = []
    for order in (1, -1):
        torch.manual_seed(3)
        ours = DGRPlugin(generator=vae(), generator_iterations=5, answers=kind, replay_ratio=0.3)
        plugins = [ours, EWCPlugin(ewc_lambda=50.0)][::order]
        strategy = build(strategy=Naive, plugins=plugins)
        with pytest.warns(UserWarning, match="EWC fails in class-incremental"):
            strategy.train(digits_classes.train_stream[:2])
        gradients.append([p.grad.clone() for p in strategy.model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_the_old_generator_has_no_gradients_and_stays(digits_classes):
    strategy = build(epochs=2)
    strategy.train(digits_classes.train_stream[0])
    old = strategy.dgr.source.old
    before = [p.clone() for p in old.parameters()]
    strategy.train(digits_classes.train_stream[1])
    assert all(p.grad is None and not p.requires_grad for p in old.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, old.parameters(), strict=True))
    assert strategy.dgr.source.old is not old
    sample = strategy.dgr.scholar.sample(10)
    assert not sample.x.requires_grad


@pytest.mark.parametrize(("replay_ratio", "ratios"), [("1/t", (1, 1 / 2, 1 / 3)), (0.3, (1, 0.3, 0.3))])
def test_the_generator_learns_real_and_replayed_in_the_ratio(digits_classes, replay_ratio, ratios):
    """round(r B) inputs of the experience and B - round(r B) samples of the generator before, at every iteration."""

    def among(some, everything):
        return (some[:, None] == everything).all(2).any(1).all()

    generator = Recorder(batch_size=33)
    strategy = build(generator=generator, generator_iterations=4, replay_ratio=replay_ratio)
    data = [torch.stack([sample[0] for sample in e.dataset]) for e in digits_classes.train_stream[:3]]
    for task, r in enumerate(ratios):
        generator.calls.clear()
        strategy.train(digits_classes.train_stream[task])
        assert len(generator.calls) == 4
        for real, replayed, ratio in generator.calls:
            assert ratio == pytest.approx(r)
            assert len(real) == round(r * 33)
            assert among(real, data[task])
            if task == 0:
                assert replayed is None
            else:
                assert len(replayed) == 33 - round(r * 33)
                assert among(replayed, data[0]), "what this generator gives"
    assert strategy.dgr.generator_losses == {"loss": [0.0] * 4}


def test_training_accuracy_counts_real_samples_only(digits_classes):
    strategy = build(epochs=30)
    strategy.train(digits_classes.train_stream[:2])
    accuracy = strategy.evaluator.get_last_metrics()["Top1_Acc_Epoch/train_phase/train_stream/Task000"]
    right = total = 0
    strategy.model.eval()
    for x, y, _ in digits_classes.train_stream[1].dataset:
        right, total = right + int(strategy.model(x[None]).argmax() == y), total + 1
    assert accuracy == pytest.approx(right / total, abs=0.12)


@pytest.mark.parametrize("replay", ["exact", "noise"])
def test_the_papers_other_arms(digits_classes, replay):
    """Exact replay draws from all past inputs, noise has the data's moments; both are answered by the old solver."""
    strategy = build(generator=None, replay=replay, epochs=20)
    strategy.train(digits_classes.train_stream[:3])
    x = strategy.dgr.scholar.sample(4000, torch.Generator().manual_seed(0)).x
    data = [torch.stack([sample[0] for sample in e.dataset]) for e in digits_classes.train_stream[:3]]
    if replay == "exact":
        everything = torch.cat(data)
        distance = torch.cdist(x, everything).argmin(1)
        assert torch.equal(x, everything[distance])
        shares = distance.bincount(minlength=len(everything)).float() / len(x)
        assert float(shares.max()) < 5 / len(everything)
        assert (shares > 0).float().mean() > 0.95
    else:
        assert float(x.mean()) == pytest.approx(float(data[0].mean()), abs=0.01)
        assert float(x.std()) == pytest.approx(float(data[0].std()), abs=0.01)
    strategy.eval(digits_classes.test_stream[:3])
    accuracy = next(v for k, v in strategy.evaluator.get_last_metrics().items() if k.startswith("Top1_Acc_Stream"))
    assert (accuracy > 0.8) == (replay == "exact")


def test_samples_go_where_the_solver_is():
    solver = Solver(nn.Linear(64, 10, device="meta"), classes=None)
    answers = Scholar(lambda n, generator: torch.rand(n, 64), solver).sample(5)
    assert {answers.x.device.type, answers.heads[0][1].device.type} == {"meta"}
    bare = Solver(nn.Identity(), classes=None)
    assert Scholar(lambda n, generator: torch.rand(n, 64), bare).sample(5).x.device.type == "cpu"


@pytest.mark.parametrize("grows", [False, True])
def test_soft_labels_keep_old_classes(digits_classes, grows):
    """Class-incremental, with one head of fixed width or one that grows; plain training is left with the last two."""

    def accuracy(**options):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(64, 30), nn.ReLU(), IncrementalClassifier(30)) if grows else net()
        strategy = build(model, epochs=20, **options)
        strategy.train(digits_classes.train_stream)
        strategy.eval(digits_classes.test_stream)
        return strategy.evaluator.get_last_metrics()["Top1_Acc_Stream/eval_phase/test_stream/Task000"]

    soft = accuracy(generator=None, replay="exact", answers="soft")
    plain = accuracy(strategy=Naive)
    assert plain < 0.3
    assert soft > plain + 0.4


def test_balanced_replay_has_all_classes_alike():
    """Ninety of class 0 and ten of class 1: as many of both, as far as there are."""
    solver = Solver(nn.Linear(1, 2, bias=False), classes=[0, 1])
    solver.tensors["weight"] = torch.tensor([[1.0], [-1.0]])
    x = torch.where(torch.arange(400) % 10 == 0, -1.0, 1.0)[:, None]
    scholar = Scholar(lambda n, generator: x[:n], solver)
    plain = scholar.sample(60).heads[0][1].argmax(1)
    assert plain.bincount().tolist() == [54, 6]
    even = scholar.sample(60, balanced=True).heads[0][1].argmax(1)
    assert even.bincount().tolist() == [36, 24]  # 24 of class 1 are among 4 * 60
    assert scholar.sample(20, balanced=True).heads[0][1].argmax(1).bincount().tolist() == [12, 8]


def test_multi_head_answers_with_every_old_head(digits_split):
    model = MTSimpleMLP(input_size=64, hidden_size=20)
    strategy = build(model)
    strategy.train(digits_split.train_stream[:3])
    solver = strategy.dgr.scholar.solver
    assert solver.task_labels == [0, 1, 2]
    x = torch.randn(7, 64)
    model.eval()
    with torch.no_grad():
        assert all(torch.equal(logits, model(x, head)) for head, logits in solver.logits(x))
    answers = Answers(x, solver.logits(x))
    loss = replay_loss(model, answers, answers="hard", temperature=1.0)
    each = [F.cross_entropy(model(x, head), logits.argmax(1)) for head, logits in answers.heads]
    torch.testing.assert_close(loss, sum(each) / 3)
    soft = replay_loss(model, answers, answers="soft", temperature=2.0)
    each = [F.cross_entropy(model(x, head) / 2, (logits / 2).softmax(1)) for head, logits in answers.heads]
    torch.testing.assert_close(soft, 4 * sum(each) / 3)


def test_a_growing_classifier(digits_classes):
    model = nn.Sequential(nn.Linear(64, 30), nn.ReLU(), IncrementalClassifier(30))
    strategy = build(model, generator=None, replay="exact", epochs=40)
    strategy.train(digits_classes.train_stream)
    ((_, logits),) = strategy.dgr.scholar.solver.logits(torch.randn(5, 64))
    assert logits.shape == (5, 10)
    strategy.eval(digits_classes.test_stream)
    accuracy = next(v for k, v in strategy.evaluator.get_last_metrics().items() if k.startswith("Top1_Acc_Stream"))
    assert accuracy > 0.75


def test_without_task_labels(digits_arrays):
    """Avalanche's newer benchmarks: a batch is (x, y), experiences have neither task labels nor classes."""
    x, y = torch.from_numpy(digits_arrays.x_train).flatten(1) / 255, torch.from_numpy(digits_arrays.y_train)
    whole = TensorDataset(x, y)
    whole.targets = y.tolist()
    both = [(y < 5).nonzero()[:, 0].tolist(), (y >= 5).nonzero()[:, 0].tolist()]
    stream = benchmark_from_datasets(
        train=[as_classification_dataset(whole).subset(rows) for rows in both]
    ).train_stream
    assert not hasattr(stream[0], "task_labels")
    strategy = build(generator=None, replay="exact", epochs=30, metrics=[loss_metrics(epoch=True)])
    strategy.train(stream)
    assert strategy.dgr.classes == list(range(10))
    strategy.model.eval()
    right = strategy.model(x).argmax(1) == y
    assert right[y < 5].float().mean() > 0.8


def test_a_scholar_teaches_another_solver(digits_classes):
    """Table 1: a second solver, taught by samples alone, agrees with the first on them."""
    strategy = build(generator=None, replay="exact", epochs=40)
    strategy.train(digits_classes.train_stream[:2])
    torch.manual_seed(8)
    pupil = net()
    losses = strategy.dgr.scholar.teach(
        pupil, torch.optim.Adam(pupil.parameters(), lr=0.01), iterations=200, batch_size=50,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert len(losses) == 200
    assert sum(losses[-20:]) < 0.1 * sum(losses[:20])
    exam = strategy.dgr.scholar.sample(500, torch.Generator().manual_seed(1))
    assert (pupil(exam.x).argmax(1) == exam.heads[0][1].argmax(1)).float().mean() > 0.97


def test_with_batches_from_memory_the_same(digits_classes):
    ends = []
    for plugins in ([], [InMemoryLoaderPlugin()]):
        torch.manual_seed(0)
        strategy = build(plugins=plugins, generator=gan(), generator_iterations=3)
        torch.manual_seed(4)
        strategy.train(digits_classes.train_stream[:3])
        ends.append(list(strategy.model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def devices(generator):
    """Where parameters, buffers and what optimizers keep of them are."""
    optimizers = getattr(generator, "optimizers", None) or {"only": generator.optimizer}
    kept = [v for o in optimizers.values() for values in o.state.values() for v in values.values()]
    assert len(kept) > 10
    return {tensor.device.type for tensor in (*generator.parameters(), *generator.buffers(), *kept)}


@pytest.fixture
def meta_like_a_gpu():
    """Moving to "meta" makes other Parameter objects, unlike moving to a GPU; with this flag they stay the same."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield torch.device("meta")
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
@pytest.mark.parametrize("make", [gan, vae])
def test_generators_move_with_their_optimizers(digits_classes, meta_like_a_gpu, make):
    """A state is loaded on the CPU, and the strategy is on another device."""
    strategy = build(generator=make())
    strategy.train(digits_classes.train_stream[0])
    loaded = build(generator=make())
    loaded.dgr.load_state_dict(copy.deepcopy(strategy.dgr.state_dict()))
    generators = (loaded.dgr.generator, loaded.dgr.source.old)
    saved, given = [copy.deepcopy(generator.state_dict()) for generator in generators], []
    for generator in generators:
        load = generator.load_state_dict
        generator.load_state_dict = lambda state, load=load: given.append(state) or load(state)
    loaded.experience = digits_classes.train_stream[1]
    loaded.dgr.before_training_exp(loaded)
    assert given == [], "they are there already"
    loaded.device = meta_like_a_gpu
    loaded.dgr.before_training_exp(loaded)
    assert devices(loaded.dgr.generator) == devices(loaded.dgr.source.old) == {"meta"}
    assert differences(given, saved) == [], "what was loaded anew is what there was"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [gan, vae])
def test_goes_on_on_a_gpu(digits_classes, tmp_path, make):
    """Between experiences: what the generator's optimizers had learnt is there, on the GPU, and the next one trains."""
    first = build(generator=make(), device="cuda")
    first.train(digits_classes.train_stream[:2])
    save_checkpoint(first, tmp_path / "run.pt")
    second = build(generator=make(), device="cuda")
    load_checkpoint(second, tmp_path / "run.pt")
    for strategy in (first, second):
        torch.manual_seed(3)
        strategy.train(digits_classes.train_stream[2])
    assert devices(second.dgr.generator) == devices(second.dgr.source.old) == {"cuda"}
    for one, other in zip(first.dgr.generator.parameters(), second.dgr.generator.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert second.dgr.scholar.sample(5).x.device.type == "cuda"
