"""Saved networks in the formats of others: safetensors, torch.export, ONNX, one Python file."""

from fastprune.run.export._command import FORMATS, export

__all__ = ["FORMATS", "export"]
