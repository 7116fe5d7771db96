"""An arm of one's own, of which the papers have no number, is in the tables and figures like any other."""

import dataclasses
import importlib

import pytest

from benchmarks.harness.jobs import RESULTS
from benchmarks.harness.papers import in_paper
from benchmarks.harness.registry import find_experiment
from benchmarks.harness.stored import load_runs

# The experiment, where its arms are listed, and the arm whose runs pass for one's own.
LISTS = [
    ("den-cifar100", "den.cifar100:ARMS", "plain"),
    ("den-mnist-variation", "den.mnist_variation:COMPARED", "plain"),
    ("den-permuted", "den.permuted:ARMS", "plain"),
    ("dgr-chain", "dgr.chain:ARMS", "gr"),
    ("dgr-classes", "dgr.classes:ARMS", "gr"),
    ("dgr-domains", "dgr.domains:METHODS", "gr"),
    ("dgr-lwf", "dgr.lwf:ARMS", "lwf"),
    ("dgr-permuted", "dgr.permuted:ARMS", "gr"),
    ("dgr-samples", "dgr.samples:METHODS", "gr"),
    ("ewc-atari", "ewc._game_scores:ARMS", "none"),
    ("ewc-fig2a", "ewc.fig2a:ARMS", "ewc"),
    ("ewc-fig2c", "ewc.fig2c:ARMS", "low"),
    ("ewc-fig3c", "ewc._weight_noise:COVARIANCES", "uniform"),
    ("ewc-fisher-labels", "ewc.fisher_labels:ESTIMATORS", "exact"),
    ("progressive-permuted", "progressive.permuted:ARMS", "linear"),
    ("progressive-pong-soup", "progressive.pong_soup:SOURCES", "progressive2"),
    ("progressive-soup", "progressive._transfer_rows:SOURCES", "progressive2"),
    ("progressive-spectra", "progressive.spectra:ARMS", "mlp"),
    ("progressive-split-cifar100", "progressive.split_cifar100:ARMS", "linear"),
    ("rl-classic", "rl.classic:ARMS", "finetune"),
]


@pytest.fixture(scope="module")
def stored():
    return load_runs(RESULTS)


@pytest.mark.parametrize(("name", "where", "like"), LISTS)
def test_rows_and_figures_have_room_for_an_arm_that_no_paper_has(stored, monkeypatch, name, where, like):
    module, _, constant = where.partition(":")
    found = importlib.import_module(f"benchmarks.{module}")
    arms = getattr(found, constant)
    more = {**arms, "mine": arms[like]} if isinstance(arms, dict) else (*arms, "mine")
    monkeypatch.setattr(found, constant, more)
    runs = list(stored[name, "cpu"])
    runs += [dataclasses.replace(run, arm=run.arm.replace(like, "mine", 1)) for run in runs if run.arm == like]
    experiment = find_experiment(name)
    own = [row for row in experiment.rows(runs) if row.arm.startswith("mine")]
    assert any(row.seeds and row.paper is None for row in own)
    experiment.figure(runs)


def test_a_paper_s_number_is_none_where_there_is_none():
    numbers = {"ewc": {"curve": [0.9, 0.8]}}
    assert in_paper(numbers, "ewc", "curve", 1) == 0.8
    assert in_paper(numbers, "ewc") == {"curve": [0.9, 0.8]}
    assert in_paper(numbers, "ewc", "curve", 2) is None
    assert in_paper(numbers, "mine", "curve", 0) is None
    assert in_paper(numbers, "ewc", "mean") is None
