// gather_channels: the kept channels of many tensors, one read and one write of what is kept.
#include "gather_channels.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bind.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cuda/gather_channels.h"
#include "cuda/gather_channels_tile.h"

#ifdef FASTPRUNE_SIMD_VERSIONS
#include <immintrin.h>
#endif

namespace py = pybind11;

namespace fastprune::gather {

namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kChunk = 256 * 1024;
// Rows jump over what is not kept, so the processor's own prefetching, into the second-level cache, loses its thread; and
// the misses that the first level keeps in flight are too few for the memory: 4.3 ms for ResNet-50, against 3.0 by
// prefetching into the second level this far ahead (Zen 4, reading alone; 64 to 512 lines are the same).
constexpr std::int64_t kAhead = 128 * kLine;

inline void fetch(const char* line) {
#ifdef __GNUC__
    __builtin_prefetch(line, 0, 2);
#endif
}

// A line of a row of which something is kept, and which of its lanes.
struct Block {
    std::int64_t at;  // byte in the row
    std::int64_t kept;  // bytes
    std::uint64_t lanes;
};

// One tensor. A row of the result is the kept entries of the last axis; it lies in one row of the source.
struct Task {
    const Copy* copy;
    std::int64_t rows;
    const std::int64_t* index;  // null: one entry, the whole row
    std::int64_t kept;          // entries of a row
    std::int64_t row;           // bytes of a source row
    const char* end;            // of the source
    int lane = 0;               // bytes; 0 copies entry by entry
    std::vector<Block> blocks;  // of a row, where lane is not 0
};

// Rows [first, last) of a task, or, of a single row, the entries [first, last).
struct Chunk {
    const Task* task;
    std::int64_t first, last;
};

template <std::int64_t bytes>
void move(char* dst, const char* src) {
    std::memcpy(dst, src, bytes);
}

// The two ends overlap in the middle, so that one branch serves every size from `bytes` to twice that.
template <std::int64_t bytes>
void move_ends(char* dst, const char* src, std::int64_t size) {
    std::array<char, bytes> head, tail;
    std::memcpy(head.data(), src, bytes);
    std::memcpy(tail.data(), src + size - bytes, bytes);
    std::memcpy(dst, head.data(), bytes);
    std::memcpy(dst + size - bytes, tail.data(), bytes);
}

template <class Move>
void each(const char* src, char* dst, const std::int64_t* index, std::int64_t kept, std::int64_t run, Move&& move_entry) {
    for (std::int64_t j = 0; j < kept; ++j) move_entry(dst + j * run, src + index[j] * run);
}

// Entries in any order, repeated or not.
void copy_entries(const char* src, char* dst, const std::int64_t* index, std::int64_t kept, std::int64_t run) {
    if (run == 1) return each(src, dst, index, kept, 1, move<1>);
    if (run == 2) return each(src, dst, index, kept, 2, move<2>);
    if (run == 4) return each(src, dst, index, kept, 4, move<4>);
    if (run == 8) return each(src, dst, index, kept, 8, move<8>);
    if (run == 16) return each(src, dst, index, kept, 16, move<16>);
    if (run > 8 && run <= 64) {
        const auto ends = [run](auto size) {
            return [run](char* to, const char* from) { move_ends<decltype(size)::value>(to, from, run); };
        };
        if (run < 16) return each(src, dst, index, kept, run, ends(std::integral_constant<std::int64_t, 8>()));
        if (run <= 32) return each(src, dst, index, kept, run, ends(std::integral_constant<std::int64_t, 16>()));
        return each(src, dst, index, kept, run, ends(std::integral_constant<std::int64_t, 32>()));
    }
    for (std::int64_t j = 0; j < kept;) {
        std::int64_t next = j + 1;
        while (next < kept && index[next] == index[next - 1] + 1) ++next;
        std::memcpy(dst + j * run, src + index[j] * run, static_cast<std::size_t>((next - j) * run));
        j = next;
    }
}

#ifdef FASTPRUNE_SIMD_VERSIONS

#define FASTPRUNE_COMPRESS(LANE, TARGET, MASK, SUFFIX)                                                                  \
    __attribute__((target(TARGET))) void compress##LANE(const Task& task, const char* src, const char* ahead, char* dst, \
                                                        char* dst_end) {                                                \
        for (const Block& block : task.blocks) {                                                                        \
            const char* from = src + block.at;                                                                          \
            const auto lanes = static_cast<MASK>(block.lanes);                                                          \
            /* Past the source's end, or into another thread's rows, only lanes that are meant. */                      \
            __m512i line = from + kLine <= task.end ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_##SUFFIX(lanes, from); \
            fetch(ahead + block.at);                                                                                    \
            line = _mm512_maskz_compress_##SUFFIX(lanes, line);                                                         \
            if (dst + kLine <= dst_end) {                                                                               \
                _mm512_storeu_si512(dst, line);                                                                         \
            } else {                                                                                                    \
                const auto kept = block.kept == kLine ? ~0ull : (1ull << (block.kept / LANE)) - 1;                      \
                _mm512_mask_storeu_##SUFFIX(dst, static_cast<MASK>(kept), line);                                        \
            }                                                                                                           \
            dst += block.kept;                                                                                          \
        }                                                                                                               \
    }

