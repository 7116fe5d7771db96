"""Progressive Networks (Rusu et al. 2016): columns, lateral adapters, plugin, strategy and analysis."""
