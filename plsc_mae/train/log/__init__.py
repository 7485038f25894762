"""Logs of a run: console lines, log files, VisualDL records and running means."""
