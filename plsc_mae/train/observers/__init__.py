"""Observers: evaluations and pictures between epochs, and the online probe."""
