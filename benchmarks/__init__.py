"""The papers' experiments as scripts: `python -m benchmarks list | demo | run | report | perf`."""
