"""Pure networks: tensors in, tensors out; no config objects, no files."""
