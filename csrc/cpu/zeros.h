// Counting zeros of a dense activation by channel while it passes by: what zero_count, relu_zero_count and
// batch_norm_relu_zero_count share. With channels outside ([N, C, inner]) vector code leaves one bit for each element,
// without regard to channels, and bits are then counted by channel: maps of 7x7 cost no ragged vectors. With channels
// inside ([rows, C]) each channel has its own counter lane.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "dtype.h"
#include "parallel.h"
#include "zero_lanes.h"

namespace fastprune {

// A dense activation: [outer, channels, inner], or [outer, inner, channels] where the channels are inside.
struct Activation {
    std::int64_t outer, channels, inner;
    bool inside;

    Activation(std::int64_t outer_, std::int64_t channels_, std::int64_t inner_, bool channels_last)
        : outer(outer_), channels(channels_), inner(inner_), inside(channels_last || inner_ == 1) {}
    std::int64_t size() const { return outer * channels * inner; }
};

// ---- bits by channel ----------------------------------------------------------------------------------------------

FASTPRUNE_INLINE std::int64_t ones(std::uint64_t word) {
#if defined(__GNUC__)
    return __builtin_popcountll(word);
#else
    std::int64_t found = 0;
    for (; word; word &= word - 1) ++found;
    return found;
#endif
}

// Ones of the bits [begin, end), begin < end. Reads up to eight bytes past the last bit.
FASTPRUNE_INLINE std::int64_t ones_between(const std::uint64_t* words, std::int64_t begin, std::int64_t end) {
#ifdef FASTPRUNE_SIMD_VERSIONS
    // Small maps need no branch: 56 bits from any byte on.
    if (end - begin <= 56) {
        std::uint64_t some;
        std::memcpy(&some, reinterpret_cast<const unsigned char*>(words) + begin / 8, sizeof(some));
        return ones(some >> (begin % 8) << (64 - (end - begin)));
    }
#endif
    const std::int64_t first = begin / 64, last = (end - 1) / 64;
    const std::uint64_t from = ~std::uint64_t{0} << (begin % 64), to = ~std::uint64_t{0} >> (63 - (end - 1) % 64);
    if (first == last) return ones(words[first] & from & to);
    std::int64_t found = ones(words[first] & from) + ones(words[last] & to);
    for (std::int64_t i = first + 1; i < last; ++i) found += ones(words[i]);
    return found;
}

// Calls visit(channel, from, to) for each stretch of one channel in the elements [begin, begin + size); from and to
// count from begin.
template <class Visit>
FASTPRUNE_INLINE void for_channels(const Activation& a, std::int64_t begin, std::int64_t size, Visit visit) {
    const std::int64_t row = begin / a.inner;
    std::int64_t channel = row % a.channels, stop = (row + 1) * a.inner - begin;
    for (std::int64_t at = 0; at < size; stop += a.inner) {
        const std::int64_t to = std::min(stop, size);
        visit(channel, at, to);
        at = to;
        if (++channel == a.channels) channel = 0;
    }
}

FASTPRUNE_INLINE void add_bits_body(const Activation& a, std::int64_t begin, std::int64_t size,
                                    const std::uint64_t* words, std::int64_t* counts) {
    for_channels(a, begin, size, [&](std::int64_t channel, std::int64_t from, std::int64_t to) {
        counts[channel] += ones_between(words, from, to);
    });
}

#ifdef FASTPRUNE_SIMD_VERSIONS
// Without this target a count of ones is a call into a table.
__attribute__((target("popcnt,bmi2"))) inline void add_bits_popcnt(const Activation& a, std::int64_t begin, std::int64_t size,
                                                              const std::uint64_t* words, std::int64_t* counts) {
    add_bits_body(a, begin, size, words, counts);
}
#endif

inline void add_bits(const Activation& a, std::int64_t begin, std::int64_t size, const std::uint64_t* words,
                     std::int64_t* counts) {
#ifdef FASTPRUNE_SIMD_VERSIONS
    if (simd_level() != Simd::baseline) return add_bits_popcnt(a, begin, size, words, counts);
#endif
    add_bits_body(a, begin, size, words, counts);
}

// ---- stores past the caches ---------------------------------------------------------------------------------------

// Whether an output goes past the caches: it would not stay in them, and a plain store reads memory before it writes.
// 16x64x56x56 float32, one thread: relu 0.46 ms with such stores, 0.90 without; 2x64x56x56: 56 us and 36.
inline bool streams(const void* y, std::int64_t bytes) {
    constexpr std::int64_t kMoreThanCaches = 4 << 20;
    return bytes >= kMoreThanCaches && reinterpret_cast<std::uintptr_t>(y) % 64 == 0 && simd_level() != Simd::baseline;
}

#ifdef FASTPRUNE_SIMD_VERSIONS
FASTPRUNE_AVX512 inline void stream_copy_avx512(char* to, const char* from, std::int64_t bytes) {
    for (std::int64_t at = 0; at < bytes; at += 64) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at), _mm512_loadu_si512(from + at));
    }
}

