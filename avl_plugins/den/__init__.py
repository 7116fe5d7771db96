"""Dynamically Expandable Networks (Yoon et al. 2018): network, phases, plugin and strategy."""
