// float16 and bfloat16 as float and back, to nearest even, without instructions that need a newer processor: loops over
// these vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastprune {

// Elements as they lie in memory.
struct Half {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

template <class To, class From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return same_bits<float>(static_cast<std::uint32_t>(x.bits) << 16); }
inline float widen(Half x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000) << 16;
    const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7fff) << 13;
    const std::uint32_t exponent = magnitude & 0x0f800000;
    // A subnormal is a fraction of 2^-14: put it behind that power's mantissa, then subtract the power.
    const float subnormal = same_bits<float>(magnitude + 0x38800000) - same_bits<float>(std::uint32_t{0x38800000});
    const std::uint32_t normal = magnitude + (exponent == 0x0f800000 ? 0x70000000 : 0x38000000);
    return same_bits<float>(sign | (exponent == 0 ? same_bits<std::uint32_t>(subnormal) : normal));
}

inline void narrow(float x, float& to) { to = x; }
inline void narrow(double x, double& to) { to = x; }
inline void narrow(float x, BFloat16& to) {
    const std::uint32_t bits = same_bits<std::uint32_t>(x);
    const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = static_cast<std::uint16_t>(x != x ? 0x7fc0 : rounded);
}
inline void narrow(float x, Half& to) {
    const std::uint32_t bits = same_bits<std::uint32_t>(x);
    const std::uint32_t magnitude = bits & 0x7fffffff;
    // Adding 1/2 leaves a subnormal's bits, rounded by the addition itself, at the bottom of the mantissa.
    const std::uint32_t subnormal = same_bits<std::uint32_t>(same_bits<float>(magnitude) + 0.5f) - 0x3f000000;
    const std::uint32_t normal = (magnitude + 0xc8000fff + ((magnitude >> 13) & 1)) >> 13;
    const std::uint32_t large = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const std::uint32_t half = magnitude < 0x38800000 ? subnormal : magnitude < 0x47800000 ? normal : large;
    to.bits = static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000));
}

}  // namespace fastprune
