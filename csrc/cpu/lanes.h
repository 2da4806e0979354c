// Several numbers in one vector register, of a size the caller names, on any compiler: instructions follow from the target of
// the function that all of this is inlined into.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__GNUC__)
#define FASTPRUNE_INLINE __attribute__((always_inline)) inline
#define FASTPRUNE_PREFETCH(address, write) __builtin_prefetch(address, write)
#else
#define FASTPRUNE_INLINE inline
#define FASTPRUNE_PREFETCH(address, write) ((void)0)
#endif

// Before a loop over registers: unrolled whole, else it indexes an array in memory.
#if defined(__clang__)
#define FASTPRUNE_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define FASTPRUNE_UNROLL _Pragma("GCC unroll 8")
#else
#define FASTPRUNE_UNROLL
#endif

// Four 32-bit lanes of two vectors of four, 0 to 3 of the first and 4 to 7 of the second. Not defined everywhere.
#if defined(__clang__)
#define FASTPRUNE_SHUFFLE(x, y, a, b, c, d) __builtin_shufflevector(x, y, a, b, c, d)
#elif defined(__GNUC__)
#define FASTPRUNE_SHUFFLE(x, y, a, b, c, d) __builtin_shuffle(x, y, fastprune::Lanes<std::int32_t, 16>::type{a, b, c, d})
#endif

namespace fastprune {

#if defined(__GNUC__)
template <class A, int Bytes>
struct Lanes {
    typedef A type __attribute__((vector_size(Bytes)));
};
#else
template <class A, int Bytes>
struct Lanes {
    struct type {
        A lane[Bytes / sizeof(A)];
        friend type operator*(const type& x, A y) {
            type z;
            for (std::size_t i = 0; i < Bytes / sizeof(A); ++i) z.lane[i] = x.lane[i] * y;
            return z;
        }
        type& operator+=(const type& x) {
            for (std::size_t i = 0; i < Bytes / sizeof(A); ++i) lane[i] += x.lane[i];
            return *this;
        }
    };
};
#endif

}  // namespace fastprune
