"""MAE, CAE and SimMIM in float64 NumPy, written from the papers and the original code, independently of our networks.

Parameters have the names and layouts of our networks: linear weights [in, out], patch kernels [D, C, P, P]. The modules
import NumPy and the standard library only.
"""
