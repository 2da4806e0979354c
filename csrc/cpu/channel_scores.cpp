// channel_scores: sums of |w| and w² by row and by channel of a weight [rows, channels, positions], in one read.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>
#include <vector>

#include "bind.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "dtype.h"

#ifdef FASTPRUNE_SIMD_VERSIONS
#include <immintrin.h>
#define FASTPRUNE_VERSIONS __attribute__((target_clones("default", "avx2", "avx512f")))
#define FASTPRUNE_INLINE __attribute__((always_inline)) inline
#define FASTPRUNE_INLINE_LAMBDA __attribute__((always_inline))
#else
#define FASTPRUNE_VERSIONS
#define FASTPRUNE_INLINE inline
#define FASTPRUNE_INLINE_LAMBDA
#endif

namespace py = pybind11;

namespace fastprune {

namespace {

// Rows that pass over the column sums together: each column sum is then loaded and stored once for four weights.
constexpr std::int64_t kRows = 4;
// Columns between two hand-overs of the row sums to double: a lane adds at most 128 numbers in a chain.
constexpr std::int64_t kTile = 1024;
// Rows between two hand-overs of the column sums to double: a chain of 16. It fixes the order of all additions, so that
// no result depends on the number of threads.
constexpr std::int64_t kBlock = 64;
// How far ahead memory is asked for. Left alone, the processor follows four short rows badly: ResNet-50 was read
// at 13 GB/s instead of 23, where one long row makes 26.
constexpr std::int64_t kAheadBytes = 16 * 1024;

inline void ask_for(const void* address) {
#ifdef __GNUC__
    __builtin_prefetch(address, 0, 2);
#endif
}

#ifdef __GNUC__
template <class T>
struct Vector {
    using Integer = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    typedef T type __attribute__((vector_size(32)));
    typedef Integer bits __attribute__((vector_size(32)));

    static FASTPRUNE_INLINE void drop_sign(type& v) {
        v = (type)((bits)v & (bits{} + std::numeric_limits<Integer>::max()));
    }
};
#else
template <class T>
struct Vector {
    using type = T;

