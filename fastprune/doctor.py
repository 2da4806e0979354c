"""What this installation can do, why not the rest, and the command that mends what is broken."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from fastprune.errors import FastpruneError

__all__ = ["lines", "report"]

# One pair of builds made for each other; half of a pair is what breaks torchvision's operators.
MEND_TORCHVISION = "pip install --force-reinstall torch torchvision"

REQUIRED = ("torch", "torchvision", "numpy", "scipy", "numba", "pydantic", "safetensors")

# Shown name -> (distributions that bring it, the extras of fastprune that install it).
OPTIONAL: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "timm": (("timm",), ("timm",)),
    "onnx": (("onnx",), ("onnx",)),
    "onnxruntime": (("onnxruntime", "onnxruntime-gpu"), ("onnx",)),
    "DALI": (
        ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110"),
        ("dali", "dali-cuda120", "dali-cuda110"),
    ),
    "torch-pruning": (("torch-pruning",), ("rivals",)),
}

# Variables that change what the other lines say.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "TRITON_INTERPRET")


def report() -> dict[str, Any]:
    """Everything that is known about this installation, ready for JSON.

    Nothing is raised for a broken package: what its import says is in ``packages`` and
    ``problems``.
    """
    packages = {name: _package(name) for name in REQUIRED}
    packages["triton"] = _package("triton")
    extension = _extension()
    cuda = _cuda(extension)
    ops, ops_problem = _ops(cuda)
    problems = [
        f"{name}: {found['problem']}"
        for name, found in packages.items()
        # triton comes with torch's CUDA builds alone; without it other implementations run.
        if found["problem"] and name != "triton"
    ]
    if packages["torchvision"]["problem"]:
        problems.append(f"torchvision: mend it with: {MEND_TORCHVISION}")
    if ops_problem:
        problems.append(f"ops: {ops_problem}")
    return {
        "fastprune": _fastprune(),
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
        },
        "packages": packages,
        "cpu": _cpu(),
        "cuda": cuda,
        "extension": extension,
        "ops": ops,
        "optional": {name: _optional(*found) for name, found in OPTIONAL.items()},
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("FASTPRUNE_") or name in VARIABLES
        },
        "problems": problems,
    }


def lines(found: Mapping[str, Any] | None = None) -> list[str]:
    """A report in words, one fact a line.

    Args:
        found: what `report` gave; made now if None.
    """
    found = report() if found is None else found
    own, python, cpu, cuda = (found[k] for k in ("fastprune", "python", "cpu", "cuda"))
    rows = [
        ("fastprune", f"{own['version']} at {own['path']}"),
        ("python", f"{python['version']} at {python['executable']} on {python['platform']}"),
    ]
    for name, package in found["packages"].items():
        said = package["version"] or "not installed"
        rows.append(
            (name, f"{said}; BROKEN" if package["version"] and package["problem"] else said)
        )
    rows.append(
        (
            "CPU",
            f"{cpu['cores']} cores, {cpu['threads']} torch threads, {cpu['capability']}, "
            + (f"bf16 by {', '.join(cpu['bf16'])}" if cpu["bf16"] else "no bf16 instructions"),
        )
    )
    rows.append(("CUDA", cuda["reason"] or f"{cuda['version']}, {len(cuda['devices'])} devices"))
    for device in cuda["devices"]:
        rows.append(
            (
                f"cuda:{device['index']}",
                f"{device['name']}, sm_{device['capability']}, {device['memory_gb']} GB; "
                f"compiled kernels: {device['compiled_kernels'] or 'they run'}",
            )
        )
    rows += _extension_rows(found["extension"])
    rows += [
        (name, f"{device}: {_ways_said(ways)}")
        for name, devices in found["ops"].items()
        for device, ways in devices.items()
    ]
    for name, package in found["optional"].items():
        said = f"not installed; {package['install']}"
        if package["version"]:
            said = package["version"]
            # Which of several wheels it is says which CUDA it is for.
            said += f" of {package['distribution']}" if package["distribution"] != name else ""
        rows.append((name, said))
    rows += list(found["environment"].items())
    wide = max(len(name) for name, _ in rows)
    text = [f"{name:<{wide}}  {said}" for name, said in rows]
    text += [f"problem: {problem}" for problem in found["problems"]]
    return text


def _fastprune() -> dict[str, Any]:
    from fastprune import __version__

    return {"version": __version__, "path": str(Path(__file__).parent)}


def _import(name: str) -> tuple[ModuleType | None, str | None]:
    """A module, or one line of what its import said."""
    try:
        return importlib.import_module(name), None
    # A torchvision of another torch raises RuntimeError, a missing shared library OSError.
    except (ImportError, OSError, RuntimeError) as error:
        return None, str(error).strip().partition("\n")[0]


def _package(name: str) -> dict[str, Any]:
    _, problem = _import(name)
    return {"version": _version(name), "problem": problem}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _optional(distributions: tuple[str, ...], extras: tuple[str, ...]) -> dict[str, Any]:
    found = next((name for name in distributions if _version(name)), None)
    return {
        "version": None if found is None else _version(found),
        "distribution": found,
        "extras": list(extras),
        "install": "pip install " + " or ".join(f"'fastprune[{extra}]'" for extra in extras),
    }


def _cpu() -> dict[str, Any]:
    torch, problem = _import("torch")
    known: dict[str, Any] = {"cores": os.cpu_count(), "threads": None}
    known |= {"capability": problem, "bf16": []}
    if torch is None:
        return known
    # Here, since it imports torch.
    from fastprune.processor import bf16_instructions

    return {
        **known,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": bf16_instructions(),
    }


def _cuda(extension: Mapping[str, Any]) -> dict[str, Any]:
    torch, problem = _import("torch")
    found: dict[str, Any] = {"version": None, "reason": problem, "devices": []}
    if torch is None:
        return found
    found["version"] = torch.version.cuda
    if torch.version.cuda is None:
        found["reason"] = f"torch {torch.__version__} was built without CUDA"
    elif not torch.cuda.is_available():
        found["reason"] = f"torch has CUDA {torch.version.cuda}, but no device or driver was found"
    else:
        found["devices"] = [_device(torch, i, extension) for i in range(torch.cuda.device_count())]
    return found


def _device(torch: ModuleType, index: int, extension: Mapping[str, Any]) -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(index)
    return {
        "index": index,
        "name": facts.name,
        "capability": f"{facts.major}{facts.minor}",
        "memory_gb": round(facts.total_memory / 1e9, 1),
        "compiled_kernels": _probe(index, extension),
    }


def _probe(index: int, extension: Mapping[str, Any]) -> str | None:
    """Why the compiled kernels do not run on a device; None where they do."""
    if not extension["built"]:
        return "fastprune._C is not there"
    from fastprune import _C

    try:
        _C.cuda_probe(index)
    except RuntimeError as error:
        return str(error)
    return None


def _extension() -> dict[str, Any]:
    module, problem = _import("fastprune._C")
    record = _build_record()
    found: dict[str, Any] = {
        "built": module is not None,
        "reason": None,
        "cuda_reason": record.get("cuda_reason"),
        "info": None if module is None else module.build_info(),
    }
    if module is not None:
        return found
    if not record:
        found["reason"] = (
            "this copy of fastprune was never built: pip install -e . in its folder, "
            "or start Python in another one"
        )
    elif record["extension"]:
        found["reason"] = f"it was built, but does not load: {problem}"
    else:
        found["reason"] = record["reason"]
    return found


def _ops(cuda: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """For each op and device type what runs and why not the others; or why no op can be asked.

    ``runs`` is None where FASTPRUNE_BACKEND asks for what cannot run. ``implementations`` are in
    the order of trial, each with the reason why it does not load, or None; arguments can still
    refuse one, as ``op.explain(...)`` tells. ``no_device`` is why there is no such device.
    """
    try:
        ops, problem = _import("fastprune.ops")
    # FASTPRUNE_BACKEND is read there.
    except FastpruneError as error:
        return {}, str(error)
    if ops is None:
        return {}, problem
    missing = {"cpu": None, "cuda": cuda["reason"]}
    return {
        name: {
            device: {**_ways(op.availability(device)), "no_device": reason}
            for device, reason in missing.items()
        }
        for name, op in ops.registered().items()
    }, None


def _ways(available: list[tuple[str, str | None]]) -> dict[str, Any]:
    asked = os.environ.get("FASTPRUNE_BACKEND") or None
    loads = [backend for backend, why in available if why is None]
    runs: str | None = loads[0]
    if asked is not None:
        runs = asked if asked in loads else None
    return {"runs": runs, "asked": asked, "implementations": dict(available)}


def _ways_said(ways: Mapping[str, Any]) -> str:
    reasons, asked = ways["implementations"], ways["asked"]
    refused = "".join(f"; not {backend}: {why}" for backend, why in reasons.items() if why)
    if asked:
        said = f"{ways['runs'] or 'nothing'}, since FASTPRUNE_BACKEND={asked}"
    else:
        said = ", then ".join(backend for backend, why in reasons.items() if why is None)
    return ("no device; with one " if ways["no_device"] else "") + said + refused


def _build_record() -> dict[str, Any]:
    """What the build wrote down; empty where there was none."""
    path = Path(__file__).with_name("_build.json")
    if not path.exists():
        return {}
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def _extension_rows(extension: Mapping[str, Any]) -> list[tuple[str, str]]:
    info = extension["info"]
    if info is None:
        return [("fastprune._C", f"not built: {extension['reason']}")]
    openmp = "OpenMP" if info["openmp"] else "no OpenMP"
    rows = [("fastprune._C", f"{info['compiler']}, {openmp}, {info['simd']}")]
    if info["cuda"]:
        rows.append(("fastprune._C", f"CUDA for {info['cuda']['architectures']}"))
    else:
        rows.append(("fastprune._C", f"no CUDA: {extension['cuda_reason'] or 'unknown reason'}"))
    return rows
