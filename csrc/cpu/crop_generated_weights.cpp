// crop_generated_weights: FC2(relu(FC1(e))) for many encodings e, each cropped, in one read of FC2's kept rows.
//
// Row (o·I + i)·kh·kw + t of FC2 makes one weight. Of output channel o a candidate keeps the first in·kh·kw rows, and what
// they make lies contiguous in its block: so the work is, for each o, rows × hidden by hidden × candidates with ragged row
// counts. Tiles of 64 rows are transposed once into L1, rows in vector lanes; every candidate that keeps one of them is
// then a chain of multiply-adds over the hidden units, in their order. A lane's sum never mixes with another's, so a
// candidate's weights do not depend on the others, on the tiling or on the number of threads.
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "bind.h"
#include "cpu/half.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "dtype.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace py = pybind11;

namespace fastprune {

namespace {

constexpr std::int64_t kTile = 64;     // rows transposed together: 8 kB of L1 at 32 hidden units
constexpr std::int64_t kChunk = 1024;  // rows in one piece of work for a thread: 128 kB of FC2

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

struct Candidate {
    std::int64_t out;     // output channels kept
    std::int64_t rows;    // rows of FC2 kept of each: input channels · kh · kw
    std::int64_t offset;  // of its block in the result
    std::int64_t index;   // of its hidden units
};

template <class T>
struct Work {
    const T* fc2;
    const T* bias;                 // may be null
    const Accumulator<T>* hidden;  // [candidates, units]
    T* result;
    std::int64_t units;
    std::int64_t stride;                // rows of FC2 from one output channel to the next
    std::int64_t chunks;                // pieces of the rows of one output channel
    std::vector<Candidate> candidates;  // those with most rows first
};

template <class T>
struct Scratch {
    explicit Scratch(const Work<T>& work)
        : panel(work.units * kTile), wide(kTile * work.units), bias(kTile), active(work.candidates.size()) {}
    std::vector<Accumulator<T>> panel;  // [units, kTile]
    std::vector<Accumulator<T>> wide;   // [kTile, units]
    std::vector<Accumulator<T>> bias;
    std::vector<const Candidate*> active;
};

// x [rows, units] -> panel [units, kTile].
template <class A>
FASTPRUNE_INLINE void transpose(const A* x, std::int64_t rows, std::int64_t units, A* panel) {
    std::int64_t row = 0;
#ifdef FASTPRUNE_SHUFFLE
    if constexpr (std::is_same_v<A, float>) {
        using Four = Lanes<float, 16>::type;
        for (; row + 4 <= rows; row += 4) {
            const A* from = x + row * units;
            std::int64_t unit = 0;
            for (; unit + 4 <= units; unit += 4) {
                Four in[4], out[4];
                for (int i = 0; i < 4; ++i) std::memcpy(&in[i], from + i * units + unit, 16);
                const Four low01 = FASTPRUNE_SHUFFLE(in[0], in[1], 0, 4, 1, 5);
                const Four low23 = FASTPRUNE_SHUFFLE(in[2], in[3], 0, 4, 1, 5);
                const Four high01 = FASTPRUNE_SHUFFLE(in[0], in[1], 2, 6, 3, 7);
                const Four high23 = FASTPRUNE_SHUFFLE(in[2], in[3], 2, 6, 3, 7);
                out[0] = FASTPRUNE_SHUFFLE(low01, low23, 0, 1, 4, 5);
                out[1] = FASTPRUNE_SHUFFLE(low01, low23, 2, 3, 6, 7);
                out[2] = FASTPRUNE_SHUFFLE(high01, high23, 0, 1, 4, 5);
                out[3] = FASTPRUNE_SHUFFLE(high01, high23, 2, 3, 6, 7);
                for (int i = 0; i < 4; ++i) std::memcpy(panel + (unit + i) * kTile + row, &out[i], 16);
            }
            for (; unit < units; ++unit) {
                for (int i = 0; i < 4; ++i) panel[unit * kTile + row + i] = from[i * units + unit];
            }
        }
    }
#endif
    for (; row < rows; ++row) {
        for (std::int64_t unit = 0; unit < units; ++unit) panel[unit * kTile + row] = x[row * units + unit];
    }
}

// The first `left` lanes, all of them if there are fewer.
template <class Vector, class T>
FASTPRUNE_INLINE void store(const Vector& sum, std::int64_t left, T* to) {
    using A = Accumulator<T>;
    constexpr std::int64_t lanes = sizeof(Vector) / sizeof(A);
    if (std::is_same_v<T, A> && left >= lanes) {
        std::memcpy(static_cast<void*>(to), &sum, sizeof(Vector));
        return;
    }
    if (left <= 0) return;
    A plain[lanes];
    std::memcpy(plain, &sum, sizeof(Vector));
    T narrowed[lanes];
    for (std::int64_t i = 0; i < lanes; ++i) narrow(plain[i], narrowed[i]);
    if (left >= lanes) {
        std::memcpy(to, narrowed, sizeof(narrowed));
        return;
    }
    // A few moves of fixed sizes: a loop over single elements took as long as the arithmetic of a short row.
    const T* from = narrowed;
    FASTPRUNE_UNROLL
    for (std::int64_t part = lanes / 2; part > 0; part /= 2) {
        if ((left & part) == 0) continue;
        std::memcpy(to, from, part * sizeof(T));
        to += part, from += part;
    }
}

// Vectors · Bytes of rows for K candidates: accumulators in registers, one read of the panel. Lines from `ahead` on, one a
// hidden unit, are fetched meanwhile: memory would be idle during the arithmetic.
template <class T, int Bytes, int Vectors, int K>
FASTPRUNE_INLINE void multiply(const Work<T>& work, const Candidate* const* candidates, const Accumulator<T>* panel,
                               const Accumulator<T>* bias, std::int64_t channel, std::int64_t row, const char* ahead) {
    using A = Accumulator<T>;
    using Vector = typename Lanes<A, Bytes>::type;
    constexpr std::int64_t lanes = Bytes / sizeof(A);
    Vector sum[K][Vectors];
    const A* hidden[K];
    T* to[K];
    FASTPRUNE_UNROLL
    for (int k = 0; k < K; ++k) {
        hidden[k] = work.hidden + candidates[k]->index * work.units;
        to[k] = work.result + candidates[k]->offset + channel * candidates[k]->rows + row;
        FASTPRUNE_UNROLL
        for (int v = 0; v < Vectors; ++v) {
            std::memcpy(&sum[k][v], bias + v * lanes, Bytes);
            FASTPRUNE_PREFETCH(to[k] + (v + 1) * lanes - 1, 1);
        }
    }
    for (std::int64_t unit = 0; unit < work.units; ++unit) {
        Vector weight[Vectors];
        FASTPRUNE_UNROLL
        for (int v = 0; v < Vectors; ++v) std::memcpy(&weight[v], panel + unit * kTile + v * lanes, Bytes);
        FASTPRUNE_PREFETCH(ahead + 64 * unit, 0);
        FASTPRUNE_UNROLL
        for (int k = 0; k < K; ++k) {
            FASTPRUNE_UNROLL
            for (int v = 0; v < Vectors; ++v) sum[k][v] += weight[v] * hidden[k][unit];
        }
    }
    FASTPRUNE_UNROLL
    for (int k = 0; k < K; ++k) {
        std::int64_t left = candidates[k]->rows - row;
        FASTPRUNE_UNROLL
        for (int v = 0; v < Vectors; ++v, left -= lanes) store(sum[k][v], left, to[k] + v * lanes);
    }
}

// The same for as many vectors as the first candidate, which keeps most rows, needs.
template <class T, int Bytes, int Vectors, int K>
FASTPRUNE_INLINE void multiply_needed(std::int64_t vectors, const Work<T>& work, const Candidate* const* candidates,
                                      const Accumulator<T>* panel, const Accumulator<T>* bias, std::int64_t channel,
                                      std::int64_t row, const char* ahead) {
    if constexpr (Vectors > 1) {
        if (vectors < Vectors) {
            return multiply_needed<T, Bytes, Vectors - 1, K>(vectors, work, candidates, panel, bias, channel, row, ahead);
        }
    }
    multiply<T, Bytes, Vectors, K>(work, candidates, panel, bias, channel, row, ahead);
}

template <class T, int Bytes, int Vectors, int K>
FASTPRUNE_INLINE void tile(const Work<T>& work, const Candidate* const* active, std::int64_t count,
                           const Accumulator<T>* panel, const Accumulator<T>* bias, std::int64_t channel,
                           std::int64_t row, const char* ahead) {
    constexpr std::int64_t lanes = Bytes / sizeof(Accumulator<T>);
    for (std::int64_t k = 0; k < count; k += K, ahead += 64 * work.units) {
        const std::int64_t kept = std::min(active[k]->rows - row, kTile);
        for (std::int64_t at = 0; at < kept; at += Vectors * lanes) {
            const std::int64_t vectors = (kept - at + lanes - 1) / lanes;
            if (count - k >= K) {
                multiply_needed<T, Bytes, Vectors, K>(vectors, work, active + k, panel + at, bias + at, channel, row + at,
                                                      ahead);
                continue;
            }
            for (std::int64_t one = k; one < count; ++one) {
                if (row + at >= active[one]->rows) break;
                multiply_needed<T, Bytes, Vectors, 1>(vectors, work, active + one, panel + at, bias + at, channel,
                                                      row + at, ahead);
            }
        }
    }
}

// Chunk `chunk` of the rows of one output channel.
template <class T, int Bytes, int Vectors, int K>
FASTPRUNE_INLINE void chunk_of(const Work<T>& work, Scratch<T>& scratch, std::int64_t channel, std::int64_t chunk) {
    const std::int64_t begin = chunk * kChunk, end = begin + kChunk;
    std::int64_t count = 0;
    for (const Candidate& candidate : work.candidates) {
        if (candidate.out > channel) scratch.active[count++] = &candidate;
    }
    for (std::int64_t row = begin; row < end; row += kTile) {
        while (count > 0 && scratch.active[count - 1]->rows <= row) --count;
        if (count == 0) return;
        const std::int64_t rows = std::min(scratch.active[0]->rows - row, kTile);
        const std::int64_t first = channel * work.stride + row;
        const T* from = work.fc2 + first * work.units;
        if constexpr (std::is_same_v<T, Accumulator<T>>) {
            transpose(from, rows, work.units, scratch.panel.data());
        } else {
            for (std::int64_t i = 0; i < rows * work.units; ++i) scratch.wide[i] = widen(from[i]);
            transpose(scratch.wide.data(), rows, work.units, scratch.panel.data());
        }
        if (work.bias != nullptr) {
            for (std::int64_t i = 0; i < rows; ++i) scratch.bias[i] = widen(work.bias[first + i]);
        }
        const bool last = scratch.active[0]->rows - row <= kTile;
        const T* next = from + (last ? work.stride - row : rows) * work.units;
        tile<T, Bytes, Vectors, K>(work, scratch.active.data(), count, scratch.panel.data(), scratch.bias.data(), channel,
                                   row, reinterpret_cast<const char*>(next));
    }
}

template <class T>
using ChunkOf = void (*)(const Work<T>&, Scratch<T>&, std::int64_t, std::int64_t);

// Accumulators: half of the vector registers or a few more, the rest for the panel and one hidden unit.
template <class T>
void chunk_baseline(const Work<T>& work, Scratch<T>& scratch, std::int64_t channel, std::int64_t chunk) {
    chunk_of<T, 16, 4, 2>(work, scratch, channel, chunk);
}

#ifdef FASTPRUNE_SIMD_VERSIONS
template <class T>
__attribute__((target("avx2,fma"))) void chunk_avx2(const Work<T>& work, Scratch<T>& scratch, std::int64_t channel,
                                                    std::int64_t chunk) {
    chunk_of<T, 32, 4, 2>(work, scratch, channel, chunk);
}

template <class T>
__attribute__((target("avx512f"))) void chunk_avx512f(const Work<T>& work, Scratch<T>& scratch, std::int64_t channel,
                                                      std::int64_t chunk) {
    chunk_of<T, 64, 4, 4>(work, scratch, channel, chunk);
}
#endif

template <class T>
ChunkOf<T> chunk_version() {
#ifdef FASTPRUNE_SIMD_VERSIONS
    if (__builtin_cpu_supports("avx512f")) return chunk_avx512f<T>;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return chunk_avx2<T>;
#endif
    return chunk_baseline<T>;
}

// Fresh memory of many megabytes costs as much in page faults as the weights in it; large pages are 512 times fewer.
void ask_for_large_pages(void* memory, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t page = std::uintptr_t{1} << 21;
    const auto begin = (reinterpret_cast<std::uintptr_t>(memory) + page - 1) & ~(page - 1);
    const auto end = (reinterpret_cast<std::uintptr_t>(memory) + bytes) & ~(page - 1);
    // Advice: where the kernel does not take it, pages stay small.
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

// FC1 and the ReLU: [candidates, units].
template <class T>
std::vector<Accumulator<T>> hidden_units(const T* encodings, const T* weight, const T* bias, std::int64_t candidates,
                                         std::int64_t features, std::int64_t units) {
    std::vector<Accumulator<T>> hidden(candidates * units);
    for (std::int64_t k = 0; k < candidates; ++k) {
        for (std::int64_t unit = 0; unit < units; ++unit) {
            Accumulator<T> sum = bias == nullptr ? 0 : widen(bias[unit]);
            for (std::int64_t i = 0; i < features; ++i) {
                sum += widen(encodings[k * features + i]) * widen(weight[unit * features + i]);
            }
            hidden[k * units + unit] = sum < 0 ? 0 : sum;
        }
    }
    return hidden;
}

template <class T>
void crop(const T* encodings, const T* fc1_weight, const T* fc1_bias, const T* fc2_weight, const T* fc2_bias, T* result,
          std::int64_t features, std::int64_t units, const std::vector<std::int64_t>& shape,
          const std::vector<std::int64_t>& outs, const std::vector<std::int64_t>& ins,
          const std::vector<std::int64_t>& sizes, int threads) {
    const auto count = static_cast<std::int64_t>(outs.size());
    if (count == 0) return;
    const auto hidden = hidden_units(encodings, fc1_weight, fc1_bias, count, features, units);
    const std::int64_t positions = shape[2] * shape[3];
    Work<T> work{fc2_weight, fc2_bias, hidden.data(), result, units, shape[1] * positions, 0, {}};
    // Before anything is written: a page that is there already stays small, and the others around it.
    ask_for_large_pages(result, std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0}) * sizeof(T));
    std::int64_t offset = 0, channels = 0;
    const bool whole = *std::min_element(ins.begin(), ins.end()) == shape[1];
    for (std::int64_t k = 0; k < count; ++k) {
        Candidate candidate{outs[k], ins[k] * positions, offset, k};
        // Every candidate keeps all inputs (a stem, a depthwise convolution): one long run instead of many short.
        if (whole) candidate = {1, outs[k] * ins[k] * positions, offset, k};
        work.candidates.push_back(candidate);
        channels = std::max(channels, candidate.out);
        offset += sizes[2 * k];
        std::memset(static_cast<void*>(result + offset), 0, sizes[2 * k + 1] * sizeof(T));
        offset += sizes[2 * k + 1];
    }
    std::stable_sort(work.candidates.begin(), work.candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.rows > b.rows; });
    work.chunks = (work.candidates[0].rows + kChunk - 1) / kChunk;
    const std::int64_t rows = channels * work.candidates[0].rows;
    [[maybe_unused]] const int used = threads_for(rows * units * static_cast<std::int64_t>(sizeof(T)), threads);
    const ChunkOf<T> run = chunk_version<T>();
#pragma omp parallel num_threads(used)
    {
        Scratch<T> scratch(work);
#pragma omp for schedule(dynamic)
        for (std::int64_t i = 0; i < channels * work.chunks; ++i) run(work, scratch, i / work.chunks, i % work.chunks);
    }
}

