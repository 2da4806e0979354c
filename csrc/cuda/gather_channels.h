// gather_channels on a GPU.
#pragma once

#include <cstdint>
#include <vector>

namespace fastprune::cuda {

// Queues the copies on `stream` of `device`, one launch for up to 360 tensors, and returns the number of launches.
// Sizes are those of fastprune::gather::parse.
int gather_channels(const std::vector<std::uintptr_t>& sources, const std::vector<std::uintptr_t>& results,
                    const std::vector<int>& formats, const std::vector<std::int64_t>& itemsizes, std::uintptr_t index,
                    const std::vector<std::int64_t>& layout, int device, std::uintptr_t stream);

}  // namespace fastprune::cuda
