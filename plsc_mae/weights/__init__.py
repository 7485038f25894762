"""Weights of every implementation: read safely, converted by dialect, with a report."""

from __future__ import annotations

from plsc_mae.weights.convert import LoadReport, export, load, read, save
from plsc_mae.weights.reader import Checkpoint

__all__ = ["Checkpoint", "LoadReport", "export", "load", "read", "save"]
