// gamma_subgradient_, gamma_proximal_ and gamma_penalty: a network's batch norm scales in one call.
#include "cpu/gamma_subgradient.h"

#include <algorithm>
#include <cmath>

#include "bind.h"
#include "cpu/half.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/tensors.h"

namespace py = pybind11;

namespace fastprune {

namespace {

#ifdef FASTPRUNE_SIMD_VERSIONS
#define FASTPRUNE_VERSIONS __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define FASTPRUNE_VERSIONS
#endif

// Half precision is calculated in float and rounded once, as torch does.
template <class T>
using Wide = decltype(widen(T{}));

template <class W>
inline W signed_step(W scale, W step) {
    return (scale > 0 ? step : W{0}) - (scale < 0 ? step : W{0});
}

template <class T>
inline void subgradient_of(const T* scale, T* gradient, std::int64_t size, Wide<T> strength) {
    for (std::int64_t i = 0; i < size; ++i) narrow(widen(gradient[i]) + signed_step(widen(scale[i]), strength), gradient[i]);
}

template <class T>
inline void proximal_of(T* scale, std::int64_t size, Wide<T> threshold) {
    using W = Wide<T>;
    for (std::int64_t i = 0; i < size; ++i) {
        const W x = widen(scale[i]);
        const W left = std::abs(x) - threshold;
        // Not std::max: NaN stays NaN, and an exact zero keeps the sign of a scale that had one.
        const W kept = left < 0 ? W{0} : left;
        narrow(x < 0 ? -kept : kept, scale[i]);
    }
}

// Partial sums in the dtype of the calculation, one for each of 32 lanes and at most 64 terms long, then float64.
template <class T>
inline double penalty_of(const T* scale, std::int64_t size) {
    constexpr std::int64_t kLanes = 32;
    constexpr std::int64_t kBlock = 64 * kLanes;
    double total = 0;
    for (std::int64_t start = 0; start < size; start += kBlock) {
        const std::int64_t end = std::min(start + kBlock, size);
        Wide<T> lane[kLanes] = {};
        std::int64_t i = start;
        for (; i + kLanes <= end; i += kLanes) {
            for (std::int64_t k = 0; k < kLanes; ++k) lane[k] += std::abs(widen(scale[i + k]));
        }
        for (; i < end; ++i) total += std::abs(widen(scale[i]));
        for (std::int64_t k = 0; k < kLanes; ++k) total += lane[k];
    }
    return total;
}

// Versions for several processors need functions that are no templates.
#define FASTPRUNE_GAMMA(T)                                                                                          \
    FASTPRUNE_VERSIONS void subgradient(const T* scale, T* gradient, std::int64_t size, Wide<T> strength) {          \
        subgradient_of(scale, gradient, size, strength);                                                            \
    }                                                                                                               \
    FASTPRUNE_VERSIONS void proximal(T* scale, std::int64_t size, Wide<T> threshold) { proximal_of(scale, size, threshold); } \
    FASTPRUNE_VERSIONS double penalty(const T* scale, std::int64_t size) { return penalty_of(scale, size); }
FASTPRUNE_GAMMA(float)
FASTPRUNE_GAMMA(double)
FASTPRUNE_GAMMA(Half)
FASTPRUNE_GAMMA(BFloat16)
#undef FASTPRUNE_GAMMA

template <class Function>
void for_dtype(const char* op, DType dtype, Function function) {
    switch (dtype) {
        case DType::float32: return function(float{});
        case DType::float16: return function(Half{});
        case DType::bfloat16: return function(BFloat16{});
        case DType::float64: return function(double{});
    }
    unknown_dtype(op, dtype);
}

std::int64_t element_size(DType dtype) {
    return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// function(layer) for each, shared among threads where there is enough of it.
template <class Function>
void for_layers(const GammaLayers& all, int threads, Function function) {
    const auto count = static_cast<std::int64_t>(all.layers.size());
    const int used = threads_for(all.elements * element_size(all.dtype), threads);
    if (used == 1) {
        for (std::int64_t i = 0; i < count; ++i) function(static_cast<std::size_t>(i));
        return;
    }
#pragma omp parallel for num_threads(used) schedule(dynamic)
    for (std::int64_t i = 0; i < count; ++i) function(static_cast<std::size_t>(i));
}

template <class T>
Wide<T> step(const Strengths& strengths, std::size_t layer) {
    const auto number = static_cast<Wide<T>>(strengths.number(layer));
    const float* factor = strengths.factor(layer);
    return factor == nullptr ? number : number * static_cast<Wide<T>>(*factor);
}

// The three functions give False, having touched nothing, where they do not take what they are given.

bool gamma_subgradient(py::handle scales, py::handle gradients, py::handle strengths, py::handle factors, int threads) {
    GammaCall& call = GammaCall::of_this_thread();
    const GammaLayers& all = call.layers;
    if (gradients.is_none() || !read_layers(scales, gradients, call.layers) || all.device_type != kCPU) return false;
    if (!read_strengths(strengths, factors, all, call.strengths)) return false;
    increment_version(gradients.ptr());
    py::gil_scoped_release release;
    for_dtype("gamma_subgradient_", all.dtype, [&](auto element) {
        using T = decltype(element);
        for_layers(all, threads, [&](std::size_t i) {
            const GammaLayer& layer = all.layers[i];
            const auto strength = step<T>(call.strengths, i);
            subgradient(static_cast<const T*>(layer.scale), static_cast<T*>(layer.gradient), layer.size, strength);
        });
    });
    return true;
}

bool gamma_proximal(py::handle scales, py::handle thresholds, py::handle factors, int threads) {
    GammaCall& call = GammaCall::of_this_thread();
    const GammaLayers& all = call.layers;
    if (!read_layers(scales, py::none(), call.layers) || all.device_type != kCPU) return false;
    if (!read_strengths(thresholds, factors, all, call.strengths)) return false;
    increment_version(scales.ptr());
    py::gil_scoped_release release;
    for_dtype("gamma_proximal_", all.dtype, [&](auto element) {
        using T = decltype(element);
        for_layers(all, threads, [&](std::size_t i) {
            proximal(static_cast<T*>(all.layers[i].scale), all.layers[i].size, step<T>(call.strengths, i));
        });
    });
    return true;
}

// out: float64 for scales of float64, else float32.
bool gamma_penalty(py::handle scales, std::uintptr_t out, int threads) {
    GammaCall& call = GammaCall::of_this_thread();
    const GammaLayers& all = call.layers;
    if (!read_layers(scales, py::none(), call.layers) || all.device_type != kCPU) return false;
    py::gil_scoped_release release;
    double total = 0;
    for_dtype("gamma_penalty", all.dtype, [&](auto element) {
        using T = decltype(element);
        // Added in the order of the layers, whatever thread took which.
        std::vector<double> sums(all.layers.size());
        for_layers(all, threads, [&](std::size_t i) {
            sums[i] = penalty(static_cast<const T*>(all.layers[i].scale), all.layers[i].size);
        });
        for (const double sum : sums) total += sum;
        *pointer<Wide<T>>(out) = static_cast<Wide<T>>(total);
    });
    return true;
}

// Whether the lists are plain; what a kernel for the device type does not take is told apart by Python.
bool gamma_plain(py::handle scales, py::handle gradients) {
    GammaLayers& found = GammaCall::of_this_thread().layers;
    return read_layers(scales, gradients, found);
}

const Binding binding([](py::module_& m) {
    m.def("gamma_plain", &gamma_plain, py::arg("scales"), py::arg("gradients"),
          "Whether lists hold plain tensors: contiguous, one dtype, one device, equal shapes.");
    m.def("gamma_subgradient", &gamma_subgradient, py::arg("scales"), py::arg("gradients"), py::arg("strengths"),
          py::arg("factors"), py::arg("threads"), "Adds s sign(scale) to each gradient; False where it does not take them.");
    m.def("gamma_proximal", &gamma_proximal, py::arg("scales"), py::arg("thresholds"), py::arg("factors"),
          py::arg("threads"), "Moves each scale towards zero by its threshold; False where it does not take them.");
    m.def("gamma_penalty", &gamma_penalty, py::arg("scales"), py::arg("out"), py::arg("threads"),
          "Writes the sum of all magnitudes; False where it does not take the scales.");
});

}  // namespace

bool read_layers(py::handle scales, py::handle gradients, GammaLayers& found) {
    const Items first(scales.ptr());
    const Items second(gradients.ptr());
    const bool with_gradients = !gradients.is_none();
    found.layers.clear();
    found.elements = 0;
    found.device_type = kCPU;
    if (first.size <= 0 || (with_gradients && second.size != first.size)) return false;
    TensorView scale, gradient;
    for (std::int64_t i = 0; i < first.size; ++i) {
        if (!read_tensor(first.first[i], scale) || !scale.contiguous) return false;
        if (i == 0) {
            found.dtype = scale.dtype;
            found.device_type = scale.device_type;
            found.device = scale.device;
        }
        const auto fits = [&](const TensorView& t) {
            return t.dtype == found.dtype && t.device_type == found.device_type && t.device == found.device;
        };
        if (!fits(scale)) return false;
        gradient.data = nullptr;
        if (with_gradients) {
            if (!read_tensor(second.first[i], gradient)) return false;
            if (!gradient.contiguous || !fits(gradient) || !same_shape(scale, gradient)) return false;
        }
        found.layers.push_back({scale.data, gradient.data, scale.size});
        found.elements += scale.size;
    }
    return true;
}

bool read_strengths(py::handle numbers, py::handle factors, const GammaLayers& all, Strengths& found) {
    const auto layers = static_cast<std::int64_t>(all.layers.size());
    const Items items(numbers.ptr());
    found.numbers.clear();
    found.factors = nullptr;
    if (items.size != 1 && items.size != layers) return false;
    for (std::int64_t i = 0; i < items.size; ++i) {
        if (!PyFloat_Check(items.first[i])) return false;
        found.numbers.push_back(PyFloat_AS_DOUBLE(items.first[i]));
    }
    if (factors.is_none()) return true;
    TensorView view;
    if (!read_tensor(factors.ptr(), view) || !view.contiguous || view.dtype != DType::float32 || view.ndim > 1) return false;
    if (view.device_type != all.device_type || view.device != all.device) return false;
    if (view.size != 1 && view.size != layers) return false;
    found.factors = static_cast<const float*>(view.data);
    found.each_factor = view.size != 1;
    return true;
}

GammaCall& GammaCall::of_this_thread() {
    thread_local GammaCall call;
    return call;
}

}  // namespace fastprune
