"""`python -m benchmarks run NAME`: options, jobs, and what is said about them."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from benchmarks.harness.display import Display
from benchmarks.harness.experiment import Experiment, Row, check_extras
from benchmarks.harness.files import check_folder
from benchmarks.harness.jobs import RESULTS, Job, Plan, Refused, clear, commit, open_jobs
from benchmarks.harness.lock import Taken, sole_use
from benchmarks.harness.names import counted, did_you_mean, no_such
from benchmarks.harness.registry import experiment_names, find_experiment
from benchmarks.harness.runner import backend, run_jobs
from benchmarks.harness.search import split_name
from benchmarks.harness.stored import load_scale, made_of

INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """Options of every experiment."""

    scale: Literal["smoke", "cpu", "paper"] = "cpu"
    """Where the settings below start: smoke takes seconds, cpu at most about an hour, paper is as in the paper."""
    seeds: int = 3
    """Number of seeds."""
    first_seed: int = 0
    """The first of them."""
    arms: tuple[str, ...] = ()
    """Only these arms; patterns as in file names. All of them by default."""
    jobs: int = 1
    """Jobs (arm and seed) that run at the same time."""
    threads: int = 0
    """Threads of one job; 0 shares the cores out among the jobs."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..., or auto: cuda where there is one."""
    cluster: Literal["local", "ray"] = "local"
    """Where the jobs run: here, or on the Ray cluster at RAY_ADDRESS (without it, the one running here)."""
    data_root: Path | None = None
    """Folder of the data sets; by default AVL_DATA_ROOT, else ~/.cache/avl_plugins."""
    logdir: Path = Path("runs")
    """TensorBoard logs go to LOGDIR/experiment/scale/arm-seed, unfinished work to LOGDIR/unfinished."""
    out: Path | None = None
    """Results go to OUT/experiment/scale; by default benchmarks/results, at smoke scale LOGDIR/smoke."""
    resume: bool = False
    """Keep finished jobs with equal settings and go on with unfinished ones."""
    overwrite: bool = False
    """Remove earlier results of these jobs and measure again; with --resume, only those with other settings."""


def run(arguments: Sequence[str], console: Console, show: Callable[[Sequence[Row], str], Any]) -> int:
    """Run one experiment; returns the exit status.

    Args:
        arguments: The experiment's name and options.
        console: What is said is printed here.
        show: Makes of rows and a title what the console prints at the end.
    """
    if not arguments or arguments[0].startswith("-"):
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        console.print(f"usage: python -m benchmarks run NAME [options]\n\nNAME: {', '.join(experiment_names())}")
        console.print("\n`python -m benchmarks run NAME --help` shows the options and what the experiment does.")
        return 0 if asked else 2
    experiment = find_experiment(arguments[0])
    options = parse(experiment, arguments[1:])
    check_extras(experiment)
    plan = make_plan(experiment, options)
    search, main = make_jobs(plan, options.arms, range(options.first_seed, options.first_seed + options.seeds))
    try:
        for folder, option in ((plan.runs, "--logdir"), (plan.out, "--out")):
            check_folder(folder / experiment.name / plan.scale, option)
        with sole_use([root / experiment.name / plan.scale for root in (plan.out, plan.runs / "unfinished")]):
            return _run(plan, search, main, console, show)
    except Taken as error:
        raise Refused(f"{error}; wait for it, or give this run folders of its own with --out and --logdir") from None
    except KeyboardInterrupt:
        kept = [word for word in arguments if word not in ("--resume", "--overwrite")]
        command = shlex.join([*kept, "--resume"])
        console.print("\n[yellow]Interrupted.[/yellow] Finished jobs are kept. To go on:", highlight=False)
        console.print(f"  python -m benchmarks run {command}", highlight=False, markup=False, soft_wrap=True)
        return INTERRUPTED
    except BrokenExecutor as error:
        console.print(f"[red]A worker was killed[/red] (out of memory?): {error}", highlight=False)
        console.print("Finished jobs are kept; go on with --resume and fewer --jobs.", highlight=False)
        return 1


