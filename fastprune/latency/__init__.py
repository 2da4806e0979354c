"""Latency: measuring it, predicting it from a table of layers, and saying where it goes."""
