"""Elastic Weight Consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796)."""
