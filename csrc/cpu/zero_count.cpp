// zero_count: exact zeros of an activation by channel, in one read.
#include <cstdint>

#include "bind.h"
#include "zeros.h"

namespace py = pybind11;

namespace fastprune {

namespace {

void zero_count(std::uintptr_t x, std::uintptr_t counter, int dtype, std::int64_t outer, std::int64_t channels,
                std::int64_t inner, bool channels_last, int threads) {
    const Activation activation(outer, channels, inner, channels_last);
    if (activation.size() == 0) return;
    count_zeros<false>("zero_count", x, 0, activation, static_cast<DType>(dtype), pointer<std::int64_t>(counter), threads);
}

const Binding binding([](py::module_& m) {
    m.def("zero_count", &zero_count, py::arg("x"), py::arg("counter"), py::arg("dtype"), py::arg("outer"),
          py::arg("channels"), py::arg("inner"), py::arg("channels_last"), py::arg("threads"),
          py::call_guard<py::gil_scoped_release>(),
          "Adds the zeros of each channel of a dense activation to an int64 counter.");
});

}  // namespace

}  // namespace fastprune
