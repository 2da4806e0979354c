// batch_norm_relu_zero_count: the affine map of a batch norm in inference, ReLU, and the zeros of the output by channel,
// in one read and one write. A piece is mapped into the first cache, and its zeros are counted there.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bind.h"
#include "cpu/half.h"
#include "zeros.h"

namespace py = pybind11;

namespace fastprune {

namespace {

// y = relu((x - mean) * scale + shift): exact where x is the mean. With kEach the three are rows as long as x, otherwise
// one number for all of it.
template <class Real>
struct Affine {
    const Real *mean, *scale, *shift;
};

template <bool kEach, class Element, class Real>
FASTPRUNE_INLINE void plain_map(const Element* x, Element* y, std::int64_t from, std::int64_t size, Affine<Real> by) {
    for (std::int64_t i = from; i < size; ++i) {
        const std::int64_t at = kEach ? i : 0;
        const Real value = (widen(x[i]) - by.mean[at]) * by.scale[at] + by.shift[at];
        // NaN is not below zero.
        narrow(value < Real{0} ? Real{0} : value, y[i]);
    }
}

#ifdef FASTPRUNE_SIMD_VERSIONS

FASTPRUNE_INLINE FASTPRUNE_AVX512 __m512 read512(const float* x) { return _mm512_loadu_ps(x); }
FASTPRUNE_INLINE FASTPRUNE_AVX512 __m512 read512(const Half* x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
FASTPRUNE_INLINE FASTPRUNE_AVX512 __m512 read512(const BFloat16* x) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
FASTPRUNE_INLINE FASTPRUNE_AVX512 void write512(float* y, __m512 value) { _mm512_storeu_ps(y, value); }
FASTPRUNE_INLINE FASTPRUNE_AVX512 void write512(Half* y, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y),
                        _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
FASTPRUNE_INLINE FASTPRUNE_AVX512 void write512(BFloat16* y, __m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan, _mm512_set1_epi32(0x7FC0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_cvtepi32_epi16(rounded));
}

FASTPRUNE_INLINE FASTPRUNE_AVX2 __m256 read256(const float* x) { return _mm256_loadu_ps(x); }
FASTPRUNE_INLINE FASTPRUNE_AVX2 __m256 read256(const Half* x) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
FASTPRUNE_INLINE FASTPRUNE_AVX2 __m256 read256(const BFloat16* x) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
FASTPRUNE_INLINE FASTPRUNE_AVX2 void write256(float* y, __m256 value) { _mm256_storeu_ps(y, value); }
FASTPRUNE_INLINE FASTPRUNE_AVX2 void write256(Half* y, __m256 value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y),
                     _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
FASTPRUNE_INLINE FASTPRUNE_AVX2 void write256(BFloat16* y, __m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i rounded = _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), _mm256_set1_epi32(0x7FC0), nan);
    const __m128i low = _mm256_castsi256_si128(rounded), high = _mm256_extracti128_si256(rounded, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm_packus_epi32(low, high));
}

// max gives its second operand where one is NaN, and where both are zero.
template <bool kEach, class Element>
FASTPRUNE_AVX512 void map_avx512(const Element* x, Element* y, std::int64_t size, Affine<float> by) {
    const __m512 mean = _mm512_set1_ps(by.mean[0]), scale = _mm512_set1_ps(by.scale[0]);
    const __m512 shift = _mm512_set1_ps(by.shift[0]), zero = _mm512_setzero_ps();
    std::int64_t i = 0;
    for (; i + 16 <= size; i += 16) {
        const __m512 centred = _mm512_sub_ps(read512(x + i), kEach ? _mm512_loadu_ps(by.mean + i) : mean);
        const __m512 value = _mm512_fmadd_ps(centred, kEach ? _mm512_loadu_ps(by.scale + i) : scale,
                                             kEach ? _mm512_loadu_ps(by.shift + i) : shift);
        write512(y + i, _mm512_max_ps(zero, value));
    }
    plain_map<kEach>(x, y, i, size, by);
}

template <bool kEach, class Element>
FASTPRUNE_AVX2 void map_avx2(const Element* x, Element* y, std::int64_t size, Affine<float> by) {
    const __m256 mean = _mm256_set1_ps(by.mean[0]), scale = _mm256_set1_ps(by.scale[0]);
    const __m256 shift = _mm256_set1_ps(by.shift[0]), zero = _mm256_setzero_ps();
    std::int64_t i = 0;
    for (; i + 8 <= size; i += 8) {
        const __m256 centred = _mm256_sub_ps(read256(x + i), kEach ? _mm256_loadu_ps(by.mean + i) : mean);
        const __m256 value = _mm256_fmadd_ps(centred, kEach ? _mm256_loadu_ps(by.scale + i) : scale,
                                             kEach ? _mm256_loadu_ps(by.shift + i) : shift);
        write256(y + i, _mm256_max_ps(zero, value));
    }
    plain_map<kEach>(x, y, i, size, by);
}

#endif  // FASTPRUNE_SIMD_VERSIONS

template <bool kEach, class Element, class Real>
void map_plain(const Element* x, Element* y, std::int64_t size, Affine<Real> by) {
    plain_map<kEach>(x, y, 0, size, by);
}

template <class Element, class Real>
using Map = void (*)(const Element*, Element*, std::int64_t, Affine<Real>);

template <bool kEach, class Element, class Real>
Map<Element, Real> map_kernel() {
#ifdef FASTPRUNE_SIMD_VERSIONS
    if constexpr (std::is_same_v<Real, float>) {
        if (simd_level() == Simd::avx512) return map_avx512<kEach, Element>;
        if (simd_level() == Simd::avx2) return map_avx2<kEach, Element>;
    }
#endif
    return map_plain<kEach, Element, Real>;
}

// What the batch norm is, `copies` times in a row.
template <class Real>
struct Coefficients {
    std::vector<Real> mean, scale, shift;

