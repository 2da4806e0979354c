// The tiles that gather_channels_kernel copies. Plain functions of a thread's number: tests run them on a CPU.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../gather_channels.h"

#ifdef __CUDACC__
#define FASTPRUNE_DEVICE __host__ __device__ __forceinline__
#else
#define FASTPRUNE_DEVICE inline
#endif

namespace fastprune::gather {

constexpr int kThreads = 256;
// Of a tile, by each thread, loaded before the first is stored: 64 KB of floats in flight in a full multiprocessor.
constexpr int kRowsOfThread = 8;
// Tiles are 8 to 256 columns wide, so that a thread has at most one row to find.
constexpr int kLeastWidthLog = 3, kMostWidthLog = 8;
constexpr int kMostRows = kRowsOfThread * (kThreads >> kLeastWidthLog);
static_assert(kMostRows <= kThreads, "a thread finds one row");

constexpr int kLeading = 3;
constexpr std::uint32_t kAll = ~0u;
// Entries from this size on are rows of their own: no thread looks for its column.
constexpr std::int64_t kLongRun = 512;

// One tensor: rows of columns, in units of 1 to 16 bytes. Where a row of the result starts in the source follows from
// its number through the leading axes, where a column lies in a source row from the last axis.
struct Item {
    const char* src;
    char* dst;
    std::int64_t columns;            // of the result
    std::int64_t row;                // units of a source row
    std::uint32_t kept[kLeading];    // leading axes, outermost first; unused ones are 1
    std::uint32_t size[kLeading];
    std::uint32_t at[kLeading + 1];  // where the index of an axis starts; kAll: it has none
    std::uint32_t run;               // units of an entry of the last axis, where that has an index
    std::uint32_t tiles_end;         // tiles of this item and of those before it in the launch
    std::uint8_t unit_log;
    std::uint8_t width_log;
};

struct Tile {
    std::int64_t row, column;  // the first of each
    int rows;                  // some may lie past the end
};

FASTPRUNE_DEVICE std::int64_t rows_of(const Item& item) {
    return static_cast<std::int64_t>(item.kept[0]) * item.kept[1] * item.kept[2];
}

FASTPRUNE_DEVICE std::int64_t tiles_across(const Item& item) {
    return (item.columns + (1 << item.width_log) - 1) >> item.width_log;
}

FASTPRUNE_DEVICE std::int64_t tiles_of(const Item& item) {
    const int rows = (kRowsOfThread * kThreads) >> item.width_log;
    return tiles_across(item) * ((rows_of(item) + rows - 1) / rows);
}

// Neighbouring tiles are of the same rows. The launch has fewer than 2^31 tiles, so they are counted in 32 bits.
FASTPRUNE_DEVICE Tile tile_of(const Item& item, std::uint32_t block) {
    const int rows = (kRowsOfThread * kThreads) >> item.width_log;
    const auto across = static_cast<std::uint32_t>(tiles_across(item));
    const std::uint32_t number = block - (item.tiles_end - static_cast<std::uint32_t>(tiles_of(item)));
    return Tile{static_cast<std::int64_t>(number / across) * rows,
                static_cast<std::int64_t>(number % across) << item.width_log, rows};
}

FASTPRUNE_DEVICE std::int64_t place(const std::int64_t* index, std::uint32_t at, std::uint64_t digit) {
    return at == kAll ? static_cast<std::int64_t>(digit) : index[at + digit];
}

// 32-bit division is several times cheaper, and nearly every tensor has fewer rows.
template <class Number>
FASTPRUNE_DEVICE std::int64_t row_start(const Item& item, const std::int64_t* index, Number row) {
    const Number last = row % item.kept[2], rest = row / item.kept[2];
    const Number middle = rest % item.kept[1], first = rest / item.kept[1];
    return ((place(index, item.at[0], first) * item.size[1] + place(index, item.at[1], middle)) * item.size[2] +
            place(index, item.at[2], last)) *
           item.row;
}

// Where the tile's rows start in the source, in units, into `starts` [kMostRows].
FASTPRUNE_DEVICE void start_rows(const Item& item, const Tile& tile, const std::int64_t* index, std::int64_t* starts,
                                 int thread) {
    const std::int64_t row = tile.row + thread;
    if (thread >= tile.rows || row >= rows_of(item)) return;
    starts[thread] = row >> 32 == 0 ? row_start(item, index, static_cast<std::uint32_t>(row))
                                    : row_start(item, index, static_cast<std::uint64_t>(row));
}

struct alignas(16) Unit16 {
    std::uint32_t words[4];
};

template <class Unit>
FASTPRUNE_DEVICE void copy_units(const Item& item, const Tile& tile, const std::int64_t* index,
                                 const std::int64_t* starts, int thread) {
    const int width = 1 << item.width_log;
    const std::int64_t column = tile.column + (thread & (width - 1));
    if (column >= item.columns) return;
    std::int64_t from = column;
    if (item.at[kLeading] != kAll) {
        // Such rows have fewer than 2^32 units (item_of).
        const std::uint32_t entry = static_cast<std::uint32_t>(column) / item.run;
        from = index[item.at[kLeading] + entry] * item.run + (static_cast<std::uint32_t>(column) - entry * item.run);
    }
    const int first = thread >> item.width_log, step = kThreads >> item.width_log;
    const std::int64_t left = rows_of(item) - tile.row;
    const Unit* src = reinterpret_cast<const Unit*>(item.src) + from;
    Unit* dst = reinterpret_cast<Unit*>(item.dst) + tile.row * item.columns + column;
    Unit unit[kRowsOfThread];
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int i = 0; i < kRowsOfThread; ++i) {
        const int row = first + i * step;
        if (row < left) unit[i] = src[starts[row]];
    }
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int i = 0; i < kRowsOfThread; ++i) {
        const int row = first + i * step;
        if (row < left) dst[row * item.columns] = unit[i];
    }
}

