"""Triton kernels, one file an op. Importing one needs triton."""
