"""The README's Python runs as printed, and its commands are the ones CI runs."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_runs_as_printed(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(BLOCKS[number], f"README.md, Python block {number + 1}", "exec"), names)
    if "strategy" in names:
        names["strategy"].eval(names["benchmark"].test_stream)
        metrics = names["strategy"].evaluator.get_last_metrics()
        if "tasks" in names:  # reinforcement learning; the returns are too small to ask for more
            assert metrics["Return/eval_phase/test_stream/Task001/Exp001"] > 8
            return
        kept = metrics["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"]
        assert kept > 0.6, "the first task is kept"
    if "fisher" in names:
        assert {name: tuple(f.shape) for name, f in names["fisher"].items()} == {"weight": (3, 4), "bias": (3,)}
    if "deployed" in names:
        x, y, _ = zip(*names["benchmark"].test_stream[0].dataset, strict=True)
        with torch.no_grad():
            right = (names["deployed"](torch.stack(x)).argmax(1) == torch.tensor(y)).float().mean()
        assert float(right) == pytest.approx(kept)
    if "replayed" in names:
        assert metrics["Top1_Acc_Stream/eval_phase/test_stream/Task000"] > 0.85, "about 90 %, it says"
        assert names["replayed"].shape == (64, 64)
    assert names


def test_every_local_link_and_image_exists():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_ci_runs_the_readmes_test_command():
    command = 'pip install -e ".[test]" && pytest'
    assert command in README
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