FASTPRUNE_COMPRESS(4, "avx512f", __mmask16, epi32)
FASTPRUNE_COMPRESS(2, "avx512f,avx512bw,avx512vbmi2", __mmask32, epi16)
FASTPRUNE_COMPRESS(1, "avx512f,avx512bw,avx512vbmi2", __mmask64, epi8)

#undef FASTPRUNE_COMPRESS

int lane_of(std::int64_t run) {
    static const bool words = __builtin_cpu_supports("avx512f");
    static const bool bytes = words && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi2");
    if (run % 4 == 0) return words ? 4 : 0;
    if (!bytes) return 0;
    return run % 2 == 0 ? 2 : 1;
}

void compress(const Task& task, const char* src, const char* ahead, char* dst, char* dst_end) {
    if (task.lane == 4) return compress4(task, src, ahead, dst, dst_end);
    if (task.lane == 2) return compress2(task, src, ahead, dst, dst_end);
    compress1(task, src, ahead, dst, dst_end);
}

#else

int lane_of(std::int64_t) { return 0; }
void compress(const Task&, const char*, const char*, char*, char*) {}

#endif

// Entries in ascending order are lines of the source with gaps closed, which reads memory in order and takes 16 floats
// at a time. Longer runs, few rows and sparse ones are copied entry by entry.
void find_blocks(Task& task) {
    const std::int64_t run = task.copy->run;
    if (task.index == nullptr || run >= kLine || task.rows < 8) return;
    for (std::int64_t j = 1; j < task.kept; ++j) {
        if (task.index[j] <= task.index[j - 1]) return;
    }
    const int lane = lane_of(run);
    if (lane == 0) return;
    auto& blocks = task.blocks;
    for (std::int64_t j = 0; j < task.kept; ++j) {
        for (std::int64_t byte = task.index[j] * run, end = byte + run; byte < end; byte += lane) {
            const std::int64_t at = byte / kLine * kLine;
            if (blocks.empty() || blocks.back().at != at) blocks.push_back({at, 0, 0});
            blocks.back().lanes |= 1ull << ((byte - at) / lane);
            blocks.back().kept += lane;
        }
    }
    const auto lines = static_cast<std::int64_t>(blocks.size());
    if (run <= 16 ? 3 * lines <= task.kept : lines <= 2 * task.kept) task.lane = lane;
}

Task task_of(const Copy& copy) {
    Task task{&copy, 1, nullptr, 1, copy.run, copy.src + copy.run, 0, {}};
    if (copy.axes.empty()) return task;
    for (const auto& axis : copy.axes) task.rows *= axis.kept;
    const Axis& last = copy.axes.back();
    task.rows /= last.kept;
    task.index = last.index;
    task.kept = last.kept;
    task.row = last.size * copy.run;
    std::int64_t bytes = copy.run;
    for (const auto& axis : copy.axes) bytes *= axis.size;
    task.end = copy.src + bytes;
    find_blocks(task);
    return task;
}

// Where the source rows [first, last) start, in bytes.
void row_starts(const Task& task, std::int64_t first, std::int64_t last, std::vector<std::int64_t>& starts) {
    starts.assign(static_cast<std::size_t>(last - first), 0);
    const auto& axes = task.copy->axes;
    if (axes.size() < 2) return;
    const Axis& inner = axes[axes.size() - 2];
    std::int64_t digit = first % inner.kept;
    std::int64_t base = -1;
    for (std::int64_t r = first; r < last; ++r) {
        if (base < 0 || digit == inner.kept) {
            digit = r % inner.kept;
            base = 0;
            std::int64_t rest = r / inner.kept, stride = task.row * inner.size;
            for (std::size_t a = axes.size() - 2; a-- > 0;) {
                const std::int64_t d = rest % axes[a].kept;
                base += (axes[a].index ? axes[a].index[d] : d) * stride;
                stride *= axes[a].size;
                rest /= axes[a].kept;
            }
        }
        starts[static_cast<std::size_t>(r - first)] = base + (inner.index ? inner.index[digit] : digit) * task.row;
        ++digit;
    }
}

