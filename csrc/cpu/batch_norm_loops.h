// The hot loops of batch_norm_recalibrate, on float and double, compiled for several levels of vector instructions.
//
// float16 and bfloat16 are widened a tile at a time into the first-level cache, and narrowed from it: one conversion
// instruction where the processor has it, and the same loops for all.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/half.h"
#include "cpu/simd.h"

#ifdef FASTPRUNE_SIMD_VERSIONS
#include <immintrin.h>
#endif

#if defined(__GNUC__)
#define FASTPRUNE_INLINE __attribute__((always_inline)) inline
#else
#define FASTPRUNE_INLINE inline
#endif

namespace fastprune {

namespace batch_norm {

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// `rows` runs of `width` elements, `stride` apart.
template <class T>
struct Runs {
    const T* x;
    std::int64_t rows, stride, width;
};

// (x − shift)·scale + offset, and ReLU: of one channel, or arrays over channels.
template <class A>
struct Affine {
    A shift, scale, offset;
    bool relu;
};

template <int Lanes, class A>
FASTPRUNE_INLINE double lanes_total(const A* lanes) {
    double sums[Lanes];
    for (int j = 0; j < Lanes; ++j) sums[j] = static_cast<double>(lanes[j]);
    for (int half = Lanes / 2; half > 0; half /= 2) {
        for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    }
    return sums[0];
}

// Σd and Σd² of everything, d = x − shift.
template <int Lanes, class A>
FASTPRUNE_INLINE void sum_all(const Runs<A>& m, A shift, double& sum, double& squares) {
    A s[Lanes] = {}, q[Lanes] = {}, rest = 0, rest_squares = 0;
    for (std::int64_t row = 0; row < m.rows; ++row) {
        const A* at = m.x + row * m.stride;
        std::int64_t i = 0;
        for (; i + Lanes <= m.width; i += Lanes) {
            for (int j = 0; j < Lanes; ++j) {
                const A d = at[i + j] - shift;
                s[j] += d;
                q[j] += d * d;
            }
        }
        for (; i < m.width; ++i) {
            const A d = at[i] - shift;
            rest += d;
            rest_squares += d * d;
        }
    }
    sum = lanes_total<Lanes>(s) + static_cast<double>(rest);
    squares = lanes_total<Lanes>(q) + static_cast<double>(rest_squares);
}

template <int Lanes, class A>
FASTPRUNE_INLINE void sum_lanes(const Runs<A>& m, std::int64_t j0, const A* shift, A* sum, A* squares) {
    A k[Lanes], s[Lanes], q[Lanes];
    for (int j = 0; j < Lanes; ++j) k[j] = shift[j0 + j], s[j] = sum[j0 + j], q[j] = squares[j0 + j];
    for (std::int64_t row = 0; row < m.rows; ++row) {
        const A* at = m.x + row * m.stride + j0;
        for (int j = 0; j < Lanes; ++j) {
            const A d = at[j] - k[j];
            s[j] += d;
            q[j] += d * d;
        }
    }
    for (int j = 0; j < Lanes; ++j) sum[j0 + j] = s[j], squares[j0 + j] = q[j];
}

// Adds Σd and Σd² of each column, d = x − shift.
template <int Lanes, class A>
FASTPRUNE_INLINE void sum_columns(const Runs<A>& m, const A* shift, A* sum, A* squares) {
    std::int64_t j = 0;
    for (; j + Lanes <= m.width; j += Lanes) sum_lanes<Lanes>(m, j, shift, sum, squares);
    for (; j + 8 <= m.width; j += 8) sum_lanes<8>(m, j, shift, sum, squares);
    for (; j < m.width; ++j) sum_lanes<1>(m, j, shift, sum, squares);
}

// A mean from the sums of a block's first `rows` rows.
template <class A>
FASTPRUNE_INLINE void guess_columns(std::int64_t width, double rows, A* shift, A* sum, A* squares) {
    const A share = static_cast<A>(1 / rows);
    for (std::int64_t j = 0; j < width; ++j) {
        shift[j] += sum[j] * share;
        sum[j] = squares[j] = 0;
    }
}

// Merges a block of `n` rows into the moments of `before` rows; the shift becomes the new mean, the sums 0.
template <class A>
FASTPRUNE_INLINE void merge_sums(std::int64_t width, double before, double n, double* __restrict mean,
                                 double* __restrict m2, A* __restrict shift, A* __restrict sum, A* __restrict squares) {
    const double each = 1 / n, share = n / (before + n), weight = before * share;
    for (std::int64_t j = 0; j < width; ++j) {
        const double s = static_cast<double>(sum[j]), off = s * each;
        const double inside = static_cast<double>(squares[j]) - s * off;
        const double delta = static_cast<double>(shift[j]) + off - mean[j];
        mean[j] += delta * share;
        m2[j] += (inside < 0 ? 0 : inside) + delta * delta * weight;
        shift[j] = static_cast<A>(mean[j]);
        sum[j] = squares[j] = 0;
    }
}

// Merges the moments of `n` values into those of `before` values.
FASTPRUNE_INLINE void merge_moments(std::int64_t width, double before, double n, double* __restrict mean,
                                    double* __restrict m2, const double* __restrict other_mean,
                                    const double* __restrict other_m2) {
    const double share = n / (before + n), weight = before * share;
    for (std::int64_t j = 0; j < width; ++j) {
        const double delta = other_mean[j] - mean[j];
        mean[j] += delta * share;
        m2[j] += other_m2[j] + delta * delta * weight;
    }
}

// What normalises with a mean and variance m2/n. The shift is the mean as A can hold it; what rounding took is in the
// offset.
template <class A>
FASTPRUNE_INLINE void affine_of(std::int64_t width, double n, double eps, const double* __restrict mean,
                                const double* __restrict m2, const double* __restrict gain, const double* __restrict add,
                                A* __restrict shift, A* __restrict scale, A* __restrict offset) {
    const double each = 1 / n;
    for (std::int64_t j = 0; j < width; ++j) {
        const double factor = gain[j] / std::sqrt(m2[j] * each + eps);
        shift[j] = static_cast<A>(mean[j]);
        scale[j] = static_cast<A>(factor);
        offset[j] = static_cast<A>(add[j] - (mean[j] - static_cast<double>(shift[j])) * factor);
    }
}

template <bool Relu, class A>
FASTPRUNE_INLINE A normalised(A x, A shift, A scale, A offset) {
    const A value = (x - shift) * scale + offset;
    // NaN stays NaN.
    return Relu && value < 0 ? 0 : value;
}

template <bool Relu, class A>
FASTPRUNE_INLINE void normalise_all(const Runs<A>& m, A* y, const Affine<A>& by) {
    const A shift = by.shift, scale = by.scale, offset = by.offset;
    for (std::int64_t row = 0; row < m.rows; ++row) {
        const A* at = m.x + row * m.stride;
        A* to = y + row * m.stride;
        for (std::int64_t i = 0; i < m.width; ++i) to[i] = normalised<Relu>(at[i], shift, scale, offset);
    }
}

template <bool Relu, class A>
FASTPRUNE_INLINE void normalise_columns(const Runs<A>& m, A* y, const Affine<const A*>& by) {
    const A *shift = by.shift, *scale = by.scale, *offset = by.offset;
    for (std::int64_t row = 0; row < m.rows; ++row) {
        const A* at = m.x + row * m.stride;
        A* to = y + row * m.stride;
        // y is another tensor, or x itself, element by element.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep
#endif
        for (std::int64_t j = 0; j < m.width; ++j) to[j] = normalised<Relu>(at[j], shift[j], scale[j], offset[j]);
    }
}

// Rows of `width` elements from one place to another.
template <class From, class To>
FASTPRUNE_INLINE void convert_rows(const From* x, std::int64_t x_stride, To* y, std::int64_t y_stride, std::int64_t rows,
                                   std::int64_t width) {
    constexpr int kLanes = 16;
    if (x_stride == width && y_stride == width) width *= rows, rows = 1;
    for (std::int64_t row = 0; row < rows; ++row, x += x_stride, y += y_stride) {
        if constexpr (std::is_same_v<From, To>) {
            // One register at a time, the last overlapping the one before: a call of memcpy a row costs as much again.
            std::int64_t i = 0;
            for (; i + kLanes <= width; i += kLanes) std::memcpy(y + i, x + i, kLanes * sizeof(From));
            if (i < width && width >= kLanes) {
                std::memcpy(y + width - kLanes, x + width - kLanes, kLanes * sizeof(From));
            } else {
                for (; i < width; ++i) y[i] = x[i];
            }
        } else {
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep
#endif
            for (std::int64_t i = 0; i < width; ++i) {
                if constexpr (sizeof(From) < sizeof(To)) {
                    y[i] = widen(x[i]);
                } else {
                    narrow(x[i], y[i]);
                }
            }
        }
    }
}

template <class A>
struct Loops {
    void (*sum_all)(const Runs<A>&, A shift, double& sum, double& squares);
    void (*sum_columns)(const Runs<A>&, const A* shift, A* sum, A* squares);
    void (*guess_columns)(std::int64_t width, double rows, A* shift, A* sum, A* squares);
    void (*merge_sums)(std::int64_t width, double before, double n, double* mean, double* m2, A* shift, A* sum, A* squares);
    void (*merge_moments)(std::int64_t width, double before, double n, double* mean, double* m2, const double* other_mean,
                          const double* other_m2);
    void (*affine_of)(std::int64_t width, double n, double eps, const double* mean, const double* m2, const double* gain,
                      const double* add, A* shift, A* scale, A* offset);
    void (*normalise_all)(const Runs<A>&, A* y, const Affine<A>&);
    void (*normalise_columns)(const Runs<A>&, A* y, const Affine<const A*>&);
};

template <class T>
struct Conversions {
    void (*widen)(const Runs<T>&, Wide<T>* to);
    void (*narrow)(const Wide<T>* from, const Runs<T>&, T* y);
};

#define FASTPRUNE_LOOPS(NAME, TARGET, LANES)                                                                              \
    template <class A>                                                                                                    \
    struct NAME {                                                                                                         \
        TARGET static void all(const Runs<A>& m, A shift, double& sum, double& squares) {                                 \
            sum_all<LANES>(m, shift, sum, squares);                                                                       \
        }                                                                                                                 \
        TARGET static void columns(const Runs<A>& m, const A* shift, A* sum, A* squares) {                                \
            sum_columns<LANES>(m, shift, sum, squares);                                                                   \
        }                                                                                                                 \
        TARGET static void guess(std::int64_t width, double rows, A* shift, A* sum, A* squares) {                         \
            guess_columns(width, rows, shift, sum, squares);                                                              \
        }                                                                                                                 \
        TARGET static void merge(std::int64_t width, double before, double n, double* mean, double* m2, A* shift, A* sum, \
                                 A* squares) {                                                                            \
            merge_sums(width, before, n, mean, m2, shift, sum, squares);                                                  \
        }                                                                                                                 \
        TARGET static void moments(std::int64_t width, double before, double n, double* mean, double* m2,                 \
                                   const double* other_mean, const double* other_m2) {                                    \
            merge_moments(width, before, n, mean, m2, other_mean, other_m2);                                              \
        }                                                                                                                 \
        TARGET static void affine(std::int64_t width, double n, double eps, const double* mean, const double* m2,         \
                                  const double* gain, const double* add, A* shift, A* scale, A* offset) {                 \
            affine_of(width, n, eps, mean, m2, gain, add, shift, scale, offset);                                          \
        }                                                                                                                 \
        TARGET static void apply_all(const Runs<A>& m, A* y, const Affine<A>& by) {                                       \
            by.relu ? normalise_all<true>(m, y, by) : normalise_all<false>(m, y, by);                                     \
        }                                                                                                                 \
        TARGET static void apply_columns(const Runs<A>& m, A* y, const Affine<const A*>& by) {                            \
            by.relu ? normalise_columns<true>(m, y, by) : normalise_columns<false>(m, y, by);                             \
        }                                                                                                                 \
        static constexpr Loops<A> loops{&all, &columns, &guess, &merge, &moments, &affine, &apply_all, &apply_columns};   \
    };                                                                                                                    \
    template <class T>                                                                                                    \
    struct NAME##Conversions {                                                                                            \
        TARGET static void to(const Runs<T>& m, Wide<T>* values) {                                             \
            convert_rows(m.x, m.stride, values, m.width, m.rows, m.width);                                                \
        }                                                                                                                 \
        TARGET static void from(const Wide<T>* values, const Runs<T>& m, T* y) {                                           \
            convert_rows(values, m.width, y, m.stride, m.rows, m.width);                                                  \
        }                                                                                                                 \
        static constexpr Conversions<T> conversions{&to, &from};                                                          \
    };

#define FASTPRUNE_AVX2 __attribute__((target("avx2,fma,f16c")))
#define FASTPRUNE_AVX512 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")))

FASTPRUNE_LOOPS(Baseline, , 16)
#ifdef FASTPRUNE_SIMD_VERSIONS
FASTPRUNE_LOOPS(Avx2, FASTPRUNE_AVX2, 32)
FASTPRUNE_LOOPS(Avx512, FASTPRUNE_AVX512, 64)

// The compiler does not make these instructions out of half.h.
struct F16c {
    FASTPRUNE_AVX2 static void to(const Runs<Half>& m, float* values) {
        for (std::int64_t row = 0; row < m.rows; ++row, values += m.width) {
            const Half* x = m.x + row * m.stride;
            const auto eight = [&](std::int64_t i) FASTPRUNE_AVX2 {
                _mm256_storeu_ps(values + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
            };
            std::int64_t i = 0;
            for (; i + 8 <= m.width; i += 8) eight(i);
            if (i < m.width && m.width >= 8) i = m.width, eight(m.width - 8);
            for (; i < m.width; ++i) values[i] = widen(x[i]);
        }
    }
    FASTPRUNE_AVX2 static void from(const float* values, const Runs<Half>& m, Half* y) {
        for (std::int64_t row = 0; row < m.rows; ++row, values += m.width) {
            Half* to = y + row * m.stride;
            const auto eight = [&](std::int64_t i) FASTPRUNE_AVX2 {
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                                 _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT));
            };
            std::int64_t i = 0;
            for (; i + 8 <= m.width; i += 8) eight(i);
            if (i < m.width && m.width >= 8) i = m.width, eight(m.width - 8);
            for (; i < m.width; ++i) narrow(values[i], to[i]);
        }
    }
    static constexpr Conversions<Half> conversions{&to, &from};
};

inline bool has_avx512() {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
// Every processor with avx2 has f16c.
inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

template <class A>
const Loops<A>& loops() {
#ifdef FASTPRUNE_SIMD_VERSIONS
    if (has_avx512()) return Avx512<A>::loops;
    if (has_avx2()) return Avx2<A>::loops;
#endif
    return Baseline<A>::loops;
}

template <class T>
const Conversions<T>& conversions() {
#ifdef FASTPRUNE_SIMD_VERSIONS
    if constexpr (std::is_same_v<T, Half>) {
        if (has_avx2()) return F16c::conversions;
    }
    if (has_avx512()) return Avx512Conversions<T>::conversions;
    if (has_avx2()) return Avx2Conversions<T>::conversions;
#endif
    return BaselineConversions<T>::conversions;
}

}  // namespace batch_norm

}  // namespace fastprune
