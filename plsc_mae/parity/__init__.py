"""Does a network compute what it should? Ours beside an oracle in NumPy and beside the originals' own code.

`oracle` and `references` share no code with the networks; `references` runs in an interpreter that has PyTorch and
need not have Paddle. `cases` puts our networks, weights and batches side by side with them, `compare` measures,
`report` tells.
"""
