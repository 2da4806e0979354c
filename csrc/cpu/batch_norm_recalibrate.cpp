// batch_norm_recalibrate: the mean and M2 of each channel, then the batch normalised with them.
//
// Statistics are sums of deviations from a shift, kept in registers over a block of positions and merged into float64
// after it. The shift is the mean of the positions before the block: what cancels in Σd² − (Σd)²/n is then never more than
// what the merge adds to M2 for the same distance, so badly centred and drifting data lose no digits. The first block has
// nothing before it, and takes the mean of its own first quarter.
//
// What is added to what depends on the shape alone, so every number of threads gives the same bits.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "bind.h"
#include "cpu/batch_norm_loops.h"
#include "cpu/half.h"
#include "cpu/parallel.h"
#include "dtype.h"

namespace py = pybind11;

namespace fastprune {

namespace {

using namespace batch_norm;

constexpr std::int64_t kStage = 4096;           // elements widened or gathered at a time: 16 kB of float
constexpr std::int64_t kShortRun = 512;         // contiguous: shorter runs are gathered before they are summed
constexpr std::int64_t kBlockRun = 8192;        // contiguous: elements between two merges
constexpr std::int64_t kBlockRows = 128;        // channels_last: positions between two merges
constexpr std::int64_t kTileColumns = 256;      // channels_last: columns of a tile that is widened
constexpr std::int64_t kSegment = 1024 * 1024;  // channels_last: bytes of input that one piece of work measures
constexpr std::int64_t kPeriod = 64;            // channels_last: fewer channels are repeated to at least as many

template <class T>
constexpr bool kWide = std::is_same_v<T, Wide<T>>;

// float32 or float64 [C], or nothing.
struct Vector {
    const void* at;
    bool wide;

    double get(std::int64_t c, double otherwise) const {
        if (!at) return otherwise;
        return wide ? static_cast<const double*>(at)[c] : static_cast<double>(static_cast<const float*>(at)[c]);
    }
};

template <class T>
struct Job {
    const T* x;
    T* y;
    std::int64_t outer, channels, inner;
    double eps;
    bool relu;
    std::int64_t* count;
    double *mean, *m2;
    // mask·weight and mask·bias, [C]
    double *gain, *add;

    double values() const { return static_cast<double>(outer * inner); }

    // Merges the batch's moments of channels from c on into the state, and gives what normalises them.
    void finish(std::int64_t c, std::int64_t width, const double* batch_mean, const double* batch_m2, Wide<T>* shift,
                Wide<T>* scale, Wide<T>* offset) const {
        const auto& run = loops<Wide<T>>();
        run.merge_moments(width, static_cast<double>(*count), values(), mean + c, m2 + c, batch_mean, batch_m2);
        run.affine_of(width, values(), eps, batch_mean, batch_m2, gain + c, add + c, shift, scale, offset);
    }
};

// ---- contiguous: [N, C, inner], a channel at a time, read again while it is in the cache

template <class T>
class Channel {
    using A = Wide<T>;

  public:
    Channel(const Job<T>& job, std::int64_t c)
        : job_(job), start_(c * job.inner), stride_(job.channels * job.inner), staged_(!kWide<T> || job.inner < kShortRun) {}

    void run(std::int64_t c) {
        const std::int64_t width = std::min(job_.inner, staged_ ? kStage : kBlockRun);
        const std::int64_t rows = (staged_ ? kStage : kBlockRun) / width;
        const bool once = staged_ && rows >= job_.outer && width == job_.inner;
        each(rows, width, [&](const Runs<T>& block) { measure(block); });
        Affine<A> by{0, 0, 0, job_.relu};
        job_.finish(c, 1, &mean_, &m2_, &by.shift, &by.scale, &by.offset);
        each(rows, width, [&](const Runs<T>& block) { normalise(block, by, once); });
    }

  private:
    // Calls with the channel's blocks of at most so many images and positions.
    template <class Call>
    void each(std::int64_t rows, std::int64_t width, Call call) const {
        for (std::int64_t n = 0; n < job_.outer; n += rows) {
            for (std::int64_t i = 0; i < job_.inner; i += width) {
                call(Runs<T>{job_.x + n * stride_ + start_ + i, std::min(rows, job_.outer - n), stride_,
                             std::min(width, job_.inner - i)});
            }
        }
    }

    void measure(const Runs<T>& block) {
        Runs<A> values{values_, 1, 0, block.rows * block.width};
        if constexpr (kWide<T>) {
            if (!staged_) values = block;
        }
        if (staged_) convert_.widen(block, values_);
        const auto n = static_cast<double>(block.rows * block.width);
        double sum, squares;
        if (count_ == 0) {
            Runs<A> some = values;
            some.rows = std::max<std::int64_t>(some.rows / 4, 1);
            if (some.rows == values.rows) some.width = std::max<std::int64_t>(some.width / 4, 1);
            shift_ = values.x[0];
            run_.sum_all(some, shift_, sum, squares);
            shift_ += static_cast<A>(sum / static_cast<double>(some.rows * some.width));
        }
        run_.sum_all(values, shift_, sum, squares);
        const double off = sum / n, inside = squares - sum * off, share = n / (count_ + n);
        const double delta = static_cast<double>(shift_) + off - mean_;
        mean_ += delta * share;
        m2_ += (inside < 0 ? 0 : inside) + delta * delta * count_ * share;
        count_ += n;
        shift_ = static_cast<A>(mean_);
    }

