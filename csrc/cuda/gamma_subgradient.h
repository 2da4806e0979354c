// The sparsity penalty on batch norm scales, each function one kernel launch for all layers.
//
// The table of pointers travels by value in the kernel's arguments: nothing is copied to the device before the launch, nothing
// cached there could be out of date, and a captured CUDA graph holds the table it was captured with (so tensors must stay where
// they are between replays, as for any captured kernel; factors are read on the device at each replay).
#pragma once

#include <cstdint>

#include "gamma_layers.h"

namespace fastprune::cuda {

// How many layers fit into a kernel's arguments.
std::int64_t gamma_most_layers(DType dtype);

// All throw std::runtime_error with CUDA's own words. `stream` is a cudaStream_t of the layers' device; the calling thread's
// current device stays as it was. Tensors and factors are on the device, none of more than 2^32 - 1 elements.
void gamma_subgradient(const GammaLayers& all, const Strengths& strengths, std::uintptr_t stream);
void gamma_proximal(const GammaLayers& all, const Strengths& thresholds, std::uintptr_t stream);

// out: one float64 for layers of float64, else one float32.
void gamma_penalty(const GammaLayers& all, void* out, std::uintptr_t stream);

}  // namespace fastprune::cuda
