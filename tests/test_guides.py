"""README's and the guides' Python runs as printed, block after block, without the repository's benchmarks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = [README, *sorted((ROOT / "avl_plugins").glob("**/README.md"))]
PAGES = [*GUIDES, ROOT / "avl_plugins" / "FROM_AVALANCHE.md", ROOT / "benchmarks" / "README.md", ROOT / "CHANGELOG.md"]
CHECKS = {
    "README.md": """
def first(strategy):
    return strategy.evaluator.get_last_metrics()["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"]

def stream(strategy):
    found = strategy.evaluator.get_last_metrics()
    return [v for k, v in found.items() if k.startswith("Top1_Acc_Stream/eval_phase/test_stream")][-1]

assert first(strategy) > 0.85, first(strategy)
assert first(progressive) > 0.85, first(progressive)
assert first(den) > 0.75, first(den)
assert stream(dgr) > 0.75, stream(dgr)
assert replayed.shape == (64, 64)
""",
    "ewc": """
assert results["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"] > 0.85
assert factored["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"] > 0.8
model.eval()
kept = [float((model(x[1400:, p]).argmax(1) == y[1400:]).float().mean()) for p in pixels]
assert min(kept) > 0.6, kept
""",
    "progressive": """
kept = results["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"]
assert kept > 0.85, kept
assert abs(float((logits.argmax(1) == y[1400:]).float().mean()) - kept) < 1e-6
""",
    "dgr": """
assert results["Top1_Acc_Stream/eval_phase/test_stream/Task000"] > 0.75
assert replayed.x.shape == (64, 64) and len(losses) == 300
""",
    "den": """
kept = results["Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp001"]
assert kept > 0.75, kept
assert abs(float((logits.argmax(1) == y[1400:]).float().mean()) - kept) < 1e-6
""",
    "rl": "assert results['Return/eval_phase/test_stream/Task001/Exp001'] > 8",
    "checkpoint": "assert Path('run.pt').exists() and load_checkpoint(strategy, 'run.pt') == 3",
}


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", GUIDES, ids=[page.parent.name if page != README else "README" for page in GUIDES])
def test_python_runs_as_printed(page, tmp_path):
    name = "README.md" if page == README else page.parent.name
    script = tmp_path / "guide.py"
    end = "import sys\nassert not any(name.split('.')[0] == 'benchmarks' for name in sys.modules)\n"
    wheel = os.environ.get("AVL_WHEEL", "")  # in CI, the unpacked wheel
    if wheel:
        end += f"import avl_plugins\nassert avl_plugins.__file__.startswith({wheel!r}), avl_plugins.__file__\n"
    script.write_text("\n".join(["import torch", "torch.set_num_threads(1)", *blocks(page), CHECKS[name], end]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": wheel},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_guide_to_experiments_runs_as_printed():
    *_, experiment, data = blocks(ROOT / "benchmarks" / "README.md")
    names: dict = {"__name__": "guide"}
    exec(experiment, names)
    assert names["EXPERIMENT"].arm_names(names["Settings"]()) == ("ours", "plain")
    exec(data, names)
    assert [len(e.dataset) for e in names["benchmark"].train_stream] == [168, 166, 166]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_local_link_and_image_exists(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!http)([^)]+)\)", text)
    for target in targets:
        path, _, anchor = target.partition("#")
        found = page if not path else page.parent / path
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target
    assert targets or page.name == "CHANGELOG.md"


def test_ci_runs_the_readmes_test_command():
    command = 'pip install -e ".[test]" && pytest'
    assert command in README.read_text()
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
