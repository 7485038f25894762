"""Checks of a new GPU: kernels, numbers, collectives and speed.

Without a GPU they compute small cases on the CPU, which tests the checks only.

`catalog.py` lists the checks, `runner.py` runs them, `supervisor.py` starts the processes of the runner and
watches them, and `report.py` makes the report.
"""
