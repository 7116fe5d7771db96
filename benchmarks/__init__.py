"""The papers' experiments as scripts: `python -m benchmarks list | demo | run | report | perf`."""

import warnings

# Avalanche imports qpsolvers for one plugin that nothing here uses; it would warn in every process.
warnings.filterwarnings("ignore", message="no QP solver found", category=UserWarning)
