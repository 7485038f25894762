"""Programs that run the code of the original implementations, in a separate process of an interpreter with PyTorch.

The modules import PyTorch, NumPy and each other, but neither Paddle nor other parts of this suite. `cae`, `facebook`
and `huggingface` are programs: `python -m plsc_mae.parity.references.NAME REQUEST ANSWER [CHECKOUT]`. REQUEST and
ANSWER are .npz files, see `exchange`.
"""
