"""Comparison of our networks with an oracle in NumPy and with the originals' own code.

`oracle` and `references` share no code with the networks; `references` runs in an interpreter with PyTorch, which need
not have Paddle. `cases` and `networks` have our side, `compare` measures the differences, `report` writes them.
"""
