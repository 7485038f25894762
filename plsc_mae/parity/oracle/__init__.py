"""MAE and CAE in float64 NumPy, written from the papers and the original code, independently of this suite's networks.

Parameters have this suite's names and layouts: linear weights [in, out], patch kernels [D, C, P, P]. The modules import
NumPy and the standard library only.
"""
