"""Damaged, foreign, hostile and mismatched files: a clear error, nothing executed, and a strategy left as it was."""

import io
import os
import pickle
import zipfile

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier
from checkpoint_cases import benchmark, build, differences, train_and_evaluate, unchanged
from torch import nn

from avl_plugins.checkpoint import archive
from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file written after two experiences of EWC on a multi-head model."""
    path, digits = tmp_path_factory.mktemp("saved") / "run.pt", benchmark("multihead")
    strategy = build("ewc", "multihead", "adam")
    train_and_evaluate(strategy, digits.train_stream[:2], digits.test_stream)
    save_checkpoint(strategy, path)
    return path.read_bytes()


def used():
    """A strategy with a past of its own: what a failed load must leave alone."""
    strategy, digits = build("ewc", "multihead", "adam", seed=11), benchmark("multihead")
    train_and_evaluate(strategy, digits.train_stream[:1], digits.test_stream[:1])
    return strategy


def refused(strategy, path, message):
    """Load, expect the error, and compare everything with before."""
    with unchanged(strategy), pytest.raises(ValueError, match=message) as info:
        load_checkpoint(strategy, path)
    return info.value


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_truncated(saved, tmp_path, part):
    path = tmp_path / "run.pt"
    path.write_bytes(saved[: int(len(saved) * part)])
    refused(used(), path, "is truncated, damaged or not a checkpoint")


def test_every_kind_of_flipped_byte_is_noticed(saved, tmp_path):
    """Ten bytes across the file; each is refused, or sits in padding and changes nothing that is read."""
    path, strategy = tmp_path / "run.pt", used()
    clean = tmp_path / "clean.pt"
    clean.write_bytes(saved)
    expected = archive.read(clean)
    for place in range(100, len(saved), len(saved) // 10):
        path.write_bytes(saved[:place] + bytes([saved[place] ^ 0x40]) + saved[place + 1 :])
        try:
            content = archive.read(path)
        except ValueError:
            refused(strategy, path, "path: ")
        else:
            assert differences(expected, content) == []


def test_changed_value_with_a_sound_archive(saved, tmp_path):
    content = torch.load(io.BytesIO(saved), weights_only=True)
    content["state"]["experiences"] = 3
    torch.save(content, tmp_path / "run.pt")
    refused(used(), tmp_path / "run.pt", "its checksum differs")
    content["state"]["experiences"] = 2
    next(iter(content["state"]["model"]["state"].values()))[0] += 1e-7
    torch.save(content, tmp_path / "run.pt")
    refused(used(), tmp_path / "run.pt", "its checksum differs")


@pytest.mark.parametrize(
    "content", [{"model": torch.zeros(3)}, torch.zeros(2), [1, 2], {"format": "avl_plugins checkpoint 99"}]
)
def test_foreign(tmp_path, content):
    torch.save(content, tmp_path / "run.pt")
    refused(used(), tmp_path / "run.pt", "is not a checkpoint of this package: expected 'avl_plugins checkpoint 1'")


def test_text_and_zip_and_folder(tmp_path):
    path = tmp_path / "run.pt"
    path.write_text("no checkpoint")
    strategy = used()
    refused(strategy, path, "is truncated, damaged or not a checkpoint")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    refused(strategy, path, "is truncated, damaged or not a checkpoint")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(strategy, tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError):
        load_checkpoint(strategy, tmp_path)


class Hostile:
    def __init__(self, proof):
        self.proof = str(proof)

    def __reduce__(self):
        return (os.mkdir, (self.proof,))


@pytest.mark.parametrize("archive", [True, False])
def test_nothing_in_a_file_is_executed(saved, tmp_path, archive):
    proof, path = tmp_path / "executed", tmp_path / "run.pt"
    content = torch.load(io.BytesIO(saved), weights_only=True)
    content["state"]["progress"] = Hostile(proof)
    if archive:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    refused(used(), path, "nothing in it was executed")
    assert not proof.exists()
    with path.open("rb") as file, pytest.raises((TypeError, pickle.UnpicklingError, AttributeError, RuntimeError)):
        _ = (torch.load if archive else pickle.load)(file, **({"weights_only": False} if archive else {}))["state"].x
    assert proof.exists(), "the file was dangerous to those who do execute"


class Failing(SupervisedPlugin):
    """Agrees to be saved and fails to load, after the plugins before it have been loaded."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        raise KeyError("made to fail")


