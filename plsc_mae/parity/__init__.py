"""Numerical comparison of our networks with an oracle in NumPy and with the original implementations.

`oracle` and `references` share no code with the networks. `references` runs in a process of its own, which needs
PyTorch but not Paddle. `cases` holds a network with its weights and batch, `checks` compares it, `compare` measures
differences, and `report` writes the result.
"""
