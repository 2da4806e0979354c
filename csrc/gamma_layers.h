// A network's batch norm scales as the kernels for them take them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dtype.h"

namespace fastprune {

struct GammaLayer {
    void* scale;
    void* gradient;  // null where there is none
    std::int64_t size;
};

// Contiguous tensors of one dtype on one device.
struct GammaLayers {
    std::vector<GammaLayer> layers;
    DType dtype = DType::float32;
    int device_type = 0;
    int device = 0;
    std::int64_t elements = 0;
};

// s of each layer: numbers[0] or numbers[i], times factors[0] or factors[i] where factors are given.
struct Strengths {
    std::vector<double> numbers;
    const float* factors = nullptr;
    bool each_factor = false;

    double number(std::size_t layer) const { return numbers[numbers.size() == 1 ? 0 : layer]; }
    const float* factor(std::size_t layer) const { return factors == nullptr ? nullptr : factors + (each_factor ? layer : 0); }
};

}  // namespace fastprune
