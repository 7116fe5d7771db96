"""How the Fisher is estimated: Split MNIST, one head a task, five estimators (van de Ven 2025).

The post: 5 tasks of 2 digits, separate heads, MLP 2 x 400, Adam 1e-3, 2,000 iterations a task, batch 128. EWC with the
exact Fisher over all data or over 500 random samples, one sampled label, the data's labels, and the squared gradient
of batches of 128 as Avalanche and others do. With the best lambda each, all are equally good.

What we do: the same. lambda is chosen for each estimator by the mean accuracy on 5,000 held-out training images over
validation seeds that are not used afterwards; then the seeds of all arms are paired (same split, initialisation and
order of batches).
Deviations: at cpu scale five lambdas a hundredfold apart and one validation seed, where the post has every power of
ten; 2,000 iterations are whole epochs (passes through about 11,000 images) rounded up; the penalty's step is proximal,
which has the same minimum and does not diverge for any lambda.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.harness.experiment import Context, Experiment, ImageData, Row, Run
from benchmarks.harness.papers import in_paper, paper
from benchmarks.harness.search import best, edge_note, search_jobs, split_name, tried
from benchmarks.report.table import mean_row, paired_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ESTIMATORS: dict[str, dict[str, Any]] = {
    "exact": {"fisher_labels": "exact"},
    "exact-n500": {"fisher_labels": "exact", "max_samples": 500},
    "sampled": {"fisher_labels": "sampled"},
    "empirical": {"fisher_labels": "empirical"},
    "batch": {"fisher_labels": "batch"},
}


@dataclass(frozen=True)
class Settings:
    """Split MNIST, five tasks of two digits."""

    data: ImageData = "mnist"
    """Data set: mnist or digits."""
    tasks: int = 5
    """Number of tasks the ten digits are split into."""
    width: int = 400
    """Units in each of the two hidden layers."""
    iterations: int = 2000
    """Training iterations on each task, at least."""
    batch_size: int = 128
    """Images in a mini-batch, of training and of the estimator batch."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    lambdas: tuple[float, ...] = (1e2, 1e4, 1e6, 1e8, 1e10)
    """Lambdas searched for exact, exact-n500, sampled and empirical."""
    batch_lambdas: tuple[float, ...] = (1e4, 1e6, 1e8, 1e10, 1e12)
    """Lambdas searched for batch."""
    search_seeds: int = 1
    """Validation seeds for choosing lambda."""
    validation: int = 5000
    """Training images held out."""


def search(settings: Settings) -> list[tuple[str, int]]:
    """Every estimator with every lambda, on the validation seeds."""
    jobs = []
    for estimator in ESTIMATORS:
        lambdas = settings.batch_lambdas if estimator == "batch" else settings.lambdas
        jobs += search_jobs(estimator, "lambda", lambdas, settings.search_seeds)
    return jobs