    void normalise(const Runs<T>& block, const Affine<A>& by, bool staged_already) {
        T* y = job_.y + (block.x - job_.x);
        if constexpr (kWide<T>) {
            if (!staged_already) return run_.normalise_all(block, y, by);
        }
        if (!staged_already) convert_.widen(block, values_);
        run_.normalise_all({values_, 1, 0, block.rows * block.width}, values_, by);
        convert_.narrow(values_, block, y);
    }

    const Job<T>& job_;
    const Loops<A>& run_ = loops<A>();
    const std::int64_t start_, stride_;
    const bool staged_;
    const Conversions<T>& convert_ = conversions<T>();
    double count_ = 0, mean_ = 0, m2_ = 0;
    A shift_ = 0;
    A values_[kStage];
};

// ---- channels_last: [rows, C], many channels at a time

// Calls with tiles of the columns that are small enough to be widened, and the column each starts at.
template <class T, class Call>
void each_tile(const Runs<T>& m, Call call) {
    const std::int64_t columns = std::min(m.width, kTileColumns), rows = kStage / columns;
    for (std::int64_t row = 0; row < m.rows; row += rows) {
        for (std::int64_t j = 0; j < m.width; j += columns) {
            call(Runs<T>{m.x + row * m.stride + j, std::min(rows, m.rows - row), m.stride, std::min(columns, m.width - j)}, j);
        }
    }
}

template <class T>
void sum_block(const Runs<T>& block, const Wide<T>* shift, Wide<T>* sum, Wide<T>* squares) {
    if constexpr (kWide<T>) {
        loops<T>().sum_columns(block, shift, sum, squares);
    } else {
        float values[kStage];
        each_tile(block, [&](const Runs<T>& tile, std::int64_t j) {
            conversions<T>().widen(tile, values);
            loops<float>().sum_columns({values, tile.rows, tile.width, tile.width}, shift + j, sum + j, squares + j);
        });
    }
}

// Mean and M2 of every column.
template <class T>
void measure_columns(const Runs<T>& m, double* mean, double* m2) {
    if (m.rows == 0) return;
    const auto& run = loops<Wide<T>>();
    std::vector<Wide<T>> buffer(3 * m.width);
    Wide<T>*shift = buffer.data(), *sum = shift + m.width, *squares = sum + m.width;
    for (std::int64_t j = 0; j < m.width; ++j) {
        shift[j] = widen(m.x[j]);
        mean[j] = m2[j] = 0;
    }
    for (std::int64_t row = 0; row < m.rows; row += kBlockRows) {
        Runs<T> block{m.x + row * m.stride, std::min(kBlockRows, m.rows - row), m.stride, m.width};
        if (row == 0) {
            const Runs<T> some{block.x, std::max<std::int64_t>(block.rows / 4, 1), block.stride, block.width};
            sum_block(some, shift, sum, squares);
            run.guess_columns(m.width, static_cast<double>(some.rows), shift, sum, squares);
        }
        sum_block(block, shift, sum, squares);
        run.merge_sums(m.width, static_cast<double>(row), static_cast<double>(block.rows), mean, m2, shift, sum, squares);
    }
}

template <class T>
void normalise_columns_of(const Runs<T>& m, T* y, const Affine<const Wide<T>*>& by) {
    if constexpr (kWide<T>) {
        loops<T>().normalise_columns(m, y, by);
    } else {
        float values[kStage];
        each_tile(m, [&](const Runs<T>& tile, std::int64_t j) {
            conversions<T>().widen(tile, values);
            loops<float>().normalise_columns({values, tile.rows, tile.width, tile.width}, values,
                                             {by.shift + j, by.scale + j, by.offset + j, by.relu});
            conversions<T>().narrow(values, tile, y + (tile.x - m.x));
        });
    }
}

// Measures whole rows, then reads them again: pieces of rows that stay in the cache in between cost more, by their strided
// reads (140 µs against 111 µs for 16×512×7×7), than reading all from memory twice.
template <class T>
void all_channels(const Job<T>& job, int threads) {
    using A = Wide<T>;
    const std::int64_t rows = job.outer * job.inner, channels = job.channels;
    // Rows of few channels are too short for vector registers: several make one, and their columns are merged after.
    std::int64_t repeat = 1;
    while (repeat * channels < kPeriod) ++repeat;
    while (repeat > 1 && repeat * channels % 16 != 0 && repeat * channels < 4 * kPeriod) ++repeat;
    const std::int64_t long_rows = rows / repeat, period = channels * repeat;
    const std::int64_t bytes = period * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t segment = std::max(kSegment / bytes, 4 * kBlockRows);
    const std::int64_t segments = (long_rows + segment - 1) / segment;
    const auto part = [&](std::int64_t s) {
        return Runs<T>{job.x + s * segment * period, std::min(segment, long_rows - s * segment), period, period};
    };
    // Rows too few to make a long one.
    const Runs<T> last{job.x + long_rows * period, rows - long_rows * repeat, channels, channels};
    std::vector<double> means(segments * period + 2 * channels), m2s(segments * period + 2 * channels);
    double *mean = &means[segments * period], *last_mean = mean + channels;
    double *m2 = &m2s[segments * period], *last_m2 = m2 + channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t s = 0; s < segments; ++s) measure_columns(part(s), &means[s * period], &m2s[s * period]);
    measure_columns(last, last_mean, last_m2);

