"""Kernels compiled from Python when first called; fastprune/ops decides which one runs."""
