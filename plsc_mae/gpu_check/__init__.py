"""Checks of a GPU for its first user: kernels, numbers, collectives and speed. Without a GPU they test themselves.

`catalog.py` lists the checks, `runner.py` runs them, `supervisor.py` starts the processes of the runner and watches
them, and `report.py` makes the report.
"""
