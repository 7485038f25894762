"""Logs of a run: lines, curves, averages."""
