// The inner loops that find zeros, with and without ReLU before, in versions for AVX-512, AVX2 and none: as bits
// (words_kernel) or added to a counter lane for each element of a row (lanes_kernel).
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "dtype.h"
#include "simd.h"

#ifdef FASTPRUNE_SIMD_VERSIONS
#include <immintrin.h>
#define FASTPRUNE_AVX2 __attribute__((target("avx2,fma,f16c,popcnt")))
#define FASTPRUNE_AVX512 __attribute__((target("avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl")))
#endif
#if defined(__GNUC__)
#define FASTPRUNE_INLINE __attribute__((always_inline)) inline
#define FASTPRUNE_RESTRICT __restrict__
#else
#define FASTPRUNE_INLINE inline
#define FASTPRUNE_RESTRICT __restrict
#endif

namespace fastprune {

// Zero is all bits but the sign: integers compare the same way for every floating type, denormals included, whatever
// the processor's flush mode is.
template <class Bits>
constexpr Bits kMagnitude = static_cast<Bits>(~(Bits{1} << (8 * sizeof(Bits) - 1)));

// Read as signed integers, the numbers below zero and -0.0 are those up to the bits of -inf; NaN with a sign is above.
template <class Bits>
Bits negative_infinity(DType dtype) {
    switch (dtype) {
        case DType::float32: return static_cast<Bits>(0xFF800000u);
        case DType::float16: return static_cast<Bits>(0xFC00u);
        case DType::bfloat16: return static_cast<Bits>(0xFF80u);
        case DType::float64: return static_cast<Bits>(0xFFF0000000000000u);
    }
    unknown_dtype("negative_infinity", dtype);
}

template <bool kRelu, class Bits>
FASTPRUNE_INLINE Bits rectified(Bits x, Bits negative) {
    using Signed = std::make_signed_t<Bits>;
    if constexpr (!kRelu) return x;
    return static_cast<Signed>(x) > static_cast<Signed>(negative) ? x : Bits{0};
}

// ---- one bit for each element: words[i / 64] >> (i % 64) & 1 says that element i is zero --------------------------

// Up to 64 elements without intrinsics.
template <bool kRelu, class Bits>
FASTPRUNE_INLINE std::uint64_t plain_word(const Bits* x, Bits* y, std::int64_t size, Bits negative) {
    std::uint8_t flags[64] = {};
    for (std::int64_t i = 0; i < size; ++i) {
        const Bits value = rectified<kRelu>(x[i], negative);
        if constexpr (kRelu) y[i] = value;
        flags[i] = (value & kMagnitude<Bits>) == 0;
    }
    std::uint64_t word = 0;
    for (int group = 0; group < 8; ++group) {
        std::uint64_t eight = 0;
        for (int i = 0; i < 8; ++i) eight |= static_cast<std::uint64_t>(flags[8 * group + i]) << (8 * i);
        // Gathers the lowest bits of eight bytes in the highest byte.
        word |= (eight * 0x0102040810204080u >> 56) << (8 * group);
    }
    return word;
}

#ifdef FASTPRUNE_SIMD_VERSIONS

// What one vector of each width needs: the zeros as bits in the order of the elements, and ReLU.
template <class Bits>
struct Avx512;

template <>
struct Avx512<std::uint16_t> {
    FASTPRUNE_INLINE FASTPRUNE_AVX512 static std::uint64_t zeros(__m512i x) {
        return _mm512_testn_epi16_mask(x, _mm512_set1_epi16(0x7FFF));
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX512 static __m512i relu(__m512i x, std::uint16_t negative) {
        return _mm512_maskz_mov_epi16(_mm512_cmpgt_epi16_mask(x, _mm512_set1_epi16(static_cast<short>(negative))), x);
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX512 static __m512i add(__m512i counts, __m512i x) {
        const auto found = _mm512_testn_epi16_mask(x, _mm512_set1_epi16(0x7FFF));
        return _mm512_mask_add_epi16(counts, found, counts, _mm512_set1_epi16(1));
    }
};

template <>
struct Avx512<std::uint32_t> {
    FASTPRUNE_INLINE FASTPRUNE_AVX512 static std::uint64_t zeros(__m512i x) {
        return _mm512_testn_epi32_mask(x, _mm512_set1_epi32(0x7FFFFFFF));
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX512 static __m512i relu(__m512i x, std::uint32_t negative) {
        return _mm512_maskz_mov_epi32(_mm512_cmpgt_epi32_mask(x, _mm512_set1_epi32(static_cast<int>(negative))), x);
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX512 static __m512i add(__m512i counts, __m512i x) {
        const auto found = _mm512_testn_epi32_mask(x, _mm512_set1_epi32(0x7FFFFFFF));
        return _mm512_mask_add_epi32(counts, found, counts, _mm512_set1_epi32(1));
    }
};

template <>
struct Avx512<std::uint64_t> {
    FASTPRUNE_INLINE FASTPRUNE_AVX512 static std::uint64_t zeros(__m512i x) {
        return _mm512_testn_epi64_mask(x, _mm512_set1_epi64(0x7FFFFFFFFFFFFFFF));
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX512 static __m512i relu(__m512i x, std::uint64_t negative) {
        const __m512i least = _mm512_set1_epi64(static_cast<long long>(negative));
        return _mm512_maskz_mov_epi64(_mm512_cmpgt_epi64_mask(x, least), x);
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX512 static __m512i add(__m512i counts, __m512i x) {
        const auto found = _mm512_testn_epi64_mask(x, _mm512_set1_epi64(0x7FFFFFFFFFFFFFFF));
        return _mm512_mask_add_epi64(counts, found, counts, _mm512_set1_epi64(1));
    }
};

template <class Bits>
struct Avx2;

template <>
struct Avx2<std::uint16_t> {
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static __m256i which(__m256i x) {
        return _mm256_cmpeq_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0x7FFF)), _mm256_setzero_si256());
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static std::uint64_t zeros(__m256i x) {
        const __m256i found = which(x);
        const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(found), _mm256_extracti128_si256(found, 1));
        return static_cast<std::uint32_t>(_mm_movemask_epi8(bytes));
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static __m256i relu(__m256i x, std::uint16_t negative) {
        return _mm256_and_si256(x, _mm256_cmpgt_epi16(x, _mm256_set1_epi16(static_cast<short>(negative))));
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static __m256i add(__m256i counts, __m256i x) {
        return _mm256_sub_epi16(counts, which(x));
    }
};

template <>
struct Avx2<std::uint32_t> {
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static __m256i which(__m256i x) {
        return _mm256_cmpeq_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0x7FFFFFFF)), _mm256_setzero_si256());
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static std::uint64_t zeros(__m256i x) {
        const __m256i found = which(x);
        return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(found)));
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static __m256i relu(__m256i x, std::uint32_t negative) {
        return _mm256_and_si256(x, _mm256_cmpgt_epi32(x, _mm256_set1_epi32(static_cast<int>(negative))));
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static __m256i add(__m256i counts, __m256i x) {
        return _mm256_sub_epi32(counts, which(x));
    }
};

template <>
struct Avx2<std::uint64_t> {
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static __m256i which(__m256i x) {
        return _mm256_cmpeq_epi64(_mm256_and_si256(x, _mm256_set1_epi64x(0x7FFFFFFFFFFFFFFF)), _mm256_setzero_si256());
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static std::uint64_t zeros(__m256i x) {
        const __m256i found = which(x);
        return static_cast<std::uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(found)));
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static __m256i relu(__m256i x, std::uint64_t negative) {
        const __m256i least = _mm256_set1_epi64x(static_cast<long long>(negative));
        return _mm256_and_si256(x, _mm256_cmpgt_epi64(x, least));
    }
    FASTPRUNE_INLINE FASTPRUNE_AVX2 static __m256i add(__m256i counts, __m256i x) {
        return _mm256_sub_epi64(counts, which(x));
    }
};

template <bool kStream>
FASTPRUNE_INLINE FASTPRUNE_AVX512 void store512(void* to, __m512i value) {
    if constexpr (kStream) {
        _mm512_stream_si512(static_cast<__m512i*>(to), value);
    } else {
        _mm512_storeu_si512(to, value);
    }
}

template <bool kStream>
FASTPRUNE_INLINE FASTPRUNE_AVX2 void store256(void* to, __m256i value) {
    if constexpr (kStream) {
        _mm256_stream_si256(static_cast<__m256i*>(to), value);
    } else {
        _mm256_storeu_si256(static_cast<__m256i*>(to), value);
    }
}

template <bool kRelu, bool kStream, class Bits>
FASTPRUNE_AVX512 void words_avx512(const Bits* x, Bits* y, std::int64_t size, Bits negative, std::uint64_t* words) {
    constexpr int kLanes = 64 / sizeof(Bits);
    std::int64_t at = 0;
    for (; at + 64 <= size; at += 64) {
        std::uint64_t word = 0;
        for (int i = 0; i < 64; i += kLanes) {
            __m512i value = _mm512_loadu_si512(x + at + i);
            if constexpr (kRelu) {
                value = Avx512<Bits>::relu(value, negative);
                store512<kStream>(y + at + i, value);
            }
            word |= Avx512<Bits>::zeros(value) << i;
        }
        words[at / 64] = word;
    }
    if (at < size) words[at / 64] = plain_word<kRelu>(x + at, kRelu ? y + at : y, size - at, negative);
}

template <bool kRelu, bool kStream, class Bits>
FASTPRUNE_AVX2 void words_avx2(const Bits* x, Bits* y, std::int64_t size, Bits negative, std::uint64_t* words) {
    constexpr int kLanes = 32 / sizeof(Bits);
    std::int64_t at = 0;
    for (; at + 64 <= size; at += 64) {
        std::uint64_t word = 0;
        for (int i = 0; i < 64; i += kLanes) {
            __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + at + i));
            if constexpr (kRelu) {
                value = Avx2<Bits>::relu(value, negative);
                store256<kStream>(y + at + i, value);
            }
            word |= Avx2<Bits>::zeros(value) << i;
        }
        words[at / 64] = word;
    }
    if (at < size) words[at / 64] = plain_word<kRelu>(x + at, kRelu ? y + at : y, size - at, negative);
}

#endif  // FASTPRUNE_SIMD_VERSIONS

template <bool kRelu, bool kStream, class Bits>
void words_plain(const Bits* x, Bits* y, std::int64_t size, Bits negative, std::uint64_t* words) {
    for (std::int64_t at = 0; at < size; at += 64) {
        const std::int64_t some = std::min<std::int64_t>(64, size - at);
        words[at / 64] = plain_word<kRelu>(x + at, kRelu ? y + at : y, some, negative);
    }
}

template <class Bits>
using Words = void (*)(const Bits*, Bits*, std::int64_t, Bits, std::uint64_t*);

template <bool kRelu, bool kStream, class Bits>
Words<Bits> words_kernel() {
#ifdef FASTPRUNE_SIMD_VERSIONS
    if (simd_level() == Simd::avx512) return words_avx512<kRelu, kStream, Bits>;
    if (simd_level() == Simd::avx2) return words_avx2<kRelu, kStream, Bits>;
#endif
    return words_plain<kRelu, kStream, Bits>;
}

// ---- counter lanes: counts[i] += whether x[row * wide + i] is zero ------------------------------------------------

// The elements [from, wide) of one row without intrinsics.
template <bool kRelu, class Bits>
FASTPRUNE_INLINE void plain_lanes(const Bits* FASTPRUNE_RESTRICT x, Bits* FASTPRUNE_RESTRICT y, std::int64_t from,
                                  std::int64_t wide, Bits negative, Bits* FASTPRUNE_RESTRICT counts) {
    for (std::int64_t i = from; i < wide; ++i) {
        const Bits value = rectified<kRelu>(x[i], negative);
        if constexpr (kRelu) y[i] = value;
        counts[i] = static_cast<Bits>(counts[i] + ((value & kMagnitude<Bits>) == 0));
    }
}

#ifdef FASTPRUNE_SIMD_VERSIONS

template <bool kRelu, bool kStream, class Bits>
FASTPRUNE_AVX512 void lanes_avx512(const Bits* x, Bits* y, std::int64_t rows, std::int64_t wide, Bits negative,
                                   Bits* counts) {
    constexpr int kLanes = 64 / sizeof(Bits);
    for (; rows > 0; --rows, x += wide) {
        std::int64_t i = 0;
        for (; i + kLanes <= wide; i += kLanes) {
            __m512i value = _mm512_loadu_si512(x + i);
            if constexpr (kRelu) {
                value = Avx512<Bits>::relu(value, negative);
                store512<kStream>(y + i, value);
            }
            _mm512_storeu_si512(counts + i, Avx512<Bits>::add(_mm512_loadu_si512(counts + i), value));
        }
        plain_lanes<kRelu>(x, y, i, wide, negative, counts);
        if constexpr (kRelu) y += wide;
    }
}

template <bool kRelu, bool kStream, class Bits>
FASTPRUNE_AVX2 void lanes_avx2(const Bits* x, Bits* y, std::int64_t rows, std::int64_t wide, Bits negative,
                               Bits* counts) {
    constexpr int kLanes = 32 / sizeof(Bits);
    for (; rows > 0; --rows, x += wide) {
        std::int64_t i = 0;
        for (; i + kLanes <= wide; i += kLanes) {
            __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
            if constexpr (kRelu) {
                value = Avx2<Bits>::relu(value, negative);
                store256<kStream>(y + i, value);
            }
            auto* lanes = reinterpret_cast<__m256i*>(counts + i);
            _mm256_storeu_si256(lanes, Avx2<Bits>::add(_mm256_loadu_si256(lanes), value));
        }
        plain_lanes<kRelu>(x, y, i, wide, negative, counts);
        if constexpr (kRelu) y += wide;
    }
}

#endif  // FASTPRUNE_SIMD_VERSIONS

template <bool kRelu, class Bits>
void lanes_plain(const Bits* x, Bits* y, std::int64_t rows, std::int64_t wide, Bits negative, Bits* counts) {
    for (; rows > 0; --rows, x += wide) {
        plain_lanes<kRelu>(x, y, 0, wide, negative, counts);
        if constexpr (kRelu) y += wide;
    }
}

template <class Bits>
using Lanes = void (*)(const Bits*, Bits*, std::int64_t, std::int64_t, Bits, Bits*);

template <bool kRelu, bool kStream, class Bits>
Lanes<Bits> lanes_kernel() {
#ifdef FASTPRUNE_SIMD_VERSIONS
    if (simd_level() == Simd::avx512) return lanes_avx512<kRelu, kStream, Bits>;
    if (simd_level() == Simd::avx2) return lanes_avx2<kRelu, kStream, Bits>;
#endif
    return lanes_plain<kRelu, Bits>;
}

}  // namespace fastprune
