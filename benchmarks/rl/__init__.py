"""Experiments with the agents of `avl_plugins.rl` themselves."""
