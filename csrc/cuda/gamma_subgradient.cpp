// Python's side of gamma_subgradient.cu: reads the lists, finds the stream, launches. Each function gives False, having touched
// nothing, where it does not take what it is given.
#include "cuda/gamma_subgradient.h"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>

#include "bind.h"
#include "cpu/gamma_subgradient.h"
#include "cpu/tensors.h"

namespace py = pybind11;

namespace fastprune::cuda {

namespace {

bool read(py::handle scales, py::handle gradients, GammaLayers& found) {
    if (!read_layers(scales, gradients, found) || found.device_type != kCUDA) return false;
    if (static_cast<std::int64_t>(found.layers.size()) > gamma_most_layers(found.dtype)) return false;
    for (const GammaLayer& layer : found.layers) {
        if (layer.size > std::numeric_limits<std::uint32_t>::max()) return false;
    }
    return true;
}

bool subgradient(py::handle scales, py::handle gradients, py::handle strengths, py::handle factors) {
    GammaCall& call = GammaCall::of_this_thread();
    if (gradients.is_none() || !read(scales, gradients, call.layers)) return false;
    if (!read_strengths(strengths, factors, call.layers, call.strengths)) return false;
    const std::uintptr_t stream = current_stream(call.layers.device);
    increment_version(gradients.ptr());
    py::gil_scoped_release release;
    gamma_subgradient(call.layers, call.strengths, stream);
    return true;
}

bool proximal(py::handle scales, py::handle thresholds, py::handle factors) {
    GammaCall& call = GammaCall::of_this_thread();
    if (!read(scales, py::none(), call.layers)) return false;
    if (!read_strengths(thresholds, factors, call.layers, call.strengths)) return false;
    const std::uintptr_t stream = current_stream(call.layers.device);
    increment_version(scales.ptr());
    py::gil_scoped_release release;
    gamma_proximal(call.layers, call.strengths, stream);
    return true;
}

bool penalty(py::handle scales, std::uintptr_t out) {
    GammaLayers& layers = GammaCall::of_this_thread().layers;
    if (!read(scales, py::none(), layers)) return false;
    const std::uintptr_t stream = current_stream(layers.device);
    py::gil_scoped_release release;
    gamma_penalty(layers, pointer<void>(out), stream);
    return true;
}

const Binding binding([](py::module_& m) {
    m.def(
        "gamma_most_layers", [](int dtype) { return gamma_most_layers(static_cast<DType>(dtype)); }, py::arg("dtype"),
        "How many layers one launch takes.");
    m.def("gamma_subgradient_cuda", &subgradient, py::arg("scales"), py::arg("gradients"), py::arg("strengths"),
          py::arg("factors"), "Adds s sign(scale) to each gradient; False where it does not take them.");
    m.def("gamma_proximal_cuda", &proximal, py::arg("scales"), py::arg("thresholds"), py::arg("factors"),
          "Moves each scale towards zero by its threshold; False where it does not take them.");
    m.def("gamma_penalty_cuda", &penalty, py::arg("scales"), py::arg("out"),
          "Writes the sum of all magnitudes to the device; False where it does not take the scales.");
});

}  // namespace

}  // namespace fastprune::cuda