FASTPRUNE_AVX2 inline void stream_copy_avx2(char* to, const char* from, std::int64_t bytes) {
    for (std::int64_t at = 0; at < bytes; at += 32) {
        const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at));
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + at), value);
    }
}

inline void stream_copy(void* to, const void* from, std::int64_t bytes) {
    auto* target = static_cast<char*>(to);
    const auto* source = static_cast<const char*>(from);
    const std::int64_t whole = bytes / 64 * 64;
    (simd_level() == Simd::avx512 ? stream_copy_avx512 : stream_copy_avx2)(target, source, whole);
    std::memcpy(target + whole, source + whole, bytes - whole);
}
#else
inline void stream_copy(void* to, const void* from, std::int64_t bytes) { std::memcpy(to, from, bytes); }
#endif

// Before another thread reads what was streamed.
inline void stream_end() {
#ifdef FASTPRUNE_SIMD_VERSIONS
    _mm_sfence();
#endif
}

// ---- work for each thread -----------------------------------------------------------------------------------------

// Calls part(begin, end, counts) for stretches of [0, size), multiples of `step` but the last, in up to `threads`
// threads, and adds up what each counts.
template <class Part>
void in_parts(std::int64_t size, std::int64_t step, std::int64_t channels, std::int64_t* counter, int threads,
              Part part) {
    if (threads == 1) return part(std::int64_t{0}, size, counter);
    const std::int64_t each = ((size + threads - 1) / threads + step - 1) / step * step;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; ++thread) {
        const std::int64_t begin = std::min(thread * each, size), end = std::min(begin + each, size);
        std::vector<std::int64_t> counts(channels);
        if (begin < end) part(begin, end, counts.data());
#pragma omp critical(fastprune_zeros)
        for (std::int64_t c = 0; c < channels; ++c) counter[c] += counts[c];
    }
}

// Elements between two looks at the bits: the bits stay in the first cache, and so does what is written of them.
constexpr std::int64_t kChunk = 4096;

// Channels outside. pass(begin, size, words) writes the bits of at most kChunk elements.
template <class Pass>
void count_outside(const Activation& a, std::int64_t* counter, int threads, Pass pass) {
    in_parts(a.size(), kChunk, a.channels, counter, threads,
             [&](std::int64_t begin, std::int64_t end, std::int64_t* counts) {
                 // One more: bits are read by eight bytes.
                 std::uint64_t words[kChunk / 64 + 1];
                 for (std::int64_t at = begin; at < end; at += kChunk) {
                     const std::int64_t size = std::min(kChunk, end - at);
                     pass(at, size, words);
                     add_bits(a, at, size, words, counts);
                 }
                 stream_end();
             });
}

// `size` zeros that start on 64 bytes: vectors across two lines of the cache slow streamed stores down by half.
template <class T>
class AlignedZeros {
  public:
    explicit AlignedZeros(std::int64_t size) : memory_(size + 64 / sizeof(T)), size_(size) {}
    T* data() {
        const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
        return reinterpret_cast<T*>((address + 63) / 64 * 64);
    }
    void clear() { std::fill_n(data(), size_, T{}); }

  private:
    std::vector<T> memory_;
    std::int64_t size_;
};

