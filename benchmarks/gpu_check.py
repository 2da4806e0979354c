"""All that needs a GPU, in one call of under eight minutes: ``python benchmarks/gpu_check.py``.

Builds fastprune here, runs every op's tests on CUDA, the compiled kernels under compute-sanitizer
where that is installed, then the benchmarks with their records. It needs torch, pytest,
pytest-benchmark, hypothesis, setuptools and a compiler, but no network and no write access to
Python's own folders: the package goes to a folder of its own. Wheels of what is missing can lie in
a folder (``--wheels``). A step that fails or runs out of time does not stop the later ones; the
exit code is 1 then.

What is measured goes to ``benchmarks/records/``, and with the logs to ``--out`` (``$OUT``, else
``build/gpu_check``), few files for easy carrying. ``--unpack FILE`` writes the records of a
carried ``gpu_check.json`` on another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"

# Two minutes of the ten that a command is given elsewhere are left for slow starts.
BUDGET = 465.0

# Import name -> what is not done without it.
NEEDED = {
    "torch": "anything",
    "setuptools": "the build",
    "pytest": "tests and benchmarks",
    "hypothesis": "tests",
    "pytest_benchmark": "benchmarks",
    "xdist": "tests side by side; they run one after another",
    "triton": "Triton kernels",
    "numba": "numba kernels",
    "typer": "the command line",
    **dict.fromkeys(("pydantic", "sklearn", "torchvision"), "pipelines and training steps"),
}

# Beside those of the ops.
TRAINING_TESTS = (
    "tests/data/test_device.py",
    "tests/data/test_cache.py",
    "tests/training/test_capture.py",
    "tests/training/test_step.py",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command.

    Attributes:
        name: also of its log.
        command: run in the root of the tree.
        limit: seconds it may take.
        least: seconds that are kept for it when earlier ones are slow.
        skip: why it is not run, or None.
        environment: variables on top of the process's own.
        instead_of: the step that must have gone wrong for this one to run, or None.
    """

    name: str
    command: Sequence[str]
    limit: float
    least: float
    skip: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    instead_of: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How a step ended: ``"passed"``, ``"failed"``, ``"out of time"`` or ``"skipped"``."""

    name: str
    status: str
    seconds: float
    said: str


def missing() -> dict[str, str]:
    return {name: use for name, use in NEEDED.items() if find_spec(name) is None}


def sanitizer() -> str | None:
    for place in ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"):
        if found := shutil.which(place):
            return found
    return None


def plan(out: Path, site: Path, wheels: Path | None, absent: Mapping[str, str]) -> list[Step]:
    """The steps in order, those that cannot run with the reason.

    Args:
        out: folder of logs and results.
        site: folder that packages are installed to.
        wheels: folder of wheels to install, or None.
        absent: what `missing` gave.
    """
    python = sys.executable
    # Nothing of the machine's Python is changed, and an older install of the package is shadowed.
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Without a safe path `-c` and `-m` would find the sources of this folder before the package,
    # and those hold no kernels and no compiled module.
    own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    install = [python, "-m", "pip", "install", "--no-deps", "--no-index", "--upgrade"]
    install += ["--no-warn-script-location", "--target", str(site)]
    wheel_files = sorted(str(p) for p in wheels.glob("*.whl")) if wheels else []
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops", "tests/nn"]
    tests += [f"--junitxml={out / 'tests.xml'}", "--maxfail=60"]
    if "xdist" not in absent:
        tests += ["-n", str(min(8, os.cpu_count() or 1))]
    bench = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    bench += ["benchmarks/ops"]
    if not _without(absent, "pydantic", "sklearn", "torchvision"):
        tests += TRAINING_TESTS
        bench += ["benchmarks/data", "benchmarks/methods", "benchmarks/nn", "benchmarks/training"]
    bench += ["--record", f"--benchmark-json={out / 'benchmarks.json'}"]
    no_tests = _without(absent, "pytest", "hypothesis")
    no_bench = _without(absent, "pytest", "pytest_benchmark")
    if not (ROOT / "benchmarks" / "ops").is_dir():
        no_bench = "there is no benchmarks/ops"
    checker = sanitizer()
    no_checker = None if checker else "compute-sanitizer is not installed"

    def sanitize(name: str, tool: str, *backends: str, limit: float, least: float) -> Step:
        command = [checker or "compute-sanitizer", "--tool", tool, "--error-exitcode", "3"]
        command += ["--report-api-errors", "no", python, "benchmarks/_sanitize.py", *backends]
        # torch's own cache would hide what is past a tensor's end.
        plain = {**own, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return Step(name, command, limit, least, no_checker, plain)

    build = [*install, "--no-build-isolation", "."]
    return [
        Step(
            "wheels",
            [*install, *wheel_files],
            40,
            5,
            None if wheel_files else "no folder of wheels",
        ),
        Step("build", build, 150, 60, environment={**own, "FASTPRUNE_BUILD_CUDA": "1"}),
        # What can be built: better tests of the rest than none.
        Step("build-any", build, 90, 0, environment=own, instead_of="build"),
        Step(
            "doctor",
            [python, "-c", "from fastprune import doctor; print(*doctor.lines(), sep='\\n')"],
            30,
            10,
            environment=own,
        ),
        Step("tests", tests, 190, 70, no_tests, own),
        sanitize("memcheck", "memcheck", "cuda", "triton", limit=70, least=20),
        sanitize("racecheck", "racecheck", "cuda", "triton", limit=60, least=15),
        Step("benchmarks", bench, 240, 100, no_bench, own),
    ]


def _without(absent: Mapping[str, str], *names: str) -> str | None:
    gone = [name for name in names if name in absent]
    return f"not installed: {', '.join(gone)}" if gone else None


def allowed(steps: Sequence[Step], at: int, left: float) -> float:
    """Seconds for one step: its limit, unless that would take what later steps are sure of."""
    kept = sum(step.least for step in steps[at + 1 :] if step.skip is None)
    return max(0.0, min(steps[at].limit, left - kept))


def run(step: Step, seconds: float, log: Path) -> Result:
    """Runs a step; past its time its processes are ended."""
    if step.skip is not None:
        return Result(step.name, "skipped", 0.0, step.skip)
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            list(step.command),
            cwd=ROOT,
            env={**os.environ, **step.environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            status = "passed" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
            # Its own group: workers and compilers that it started.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    spent = time.monotonic() - start
    return Result(step.name, status, round(spent, 1), last_line(log.read_text(errors="replace")))


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].strip("= ")[:160] if lines else ""


def facts(absent: Mapping[str, str]) -> dict[str, Any]:
    """What the machine is; asked in a process of its own, so that this one holds no GPU memory."""
    code = (
        "import json, platform, torch\n"
        "found = {'python': platform.python_version(), 'torch': torch.__version__}\n"
        "found['cuda'] = torch.version.cuda\n"
        "found['devices'] = [torch.cuda.get_device_name(i) "
        "for i in range(torch.cuda.device_count())]\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found: dict[str, Any] = {"devices": []}
    if done.returncode == 0:
        found = json.loads(done.stdout.splitlines()[-1])
    else:
        found["problem"] = last_line(done.stderr)
    return {**found, "missing": dict(absent), "compute-sanitizer": sanitizer()}


def records_since(start: float) -> dict[str, Any]:
    """The records that this run wrote, by file name."""
    return {
        path.name: json.loads(path.read_text())
        for path in sorted(RECORDS.glob("gpu_*.json"))
        if path.stat().st_mtime >= start
    }


def unpack(bundle: Path) -> list[Path]:
    """Writes the records of a carried result to benchmarks/records/."""
    records = json.loads(bundle.read_text())["records"]
    RECORDS.mkdir(exist_ok=True)
    for name, content in records.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (RECORDS / Path(name).name).write_text(text)
    return [RECORDS / Path(name).name for name in records]


def show(results: Sequence[Result]) -> None:
    print("\nstep          status        seconds  last line")
    for result in results:
        print(f"{result.name:<13} {result.status:<12} {result.seconds:>8.1f}  {result.said}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.environ.get("OUT") or str(ROOT / "build" / "gpu_check")
    parser.add_argument("--out", type=Path, default=Path(default), help="folder of results")
    parser.add_argument("--wheels", type=Path, default=None, help="folder of wheels to install")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")
    parser.add_argument("--anyway", action="store_true", help="go on where there is no GPU")
    parser.add_argument("--unpack", type=Path, default=None, metavar="FILE", help="see above")
    wanted = parser.parse_args()
    if wanted.unpack is not None:
        print(*unpack(wanted.unpack), sep="\n")
        return 0
    out, absent = wanted.out.resolve(), missing()
    site = ROOT / "build" / "gpu_site"
    steps = plan(out, site, wanted.wheels, absent)
    if wanted.dry_run:
        for step in steps:
            limit = f"at most {step.limit:.0f} s" if step.skip is None else f"skipped: {step.skip}"
            print(f"{step.name} ({limit})\n    {' '.join(step.command)}")
        return 0
    return check(steps, out, site, absent, anyway=wanted.anyway)


def check(
    steps: Sequence[Step], out: Path, site: Path, absent: Mapping[str, str], *, anyway: bool
) -> int:
    """Runs the steps and writes what came of them; the exit code."""
    begun, start = time.time(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    # An earlier run's package must not be what is tested where this run's build fails.
    shutil.rmtree(site, ignore_errors=True)
    machine = facts(absent)
    print(json.dumps(machine, indent=2), flush=True)
    for name, use in absent.items():
        print(f"not installed: {name}, needed for {use}")
    if not machine["devices"] and not anyway:
        print("gpu_check: torch sees no CUDA device; --anyway runs what can be run")
        return 1
    results: list[Result] = []
    for at, step in enumerate(steps):
        seconds = allowed(steps, at, BUDGET - (time.monotonic() - start))
        if step.instead_of in (r.name for r in results if r.status in ("passed", "skipped")):
            continue
        log = out / f"{step.name}.log"
        result = run(step, seconds, log)
        results.append(result)
        print(f"{step.name}: {result.status}, {result.seconds} s", flush=True)
        bad = result.status in ("failed", "out of time")
        if log.exists() and (bad or step.name in ("doctor", "benchmarks")):
            print("\n".join(log.read_text(errors="replace").splitlines()[-60:]), flush=True)
    bundle = {
        "machine": machine,
        "steps": [
            {"name": r.name, "status": r.status, "seconds": r.seconds, "said": r.said}
            for r in results
        ],
        "records": records_since(begun),
    }
    (out / "gpu_check.json").write_text(json.dumps(bundle, indent=2, ensure_ascii=False) + "\n")
    pack_logs(out)
    show(results)
    return int(any(result.status in ("failed", "out of time") for result in results))


def pack_logs(out: Path) -> None:
    """One file of all logs: some ways home carry a handful of files alone."""
    with (out / "gpu_check.log").open("w") as whole:
        for log in sorted(out.glob("*.log"), key=lambda path: path.stat().st_mtime):
            if log.name != "gpu_check.log":
                whole.write(f"==== {log.stem}\n{log.read_text(errors='replace')}\n")
                log.unlink()


if __name__ == "__main__":
    sys.exit(main())