void run(const Chunk& chunk, std::vector<std::int64_t>& starts) {
    const Task& task = *chunk.task;
    const Copy& copy = *task.copy;
    if (task.index == nullptr) {
        std::memcpy(copy.dst, copy.src, static_cast<std::size_t>(copy.run));
        return;
    }
    if (task.rows == 1) {
        row_starts(task, 0, 1, starts);
        copy_entries(copy.src + starts[0], copy.dst + chunk.first * copy.run, task.index + chunk.first,
                     chunk.last - chunk.first, copy.run);
        return;
    }
    row_starts(task, chunk.first, chunk.last, starts);
    const std::int64_t row = task.kept * copy.run, rows = chunk.last - chunk.first;
    // Of sparse rows and long entries most lines are not wanted.
    const std::int64_t fetched = copy.run < kLine && 8 * row > task.row ? task.row : 0;
    const std::int64_t ahead = std::max<std::int64_t>(1, kAhead / task.row);
    char* dst = copy.dst + chunk.first * row;
    char* dst_end = dst + rows * row;
    for (std::int64_t r = 0; r < rows; ++r, dst += row) {
        const char* src = copy.src + starts[r];
        const char* later = copy.src + starts[std::min(r + ahead, rows - 1)];
        if (task.lane != 0) {
            compress(task, src, later, dst, dst_end);
            continue;
        }
        for (std::int64_t at = 0; at < fetched; at += kLine) fetch(later + at);
        copy_entries(src, dst, task.index, task.kept, copy.run);
    }
}

void gather_channels(const std::vector<std::uintptr_t>& sources, const std::vector<std::uintptr_t>& results,
                     const std::vector<int>& formats, const std::vector<std::int64_t>& itemsizes, std::uintptr_t index,
                     const std::vector<std::int64_t>& layout, int threads) {
    const auto copies = parse(sources, results, formats, itemsizes, index, layout);
    std::vector<Task> tasks;
    tasks.reserve(copies.size());
    std::vector<Chunk> chunks;
    std::int64_t bytes = 0;
    for (const auto& copy : copies) {
        bytes += copy.bytes;
        tasks.push_back(task_of(copy));
        const Task& task = tasks.back();
        const std::int64_t units = task.rows == 1 ? task.kept : task.rows;
        const std::int64_t step = std::max<std::int64_t>(1, std::min(kChunk, kChunk / (copy.bytes / units)));
        for (std::int64_t first = 0; first < units; first += step) {
            chunks.push_back({&task, first, std::min(units, first + step)});
        }
    }
    const int used = threads_for(bytes, threads);
    const auto count = static_cast<std::int64_t>(chunks.size());
    if (used == 1) {
        std::vector<std::int64_t> starts;
        for (const auto& chunk : chunks) run(chunk, starts);
        return;
    }
#pragma omp parallel num_threads(used)
    {
        std::vector<std::int64_t> starts;
#pragma omp for schedule(dynamic)
        for (std::int64_t i = 0; i < count; ++i) run(chunks[static_cast<std::size_t>(i)], starts);
    }
}

void gather_channels_tiles(const std::vector<std::uintptr_t>& sources, const std::vector<std::uintptr_t>& results,
                           const std::vector<int>& formats, const std::vector<std::int64_t>& itemsizes,
                           std::uintptr_t index, const std::vector<std::int64_t>& layout) {
    const auto* places = pointer<const std::int64_t>(index);
    std::vector<std::int64_t> starts(kMostRows);
    std::uint32_t done = 0;
    for (const auto& copy : parse(sources, results, formats, itemsizes, index, layout)) {
        Item item = item_of(copy, places);
        item.tiles_end = done + static_cast<std::uint32_t>(tiles_of(item));
        for (; done < item.tiles_end; ++done) {
            const Tile tile = tile_of(item, done);
            for (int thread = 0; thread < kThreads; ++thread) start_rows(item, tile, places, starts.data(), thread);
            for (int thread = 0; thread < kThreads; ++thread) copy_tile(item, tile, places, starts.data(), thread);
        }
    }
}

const Binding binding([](py::module_& m) {
    m.def("gather_channels", &gather_channels, py::arg("sources"), py::arg("results"), py::arg("formats"),
          py::arg("itemsizes"), py::arg("index"), py::arg("layout"), py::arg("threads"),
          py::call_guard<py::gil_scoped_release>(),
          "Copies the kept channels of every source to its result, which has the same memory format (0 contiguous, 1 "
          "channels_last).");
    m.def("gather_channels_tiles", &gather_channels_tiles, py::arg("sources"), py::arg("results"), py::arg("formats"),
          py::arg("itemsizes"), py::arg("index"), py::arg("layout"), py::call_guard<py::gil_scoped_release>(),
          "The same by what each thread of the CUDA kernel does, one after another: for tests where there is no GPU.");
    m.def("gather_channels_cuda", &cuda::gather_channels, py::arg("sources"), py::arg("results"), py::arg("formats"),
          py::arg("itemsizes"), py::arg("index"), py::arg("layout"), py::arg("device"), py::arg("stream"),
          py::call_guard<py::gil_scoped_release>(), "The same on a GPU, queued on the stream; returns its launches.");
});

}  // namespace

}  // namespace fastprune::gather