def forged(tmp_path, saved, change):
    """A file with another content and the right checksum, as only this package's own code would write."""
    content = torch.load(io.BytesIO(saved), weights_only=True)
    change(content["state"])
    content["sha256"] = archive.digest(content["state"])
    path = tmp_path / "forged.pt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["model"]["state"].pop("features.0.weight"), 'Missing key.* "features.0.weight"'),
        (lambda s: s["model"]["state"].update(new=torch.ones(1)), 'Unexpected key.* "new"'),
        (lambda s: s["model"]["state"].update({"features.0.bias": torch.ones(3)}), "size mismatch for features.0.bias"),
        (lambda s: s["model"].update({"class": "Other"}), "model: saved with Other, built with MTSimpleMLP"),
        (lambda s: s["optimizer"].update({"class": "SGD"}), "optimizer: saved with SGD, built with Adam"),
        (lambda s: s.update(strategy="Naive"), "strategy: saved with Naive, built with EWC"),
        (lambda s: s["plugins"].pop(0), "plugins with state: saved with"),
        (lambda s: s["plugins"][1][1]["metrics"].pop(), "metrics of the evaluator"),
        (lambda s: s["plugins"][0][1].pop("penalty"), "entries missing or unknown: \\['penalty'\\]"),
        (lambda s: s["random"].update(torch=torch.zeros(3)), "left as it was"),
        (lambda s: s.pop("random"), "random"),
        (lambda s: s["optimizer"]["groups"][0]["params"].append("nobody"), "nobody"),
        (lambda s: s["optimizer"]["groups"].clear(), "optimizer: saved with 0 parameter groups"),
        (lambda s: s["model"]["training"].update(nobody=True), "nobody"),
    ],
)
def test_state_that_does_not_fit_leaves_the_strategy_as_it_was(saved, tmp_path, change, message):
    error = refused(used(), forged(tmp_path, saved, change), message)
    assert "left as it was" in str(error)


def test_failing_plugin_undoes_what_was_loaded_before_it(saved, tmp_path):
    def change(state):
        state["plugins"].insert(1, ["Failing", {}])

    strategy = used()
    strategy.plugins.insert(1, Failing())
    refused(strategy, forged(tmp_path, saved, change), "made to fail")


def test_other_models_and_optimizers_are_named(tmp_path):
    strategy = build()
    save_checkpoint(strategy, tmp_path / "run.pt")
    refused_fresh = build()
    refused_fresh.model = nn.Sequential(
        nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), IncrementalClassifier(8)
    )
    refused_fresh.optimizer = torch.optim.SGD(refused_fresh.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"size mismatch for 0\.weight"):
        load_checkpoint(refused_fresh, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="optimizer: saved with SGD, built with Adam"):
        load_checkpoint(build(optimizer="adam"), tmp_path / "run.pt")
    with pytest.raises(ValueError, match="strategy: saved with Naive, built with Cumulative"):
        load_checkpoint(build("cumulative"), tmp_path / "run.pt")


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    strategy = build()
    save_checkpoint(strategy, path)
    old = path.read_bytes()

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(strategy, path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.pt"]


def test_file_and_folder_are_synchronised_before_and_after_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    is_folder = lambda descriptor: os.path.isdir(f"/proc/self/fd/{descriptor}")  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("folder" if is_folder(fd) else "file"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    save_checkpoint(build(), tmp_path / "new" / "run.pt")
    assert calls == ["file", "rename", "folder"]
