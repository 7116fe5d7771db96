"""What experiments train: models, agents, and the loop around a strategy."""