// How many positions of all channels are taken for one row of more channels: short rows would wait for their counters
// from the row before, and odd ones leave ragged vectors. A multiple of what makes rows start on 64 bytes, if small.
inline std::int64_t fold(std::int64_t channels, std::int64_t element) {
    constexpr std::int64_t kWanted = 2048, kMost = 16384;
    const std::int64_t bytes = channels * element, unit = 64 / std::gcd<std::int64_t>(bytes, 64);
    if (unit * bytes > kMost) return 1;
    return unit * std::max<std::int64_t>(1, kWanted / (unit * bytes));
}

// Channels inside. pass(begin, rows, wide, lanes) adds to Bits lanes[wide] the zeros of `rows` rows from element
// `begin` on.
template <class Bits, class Pass>
void count_inside(const Activation& a, std::int64_t* counter, int threads, Pass pass) {
    const std::int64_t channels = a.channels, positions = a.outer * a.inner;
    const std::int64_t folded = fold(channels, sizeof(Bits));
    // Lanes of 16 bits hold as many.
    constexpr std::int64_t kMostRows = 65535;
    in_parts(positions, folded, channels, counter, threads,
             [&](std::int64_t begin, std::int64_t end, std::int64_t* counts) {
                 AlignedZeros<Bits> memory(folded * channels);
                 Bits* lanes = memory.data();
                 while (begin < end) {
                     const std::int64_t some = end - begin >= folded ? folded : 1;
                     const std::int64_t rows = std::min((end - begin) / some, kMostRows), wide = some * channels;
                     pass(begin * channels, rows, wide, lanes);
                     for (std::int64_t i = 0; i < wide; i += channels) {
                         for (std::int64_t c = 0; c < channels; ++c) counts[c] += lanes[i + c];
                     }
                     memory.clear();
                     begin += rows * some;
                 }
                 stream_end();
             });
}

// The whole of zero_count (y unused) and of relu_zero_count.
template <bool kRelu, class Bits>
void count_zeros(const Bits* x, Bits* y, const Activation& a, Bits negative, std::int64_t* counter, int threads) {
    const std::int64_t bytes = a.size() * static_cast<std::int64_t>(sizeof(Bits));
    const bool stream = kRelu && streams(y, bytes);
    threads = threads_for(bytes, threads);
    if (!a.inside) {
        const auto kernel = stream ? words_kernel<kRelu, true, Bits>() : words_kernel<kRelu, false, Bits>();
        return count_outside(a, counter, threads,
                             [&](std::int64_t begin, std::int64_t size, std::uint64_t* words) {
                                 kernel(x + begin, kRelu ? y + begin : y, size, negative, words);
                             });
    }
    // Streamed vectors start on 64 bytes: rows of such a length, in memory that starts so.
    const bool whole = fold(a.channels, sizeof(Bits)) * a.channels * sizeof(Bits) % 64 == 0;
    const auto plain = lanes_kernel<kRelu, false, Bits>();
    const auto wanted = stream && whole ? lanes_kernel<kRelu, true, Bits>() : plain;
    count_inside<Bits>(a, counter, threads, [&](std::int64_t begin, std::int64_t rows, std::int64_t wide, Bits* lanes) {
        const auto kernel = wide * sizeof(Bits) % 64 ? plain : wanted;
        kernel(x + begin, kRelu ? y + begin : y, rows, wide, negative, lanes);
    });
}

// count_zeros for an element type known when it runs.
template <bool kRelu>
void count_zeros(const char* op, std::uintptr_t x, std::uintptr_t y, const Activation& a, DType dtype,
                 std::int64_t* counter, int threads) {
    auto run = [&](auto typed) {
        using Bits = decltype(typed);
        count_zeros<kRelu>(pointer<const Bits>(x), pointer<Bits>(y), a, negative_infinity<Bits>(dtype), counter, threads);
    };
    switch (dtype) {
        case DType::float32: return run(std::uint32_t{});
        case DType::float16:
        case DType::bfloat16: return run(std::uint16_t{});
        case DType::float64: return run(std::uint64_t{});
    }
    unknown_dtype(op, dtype);
}

}  // namespace fastprune
