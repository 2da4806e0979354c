#include "gamma_subgradient.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "check.h"

namespace fastprune::cuda {

namespace {

// Bytes of a kernel's arguments: 4,096 everywhere; 32,764 from CUDA 12.1 on, which networks of many layers need.
constexpr int kFew = 4096;
#if CUDART_VERSION >= 12010
constexpr int kMany = 32764;
#else
constexpr int kMany = kFew;
#endif

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return fabs(x); }

// Half precision is calculated in float and rounded once, as torch does.
template <class T>
struct Widened {
    using type = float;
};
template <>
struct Widened<double> {
    using type = double;
};
template <class T>
using Wide = typename Widened<T>::type;

template <class W, int kBytes>
struct Table {
    // Beside the arrays: a pointer and two ints, and padding.
    static constexpr int kLayers = (kBytes - 32) / (2 * sizeof(void*) + sizeof(W) + sizeof(std::uint32_t));

    void* scale[kLayers];
    void* gradient[kLayers];
    W number[kLayers];
    std::uint32_t size[kLayers];
    const float* factors;
    int each_factor;
    int layers;

    __device__ W step(int layer) const {
        const W one = number[layer];
        return factors == nullptr ? one : one * static_cast<W>(factors[each_factor ? layer : 0]);
    }
};
static_assert(sizeof(Table<float, kFew>) <= kFew && sizeof(Table<double, kFew>) <= kFew);
static_assert(sizeof(Table<float, kMany>) <= kMany && sizeof(Table<double, kMany>) <= kMany);

// Elements that are loaded and stored at once, as 16 bytes.
template <class T>
struct alignas(16) Pack {
    static constexpr int kSize = 16 / sizeof(T);
    T at[kSize];
};

template <class... Pointer>
__device__ __forceinline__ bool aligned(Pointer... pointers) {
    return ((reinterpret_cast<std::uintptr_t>(pointers) | ...) & 15) == 0;
}

template <class T>
__device__ __forceinline__ void subgradient(T scale, T& gradient, Wide<T> step) {
    const Wide<T> x = widen(scale);
    narrow(widen(gradient) + ((x > 0 ? step : 0) - (x < 0 ? step : 0)), gradient);
}

template <class T>
__device__ __forceinline__ void proximal(T& scale, Wide<T> threshold) {
    const Wide<T> x = widen(scale);
    const Wide<T> left = magnitude(x) - threshold;
    // Not fmax: NaN stays NaN, and an exact zero keeps the sign of a scale that had one.
    const Wide<T> kept = left < 0 ? 0 : left;
    narrow(x < 0 ? -kept : kept, scale);
}

constexpr int kThreads = 128;
constexpr std::uint32_t kMostBlocksALayer = 64;

// Block (i, layer): the layer's packs i, i + gridDim.x, ... and in the end its elements that fill no pack.
template <class T, class Table>
__global__ void __launch_bounds__(kThreads) subgradients(const __grid_constant__ Table table) {
    const int layer = blockIdx.y;
    const T* scale = static_cast<const T*>(table.scale[layer]);
    T* gradient = static_cast<T*>(table.gradient[layer]);
    const std::int64_t size = table.size[layer];
    const Wide<T> step = table.step(layer);
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
    const std::int64_t packs = aligned(scale, gradient) ? size / Pack<T>::kSize : 0;
    for (std::int64_t i = first; i < packs; i += stride) {
        const Pack<T> x = reinterpret_cast<const Pack<T>*>(scale)[i];
        Pack<T> g = reinterpret_cast<Pack<T>*>(gradient)[i];
#pragma unroll
        for (int k = 0; k < Pack<T>::kSize; ++k) subgradient(x.at[k], g.at[k], step);
        reinterpret_cast<Pack<T>*>(gradient)[i] = g;
    }
    for (std::int64_t i = packs * Pack<T>::kSize + first; i < size; i += stride) subgradient(scale[i], gradient[i], step);
}

template <class T, class Table>
__global__ void __launch_bounds__(kThreads) proximals(const __grid_constant__ Table table) {
    const int layer = blockIdx.y;
    T* scale = static_cast<T*>(table.scale[layer]);
    const std::int64_t size = table.size[layer];
    const Wide<T> step = table.step(layer);
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
    const std::int64_t packs = aligned(scale) ? size / Pack<T>::kSize : 0;
    for (std::int64_t i = first; i < packs; i += stride) {
        Pack<T> x = reinterpret_cast<Pack<T>*>(scale)[i];
#pragma unroll
        for (int k = 0; k < Pack<T>::kSize; ++k) proximal(x.at[k], step);
        reinterpret_cast<Pack<T>*>(scale)[i] = x;
    }
    for (std::int64_t i = packs * Pack<T>::kSize + first; i < size; i += stride) proximal(scale[i], step);
}

constexpr int kWarps = 32;
constexpr int kLanes = 32;
// Packs that one lane adds in the calculation's own dtype before float64 takes over.
constexpr std::int64_t kPacksAStretch = 16;

// One block, so that one launch gives the whole sum, always in the same order: warp w takes layers w, w + 32, ...
template <class T, class Table>
__global__ void __launch_bounds__(kWarps* kLanes) penalty(const __grid_constant__ Table table, Wide<T>* out) {
    const int warp = threadIdx.x / kLanes;
    const int lane = threadIdx.x % kLanes;
    double total = 0;
    for (int layer = warp; layer < table.layers; layer += kWarps) {
        const T* scale = static_cast<const T*>(table.scale[layer]);
        const std::int64_t size = table.size[layer];
        const std::int64_t packs = aligned(scale) ? size / Pack<T>::kSize : 0;
        for (std::int64_t start = 0; start < packs; start += kPacksAStretch * kLanes) {
            const std::int64_t end = min(packs, start + kPacksAStretch * kLanes);
            Wide<T> sum = 0;
#pragma unroll 4
            for (std::int64_t i = start + lane; i < end; i += kLanes) {
                const Pack<T> x = reinterpret_cast<const Pack<T>*>(scale)[i];
#pragma unroll
                for (int k = 0; k < Pack<T>::kSize; ++k) sum += magnitude(widen(x.at[k]));
            }
            total += sum;
        }
        for (std::int64_t i = packs * Pack<T>::kSize + lane; i < size; i += kLanes) total += magnitude(widen(scale[i]));
    }
    constexpr unsigned kAll = 0xffffffff;
    for (int offset = kLanes / 2; offset > 0; offset /= 2) total += __shfl_down_sync(kAll, total, offset);
    __shared__ double of_warp[kWarps];
    if (lane == 0) of_warp[warp] = total;
    __syncthreads();
    if (warp != 0) return;
    total = of_warp[lane];
    for (int offset = kLanes / 2; offset > 0; offset /= 2) total += __shfl_down_sync(kAll, total, offset);
    if (lane == 0) *out = static_cast<Wide<T>>(total);
}

// Makes a device current for a scope.
class DeviceScope {
  public:
    explicit DeviceScope(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        changed_ = before_ != device;
        if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceScope() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

template <class Kernel, class... Argument>
void launch(const char* what, const GammaLayers& all, Kernel kernel, dim3 grid, int threads, std::uintptr_t stream,
            const Argument&... arguments) {
    const DeviceScope scope(all.device);
    void* addresses[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    // Its own status is the launch's; cudaGetLastError might give that of an earlier, unrelated call.
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads), addresses, 0,
                           reinterpret_cast<cudaStream_t>(stream)),
          what);
}

template <class W, int kBytes>
Table<W, kBytes> table_of(const GammaLayers& all, const Strengths* strengths) {
    Table<W, kBytes> table;
    table.layers = static_cast<int>(all.layers.size());
    table.factors = strengths == nullptr ? nullptr : strengths->factors;
    table.each_factor = strengths != nullptr && strengths->each_factor;
    for (int i = 0; i < table.layers; ++i) {
        const GammaLayer& layer = all.layers[i];
        table.scale[i] = layer.scale;
        table.gradient[i] = layer.gradient;
        table.number[i] = strengths == nullptr ? W{0} : static_cast<W>(strengths->number(i));
        table.size[i] = static_cast<std::uint32_t>(layer.size);
    }
    return table;
}

template <class T>
dim3 grid_of(const GammaLayers& all) {
    std::int64_t largest = 1;
    for (const GammaLayer& layer : all.layers) largest = std::max(largest, layer.size);
    constexpr std::int64_t kElements = std::int64_t{kThreads} * Pack<T>::kSize;
    const auto blocks = std::min<std::int64_t>((largest + kElements - 1) / kElements, kMostBlocksALayer);
    return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(all.layers.size()));
}

