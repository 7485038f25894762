"""Estimates of the cost of a run from the shapes of its network; nothing is computed, read or started."""