    double merged = 0;
    const auto merge = [&](std::int64_t n, const double* other_mean, const double* other_m2) {
        loops<A>().merge_moments(channels, merged, static_cast<double>(n), mean, m2, other_mean, other_m2);
        merged += static_cast<double>(n);
    };
    for (std::int64_t s = 0; s < segments; ++s) {
        for (std::int64_t k = s * period; k < (s + 1) * period; k += channels) merge(part(s).rows, &means[k], &m2s[k]);
    }
    if (last.rows) merge(last.rows, last_mean, last_m2);
    std::vector<A> by(3 * period);
    A *shift = by.data(), *scale = shift + period, *offset = scale + period;
    job.finish(0, channels, mean, m2, shift, scale, offset);
    for (std::int64_t k = channels; k < period; ++k) {
        shift[k] = shift[k - channels], scale[k] = scale[k - channels], offset[k] = offset[k - channels];
    }
    const Affine<const A*> affine{shift, scale, offset, job.relu};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t s = 0; s < segments; ++s) {
        // The last first: they are what the cache still holds.
        const auto at = part(segments - 1 - s);
        normalise_columns_of(at, job.y + (at.x - job.x), affine);
    }
    normalise_columns_of(last, job.y + (last.x - job.x), affine);
}

template <class T>
void compute(const Job<T>& job, bool channels_last, int threads) {
    if (!channels_last) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t c = 0; c < job.channels; ++c) Channel<T>(job, c).run(c);
    } else {
        all_channels(job, threads);
    }
    *job.count += job.outer * job.inner;
}

void batch_norm_recalibrate(std::uintptr_t x, std::uintptr_t y, std::uintptr_t count, std::uintptr_t mean,
                            std::uintptr_t m2, std::uintptr_t weight, std::uintptr_t bias, std::uintptr_t mask,
                            bool wide_vectors, int dtype, std::int64_t outer, std::int64_t channels, std::int64_t inner,
                            bool channels_last, double eps, bool relu, int threads) {
    if (outer * channels * inner == 0) return;
    auto run = [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        std::vector<double> gain(channels), add(channels);
        const Vector weights{pointer<const void>(weight), wide_vectors}, biases{pointer<const void>(bias), wide_vectors};
        const Vector masks{pointer<const void>(mask), wide_vectors};
        for (std::int64_t c = 0; c < channels; ++c) {
            gain[c] = masks.get(c, 1) * weights.get(c, 1);
            add[c] = masks.get(c, 1) * biases.get(c, 0);
        }
        const Job<T> job{typed, pointer<T>(y), outer, channels, inner, eps, relu, pointer<std::int64_t>(count),
                         pointer<double>(mean), pointer<double>(m2), gain.data(), add.data()};
        compute(job, channels_last, threads_for(outer * channels * inner * static_cast<std::int64_t>(sizeof(T)), threads));
    };
    switch (static_cast<DType>(dtype)) {
        case DType::float32: return run(pointer<float>(x));
        case DType::float16: return run(pointer<Half>(x));
        case DType::bfloat16: return run(pointer<BFloat16>(x));
        case DType::float64: return run(pointer<double>(x));
    }
    unknown_dtype("batch_norm_recalibrate", static_cast<DType>(dtype));
}

const Binding binding([](py::module_& m) {
    m.def("batch_norm_recalibrate", &batch_norm_recalibrate, py::arg("x"), py::arg("y"), py::arg("count"), py::arg("mean"),
          py::arg("m2"), py::arg("weight"), py::arg("bias"), py::arg("mask"), py::arg("wide_vectors"), py::arg("dtype"),
          py::arg("outer"), py::arg("channels"), py::arg("inner"), py::arg("channels_last"), py::arg("eps"),
          py::arg("relu"), py::arg("threads"), py::call_guard<py::gil_scoped_release>(),
          "Normalises a dense activation with its own statistics into y, and merges them into count int64 [1], mean and m2 "
          "float64 [C]. weight, bias and mask [C], float64 if wide_vectors, else float32, may be at address 0.");
});

}  // namespace

}  // namespace fastprune
