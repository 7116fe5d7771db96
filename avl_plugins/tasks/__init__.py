"""What the methods share: networks of one task after another, task labels, and the checks of arguments."""
