// The Python module fastprune._C. No torch header is included anywhere in csrc: functions take data pointers, sizes and
// strides, so that one build serves every torch version and compiles in seconds.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bind.h"
#include "cpu/simd.h"
#include "cuda/device.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;
using release_gil = py::call_guard<py::gil_scoped_release>;

namespace {

std::string compiler() {
#if defined(__clang__)
    return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
    return std::string("gcc ") + __VERSION__;
#elif defined(_MSC_VER)
    return "msvc " + std::to_string(_MSC_VER);
#else
    return "unknown";
#endif
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = compiler();
#ifdef _OPENMP
    info["openmp"] = _OPENMP;
#else
    info["openmp"] = py::none();
#endif
    info["simd_compiled"] = fastprune::simd_compiled();
    info["simd"] = fastprune::simd_in_use();
#ifdef FASTPRUNE_WITH_CUDA
    py::dict cuda;
    cuda["architectures"] = FASTPRUNE_CUDA_ARCHITECTURES;
    cuda["runtime"] = fastprune::cuda::runtime_version();
    info["cuda"] = cuda;
#else
    info["cuda"] = py::none();
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Compiled part of fastprune.";
    m.def("build_info", &build_info,
          "How this module was compiled: compiler, openmp (its date, or None), simd_compiled (levels that hot loops are "
          "compiled for), simd (the level this processor runs), cuda (architectures and runtime, or None).");
    m.def("cuda_device_count", &fastprune::cuda::device_count, release_gil(),
          "Number of CUDA devices. Raises RuntimeError with CUDA's own words where there is no driver or no device, or "
          "where the module was compiled without CUDA.");
    m.def("cuda_probe", &fastprune::cuda::probe, py::arg("device"), release_gil(),
          "Run a compiled-in kernel on one device. Raises RuntimeError with CUDA's own words where that fails, for "
          "instance because no code for its architecture was compiled in.");
    for (const auto bind : fastprune::bindings()) bind(m);
}
