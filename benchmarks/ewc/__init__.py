"""Experiments with Elastic Weight Consolidation."""
