// Lists of torch tensors, read without a torch header and without a Python call for each fact.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "dtype.h"

namespace fastprune {

// Device types by DLPack's numbers.
constexpr int kCPU = 1;
constexpr int kCUDA = 2;

// What a kernel needs to know of a tensor. It holds while Python runs nothing else.
struct TensorView {
    void* data = nullptr;
    std::int64_t size = 0;
    int device_type = 0;
    int device = 0;
    DType dtype = DType::float32;
    bool contiguous = false;
    int ndim = 0;
    const std::int64_t* shape = nullptr;  // null where the sizes are not known; then ndim is 0 or 1
};

bool same_shape(const TensorView& a, const TensorView& b);

// Reads one tensor. False, with no Python error set, where it is no plain torch.Tensor or nn.Parameter of a dtype of
// dtype.h in strided memory: what else it may be is the caller's to find out.
bool read_tensor(PyObject* tensor, TensorView& view);

// Raises the version counter of every tensor of a list, as whatever changes a tensor in place must, so that autograd notices;
// call it before the change. Throws Python's error.
void increment_version(PyObject* tensors);

// torch's current stream of a CUDA device, as an address. Throws Python's error.
std::uintptr_t current_stream(int device);

// The items of a list or a tuple, without a copy; null for anything else.
struct Items {
    PyObject** first = nullptr;
    std::int64_t size = -1;

    explicit Items(PyObject* sequence) {
        if (PyList_Check(sequence) || PyTuple_Check(sequence)) {
            first = PySequence_Fast_ITEMS(sequence);
            size = PySequence_Fast_GET_SIZE(sequence);
        }
    }
};

}  // namespace fastprune