void crop_generated_weights(std::uintptr_t encodings, std::uintptr_t fc1_weight, std::uintptr_t fc1_bias,
                            std::uintptr_t fc2_weight, std::uintptr_t fc2_bias, std::uintptr_t result, int dtype,
                            std::int64_t features, std::int64_t units, const std::vector<std::int64_t>& shape,
                            const std::vector<std::int64_t>& outs, const std::vector<std::int64_t>& ins,
                            const std::vector<std::int64_t>& sizes, int threads) {
    auto run = [&](auto* to) {
        using T = std::remove_pointer_t<decltype(to)>;
        crop(pointer<const T>(encodings), pointer<const T>(fc1_weight), pointer<const T>(fc1_bias),
             pointer<const T>(fc2_weight), pointer<const T>(fc2_bias), to, features, units, shape, outs, ins, sizes,
             threads);
    };
    switch (static_cast<DType>(dtype)) {
        case DType::float32: return run(pointer<float>(result));
        case DType::float16: return run(pointer<Half>(result));
        case DType::bfloat16: return run(pointer<BFloat16>(result));
        case DType::float64: return run(pointer<double>(result));
    }
    unknown_dtype("crop_generated_weights", static_cast<DType>(dtype));
}

const Binding binding([](py::module_& m) {
    m.def("crop_generated_weights", &crop_generated_weights, py::arg("encodings"), py::arg("fc1_weight"),
          py::arg("fc1_bias"), py::arg("fc2_weight"), py::arg("fc2_bias"), py::arg("result"), py::arg("dtype"),
          py::arg("features"), py::arg("units"), py::arg("shape"), py::arg("outs"), py::arg("ins"), py::arg("sizes"),
          py::arg("threads"), py::call_guard<py::gil_scoped_release>(),
          "Generates the weights of every candidate, cropped, into one flat result.");
});

}  // namespace

}  // namespace fastprune
