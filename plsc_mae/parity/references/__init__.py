"""The originals' own code, run in a process of its own by an interpreter that has PyTorch.

Modules here import PyTorch, NumPy and each other; never Paddle and nothing else of the suite. Each is a program:
`python -m plsc_mae.parity.references.NAME REQUEST ANSWER [CHECKOUT]`, where request and answer are .npz files.
"""
