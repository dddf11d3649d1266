"""From weights to levels: step sizes, targets, curvature and importance, and what is stored exactly."""
