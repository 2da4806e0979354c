// The CUDA devices that this build can use. Every function throws std::runtime_error with CUDA's own words.
#pragma once

namespace fastprune::cuda {

int device_count();

// Runs a kernel on `device` and checks what it wrote; leaves the calling thread's current device as it was.
void probe(int device);

// CUDART_VERSION of the static runtime that was linked in, for instance 13000.
int runtime_version();

}  // namespace fastprune::cuda
