// resized_crop: parts of images of any size, resized with antialiasing, mirrored and normalised.
//
// One row of the result at a time: the rows of the part that it is made of are added up, bytes to floats in long loops, then
// columns by registers of four floats. A pixel is three of them; the fourth is the next pixel's and is written over.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"
#include "cpu/half.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "dtype.h"

namespace py = pybind11;

namespace fastprune {

namespace {

using Byte = std::uint8_t;
using Pixel = Lanes<float, 16>::type;

constexpr std::int64_t kChannels = 3;

struct Job {
    const Byte* pixels;
    std::int64_t bytes;
    const std::int64_t* starts;
    const std::int32_t* sizes;  // [images, 2]
    std::int64_t images;
    const std::int64_t* chosen;
    const std::int32_t* boxes;  // [batch, 5]
    std::int64_t size;
    const float *mean, *std;  // of a row of the result: [size · 3] where channels are last, else [3]
    bool channels_last;
};

// What each row, or column, of the result is a weighted sum of: `taps` neighbours from `first` on.
struct Weights {
    std::vector<std::int64_t> first, taps;
    std::vector<float> values;
    std::int64_t most = 0;

    // The triangle filter of torch's antialiased bilinear interpolation.
    void set(std::int64_t in, std::int64_t out, bool mirrored) {
        const double scale = static_cast<double>(in) / static_cast<double>(out), support = std::max(scale, 1.0);
        most = 2 * static_cast<std::int64_t>(std::ceil(support)) + 1;
        first.resize(out), taps.resize(out), values.resize(out * most);
        for (std::int64_t i = 0; i < out; ++i) {
            const std::int64_t to = mirrored ? out - 1 - i : i;
            const double centre = scale * (static_cast<double>(i) + 0.5);
            const std::int64_t begin = std::max<std::int64_t>(static_cast<std::int64_t>(centre - support + 0.5), 0);
            const std::int64_t end = std::min<std::int64_t>(static_cast<std::int64_t>(centre + support + 0.5), in);
            float* const value = values.data() + to * most;
            double total = 0;
            const auto weight = [&](std::int64_t j) {
                return std::max(0.0, 1 - std::abs((static_cast<double>(j) + 0.5 - centre) / support));
            };
            for (std::int64_t j = begin; j < end; ++j) total += weight(j);
            for (std::int64_t j = begin; j < end; ++j) value[j - begin] = static_cast<float>(weight(j) / total);
            first[to] = begin, taps[to] = end - begin;
        }
    }
};

// Memory of one thread.
struct Room {
    Weights rows, columns;
    std::vector<float> tall, row;
};

FASTPRUNE_INLINE void add_rows(const Byte* from, std::int64_t stride, std::int64_t taps, const float* weight,
                               std::int64_t count, float* __restrict to) {
    // Two or three rows are what an enlarged part takes: one pass over them, one store.
    if (taps >= 3) {
        const Byte *a = from, *b = from + stride, *c = from + 2 * stride;
        const float x = weight[0], y = weight[1], z = weight[2];
        for (std::int64_t i = 0; i < count; ++i) {
            to[i] = x * static_cast<float>(a[i]) + y * static_cast<float>(b[i]) + z * static_cast<float>(c[i]);
        }
    } else if (taps == 2) {
        const Byte *a = from, *b = from + stride;
        const float x = weight[0], y = weight[1];
        for (std::int64_t i = 0; i < count; ++i) to[i] = x * static_cast<float>(a[i]) + y * static_cast<float>(b[i]);
    } else {
        for (std::int64_t i = 0; i < count; ++i) to[i] = weight[0] * static_cast<float>(from[i]);
    }
    for (std::int64_t tap = 3; tap < taps; ++tap) {
        const Byte* const next = from + tap * stride;
        const float x = weight[tap];
        for (std::int64_t i = 0; i < count; ++i) to[i] += x * static_cast<float>(next[i]);
    }
}

FASTPRUNE_INLINE void add_columns(const float* from, const Weights& columns, std::int64_t size, float* to) {
    for (std::int64_t x = 0; x < size; ++x) {
        const float* pixel = from + kChannels * columns.first[x];
        const float* weight = columns.values.data() + x * columns.most;
        Pixel sum{};
        for (std::int64_t tap = 0; tap < columns.taps[x]; ++tap, pixel += kChannels) {
            Pixel next;
            std::memcpy(&next, pixel, sizeof(next));
            sum += next * weight[tap];
        }
        std::memcpy(to + kChannels * x, &sum, sizeof(sum));
    }
}

template <class T>
FASTPRUNE_INLINE void emit(const Job& job, const float* row, T* __restrict to, std::int64_t y) {
    if (job.channels_last) {
        const float *mean = job.mean, *std = job.std;
        T* const out = to + y * job.size * kChannels;
        for (std::int64_t i = 0; i < job.size * kChannels; ++i) narrow((row[i] - mean[i]) / std[i], out[i]);
        return;
    }
    for (std::int64_t c = 0; c < kChannels; ++c) {
        T* const out = to + (c * job.size + y) * job.size;
        const float mean = job.mean[c], std = job.std[c];
        for (std::int64_t x = 0; x < job.size; ++x) narrow((row[kChannels * x + c] - mean) / std, out[x]);
    }
}

template <class T>
FASTPRUNE_INLINE void images(const Job& job, std::int64_t begin, std::int64_t end, T* out) {
    Room room;
    // One float more than the pixels, for the fourth of the last one.
    room.row.resize(job.size * kChannels + 1);
    for (std::int64_t place = begin; place < end; ++place) {
        const std::int32_t* const box = job.boxes + 5 * place;
        const std::int64_t image = job.chosen[place], stride = kChannels * job.sizes[2 * image + 1];
        const Byte* const part = job.pixels + job.starts[image] + box[0] * stride + kChannels * box[1];
        const std::int64_t count = kChannels * box[3];
        room.rows.set(box[2], job.size, false);
        room.columns.set(box[3], job.size, box[4] != 0);
        room.tall.resize(count + 1);
        T* const to = out + place * kChannels * job.size * job.size;
        for (std::int64_t y = 0; y < job.size; ++y) {
            add_rows(part + room.rows.first[y] * stride, stride, room.rows.taps[y],
                     room.rows.values.data() + y * room.rows.most, count, room.tall.data());
            add_columns(room.tall.data(), room.columns, job.size, room.row.data());
            emit(job, room.row.data(), to, y);
        }
    }
}

template <class T>
using Images = void (*)(const Job&, std::int64_t, std::int64_t, T*);

template <class T>
void images_baseline(const Job& job, std::int64_t begin, std::int64_t end, T* out) {
    images(job, begin, end, out);
}

#ifdef FASTPRUNE_SIMD_VERSIONS
template <class T>
__attribute__((target("avx2,fma,f16c"))) void images_avx2(const Job& job, std::int64_t begin, std::int64_t end, T* out) {
    images(job, begin, end, out);
}
template <class T>
__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))) void images_avx512(const Job& job,
                                                                                              std::int64_t begin,
                                                                                              std::int64_t end, T* out) {
    images(job, begin, end, out);
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

std::string at(const char* name, std::int64_t place) { return std::string(name) + "[" + std::to_string(place) + "]: "; }

void check(const Job& job, std::int64_t batch) {
    for (std::int64_t place = 0; place < batch; ++place) {
        const std::int64_t image = job.chosen[place];
        if (image < 0 || image >= job.images) {
            throw std::out_of_range(at("images", place) + "expected 0 to " + std::to_string(job.images - 1) + ", got " +
                                    std::to_string(image));
        }
        const std::int64_t start = job.starts[image], height = job.sizes[2 * image], width = job.sizes[2 * image + 1];
        // Divided, since the product of heights and widths of 31 bits and of channels may be of 64.
        const bool inside_set = start >= 0 && start <= job.bytes && height >= 0 && width >= 0 &&
                                height * width <= (job.bytes - start) / kChannels;
        if (!inside_set) {
            throw std::invalid_argument(at("starts", image) + "an image of " + std::to_string(height) + " × " +
                                        std::to_string(width) + " from byte " + std::to_string(start) +
                                        " on is not inside the " + std::to_string(job.bytes) + " bytes of pixels");
        }
        const std::int32_t* const box = job.boxes + 5 * place;
        const bool inside = box[0] >= 0 && box[1] >= 0 && box[2] > 0 && box[3] > 0 && box[2] <= height - box[0] &&
                            box[3] <= width - box[1];
        if (!inside) {
            throw std::invalid_argument(at("boxes", place) + "expected a part of an image of " + std::to_string(height) + " × " +
                                        std::to_string(width) + ", got top " + std::to_string(box[0]) + ", left " +
                                        std::to_string(box[1]) + ", height " + std::to_string(box[2]) + ", width " +
                                        std::to_string(box[3]));
        }
    }
}

void resized_crop(std::uintptr_t pixels, std::int64_t bytes, std::uintptr_t starts, std::uintptr_t sizes, std::int64_t images,
                  std::uintptr_t chosen, std::uintptr_t boxes, std::int64_t batch, std::int64_t size, std::uintptr_t mean,
                  std::uintptr_t std, std::uintptr_t out, int dtype, bool channels_last, int threads) {
    Job job{pointer<const Byte>(pixels),
            bytes,
            pointer<const std::int64_t>(starts),
            pointer<const std::int32_t>(sizes),
            images,
            pointer<const std::int64_t>(chosen),
            pointer<const std::int32_t>(boxes),
            size,
            pointer<const float>(mean),
            pointer<const float>(std),
            channels_last};
    check(job, batch);
    std::vector<float> means, stds;
    if (channels_last) {
        for (std::int64_t i = 0; i < size * kChannels; ++i) {
            means.push_back(job.mean[i % kChannels]), stds.push_back(job.std[i % kChannels]);
        }
        job.mean = means.data(), job.std = stds.data();
    }
    const auto typed = [&](auto* to) {
        threads = threads_for(batch * kChannels * size * size * static_cast<std::int64_t>(sizeof(*to)), threads);
        run(job, batch, to, threads);
    };
    switch (static_cast<DType>(dtype)) {
        case DType::float32: return typed(pointer<float>(out));
        case DType::float16: return typed(pointer<Half>(out));
        case DType::bfloat16: return typed(pointer<BFloat16>(out));
        case DType::float64: break;
    }
    unknown_dtype("resized_crop", static_cast<DType>(dtype));
}

const Binding binding([](py::module_& m) {
    m.def("resized_crop", &resized_crop, py::arg("pixels"), py::arg("bytes"), py::arg("starts"), py::arg("sizes"),
          py::arg("images"), py::arg("chosen"), py::arg("boxes"), py::arg("batch"), py::arg("size"), py::arg("mean"),
          py::arg("std"), py::arg("out"), py::arg("dtype"), py::arg("channels_last"), py::arg("threads"),
          py::call_guard<py::gil_scoped_release>(),
          "Resizes, mirrors and normalises parts of images of any size. Raises IndexError for an image that is not in the "
          "set, ValueError for a part that is not in its image.");
});

}  // namespace

}  // namespace fastprune
