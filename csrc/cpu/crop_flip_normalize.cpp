// crop_flip_normalize: images out of a set of bytes, cropped, mirrored and normalised, in one read and one write.
//
// A tile of rows goes through the first-level cache: as bytes into their places, then, channels_last, in between one
// another, and only then to floats, in long loops. Bytes are a quarter of what is written, and cheap to move about.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "bind.h"
#include "cpu/half.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "dtype.h"

#ifdef FASTPRUNE_SIMD_VERSIONS
#include <immintrin.h>
#endif

#if defined(__GNUC__)
#define FASTPRUNE_INLINE __attribute__((always_inline)) inline
#define FASTPRUNE_RESTRICT __restrict__
#else
#define FASTPRUNE_INLINE inline
#define FASTPRUNE_RESTRICT __restrict
#endif

namespace py = pybind11;

namespace fastprune {

namespace {

using Byte = std::uint8_t;
using Word = std::uint64_t;

constexpr std::int64_t kTile = 8 * 1024;  // bytes of pixels
constexpr std::int64_t kLine = 64;

struct Job {
    const Byte* pixels;  // [images, channels, height, width]
    std::int64_t images;
    const std::int64_t* chosen;
    const std::int32_t* boxes;  // [batch, 3] or null
    const float *mean, *std;    // of a row of the result: width · channels where channels are last, else channels
    std::int64_t channels, height, width, padding;
    bool channels_last;

    std::int64_t plane() const { return height * width; }
    std::int64_t image() const { return channels * plane(); }
};

// Memory of one thread.
struct Room {
    std::vector<Byte> tile, mixed, mask, black;
    std::vector<float> wide;

