"""Data pipeline: image files to normalized batches on the device."""