def parse(experiment: Experiment, arguments: Sequence[str]) -> Any:
    """Options and settings of one command; `--scale` decides the settings' defaults."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--scale", default="cpu")
    scale = first.parse_known_args(arguments)[0].scale
    if scale not in experiment.scales:
        known = ", ".join(experiment.scales)
        raise ValueError(f"--scale must be one of {known}, got {scale!r}{did_you_mean(scale, experiment.scales)}")
    settings = experiment.scales[scale]
    shared = {field.name for field in dataclasses.fields(Options)} & {
        field.name for field in dataclasses.fields(settings)
    }
    if shared:
        raise ValueError(f"settings of {experiment.name} named as options of `run`: {', '.join(sorted(shared))}")
    both = dataclasses.make_dataclass(
        "Options",
        [("settings", Annotated[type(settings), tyro.conf.arg(name="")], settings)],
        bases=(Options,),
        frozen=True,
    )
    return tyro.cli(
        both,
        prog=f"python -m benchmarks run {experiment.name}",
        description=experiment.description,
        args=list(arguments),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def make_plan(experiment: Experiment, options: Any) -> Plan:
    """Options as a plan, with absolute paths; ValueErrors name what is out of range."""
    for name, least in (("seeds", 1), ("jobs", 1), ("threads", 0), ("first_seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    runs = options.logdir.absolute()
    out = options.out or (runs / "smoke" if options.scale == "smoke" else RESULTS)
    return Plan(
        experiment=experiment,
        scale=options.scale,
        settings=options.settings,
        out=out.absolute(),
        runs=runs,
        jobs=options.jobs,
        threads=options.threads,
        device=options.device,
        data_root=None if options.data_root is None else str(options.data_root.absolute()),
        resume=options.resume,
        overwrite=options.overwrite or (options.scale == "smoke" and not options.resume),
        commit=commit(),
        cluster=options.cluster,
    )


def make_jobs(plan: Plan, patterns: Sequence[str], seeds: Sequence[int]) -> tuple[list[Job], list[Job]]:
    """Search jobs that are chosen or needed, and the others, seed by seed.

    Raises:
        ValueError: If a pattern fits no arm; lists them.
    """
    experiment = plan.experiment
    search = [] if experiment.search is None else [Job(plan, *key) for key in experiment.search(plan.settings)]
    arms = experiment.arm_names(plan.settings)
    names = [*arms, *dict.fromkeys(job.arm for job in search)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise no_such("arm", pattern, names)

    def wanted(arm: str) -> bool:
        return not patterns or any(fnmatchcase(arm, pattern) for pattern in patterns)

    main = [Job(plan, arm, seed) for seed in seeds for arm in arms if wanted(arm)]
    needed = {experiment.search_of(job.arm) for job in main}
    return [job for job in search if wanted(job.arm) or split_name(job.arm)[0] in needed], main


def _run(
    plan: Plan, search: Sequence[Job], main: Sequence[Job], console: Console, show: Callable[[Sequence[Row], str], Any]
) -> int:
    todo, kept = open_jobs([*search, *main])
    configuration = backend(plan)
    if kept:
        console.print(f"{counted(len(kept), 'finished job')} kept.", highlight=False)
    if removed := clear(todo):
        console.print(f"{counted(removed, 'earlier result')} removed.", highlight=False)
    begun = [job for job in todo if job.begun_threads]
    if begun:
        kept_threads = "" if all(job.threads == plan.threads_each for job in begun) else ", with their threads"
        console.print(f"Going on with {counted(len(begun), 'unfinished job')}{kept_threads}.", highlight=False)
    found = [run for run in kept if (run.arm, run.seed) in {(job.arm, job.seed) for job in search}]
    threads = sorted({job.threads for job in todo}) or [plan.threads_each]
    each = f"{''.join(f'{own} or ' for own in threads[:-1])}{counted(threads[-1], 'thread')} each"
    where = f"{plan.jobs} at a time, {each}"
    console.print(f"{plan.experiment.name}, scale {plan.scale}: {counted(len(todo), 'job')}, {where}.", highlight=False)

    failed = []
    for part in (search, main):
        names = {job.name for job in part}
        todo_now = [dataclasses.replace(job, search=tuple(found)) for job in todo if job.name in names]
        if todo_now:
            with Display(console, todo_now) as display:
                found += run_jobs(todo_now, report=display.ended, configuration=configuration)
            failed += display.failed
        if failed:
            break
    runs = load_scale(plan.out, plan.experiment, plan.scale)
    if runs:
        rows = made_of(runs, plan.out, "rows", plan.experiment.rows)
        console.print(show(rows, f"{plan.experiment.name}, {plan.scale}: all runs in {plan.out}"))
    if failed:
        console.print(f"[red]{len(failed)} failed:[/red] {', '.join(failure.job.name for failure in failed)}")
    return 1 if failed else 0
