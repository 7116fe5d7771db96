"""Experiments with Dynamically Expandable Networks."""
