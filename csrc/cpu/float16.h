// The two floating types of 16 bits where there is no vector instruction for them: one element at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastprune {

inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

// IEEE half, rounded to nearest even.
struct Half {
    std::uint16_t bits = 0;

    Half() = default;
    explicit Half(float value) {
        const std::uint32_t all = bits_of(value), magnitude = all & 0x7FFFFFFF;
        const std::uint32_t sign = (all >> 16) & 0x8000;
        if (magnitude > 0x7F800000) {
            bits = static_cast<std::uint16_t>(sign | 0x7E00);
        } else if (magnitude >= 0x477FF000) {  // 65520 and more round to infinity
            bits = static_cast<std::uint16_t>(sign | 0x7C00);
        } else if (magnitude < 0x38800000) {  // below 2^-14: adding 0.5 leaves multiples of 2^-24 in the lowest bits
            bits = static_cast<std::uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
        } else {
            const std::uint32_t odd = (magnitude >> 13) & 1;
            bits = static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000 + 0xFFF + odd) >> 13));
        }
    }
    explicit operator float() const {
        const std::uint32_t magnitude = bits & 0x7FFFu, sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
        if (magnitude >= 0x7C00) return float_of(sign | 0x7F800000 | magnitude << 13);
        if (magnitude >= 0x0400) return float_of(sign | ((magnitude << 13) + 0x38000000));
        const float denormal = static_cast<float>(magnitude) * float_of(0x33800000);  // 2^-24
        return float_of(sign | bits_of(denormal));
    }
};

// The upper half of a float, rounded to nearest even.
struct BFloat16 {
    std::uint16_t bits = 0;

    BFloat16() = default;
    explicit BFloat16(float value) {
        const std::uint32_t all = bits_of(value);
        if ((all & 0x7FFFFFFF) > 0x7F800000) {
            bits = 0x7FC0;
        } else {
            bits = static_cast<std::uint16_t>((all + 0x7FFF + ((all >> 16) & 1)) >> 16);
        }
    }
    explicit operator float() const { return float_of(static_cast<std::uint32_t>(bits) << 16); }
};

}  // namespace fastprune
