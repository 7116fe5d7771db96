"""Learning without forgetting: the new head's warm-up, and old answers to generated images."""

from dataclasses import replace

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import as_multitask

from avl_plugins import InMemoryLoaderPlugin
from benchmarks.data.domains import domain_pair, in_turn
from benchmarks.dgr import domains as dgr_domains
from benchmarks.dgr import lwf as dgr_lwf
from benchmarks.dgr._lwf import HeadWarmUp
from benchmarks.harness.experiment import Context, Run, plain_settings
from benchmarks.progressive._arms import TrunkAndHead
from benchmarks.training.models import image_trunk
from benchmarks.training.supervised import Training, make_evaluator

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


class Watch(SupervisedPlugin):
    """Notes which parameters each iteration changed."""

    def __init__(self):
        super().__init__()
        self.changed, self.old = [], {}

    def before_update(self, strategy, **kwargs):
        self.old = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}

    def after_update(self, strategy, **kwargs):
        now = strategy.model.named_parameters()
        self.changed.append({n for n, p in now if not torch.equal(p, self.old[n])})


def test_warm_up_trains_the_new_head_alone():
    torch.manual_seed(0)
    plain, negative = domain_pair("digits-negative", "unused")
    benchmark = in_turn(plain, negative, seed=0, task_labels=True)
    model = as_multitask(TrunkAndHead(image_trunk("mlp", plain, 12), 12, 10), "classifier")
    strategy = Training(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=479,
        train_epochs=3,
        plugins=[InMemoryLoaderPlugin(), HeadWarmUp(4), watch := Watch()],
        evaluator=make_evaluator(Context()),
    )
    strategy.train(benchmark.train_stream[0])
    assert len(watch.changed) == 9
    trunk = {n for n in watch.changed[0] if "trunk" in n}
    assert len(trunk) == 4
    assert all(changed >= trunk for changed in watch.changed), "the first task needs no warm-up"
    watch.changed.clear()
    strategy.train(benchmark.train_stream[1])
    head = {"classifier.classifiers.1.classifier.weight", "classifier.classifiers.1.classifier.bias"}
    assert watch.changed[:4] == [head] * 4
    assert all(changed >= trunk | head for changed in watch.changed[4:])


def test_old_answers_keep_the_old_domain():
    """Replay keeps more of the old domain than distillation on the new one's images, and that more than nothing."""
    settings = replace(dgr_lwf.EXPERIMENT.scales["smoke"], width=60, iterations=200, warm_up=60, vae_iterations=400)
    settings = replace(settings, alpha=1.0, gan_iterations=60, gan_batch=32, gan_lr=2e-3, latent=8, maps=8)
    lost = {}
    for arm in dgr_lwf.ARMS:
        found = dgr_lwf.measure(settings, arm, 0, Context())
        old, new = found["accuracy"]
        assert found["domains"] == ["digits-negative", "digits"]
        assert len(found["grids"]) == (arm in ("lwf-gr", "lwf-vae")), "no scholar of the last task"
        assert min(old[len(old) // 2], new[-1]) > 0.85
        lost[arm] = old[len(old) // 2] - old[-1]
    assert lost["lwf"] < lost["none"]
    assert max(lost["lwf-gr"], lost["lwf-vae"]) < lost["lwf"] - 0.1


@pytest.mark.parametrize(
    ("experiment", "arm", "domains", "bars"),
    [
        (dgr_domains, "none", ("mnist", "mnist-negative"), ([(2, 0.76)], [(2, 0.925)])),
        (dgr_domains, "none-back", ("mnist-negative", "mnist"), ([(2, 0.64)], [(2, 0.985)])),
        (dgr_lwf, "lwf", ("mnist-negative", "mnist"), ([(2, 0.7), (1, 0.88)], [(2, 0.985)])),
    ],
)
def test_tables_name_the_domains_and_figures_have_the_papers_numbers(experiment, arm, domains, bars):
    measured = {"accuracy": [[0.1, 0.9, 0.6], [0.2, 0.2, 0.8]], "domains": list(domains), "grids": [], "alpha": 2.0}
    run = Run(
        experiment=experiment.EXPERIMENT.name, scale="cpu", arm=arm, seed=0, data="mnist", versions={}, device="cpu",
        settings=plain_settings(experiment.EXPERIMENT.scales["cpu"]), threads=1, seconds=60.0, commit="a",
        date="2026-01-01T00:00:00+00:00", measurements=measured,
    )  # fmt: skip
    found = {row.metric: row.mean for row in experiment.rows([run]) if row.arm == arm}
    assert found.pop(f"lost on the old domain ({domains[0]})") == pytest.approx(0.3)
    assert found.pop(f"accuracy, old domain ({domains[0]})") == 0.6
    assert found.pop(f"accuracy, new domain ({domains[1]})") == 0.8
    assert found == ({f"accuracy, old domain ({domains[0]}), before": 0.9} if experiment is dgr_lwf else {})
    panels = [axes for axes in experiment.figure([run]).axes if axes.get_xlabel() == "tasks learnt"]
    for panel, expected in zip(panels, bars, strict=True):
        colour = next(line.get_color() for line in panel.lines if line.get_label() == arm.removesuffix("-back"))
        marks = [line for line in panel.lines if line.get_marker() == "_" and line.get_color() == colour]
        assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in marks] == expected


def test_domains_forgotten_and_replayed():
    """Exact replay keeps the old domain, plain training loses more than ten points of it, in either order."""
    settings = replace(dgr_domains.EXPERIMENT.scales["smoke"], width=60, iterations=200)
    for back in ("", "-back"):
        lost = {}
        for arm in ("er", "none"):
            found = dgr_domains.measure(settings, arm + back, 0, Context())
            old = found["accuracy"][0]
            lost[arm] = old[len(old) // 2] - old[-1]
        assert found["domains"] == (["digits-negative", "digits"] if back else ["digits", "digits-negative"])
        assert lost["er"] < 0.03
        assert lost["none"] > 0.1
