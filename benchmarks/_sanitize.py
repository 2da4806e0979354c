"""Every case of every op through the backends named, once: what compute-sanitizer looks at."""

from __future__ import annotations

import sys

import torch

from fastprune.ops import registered
from fastprune.testing.ops import cases_of, check_implementation


def main(backends: list[str]) -> None:
    device = torch.device("cuda")
    checked = 0
    for name, op in registered().items():
        for backend, missing in op.availability("cuda"):
            if backend not in backends or missing is not None:
                continue
            for case in cases_of(name):
                if not case.large and check_implementation(name, case, backend, device) is None:
                    checked += 1
    torch.cuda.synchronize()
    # An empty check would pass for a clean one.
    if checked == 0:
        raise SystemExit(f"no op has an implementation of {', '.join(backends)} that loads here")
    print(f"{checked} cases of {', '.join(backends)} checked")


if __name__ == "__main__":
    main(sys.argv[1:])