    static void drop_sign(type& v) { v = std::abs(v); }
};
#endif

template <class T>
FASTPRUNE_INLINE T across(const typename Vector<T>::type& v) {
    constexpr std::size_t size = sizeof(v) / sizeof(T);
    T lanes[size];
    std::memcpy(lanes, &v, sizeof(v));
    for (std::size_t half = size / 2; half > 0; half /= 2) {
        for (std::size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

// Part of four rows, the column sums it is added to, and the memory that will be read later, of elements of `width` bytes.
template <class T>
struct Four {
    const T* rows[kRows];
    const char* later[kRows];
    std::int64_t width, size;
    T *absolute, *square;
};

// Adds |w| and w² to the column sums, and writes the row sums: four of |w|, then four of w². `four` is a copy, which no
// store to the column sums can change.
template <class T>
FASTPRUNE_INLINE void add_four(const Four<T> four, T* sums) {
    using V = typename Vector<T>::type;
    constexpr std::int64_t lanes = sizeof(V) / sizeof(T);
    V absolute[kRows] = {}, square[kRows] = {};
    // The number of bytes is a constant for whole vectors, so that copies become loads and stores.
    const auto add = [&](std::int64_t j, std::size_t bytes) FASTPRUNE_INLINE_LAMBDA {
        V column_absolute = {}, column_square = {};
        std::memcpy(&column_absolute, four.absolute + j, bytes);
        std::memcpy(&column_square, four.square + j, bytes);
        for (std::int64_t r = 0; r < kRows; ++r) {
            V w = {};
            std::memcpy(&w, four.rows[r] + j, bytes);
            ask_for(four.later[r] + j * four.width);
            Vector<T>::drop_sign(w);
            absolute[r] += w;
            column_absolute += w;
            square[r] += w * w;
            column_square += w * w;
        }
        std::memcpy(four.absolute + j, &column_absolute, bytes);
        std::memcpy(four.square + j, &column_square, bytes);
    };
    std::int64_t j = 0;
    for (; j + lanes <= four.size; j += lanes) add(j, sizeof(V));
    if (j < four.size) add(j, (four.size - j) * sizeof(T));
    for (std::int64_t r = 0; r < kRows; ++r) {
        sums[r] = across<T>(absolute[r]);
        sums[kRows + r] = across<T>(square[r]);
    }
}

#ifdef FASTPRUNE_SIMD_VERSIONS
// Not by target_clones: with AVX2 and no FMA, the sums do not fit into the registers, and one of them waits for its own
// store in every step. 512 bits are no faster where memory is what limits.
template <class T>
__attribute__((target("avx2,fma"))) void add_rows_avx2(const Four<T>& four, T* sums) {
    add_four(four, sums);
}
#endif

template <class T>
void add_rows_baseline(const Four<T>& four, T* sums) {
    add_four(four, sums);
}

template <class T>
auto add_rows_here() {
#ifdef FASTPRUNE_SIMD_VERSIONS
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return add_rows_avx2<T>;
#endif
    return add_rows_baseline<T>;
}

FASTPRUNE_VERSIONS void add_columns(const float* part, double* total, std::int64_t size) {
    for (std::int64_t j = 0; j < size; ++j) total[j] += static_cast<double>(part[j]);
}

FASTPRUNE_VERSIONS void add_columns(const double* part, double* total, std::int64_t size) {
    for (std::int64_t j = 0; j < size; ++j) total[j] += part[j];
}

struct Half {
    std::uint16_t bits;
};

struct BFloat {
    std::uint16_t bits;
};

inline float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

FASTPRUNE_VERSIONS void widen(const BFloat* x, std::int64_t size, float* wide) {
    for (std::int64_t j = 0; j < size; ++j) wide[j] = from_bits(static_cast<std::uint32_t>(x[j].bits) << 16);
}

// The sign is left out: only |w| and w² are asked for.
inline float magnitude(Half x) {
    const std::uint32_t bits = x.bits & 0x7fffu;
    if (bits >= 0x7c00u) return from_bits(bits << 13 | 0x7f800000u);
    if (bits < 0x0400u) return static_cast<float>(bits) * 0x1p-24f;
    return from_bits((bits << 13) + (112u << 23));
}

#ifdef FASTPRUNE_SIMD_VERSIONS
__attribute__((target("avx,f16c"))) void widen_by_f16c(const Half* x, std::int64_t size, float* wide) {
    std::int64_t j = 0;
    for (; j + 8 <= size; j += 8) {
        const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + j));
        _mm256_storeu_ps(wide + j, _mm256_cvtph_ps(eight));
    }
    for (; j < size; ++j) wide[j] = magnitude(x[j]);
}
#endif

void widen(const Half* x, std::int64_t size, float* wide) {
#ifdef FASTPRUNE_SIMD_VERSIONS
    // Every processor with AVX2 has F16C, which older compilers cannot ask about by name.
    static const bool fast = __builtin_cpu_supports("avx2");
    if (fast) return widen_by_f16c(x, size, wide);
#endif
    for (std::int64_t j = 0; j < size; ++j) wide[j] = magnitude(x[j]);
}

// What is added up in: float for everything narrower.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Where to read a part of a row: in place, or widened into a buffer.
template <class T>
const Sum<T>* part_of(const T* x, std::int64_t size, Sum<T>* buffer) {
    if constexpr (std::is_same_v<T, Sum<T>>) {
        return x;
    } else {
        widen(x, size, buffer);
        return buffer;
    }
}

struct Shape {
    std::int64_t rows, channels, positions;
    bool channels_last;
};

// Column sums of at most kBlock rows, which are overwritten, and the final sums of each row.
template <class T>
void add_block(const T* x, std::int64_t rows, std::int64_t length, Sum<T>* columns, Sum<T>* row_absolute,
               Sum<T>* row_square) {
    using S = Sum<T>;
    static const S zeros[kTile] = {};
    static const auto add_rows = add_rows_here<S>();
    S buffer[std::is_same_v<T, S> ? 1 : kRows][kTile];
    constexpr std::int64_t wanted = kAheadBytes / static_cast<std::int64_t>(sizeof(T));
    const std::int64_t step = kRows * length, ahead = step * ((wanted + step - 1) / step);
    std::fill(columns, columns + 2 * length, S{0});
    for (std::int64_t r = 0; r < rows; r += kRows) {
        const std::int64_t count = std::min(kRows, rows - r);
        double totals[2 * kRows] = {};
        for (std::int64_t start = 0; start < length; start += kTile) {
            Four<S> four;
            four.width = sizeof(T);
            four.size = std::min(kTile, length - start);
            four.absolute = columns + start;
            four.square = columns + length + start;
            for (std::int64_t i = 0; i < kRows; ++i) {
                const T* row = x + (r + i) * length + start;
                four.later[i] = reinterpret_cast<const char*>(row + ahead);
                // Rows that are missing to four add nothing.
                four.rows[i] = i < count ? part_of(row, four.size, buffer[i % std::size(buffer)]) : zeros;
            }
            S sums[2 * kRows];
            add_rows(four, sums);
            for (std::int64_t i = 0; i < 2 * kRows; ++i) totals[i] += static_cast<double>(sums[i]);
        }
        for (std::int64_t i = 0; i < count; ++i) {
            row_absolute[r + i] = static_cast<S>(totals[i]);
            row_square[r + i] = static_cast<S>(totals[kRows + i]);
        }
    }
}

// The sums of channels from those of columns.
template <class S>
void gather_channels(const double* columns, const Shape& shape, S* out) {
    const std::int64_t next = shape.channels_last ? 1 : shape.positions;
    const std::int64_t step = shape.channels_last ? shape.channels : 1;
    for (std::int64_t c = 0; c < shape.channels; ++c) {
        double sum = 0;
        for (std::int64_t p = 0; p < shape.positions; ++p) sum += columns[c * next + p * step];
        out[c] = static_cast<S>(sum);
    }
}

// out: |w| and w² by row, then by channel.
template <class T>
void sums(const T* x, Sum<T>* out, const Shape& shape, int threads) {
    const std::int64_t length = shape.channels * shape.positions;
    if (shape.rows * length == 0) {
        std::fill(out, out + 2 * (shape.rows + shape.channels), Sum<T>{0});
        return;
    }
    const std::int64_t blocks = (shape.rows + kBlock - 1) / kBlock;
    const int used = static_cast<int>(
        std::min<std::int64_t>(threads_for(shape.rows * length * static_cast<std::int64_t>(sizeof(T)), threads), blocks));
    std::vector<double> total(2 * length);
    std::vector<Sum<T>> parts(2 * length * used);
    // The blocks of one round, one a thread, are added to the total in their order.
    for (std::int64_t first = 0; first < blocks; first += used) {
        const int count = static_cast<int>(std::min<std::int64_t>(used, blocks - first));
#pragma omp parallel for num_threads(count) if (count > 1)
        for (int i = 0; i < count; ++i) {
            const std::int64_t row = (first + i) * kBlock;
            add_block(x + row * length, std::min(kBlock, shape.rows - row), length, parts.data() + 2 * length * i,
                      out + row, out + shape.rows + row);
        }
        for (int i = 0; i < count; ++i) add_columns(parts.data() + 2 * length * i, total.data(), 2 * length);
    }
    gather_channels(total.data(), shape, out + 2 * shape.rows);
    gather_channels(total.data() + length, shape, out + 2 * shape.rows + shape.channels);
}

void channel_scores(std::uintptr_t x, std::uintptr_t out, int dtype, std::int64_t rows, std::int64_t channels,
                    std::int64_t positions, bool channels_last, int threads) {
    const Shape shape{rows, channels, positions, channels_last};
    switch (static_cast<DType>(dtype)) {
        case DType::float32: return sums(pointer<const float>(x), pointer<float>(out), shape, threads);
        case DType::float16: return sums(pointer<const Half>(x), pointer<float>(out), shape, threads);
        case DType::bfloat16: return sums(pointer<const BFloat>(x), pointer<float>(out), shape, threads);
        case DType::float64: return sums(pointer<const double>(x), pointer<double>(out), shape, threads);
    }
    unknown_dtype("channel_scores", static_cast<DType>(dtype));
}

const Binding binding([](py::module_& m) {
    m.def("channel_scores", &channel_scores, py::arg("x"), py::arg("out"), py::arg("dtype"), py::arg("rows"),
          py::arg("channels"), py::arg("positions"), py::arg("channels_last"), py::arg("threads"),
          py::call_guard<py::gil_scoped_release>(),
          "Writes the sums of |w| and w² of a dense weight by row, then by channel.");
});

}  // namespace

}  // namespace fastprune
