"""EWC, Progressive Networks, Deep Generative Replay and DEN for Avalanche."""