// function(element of the dtype, table that is large enough).
template <class Function>
void with_table(const char* op, const GammaLayers& all, const Strengths* strengths, Function function) {
    const auto sized = [&](auto element) {
        using W = Wide<decltype(element)>;
        if (static_cast<int>(all.layers.size()) <= Table<W, kFew>::kLayers) function(element, table_of<W, kFew>(all, strengths));
        else function(element, table_of<W, kMany>(all, strengths));
    };
    switch (all.dtype) {
        case DType::float32: return sized(float{});
        case DType::float16: return sized(__half{});
        case DType::bfloat16: return sized(__nv_bfloat16{});
        case DType::float64: return sized(double{});
    }
    unknown_dtype(op, all.dtype);
}

}  // namespace

std::int64_t gamma_most_layers(DType dtype) {
    return dtype == DType::float64 ? Table<double, kMany>::kLayers : Table<float, kMany>::kLayers;
}

void gamma_subgradient(const GammaLayers& all, const Strengths& strengths, std::uintptr_t stream) {
    with_table("gamma_subgradient_", all, &strengths, [&](auto element, const auto& table) {
        using T = decltype(element);
        launch("gamma_subgradient_", all, subgradients<T, std::decay_t<decltype(table)>>, grid_of<T>(all), kThreads, stream, table);
    });
}

void gamma_proximal(const GammaLayers& all, const Strengths& thresholds, std::uintptr_t stream) {
    with_table("gamma_proximal_", all, &thresholds, [&](auto element, const auto& table) {
        using T = decltype(element);
        launch("gamma_proximal_", all, proximals<T, std::decay_t<decltype(table)>>, grid_of<T>(all), kThreads, stream, table);
    });
}

void gamma_penalty(const GammaLayers& all, void* out, std::uintptr_t stream) {
    with_table("gamma_penalty", all, nullptr, [&](auto element, const auto& table) {
        using T = decltype(element);
        launch("gamma_penalty", all, penalty<T, std::decay_t<decltype(table)>>, dim3(1), kWarps * kLanes, stream, table,
               static_cast<Wide<T>*>(out));
    });
}

}  // namespace fastprune::cuda
