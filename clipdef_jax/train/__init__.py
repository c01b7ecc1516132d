"""Training: one step, the loop around it, and the checkpoints it leaves."""