    explicit Room(const Job& job) : mask(job.width), black(job.width) {
        const std::int64_t most = std::max(kTile, job.channels * job.width);
        tile.resize(most), mixed.resize(most), wide.resize(most);
    }
};

// Where the result's upper left corner is in the image, which columns are inside it, and a row outside it.
struct Crop {
    std::int64_t top, left;
    bool flip;
    const Byte *mask, *black;
};

inline Word reversed(Word word) {
#if defined(__GNUC__)
    return __builtin_bswap64(word);
#else
    Word other = 0;
    for (int i = 0; i < 8; ++i) other = other << 8 | (word >> 8 * i & 0xff);
    return other;
#endif
}

#if defined(__GNUC__)
typedef Byte Vector __attribute__((vector_size(16)));

FASTPRUNE_INLINE Vector reversed(Vector bytes) {
#if defined(__clang__)
    return __builtin_shufflevector(bytes, bytes, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#else
    return __builtin_shuffle(bytes, Vector{15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0});
#endif
}
#else
using Vector = Word;
#endif

inline void fetch(const Byte* from, std::int64_t bytes) {
#if defined(__GNUC__)
    for (std::int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(from + i, 0, 2);
#endif
}

template <class Block, bool kFlip>
FASTPRUNE_INLINE void crop_block(const Byte* from, const Byte* mask, std::int64_t width, std::int64_t x, Byte* to) {
    Block block, keep;
    std::memcpy(&block, from + x, sizeof(Block));
    std::memcpy(&keep, mask + x, sizeof(Block));
    block &= keep;
    if (kFlip) block = reversed(block);
    std::memcpy(to + (kFlip ? width - static_cast<std::int64_t>(sizeof(Block)) - x : x), &block, sizeof(Block));
}

// One row, by blocks that are masked: lengths that change from image to image would cost a call of memcpy and of memset each,
// and those took half of all the time at 32 columns. The last block overlaps the one before.
template <class Block, bool kFlip>
FASTPRUNE_INLINE void crop_blocks(const Byte* FASTPRUNE_RESTRICT from, const Byte* FASTPRUNE_RESTRICT mask, std::int64_t width,
                                  Byte* FASTPRUNE_RESTRICT to) {
    constexpr std::int64_t size = sizeof(Block);
    std::int64_t x = 0;
    for (; x + size <= width; x += size) crop_block<Block, kFlip>(from, mask, width, x, to);
    if (x < width) crop_block<Block, kFlip>(from, mask, width, width - size, to);
}

template <class Block>
FASTPRUNE_INLINE void crop_row(const Byte* from, const Byte* mask, std::int64_t width, bool flip, Byte* to) {
    if (width >= static_cast<std::int64_t>(sizeof(Block))) {
        return flip ? crop_blocks<Block, true>(from, mask, width, to) : crop_blocks<Block, false>(from, mask, width, to);
    }
    for (std::int64_t x = 0; x < width; ++x) to[flip ? width - 1 - x : x] = mask[x] ? from[x] : 0;
}

// Rows [first, first + rows) of the crop of one plane.
template <class Block>
FASTPRUNE_INLINE void crop_plane(const Job& job, const Byte* plane, const Crop& crop, std::int64_t first, std::int64_t rows,
                                 Byte* to) {
    const std::int64_t width = job.width, before = plane - job.pixels, total = job.images * job.image();
    for (std::int64_t y = crop.top + first; y < crop.top + first + rows; ++y, to += width) {
        if (y < 0 || y >= job.height) {
            crop_row<Block>(crop.black, crop.black, width, false, to);
            continue;
        }
        // A row begins and ends up to the frame's width outside the image's, which is other rows but at the ends of the set.
        const std::int64_t start = before + y * width + crop.left;
        if (start >= 0 && start + width <= total) {
            crop_row<Block>(job.pixels + start, crop.mask, width, crop.flip, to);
            continue;
        }
        for (std::int64_t x = 0; x < width; ++x) to[crop.flip ? width - 1 - x : x] = crop.mask[x] ? job.pixels[start + x] : 0;
    }
}

// Planes `stride` apart -> pixels of kChannels bytes; 0: any number of them.
template <int kChannels>
FASTPRUNE_INLINE void mix(const Byte* FASTPRUNE_RESTRICT from, std::int64_t stride, std::int64_t count, std::int64_t channels,
                          Byte* FASTPRUNE_RESTRICT to) {
    if (kChannels) {
        for (std::int64_t i = 0; i < count; ++i) {
            for (int c = 0; c < kChannels; ++c) to[i * kChannels + c] = from[c * stride + i];
        }
        return;
    }
    for (std::int64_t c = 0; c < channels; ++c) {
        for (std::int64_t i = 0; i < count; ++i) to[i * channels + c] = from[c * stride + i];
    }
}

FASTPRUNE_INLINE void mix_any(const Byte* from, std::int64_t stride, std::int64_t count, std::int64_t channels, Byte* to) {
    if (channels == 3) return mix<3>(from, stride, count, channels, to);
    if (channels == 4) return mix<4>(from, stride, count, channels, to);
    mix<0>(from, stride, count, channels, to);
}

template <class T>
FASTPRUNE_INLINE void normalise(const Byte* FASTPRUNE_RESTRICT from, std::int64_t count, float mean, float std,
                                T* FASTPRUNE_RESTRICT to) {
    // A division, as the reference has it: at 16 lanes it hides behind the conversion, and a product rounds differently.
    for (std::int64_t i = 0; i < count; ++i) narrow((static_cast<float>(from[i]) - mean) / std, to[i]);
}

template <class T>
FASTPRUNE_INLINE void normalise(const Byte* FASTPRUNE_RESTRICT from, std::int64_t count, const float* FASTPRUNE_RESTRICT mean,
                                const float* FASTPRUNE_RESTRICT std, T* FASTPRUNE_RESTRICT to) {
    for (std::int64_t i = 0; i < count; ++i) narrow((static_cast<float>(from[i]) - mean[i]) / std[i], to[i]);
}

#ifdef FASTPRUNE_SIMD_VERSIONS
// To nearest even by the processor's own instruction: in integers it takes as long as all the rest, and without AVX-512 five
// times as long.
__attribute__((target("avx2,fma,f16c"))) inline void to_half(const float* from, std::int64_t count, Half* to) {
    std::int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    }
    for (; i < count; ++i) narrow(from[i], to[i]);
}
#else
inline void to_half(const float* from, std::int64_t count, Half* to) {
    for (std::int64_t i = 0; i < count; ++i) narrow(from[i], to[i]);
}
#endif

// kWide: floats first, then halves. Mean and std are numbers, or arrays.
template <bool kWide, class T, class A>
FASTPRUNE_INLINE void emit(const Byte* from, std::int64_t count, A mean, A std, Room& room, T* to) {
    if constexpr (kWide) {
        normalise(from, count, mean, std, room.wide.data());
        to_half(room.wide.data(), count, to);
    } else {
        normalise(from, count, mean, std, to);
    }
}

// One image. Block: what rows are moved by.
template <bool kWide, class Block, class T>
FASTPRUNE_INLINE void image(const Job& job, std::int64_t place, Room& room, T* to) {
    const Byte* source = job.pixels + job.chosen[place] * job.image();
    const std::int64_t width = job.width, channels = job.channels, plane = job.plane();
    Crop crop{0, 0, false, room.mask.data(), room.black.data()};
    if (job.boxes) {
        const std::int32_t* box = job.boxes + 3 * place;
        // Whatever is asked for, a crop that is wholly outside the image is as black one step away.
        crop.top = std::clamp<std::int64_t>(box[0] - job.padding, -job.height, job.height);
        crop.left = std::clamp<std::int64_t>(box[1] - job.padding, -width, width);
        crop.flip = box[2] != 0;
        for (std::int64_t x = 0; x < width; ++x) {
            room.mask[x] = x + crop.left >= 0 && x + crop.left < width ? 0xff : 0;
        }
    }
    const std::int64_t step = std::max<std::int64_t>(kTile / (channels * width), 1);
    for (std::int64_t first = 0; first < job.height; first += step) {
        const std::int64_t rows = std::min(step, job.height - first), count = rows * width;
        const Byte* tile = source + first * width;
        std::int64_t stride = plane;
        if (job.boxes) {
            for (std::int64_t c = 0; c < channels; ++c) {
                crop_plane<Block>(job, source + c * plane, crop, first, rows, room.tile.data() + c * count);
            }
            tile = room.tile.data(), stride = count;
        }
        if (!job.channels_last) {
            for (std::int64_t c = 0; c < channels; ++c) {
                emit<kWide>(tile + c * stride, count, job.mean[c], job.std[c], room, to + c * plane + first * width);
            }
            continue;
        }
        mix_any(tile, stride, count, channels, room.mixed.data());
        for (std::int64_t y = 0; y < rows; ++y) {
            const std::int64_t row = channels * width;
            emit<kWide>(room.mixed.data() + y * row, row, job.mean, job.std, room, to + (first + y) * row);
        }
    }
}

template <bool kWide, class Block, class T>
FASTPRUNE_INLINE void images(const Job& job, std::int64_t begin, std::int64_t end, T* out) {
    Room room(job);
    for (std::int64_t place = begin; place < end; ++place) {
        // Images lie anywhere in the set: the next one is on its way while this one is made.
        if (place + 1 < end) fetch(job.pixels + job.chosen[place + 1] * job.image(), std::min(job.image(), 2 * kTile));
        image<kWide, Block>(job, place, room, out + place * job.image());
    }
}

template <class T>
using Images = void (*)(const Job&, std::int64_t, std::int64_t, T*);

template <class T>
void images_baseline(const Job& job, std::int64_t begin, std::int64_t end, T* out) {
    images<false, Word>(job, begin, end, out);
}

#ifdef FASTPRUNE_SIMD_VERSIONS
template <class T>
__attribute__((target("avx2,fma,f16c"))) void images_avx2(const Job& job, std::int64_t begin, std::int64_t end, T* out) {
    images<std::is_same_v<T, Half>, Vector>(job, begin, end, out);
}
template <class T>
__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))) void images_avx512(const Job& job,
                                                                                              std::int64_t begin,
                                                                                              std::int64_t end, T* out) {
    images<std::is_same_v<T, Half>, Vector>(job, begin, end, out);
}
#endif

