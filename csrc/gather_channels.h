// What gather_channels (fastprune/ops/gather_channels.py) copies of one tensor, in the order of its memory.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "dtype.h"

namespace fastprune::gather {

// One dimension, or several that stay whole and follow one another in memory.
struct Axis {
    std::int64_t size;          // entries there are
    std::int64_t kept;          // entries that are copied
    const std::int64_t* index;  // their positions [kept]; null: all of them
};

// Memory [axes..., run]: the last axis has an index, and below it everything is kept.
struct Copy {
    const char* src;
    char* dst;
    std::vector<Axis> axes;
    std::int64_t run;  // bytes
    std::int64_t bytes;  // of the result
};

enum class Format : int { contiguous = 0, channels_last = 1 };

// The layout of the schema: for each tensor ndim, its sizes, how many dimensions have an index, and for each of those
// (dimension, start, length) in the concatenated indices.
inline std::vector<Copy> parse(const std::vector<std::uintptr_t>& sources, const std::vector<std::uintptr_t>& results,
                               const std::vector<int>& formats, const std::vector<std::int64_t>& itemsizes,
                               std::uintptr_t index, const std::vector<std::int64_t>& layout) {
    const std::size_t count = sources.size();
    if (results.size() != count || formats.size() != count || itemsizes.size() != count) {
        throw std::invalid_argument("gather_channels: expected as many results, formats and item sizes as tensors, " +
                                    std::to_string(count));
    }
    std::vector<Copy> copies;
    copies.reserve(count);
    std::vector<Axis> dims;
    auto word = layout.begin();
    auto next = [&] {
        if (word == layout.end()) throw std::invalid_argument("gather_channels: the layout ends too early");
        return *word++;
    };
    for (std::size_t i = 0; i < count; ++i) {
        dims.assign(static_cast<std::size_t>(next()), Axis{0, 0, nullptr});
        for (auto& dim : dims) dim.size = dim.kept = next();
        for (auto left = next(); left > 0; --left) {
            auto& dim = dims.at(static_cast<std::size_t>(next()));
            dim.index = pointer<const std::int64_t>(index) + next();
            dim.kept = next();
        }
        if (static_cast<Format>(formats[i]) == Format::channels_last && dims.size() > 2) {
            dims.push_back(dims[1]);
            dims.erase(dims.begin() + 1);
        }
        Copy copy{pointer<const char>(sources[i]), pointer<char>(results[i]), {}, itemsizes[i], itemsizes[i]};
        for (const auto& dim : dims) {
            copy.bytes *= dim.kept;
            auto& axes = copy.axes;
            if (dim.index == nullptr && !axes.empty() && axes.back().index == nullptr) {
                axes.back().size = axes.back().kept *= dim.size;
            } else if (dim.index != nullptr || dim.size != 1) {
                axes.push_back(dim);
            }
        }
        if (!copy.axes.empty() && copy.axes.back().index == nullptr) {
            copy.run *= copy.axes.back().size;
            copy.axes.pop_back();
        }
        if (copy.bytes > 0) copies.push_back(std::move(copy));
    }
    if (word != layout.end()) throw std::invalid_argument("gather_channels: the layout goes on after the last tensor");
    return copies;
}

}  // namespace fastprune::gather
