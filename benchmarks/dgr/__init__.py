"""Experiments with Deep Generative Replay."""
