// zero_count: exact zeros of an activation by channel, in one read.
#include <cstdint>
#include <vector>

#include "bind.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "dtype.h"

namespace py = pybind11;

namespace fastprune {

namespace {

// Zero is all bits but the sign: integers compare the same way for every floating type.
template <class Bits>
constexpr Bits kMagnitude = static_cast<Bits>(~(Bits{1} << (8 * sizeof(Bits) - 1)));

template <class Bits>
std::int64_t count_row(const Bits* x, std::int64_t size) {
    std::int64_t zeros = 0;
    for (std::int64_t i = 0; i < size; ++i) zeros += (x[i] & kMagnitude<Bits>) == 0;
    return zeros;
}

template <class Bits>
void count(const Bits* x, std::int64_t* counter, std::int64_t outer, std::int64_t channels, std::int64_t inner,
           bool channels_last, int threads) {
    if (!channels_last) {
#pragma omp parallel for num_threads(threads)
        for (std::int64_t c = 0; c < channels; ++c) {
            for (std::int64_t n = 0; n < outer; ++n) counter[c] += count_row(x + (n * channels + c) * inner, inner);
        }
        return;
    }
    for (std::int64_t row = 0; row < outer * inner; ++row) {
        for (std::int64_t c = 0; c < channels; ++c) counter[c] += (x[row * channels + c] & kMagnitude<Bits>) == 0;
    }
}

void zero_count(std::uintptr_t x, std::uintptr_t counter, int dtype, std::int64_t outer, std::int64_t channels,
                std::int64_t inner, bool channels_last, int threads) {
    auto* out = pointer<std::int64_t>(counter);
    auto run = [&](auto* typed) {
        const int used = threads_for(outer * channels * inner * static_cast<std::int64_t>(sizeof(*typed)), threads);
        count(typed, out, outer, channels, inner, channels_last, used);
    };
    switch (static_cast<DType>(dtype)) {
        case DType::float32: return run(pointer<const std::uint32_t>(x));
        case DType::float16:
        case DType::bfloat16: return run(pointer<const std::uint16_t>(x));
        case DType::float64: return run(pointer<const std::uint64_t>(x));
    }
    unknown_dtype("zero_count", static_cast<DType>(dtype));
}

const Binding binding([](py::module_& m) {
    m.def("zero_count", &zero_count, py::arg("x"), py::arg("counter"), py::arg("dtype"), py::arg("outer"),
          py::arg("channels"), py::arg("inner"), py::arg("channels_last"), py::arg("threads"),
          py::call_guard<py::gil_scoped_release>(),
          "Adds the zeros of each channel of a dense activation to an int64 counter.");
});

}  // namespace

}  // namespace fastprune
