#include "simd.h"

namespace fastprune {

namespace {

#ifdef FASTPRUNE_SIMD_VERSIONS
__attribute__((target("default"))) const char* level() { return "baseline"; }
__attribute__((target("avx2"))) const char* level() { return "avx2"; }
__attribute__((target("avx512f"))) const char* level() { return "avx512f"; }
#else
const char* level() { return "baseline"; }
#endif

}  // namespace

std::vector<std::string> simd_compiled() {
#ifdef FASTPRUNE_SIMD_VERSIONS
    return {"baseline", "avx2", "avx512f"};
#else
    return {"baseline"};
#endif
}

std::string simd_in_use() { return level(); }

}  // namespace fastprune