def held_out(run: Run) -> float:
    """Mean accuracy on held-out images, by which lambda is chosen."""
    return run.measurements["valid"]


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Mean accuracy over all tasks at the end, on validation and test images."""
    import torch
    from avalanche.models import SimpleMLP, as_multitask

    from avl_plugins import EWCPlugin
    from benchmarks.data.arrays import split
    from benchmarks.training.models import optimizer
    from benchmarks.training.supervised import Training, default_plugins, load_arrays, make_evaluator

    torch.manual_seed(seed)
    estimator, value = split_name(arm)
    arrays = load_arrays(settings.data, context)
    benchmark = split(arrays, settings.tasks, seed=seed, shuffle_classes=True, validation=settings.validation)
    net = SimpleMLP(input_size=arrays.x_train[0].size, hidden_size=settings.width, hidden_layers=2, drop_rate=0)
    model = as_multitask(net, "classifier")
    plugins = default_plugins(context, settings.tasks, resumable=False)  # a job takes a minute
    ewc_lambda = None
    if estimator != "none":
        ewc_lambda = best(context.search, estimator, held_out) if value is None else value
        ewc = EWCPlugin(
            ewc_lambda=ewc_lambda,
            penalty_step="proximal",
            fisher_batch_size=settings.batch_size,
            **ESTIMATORS[estimator],
        )
        plugins.append(ewc)
    strategy = Training(
        model=model,
        optimizer=optimizer("adam", model, lr=settings.lr),
        train_mb_size=settings.batch_size,
        eval_mb_size=1000,
        device=context.device,
        plugins=plugins,
        evaluator=make_evaluator(context),
    )
    fisher_seconds = 0.0
    for experience in benchmark.train_stream:
        batches = -(-len(experience.dataset) // settings.batch_size)
        strategy.train_epochs = -(-settings.iterations // batches)
        strategy.train(experience)
        fisher_seconds += 0.0 if estimator == "none" else ewc.fisher_seconds
    result: dict[str, Any] = {"lambda": ewc_lambda, "fisher_seconds": round(fisher_seconds, 3)}
    for stream in ("valid", "test"):
        found = strategy.eval(benchmark.streams[stream])
        each = [v for k, v in found.items() if k.startswith(f"Top1_Acc_Exp/eval_phase/{stream}_stream/")]
        result[stream] = round(sum(each) / len(each), 5)
    return result


def rows(runs: Sequence[Run]) -> list[Row]:
    """Accuracy of each estimator at its best lambda, its Fisher's time, and the paired comparisons."""
    numbers = paper("ewc")["fisher_labels"]
    table = []
    for arm in (*ESTIMATORS, "none"):
        chosen = sorted({run.measurements["lambda"] for run in runs if run.arm == arm} - {None})
        table.append(
            mean_row(
                runs,
                arm,
                "accuracy",
                value=lambda run: run.measurements["test"],
                paper=in_paper(numbers, arm.replace("-", "_"), "mean"),
                note=", ".join(
                    f"best lambda {value:g}{edge_note(value, tried(runs, arm, held_out))}" for value in chosen
                ),
            )
        )
    table += [
        mean_row(
            runs,
            arm,
            "seconds for five Fishers",
            value=lambda run: run.measurements["fisher_seconds"],
            note="paper: whole runs only, on a GPU",
        )
        for arm in ESTIMATORS
    ]
    for arm in ESTIMATORS:
        table.append(
            paired_row(runs, arm, "none", "accuracy", value=lambda run: run.measurements["test"], target=(">=", 0.1))
        )
        if arm != "exact":
            table.append(
                paired_row(
                    runs,
                    arm,
                    "exact",
                    "accuracy",
                    value=lambda run: run.measurements["test"],
                    target=("within", 0.0, 0.005),
                )
            )
    return table


def figure(runs: Sequence[Run]) -> Figure:
    """Validation accuracy over lambda, and test accuracy at the best lambda beside the paper's."""
    from matplotlib.figure import Figure

    numbers = paper("ewc")["fisher_labels"]
    fig = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = fig.subplots(1, 2)
    for estimator in ESTIMATORS:
        accuracy = tried(runs, estimator, held_out)
        if accuracy:
            left.semilogx(list(accuracy), list(accuracy.values()), "-o", ms=4, label=estimator)
    left.set(xlabel="lambda", ylabel="validation accuracy")
    left.legend(fontsize="small")
    arms = (*ESTIMATORS, "none")
    for x, arm in enumerate(arms):
        found = [run.measurements["test"] for run in runs if run.arm == arm]
        theirs = in_paper(numbers, arm.replace("-", "_"), "mean")
        if theirs is not None:
            right.plot(x + 0.12, theirs, "x", color="black", label="paper" if x == 0 else None)
        right.plot([x - 0.12] * len(found), found, "o", ms=3, color="tab:red", label="measured" if x == 0 else None)
    right.set_xticks(range(len(arms)), arms, rotation=30)
    right.set(ylabel="test accuracy at the best lambda")
    right.legend(fontsize="small")
    return fig


EXPERIMENT = Experiment(
    name="ewc-fisher-labels",
    title="EWC: estimators of the Fisher on Split MNIST (van de Ven 2025)",
    data="mnist",
    arms=(*ESTIMATORS, "none"),
    scales={
        "smoke": Settings(
            data="digits", width=30, iterations=20, batch_size=32, lambdas=(1e3,), batch_lambdas=(1e5,), validation=100
        ),
        "cpu": Settings(),
        "paper": Settings(
            lambdas=tuple(10.0**k for k in range(14)), batch_lambdas=tuple(10.0**k for k in range(14)), search_seeds=3
        ),
    },
    minutes={"smoke": 0.2, "cpu": 25, "paper": 120},
    measure=measure,
    rows=rows,
    figure=figure,
    search=search,
)
