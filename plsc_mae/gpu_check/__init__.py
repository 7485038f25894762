"""Checks of a new GPU: kernels, numbers, collectives and speed.

Without a GPU they compute small cases on the CPU, which tests the checks only.

`catalog.py` lists the checks, `runner.py` runs those of one process, `supervisor.py` starts and watches the processes,
and `report.py` makes the report.
"""