    Coefficients(const Real* running_mean, const Real* running_var, const Real* weight, const Real* bias, double eps,
                 std::int64_t channels, std::int64_t copies) {
        for (std::int64_t c = 0; c < channels; ++c) {
            const double deviation = std::sqrt(static_cast<double>(running_var[c]) + eps);
            mean.push_back(running_mean[c]);
            scale.push_back(static_cast<Real>((weight ? weight[c] : Real{1}) / deviation));
            shift.push_back(bias ? bias[c] : Real{0});
        }
        for (auto* row : {&mean, &scale, &shift}) {
            row->resize(copies * channels);
            for (std::int64_t i = channels; i < copies * channels; ++i) (*row)[i] = (*row)[i - channels];
        }
    }
    Affine<Real> from(std::int64_t c) const { return {mean.data() + c, scale.data() + c, shift.data() + c}; }
};

template <class Element, class Bits, class Real>
void run(const Element* x, Element* y, const Activation& a, const Real* running_mean, const Real* running_var,
         const Real* weight, const Real* bias, double eps, std::int64_t* counter, int threads) {
    static_assert(sizeof(Element) == sizeof(Bits));
    const std::int64_t bytes = a.size() * static_cast<std::int64_t>(sizeof(Element));
    const bool stream = streams(y, bytes);
    threads = threads_for(bytes, threads);
    const std::int64_t folded = a.inside ? fold(a.channels, sizeof(Element)) : 1;
    const Coefficients<Real> all(running_mean, running_var, weight, bias, eps, a.channels, folded);
    const auto bits = [](const Element* at) { return reinterpret_cast<const Bits*>(at); };
    if (!a.inside) {
        const auto map = map_kernel<false, Element, Real>();
        const auto count = words_kernel<false, false, Bits>();
        return count_outside(a, counter, threads, [&](std::int64_t begin, std::int64_t size, std::uint64_t* words) {
            alignas(64) Element piece[kChunk];
            Element* to = stream ? piece : y + begin;
            for_channels(a, begin, size, [&](std::int64_t channel, std::int64_t from, std::int64_t end) {
                map(x + begin + from, to + from, end - from, all.from(channel));
            });
            count(bits(to), nullptr, size, Bits{0}, words);
            if (stream) stream_copy(y + begin, to, size * sizeof(Element));
        });
    }
    const auto map = map_kernel<true, Element, Real>();
    const auto count = lanes_kernel<false, false, Bits>();
    count_inside<Bits>(a, counter, threads, [&](std::int64_t begin, std::int64_t rows, std::int64_t wide, Bits* lanes) {
        const bool past = stream && wide * sizeof(Bits) % 64 == 0;
        AlignedZeros<Element> piece(past ? wide : 0);
        for (const std::int64_t end = begin + rows * wide; begin < end; begin += wide) {
            Element* to = past ? piece.data() : y + begin;
            map(x + begin, to, wide, all.from(0));
            count(bits(to), nullptr, 1, wide, Bits{0}, lanes);
            if (past) stream_copy(y + begin, to, wide * sizeof(Element));
        }
    });
}

void batch_norm_relu_zero_count(std::uintptr_t x, std::uintptr_t y, std::uintptr_t running_mean,
                                std::uintptr_t running_var, std::uintptr_t weight, std::uintptr_t bias, double eps,
                                std::uintptr_t counter, int dtype, std::int64_t outer, std::int64_t channels,
                                std::int64_t inner, bool channels_last, int threads) {
    const Activation activation(outer, channels, inner, channels_last);
    if (activation.size() == 0) return;
    auto go = [&](auto element, auto bits, auto real) {
        using Element = decltype(element);
        using Bits = decltype(bits);
        using Real = decltype(real);
        run<Element, Bits, Real>(pointer<const Element>(x), pointer<Element>(y), activation,
                                 pointer<const Real>(running_mean), pointer<const Real>(running_var),
                                 pointer<const Real>(weight), pointer<const Real>(bias), eps,
                                 pointer<std::int64_t>(counter), threads);
    };
    switch (static_cast<DType>(dtype)) {
        case DType::float32: return go(float{}, std::uint32_t{}, float{});
        case DType::float16: return go(Half{}, std::uint16_t{}, float{});
        case DType::bfloat16: return go(BFloat16{}, std::uint16_t{}, float{});
        case DType::float64: return go(double{}, std::uint64_t{}, double{});
    }
    unknown_dtype("batch_norm_relu_zero_count", static_cast<DType>(dtype));
}

const Binding binding([](py::module_& m) {
    m.def("batch_norm_relu_zero_count", &batch_norm_relu_zero_count, py::arg("x"), py::arg("y"),
          py::arg("running_mean"), py::arg("running_var"), py::arg("weight"), py::arg("bias"), py::arg("eps"),
          py::arg("counter"), py::arg("dtype"), py::arg("outer"), py::arg("channels"), py::arg("inner"),
          py::arg("channels_last"), py::arg("threads"), py::call_guard<py::gil_scoped_release>(),
          "Writes ReLU of the batch norm of a dense activation to one of the same layout, and adds its zeros to an int64 "
          "counter. Statistics are float32, or float64 beside float64; an address 0 stands for no weight or bias.");
});

}  // namespace

}  // namespace fastprune
