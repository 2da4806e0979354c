// A CUDA error code becomes a C++ exception, and so a Python RuntimeError.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fastprune::cuda {

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    // Clears the sticky copy, so that a later, unrelated check does not report this error again.
    cudaGetLastError();
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + " (" + cudaGetErrorString(status) + ")");
}

}  // namespace fastprune::cuda
