// Which vector instructions hot loops are compiled for, and which of them this processor runs.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

// Several versions of one function in one binary, chosen when the library is loaded, need ifunc: glibc on x86-64.
// Elsewhere there is one version, for the compiler's own baseline.
#if defined(__x86_64__) && defined(__gnu_linux__) && (defined(__GNUC__) && (!defined(__clang__) || __clang_major__ >= 14))
#define FASTPRUNE_SIMD_VERSIONS 1
#endif

namespace fastprune {

std::vector<std::string> simd_compiled();

// "avx512f", "avx2" or "baseline".
std::string simd_in_use();

enum class Simd { baseline, avx2, avx512 };

// The level of loops that are written out for each, asked once. FASTPRUNE_SIMD=baseline or avx2 keeps it lower, so that one
// processor can test what others run.
inline Simd simd_level() {
#ifdef FASTPRUNE_SIMD_VERSIONS
    static const Simd level = [] {
        const char* asked = std::getenv("FASTPRUNE_SIMD");
        const std::string most = asked ? asked : "";
        if (most == "baseline" || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
            !__builtin_cpu_supports("bmi2")) {
            return Simd::baseline;
        }
        const bool wide = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
        return wide && most != "avx2" ? Simd::avx512 : Simd::avx2;
    }();
    return level;
#else
    return Simd::baseline;
#endif
}

}  // namespace fastprune
