// gather_channels on a GPU: one launch for all tensors. Addresses and sizes travel as the kernel's argument, so that
// nothing is copied to the device first, nothing is waited for, and a CUDA graph can hold the call.
#include "gather_channels.h"

#include <algorithm>
#include <climits>
#include <stdexcept>

#include "check.h"
#include "gather_channels_tile.h"

namespace fastprune::cuda {

namespace {

using gather::Item;
using gather::kThreads;

// A kernel takes 4 KB of arguments, and 32,764 bytes from CUDA 12.1 on: the launch carries no more than it needs.
template <int capacity>
struct Table {
    const std::int64_t* index;
    std::uint32_t items;
    Item item[capacity];
};

#if CUDART_VERSION >= 12010
constexpr int kSmall = 100, kLarge = 360;
#else
constexpr int kSmall = 20, kLarge = 45;
#endif
static_assert(sizeof(Table<kLarge>) <= (CUDART_VERSION >= 12010 ? 32764 : 4096), "more arguments than a kernel takes");

template <int capacity>
__global__ void __launch_bounds__(kThreads) gather_channels_kernel(const __grid_constant__ Table<capacity> table) {
    __shared__ std::int64_t starts[gather::kMostRows];
    std::uint32_t low = 0, high = table.items - 1;
    while (low < high) {
        const std::uint32_t middle = (low + high) / 2;
        if (blockIdx.x < table.item[middle].tiles_end) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    const Item& item = table.item[low];
    const gather::Tile tile = gather::tile_of(item, blockIdx.x);
    gather::start_rows(item, tile, table.index, starts, threadIdx.x);
    __syncthreads();
    gather::copy_tile(item, tile, table.index, starts, threadIdx.x);
}

template <int capacity>
void launch(const std::int64_t* index, const Item* first, std::uint32_t items, cudaStream_t stream) {
    Table<capacity> table{};
    table.index = index;
    table.items = items;
    std::copy(first, first + items, table.item);
    gather_channels_kernel<capacity><<<first[items - 1].tiles_end, kThreads, 0, stream>>>(table);
    check(cudaGetLastError(), "gather_channels");
}

// Leaves the calling thread's current device as it was.
class DeviceGuard {
public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceGuard() { cudaSetDevice(before_); }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int before_ = 0;
};

}  // namespace

int gather_channels(const std::vector<std::uintptr_t>& sources, const std::vector<std::uintptr_t>& results,
                    const std::vector<int>& formats, const std::vector<std::int64_t>& itemsizes, std::uintptr_t index,
                    const std::vector<std::int64_t>& layout, int device, std::uintptr_t stream) {
    std::vector<Item> items;
    for (const auto& copy : gather::parse(sources, results, formats, itemsizes, index, layout)) {
        items.push_back(gather::item_of(copy, pointer<const std::int64_t>(index)));
    }
    const DeviceGuard guard(device);
    int launches = 0;
    for (std::size_t first = 0; first < items.size(); ++launches) {
        std::size_t last = first;
        // The grid's x has 2^31 - 1 blocks.
        std::int64_t tiles = 0;
        while (last < items.size() && last - first < kLarge) {
            const std::int64_t more = gather::tiles_of(items[last]);
            if (tiles + more > INT_MAX) break;
            items[last++].tiles_end = static_cast<std::uint32_t>(tiles += more);
        }
        if (last == first) throw std::invalid_argument("gather_channels: a tensor needs more than 2^31 - 1 tiles");
        const auto count = static_cast<std::uint32_t>(last - first);
        const auto* at = pointer<const std::int64_t>(index);
        auto* queue = pointer<CUstream_st>(stream);
        count <= kSmall ? launch<kSmall>(at, &items[first], count, queue) : launch<kLarge>(at, &items[first], count, queue);
        first = last;
    }
    return launches;
}

}  // namespace fastprune::cuda
