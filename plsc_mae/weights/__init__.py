"""Reads, converts and writes the weights of all supported implementations."""

from __future__ import annotations

from plsc_mae.weights.convert import LoadReport, export, load, read, read_network, save
from plsc_mae.weights.reader import Checkpoint

__all__ = ["Checkpoint", "LoadReport", "export", "load", "read", "read_network", "save"]
