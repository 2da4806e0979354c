"""Networks by name: the families registered here, torchvision's, timm's and the user's own.

One file a family. Widths are what the papers have; a pruned network comes from a plan and surgery.
"""

from fastprune.models._network import Network, Normalization, registry
from fastprune.models._resolve import build, gene_network, list_networks, resolve
from fastprune.models._weights import load_weights

__all__ = [
    "Network",
    "Normalization",
    "build",
    "gene_network",
    "list_networks",
    "load_weights",
    "registry",
    "resolve",
]
