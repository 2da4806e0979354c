// Which vector instructions hot loops are compiled for, and which of them this processor runs.
#pragma once

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

}  // namespace fastprune
