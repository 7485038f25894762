"""Estimates of a run's cost from the shapes of its network, without running it; `measure` runs real updates."""
