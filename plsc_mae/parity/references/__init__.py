"""Programs that run the original implementations' code in a separate process, whose interpreter has PyTorch.

The modules import neither Paddle nor other parts of plsc_mae. `cae`, `facebook` and `huggingface` are programs:
`python -m plsc_mae.parity.references.NAME REQUEST ANSWER [CHECKOUT]`. REQUEST and ANSWER are .npz files, see
`exchange`.
"""
