// How work is shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastprune {

// torch's OpenMP runtime and this one may be two: the number comes from Python (torch.get_num_threads()), and small work
// stays on the calling thread, where no runtime is woken.
inline int threads_for(std::int64_t bytes, int wanted) {
    constexpr std::int64_t kBytesWorthAThread = 256 * 1024;
    return static_cast<int>(std::clamp<std::int64_t>(bytes / kBytesWorthAThread, 1, std::max(wanted, 1)));
}

}  // namespace fastprune
