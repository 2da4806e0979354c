"""numba kernels, one file an op. Importing one needs numba."""
