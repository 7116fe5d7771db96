"""Deep Generative Replay (Shin et al. 2017): generators, scholar, plugin and strategy."""
