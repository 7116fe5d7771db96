"""The chain of scholars: resumed after any scholar it ends as if it had not been interrupted."""

import pytest
import torch

from benchmarks.dgr import _scholars as scholars
from benchmarks.dgr import chain as dgr_chain
from benchmarks.harness.experiment import Context


@pytest.mark.parametrize("arm", dgr_chain.ARMS)
@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_chain_ends_the_same(tmp_path, monkeypatch, arm, after):
    settings = dgr_chain.EXPERIMENT.scales["smoke"]
    expected = dgr_chain.measure(settings, arm, 0, Context())
    assert len(expected["accuracy"]) == 3
    assert len(expected["grids"]) == 2
    file = tmp_path / "chain"
    learn, calls = scholars.learn_solver, []

    def interrupted(*arguments):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        learn(*arguments)

    monkeypatch.setattr(scholars, "learn_solver", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dgr_chain.measure(settings, arm, 0, Context(checkpoint=file))
    monkeypatch.setattr(scholars, "learn_solver", learn)
    torch.manual_seed(99)
    assert dgr_chain.measure(settings, arm, 0, Context(checkpoint=file, resume=True)) == expected


def test_all_but_the_first_learn_from_samples_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(scholars, "learn_solver", lambda solver, teacher, *rest: seen.append(teacher))
    dgr_chain.measure(dgr_chain.EXPERIMENT.scales["smoke"], "vae", 0, Context())
    assert [teacher is None for teacher in seen] == [True, False, False]