FASTPRUNE_DEVICE void copy_tile(const Item& item, const Tile& tile, const std::int64_t* index,
                                const std::int64_t* starts, int thread) {
    switch (item.unit_log) {
        case 0: return copy_units<std::uint8_t>(item, tile, index, starts, thread);
        case 1: return copy_units<std::uint16_t>(item, tile, index, starts, thread);
        case 2: return copy_units<std::uint32_t>(item, tile, index, starts, thread);
        case 3: return copy_units<std::uint64_t>(item, tile, index, starts, thread);
        default:
#ifdef __CUDACC__
            return copy_units<uint4>(item, tile, index, starts, thread);
#else
            return copy_units<Unit16>(item, tile, index, starts, thread);
#endif
    }
}

// The largest power of two, up to 16, that divides all of the bits.
inline std::uint8_t unit_log_of(std::uint64_t bits) {
    std::uint8_t log = 0;
    while (log < 4 && (bits >> log & 1) == 0) ++log;
    return log;
}

// The widest tiles that waste at most an eighth of their threads.
inline std::uint8_t width_log_of(std::int64_t columns) {
    int log = kMostWidthLog;
    for (; log > kLeastWidthLog; --log) {
        const std::int64_t padded = (columns + (1ll << log) - 1) >> log << log;
        if (8 * (padded - columns) <= columns) break;
    }
    return static_cast<std::uint8_t>(log);
}

inline std::uint32_t narrow(std::int64_t value) {
    if (value < 0 || value >= static_cast<std::int64_t>(kAll)) {
        throw std::invalid_argument("gather_channels: expected an axis of fewer than 2^32 - 1 entries, got " +
                                    std::to_string(value));
    }
    return static_cast<std::uint32_t>(value);
}

// `index` is where the concatenated indices start. Throws std::invalid_argument where more than two dimensions with an
// index leave too many axes.
inline Item item_of(const Copy& copy, const std::int64_t* index) {
    Item item{copy.src, copy.dst, 0, 0, {1, 1, 1}, {1, 1, 1}, {kAll, kAll, kAll, kAll}, 1, 0, 0, 0};
    item.unit_log = unit_log_of(static_cast<std::uint64_t>(copy.run) | reinterpret_cast<std::uintptr_t>(copy.src) |
                                reinterpret_cast<std::uintptr_t>(copy.dst));
    const std::int64_t run = copy.run >> item.unit_log;
    auto leading = static_cast<int>(copy.axes.size());
    item.columns = item.row = run;
    if (leading > kLeading || (leading > 0 && copy.run < kLongRun)) {
        const Axis& last = copy.axes[static_cast<std::size_t>(--leading)];
        narrow(last.size * run);
        item.run = narrow(run);
        item.at[kLeading] = narrow(last.index - index);
        item.columns = last.kept * run;
        item.row = last.size * run;
    }
    if (leading > kLeading) {
        throw std::invalid_argument("gather_channels: expected at most " + std::to_string(kLeading) +
                                    " axes before the last, got " + std::to_string(leading));
    }
    for (int from = leading - 1, to = kLeading - 1; from >= 0; --from, --to) {
        const Axis& axis = copy.axes[static_cast<std::size_t>(from)];
        item.kept[to] = narrow(axis.kept);
        item.size[to] = narrow(axis.size);
        if (axis.index != nullptr) item.at[to] = narrow(axis.index - index);
    }
    item.width_log = width_log_of(item.columns);
    return item;
}

}  // namespace fastprune::gather
