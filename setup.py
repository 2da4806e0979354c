"""Builds fastprune; pyproject.toml says the rest.

The compiled extension `fastprune._C` is tried, never demanded: where there is no compiler, or it
fails, the install goes on in pure Python. What was built, and why not the rest, is kept in
`fastprune/_build.json`, which `fastprune doctor` reads.

Environment:
    FASTPRUNE_BUILD_EXT: 0 asks for pure Python, 1 fails the install where the extension cannot be
        built; unset tries.
    FASTPRUNE_BUILD_CUDA: 0 compiles the CPU part alone, 1 fails the install where the CUDA part
        cannot be built; unset tries where nvcc is found.
    CUDACXX, CUDA_HOME: where nvcc is looked for before PATH.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError

RECORD = "_build.json"
ARCHITECTURES = ("75", "80", "86", "89", "90")
BUILD_ERRORS = (BaseError, CCompilerError, OSError)


class Unavailable(Exception):
    """Something this build needs is not there, or is not wanted; the message is the reason."""


def asked(variable: str) -> str:
    """The setting of one FASTPRUNE_BUILD_* variable: "0", "1", or "" where it is unset."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{variable}: expected 0, 1 or nothing, got {value!r}")
    return value


def find_nvcc() -> str:
    candidates = [os.environ.get("CUDACXX")]
    if home := os.environ.get("CUDA_HOME"):
        candidates.append(str(Path(home, "bin", "nvcc")))
    candidates += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for candidate in candidates:
        if candidate and (found := shutil.which(candidate)):
            return found
    raise Unavailable(
        "nvcc was not found (looked at CUDACXX, CUDA_HOME, PATH and /usr/local/cuda)"
    )


def find_pybind11() -> str:
    """The folder of pybind11's headers; torch's own copy where the package is not installed."""
    try:
        import pybind11
    except ImportError:
        # Not imported: that takes seconds, and only the place is needed.
        torch = find_spec("torch")
        for folder in (torch and torch.submodule_search_locations) or ():
            if Path(folder, "include", "pybind11", "pybind11.h").exists():
                return str(Path(folder, "include"))
        raise Unavailable("pybind11 is not installed, and there is no torch with a copy") from None
    place: str = pybind11.get_include()
    return place


