"""Experiments with Progressive Networks."""
