// relu_zero_count: ReLU and the zeros of its output by channel, in one read and one write.
#include <cstdint>

#include "bind.h"
#include "zeros.h"

namespace py = pybind11;

namespace fastprune {

namespace {

void relu_zero_count(std::uintptr_t x, std::uintptr_t y, std::uintptr_t counter, int dtype, std::int64_t outer,
                     std::int64_t channels, std::int64_t inner, bool channels_last, int threads) {
    const Activation activation(outer, channels, inner, channels_last);
    if (activation.size() == 0) return;
    count_zeros<true>("relu_zero_count", x, y, activation, static_cast<DType>(dtype), pointer<std::int64_t>(counter),
                      threads);
}

const Binding binding([](py::module_& m) {
    m.def("relu_zero_count", &relu_zero_count, py::arg("x"), py::arg("y"), py::arg("counter"), py::arg("dtype"),
          py::arg("outer"), py::arg("channels"), py::arg("inner"), py::arg("channels_last"), py::arg("threads"),
          py::call_guard<py::gil_scoped_release>(),
          "Writes ReLU of a dense activation to one of the same layout, and adds its zeros to an int64 counter.");
});

}  // namespace

}  // namespace fastprune