def run(command: list[str]) -> str:
    """What a command prints, its output and its errors together."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise Unavailable(
            f"{Path(command[0]).name} exited with {done.returncode}: {last(done.stdout)}"
        )
    return done.stdout


def last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[0]


class BuildPython(build_py):
    """build_py into an empty folder.

    Plug-ins are found by their files: one that was renamed or removed since the last build must
    not be installed again from what that build left.
    """

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib, "fastprune"), ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    """build_ext that adds CUDA objects where it can, and gives up without failing the install."""

    def run(self) -> None:
        self.record = {"extension": False, "reason": None, "cuda": False, "cuda_reason": None}
        wanted, cuda_wanted = asked("FASTPRUNE_BUILD_EXT"), asked("FASTPRUNE_BUILD_CUDA")
        extensions = self.extensions
        try:
            if wanted == "0":
                raise Unavailable("FASTPRUNE_BUILD_EXT=0 asked for pure Python")
            super().run()
            self.record["extension"] = True
        except (Unavailable, *BUILD_ERRORS) as error:
            if wanted == "1" or cuda_wanted == "1":
                raise
            self.record.update(reason=str(error), cuda=False, cuda_reason=None)
            self.forget(extensions)
            print(f"fastprune: installing without fastprune._C: {error}", file=sys.stderr)
        if self.record["cuda_reason"]:
            print(f"fastprune: CPU part only: {self.record['cuda_reason']}", file=sys.stderr)
        self.write_record()

    def forget(self, extensions: list[Extension]) -> None:
        """Leave no module of an earlier build behind: it would be installed with this one."""
        for extension in extensions:
            name = self.get_ext_fullname(extension.name)
            Path(self.build_lib, self.get_ext_filename(name)).unlink(missing_ok=True)
            if self.inplace:
                Path(self.get_ext_fullpath(name)).unlink(missing_ok=True)
        self.extensions = []

    def build_extension(self, extension: Extension) -> None:
        extension.include_dirs += ["csrc", find_pybind11()]
        if self.compiler.compiler_type == "msvc":
            extension.extra_compile_args += ["/std:c++17", "/O2", "/EHsc"]
            openmp = ["/openmp"]
        else:
            extension.extra_compile_args += ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"]
            openmp = ["-fopenmp"]
        if self.compiles(
            "#include <omp.h>\nint main() { return omp_get_max_threads() == 0; }", openmp
        ):
            extension.extra_compile_args += openmp
            if self.compiler.compiler_type != "msvc":
                extension.extra_link_args += openmp
        try:
            self.add_cuda(extension)
            self.record["cuda"] = True
        except Unavailable as error:
            if asked("FASTPRUNE_BUILD_CUDA") == "1":
                raise
            self.record["cuda_reason"] = str(error)
        super().build_extension(extension)

    def compiles(self, source: str, flags: list[str]) -> bool:
        """Whether a whole program compiles and links with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe.cpp")
            path.write_text(source)
            try:
                objects = self.compiler.compile(
                    [str(path)], output_dir=folder, extra_postargs=flags
                )
                self.compiler.link_executable(
                    objects, "probe", output_dir=folder, extra_postargs=flags, target_lang="c++"
                )
            except BUILD_ERRORS:
                return False
        return True

    def add_cuda(self, extension: Extension) -> None:
        """Compile csrc/cuda/*.cu and link them in, with the static CUDA runtime."""
        if asked("FASTPRUNE_BUILD_CUDA") == "0":
            raise Unavailable("FASTPRUNE_BUILD_CUDA=0 asked for the CPU part alone")
        if not sys.platform.startswith("linux"):
            raise Unavailable(f"the CUDA part is built on Linux, not on {sys.platform}")
        nvcc = find_nvcc()
        known = run([nvcc, "--list-gpu-arch"]).split()
        architectures = [a for a in ARCHITECTURES if f"compute_{a}" in known]
        if not architectures:
            raise Unavailable(f"{nvcc} knows none of sm_{', sm_'.join(ARCHITECTURES)}")
        newest = architectures[-1]
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
        # Code of the newest as PTX too: later GPUs compile it when they first run it.
        codes.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        folder = Path(self.build_temp, "cuda")
        folder.mkdir(parents=True, exist_ok=True)
        objects = []
        for source in sorted(Path("csrc", "cuda").glob("*.cu")):
            objects.append(str(folder / f"{source.stem}.o"))
            flags = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0"]
            run([nvcc, "-c", str(source), "-o", objects[-1], "-Icsrc", *flags, *codes])
        # nvcc may be a wrapper anywhere: it alone knows where its libraries are.
        words = run([nvcc, "--dryrun", "--cudart=static", str(source)])
        folders = re.findall(r'"-L([^"]+)"', words)
        static = [f for f in folders if Path(f, "libcudart_static.a").exists()]
        if not static:
            raise Unavailable(f"libcudart_static.a is in none of {', '.join(folders)}")
        extension.extra_objects += objects
        extension.extra_link_args += [str(Path(static[0], "libcudart_static.a"))]
        extension.libraries += ["dl", "rt", "pthread"]
        listed = ", ".join(f"sm_{a}" for a in architectures) + f", compute_{newest} (PTX)"
        extension.define_macros += [
            ("FASTPRUNE_WITH_CUDA", "1"),
            ("FASTPRUNE_CUDA_ARCHITECTURES", f'"{listed}"'),
        ]

    def record_paths(self) -> tuple[str, str]:
        """Where the record is built, and where it lies in an editable install."""
        source = self.get_finalized_command("build_py").get_package_dir("fastprune")
        return str(Path(self.build_lib, "fastprune", RECORD)), str(Path(source, RECORD))

    def write_record(self) -> None:
        built, source = self.record_paths()
        for path in [built, source] if self.inplace else [built]:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps(self.record, indent=2) + "\n")

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), self.record_paths()[0]]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {**super().get_output_mapping(), **dict([self.record_paths()])}


setup(
    packages=[
        *find_packages(include=["fastprune", "fastprune.*"], exclude=["fastprune.kernels*"]),
        *(f"fastprune.{name}" for name in find_packages(include=["kernels", "kernels.*"])),
    ],
    package_dir={"fastprune.kernels": "kernels"},
    ext_modules=[
        Extension(
            "fastprune._C",
            sources=sorted(
                str(p)
                for p in [
                    Path("csrc", "bindings.cpp"),
                    *Path("csrc", "cpu").glob("*.cpp"),
                    *Path("csrc", "cuda").glob("*.cpp"),
                ]
            ),
            depends=sorted(str(p) for p in Path("csrc").rglob("*.h")),
            language="c++",
        )
    ],
    cmdclass={"build_py": BuildPython, "build_ext": BuildExtension},
)
