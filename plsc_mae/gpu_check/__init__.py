"""Checks of a GPU for its first user: kernels, numbers, collectives and speed. Without a GPU they test themselves.

`catalog.py` lists the checks, `supervisor.py` runs them in processes of their own, `report.py` writes the results.
"""
