"""Checkpoints: file format, content, output folder and times of saving."""
