// Element types as Python names them (fastprune/ops/_extension.py): the numbers are a contract.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fastprune {

enum class DType : int { float32 = 0, float16 = 1, bfloat16 = 2, float64 = 3 };

[[noreturn]] inline void unknown_dtype(const char* op, DType dtype) {
    throw std::invalid_argument(std::string(op) + ": expected dtype 0 to 3, got " + std::to_string(static_cast<int>(dtype)));
}

// An integer from Python is an address.
template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace fastprune
