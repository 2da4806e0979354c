#include "device.h"

#include "check.h"

namespace fastprune::cuda {

namespace {

constexpr int kMark = 0x5eed;

__global__ void write_mark(int* out) { *out = kMark; }

}  // namespace

int device_count() {
    int count = 0;
    check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
    return count;
}

void probe(int device) {
    int before = 0;
    check(cudaGetDevice(&before), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
    int* out = nullptr;
    int seen = 0;
    cudaError_t status = cudaMalloc(&out, sizeof(int));
    if (status == cudaSuccess) {
        write_mark<<<1, 1>>>(out);
        status = cudaGetLastError();
        if (status == cudaSuccess) status = cudaMemcpy(&seen, out, sizeof(int), cudaMemcpyDeviceToHost);
        cudaFree(out);
    }
    cudaSetDevice(before);
    check(status, "cuda_probe");
    if (seen != kMark) throw std::runtime_error("cuda_probe: the kernel ran but wrote nothing");
}

int runtime_version() { return CUDART_VERSION; }

}  // namespace fastprune::cuda
