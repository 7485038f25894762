"""MAE and CAE in float64 NumPy, written from the papers and the originals and not from the networks they check.

Parameters come under our names with our layouts: linear weights [in, out], patch kernels [D, C, P, P]. Nothing but
NumPy and the standard library is imported.
"""
