"""Checkpoints: file format, content, schedule of saves."""