template <class T>
Images<T> images_of() {
#ifdef FASTPRUNE_SIMD_VERSIONS
    if (simd_level() == Simd::avx512) return images_avx512<T>;
    if (simd_level() == Simd::avx2) return images_avx2<T>;
#endif
    return images_baseline<T>;
}

template <class T>
void run(const Job& job, std::int64_t batch, T* out, int threads) {
    const auto part = images_of<T>();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; ++thread) {
        part(job, batch * thread / threads, batch * (thread + 1) / threads, out);
    }
}

void crop_flip_normalize(std::uintptr_t pixels, std::uintptr_t chosen, std::uintptr_t boxes, std::uintptr_t mean,
                         std::uintptr_t std, std::uintptr_t out, int dtype, std::int64_t images, std::int64_t batch,
                         std::int64_t channels, std::int64_t height, std::int64_t width, std::int64_t padding,
                         bool channels_last, int threads) {
    // Of one channel, both formats are the same memory.
    channels_last = channels_last && channels > 1;
    Job job{pointer<const Byte>(pixels), images, pointer<const std::int64_t>(chosen), pointer<const std::int32_t>(boxes),
            pointer<const float>(mean), pointer<const float>(std), channels, height, width, padding, channels_last};
    if (batch * job.image() == 0) return;
    for (std::int64_t place = 0; place < batch; ++place) {
        if (job.chosen[place] < 0 || job.chosen[place] >= images) {
            throw std::out_of_range("images[" + std::to_string(place) + "]: expected 0 to " + std::to_string(images - 1) +
                                    ", got " + std::to_string(job.chosen[place]));
        }
    }
    std::vector<float> means, stds;
    if (channels_last) {
        for (std::int64_t i = 0; i < width * channels; ++i) {
            means.push_back(job.mean[i % channels]), stds.push_back(job.std[i % channels]);
        }
        job.mean = means.data(), job.std = stds.data();
    }
    const auto typed = [&](auto* to) {
        threads = threads_for(batch * job.image() * static_cast<std::int64_t>(sizeof(*to)), threads);
        run(job, batch, to, threads);
    };
    switch (static_cast<DType>(dtype)) {
        case DType::float32: return typed(pointer<float>(out));
        case DType::float16: return typed(pointer<Half>(out));
        case DType::bfloat16: return typed(pointer<BFloat16>(out));
        case DType::float64: break;
    }
    unknown_dtype("crop_flip_normalize", static_cast<DType>(dtype));
}

const Binding binding([](py::module_& m) {
    m.def("crop_flip_normalize", &crop_flip_normalize, py::arg("pixels"), py::arg("chosen"), py::arg("boxes"), py::arg("mean"),
          py::arg("std"), py::arg("out"), py::arg("dtype"), py::arg("images"), py::arg("batch"), py::arg("channels"),
          py::arg("height"), py::arg("width"), py::arg("padding"), py::arg("channels_last"), py::arg("threads"),
          py::call_guard<py::gil_scoped_release>(),
          "Crops, mirrors and normalises chosen images of a dense set of bytes. Raises IndexError for one that is not in it.");
});

}  // namespace

}  // namespace fastprune
