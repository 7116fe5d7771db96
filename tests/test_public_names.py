"""Public names: each face hands on what it says, lazily, and old paths still work for one release."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FACES = ["", ".ewc", ".progressive", ".dgr", ".den", ".checkpoint", ".data", ".growth"]


@pytest.mark.parametrize("face", FACES)
def test_a_face_hands_on_what_it_says(face):
    module = importlib.import_module(f"avl_plugins{face}")
    tree = ast.parse(Path(module.__file__).read_text())
    typed = {a.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names if a.asname}
    assert typed == set(module.__all__), "what type checkers see is what there is"
    for name in module.__all__:
        assert getattr(module, name).__doc__
        assert name in dir(module)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_the_maths_of_ewc_needs_torch_alone():
    script = (
        "import sys, avl_plugins.ewc as ewc\n"
        "ewc.diagonal_fisher, ewc.QuadraticPenalty, ewc.fisher_overlap, ewc.register_fisher_rule\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'avalanche', 'torchvision', 'tensorboard'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("loading", "data.loading", "InMemoryLoaderPlugin"),
        ("tensors", "data.tensors", "dataset_tensors"),
        ("resume", "checkpoint.resume", "Resumable"),
    ],
)
def test_old_paths_work_for_one_release(old, new, name):
    sys.modules.pop(f"avl_plugins.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"avl_plugins.{old} has moved to avl_plugins.{new}"):
        module = importlib.import_module(f"avl_plugins.{old}")
    assert getattr(module, name) is getattr(importlib.import_module(f"avl_plugins.{new}"), name)


def test_the_version_is_the_packages():
    import avl_plugins

    assert f"\n## {avl_plugins.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {avl_plugins.__version__}\n" in (ROOT / "CITATION.cff").read_text()
