"""Environments of the experiments in reinforcement learning."""
