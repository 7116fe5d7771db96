"""How experiments are found, run and stored."""
