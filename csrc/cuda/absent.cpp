// Takes the place of csrc/cuda/*.cu where nvcc was not found or was not wanted.
#ifndef FASTPRUNE_WITH_CUDA

#include <stdexcept>

#include "device.h"
#include "gamma_subgradient.h"
#include "gather_channels.h"

namespace fastprune::cuda {

namespace {

constexpr const char* kAbsent = "fastprune._C was compiled without CUDA; `fastprune doctor` says why";

}  // namespace

int device_count() { throw std::runtime_error(kAbsent); }

void probe(int) { throw std::runtime_error(kAbsent); }

int runtime_version() { return 0; }

std::int64_t gamma_most_layers(DType) { throw std::runtime_error(kAbsent); }

void gamma_subgradient(const GammaLayers&, const Strengths&, std::uintptr_t) { throw std::runtime_error(kAbsent); }

void gamma_proximal(const GammaLayers&, const Strengths&, std::uintptr_t) { throw std::runtime_error(kAbsent); }

void gamma_penalty(const GammaLayers&, void*, std::uintptr_t) { throw std::runtime_error(kAbsent); }

int gather_channels(const std::vector<std::uintptr_t>&, const std::vector<std::uintptr_t>&, const std::vector<int>&,
                    const std::vector<std::int64_t>&, std::uintptr_t, const std::vector<std::int64_t>&, int,
                    std::uintptr_t) {
    throw std::runtime_error(kAbsent);
}

}  // namespace fastprune::cuda

#endif
