#include "tensors.h"

#include <array>
#include <utility>

#include "bind.h"

namespace py = pybind11;

namespace fastprune {

namespace {

// The part of DLPack's stable C interface that is needed (dlpack.h of DLPack 1.x, an ABI by contract): recent
// versions of torch hand it out as torch.Tensor.__dlpack_c_exchange_api__. One call of it gives every fact about a tensor in
// 35 ns; each single fact by a method of Python's is as much.
struct DLTensor {
    void* data;
    std::int32_t device_type;
    std::int32_t device_id;
    std::int32_t ndim;
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
    std::int64_t* shape;
    std::int64_t* strides;
    std::uint64_t byte_offset;
};

struct ExchangeApi {
    std::uint32_t major;
    std::uint32_t minor;
    ExchangeApi* previous;
    void* allocate;
    void* managed_from_object;
    void* managed_to_object;
    int (*view_of_object)(void* object, DLTensor* out);
    void* current_stream;
};

constexpr std::uint32_t kMajor = 1;
constexpr std::uint8_t kFloat = 2;
constexpr std::uint8_t kBFloat = 4;

// What torch is, as far as this file has to know; Python tells it once. The objects are held for ever.
struct Torch {
    PyObject* tensor = nullptr;
    PyObject* parameter = nullptr;
    std::array<PyObject*, 4> dtypes{};  // by DType
    int (*view_of_object)(void* object, DLTensor* out) = nullptr;
    PyObject* strided = nullptr;
    PyObject* increment_version = nullptr;
    PyObject* current_stream = nullptr;
    PyObject *data_ptr, *numel, *dim, *is_contiguous, *get_device, *dtype, *is_cuda, *is_cpu, *layout;
} torch;

bool contiguous(const DLTensor& t) {
    if (t.strides == nullptr) return true;
    std::int64_t expected = 1;
    bool dense = true;
    for (int d = t.ndim - 1; d >= 0; --d) {
        if (t.shape[d] == 0) return true;
        if (t.shape[d] != 1 && t.strides[d] != expected) dense = false;
        expected *= t.shape[d];
    }
    return dense;
}

bool dtype_of(const DLTensor& t, DType& dtype) {
    if (t.lanes != 1) return false;
    if (t.code == kFloat && t.bits == 32) dtype = DType::float32;
    else if (t.code == kFloat && t.bits == 16) dtype = DType::float16;
    else if (t.code == kFloat && t.bits == 64) dtype = DType::float64;
    else if (t.code == kBFloat && t.bits == 16) dtype = DType::bfloat16;
    else return false;
    return true;
}

bool read_by_exchange(PyObject* tensor, TensorView& view) {
    DLTensor t;
    if (torch.view_of_object(tensor, &t) != 0) {
        PyErr_Clear();
        return false;
    }
    if (!dtype_of(t, view.dtype)) return false;
    std::int64_t size = 1;
    for (int d = 0; d < t.ndim; ++d) size *= t.shape[d];
    // Zero tensors and freed storage have entries, and no memory.
    if (t.data == nullptr && size > 0) return false;
    view.data = static_cast<char*>(t.data) + t.byte_offset;
    view.size = size;
    view.device_type = t.device_type;
    view.device = t.device_type == kCPU ? -1 : t.device_id;
    view.contiguous = contiguous(t);
    view.ndim = t.ndim;
    view.shape = t.shape;
    return true;
}

// tensor.name(), an integer.
bool ask(PyObject* tensor, PyObject* name, std::int64_t& answer) {
    PyObject* found = PyObject_CallMethodNoArgs(tensor, name);
    if (found == nullptr) return false;
    answer = PyLong_Check(found) ? static_cast<std::int64_t>(PyLong_AsUnsignedLongLong(found)) : -1;
    Py_DECREF(found);
    return PyErr_Occurred() == nullptr;
}

// Whether tensor.name is that very object.
bool is(PyObject* tensor, PyObject* name, PyObject* expected) {
    PyObject* found = PyObject_GetAttr(tensor, name);
    const bool same = found == expected;
    Py_XDECREF(found);
    return same;
}

// For older versions of torch: seven Python calls a tensor. Only vectors, whose size is their shape.
bool read_by_methods(PyObject* tensor, TensorView& view) {
    std::int64_t ndim = 0, device = -1, address = 0;
    bool known = is(tensor, torch.layout, torch.strided);
    if (known) {
        known = false;
        for (int i = 0; i < 4 && !known; ++i) {
            known = is(tensor, torch.dtype, torch.dtypes[i]);
            view.dtype = static_cast<DType>(i);
        }
    }
    known = known && ask(tensor, torch.dim, ndim) && ndim <= 1 && ask(tensor, torch.numel, view.size);
    if (known) {
        view.device_type = is(tensor, torch.is_cpu, Py_True) ? kCPU : is(tensor, torch.is_cuda, Py_True) ? kCUDA : 0;
        if (view.device_type == kCUDA) known = ask(tensor, torch.get_device, device);
        known = known && view.device_type != 0 && ask(tensor, torch.data_ptr, address);
    }
    if (!known || PyErr_Occurred()) {
        PyErr_Clear();
        return false;
    }
    PyObject* dense = PyObject_CallMethodNoArgs(tensor, torch.is_contiguous);
    view.contiguous = dense == Py_True;
    Py_XDECREF(dense);
    PyErr_Clear();
    view.data = pointer<void>(static_cast<std::uintptr_t>(address));
    view.device = static_cast<int>(device);
    view.ndim = static_cast<int>(ndim);
    view.shape = nullptr;
    return true;
}

// A reference that is never given back.
PyObject* keep(py::object object) { return object.release().ptr(); }

// dtypes: in the order of DType. exchange: torch.Tensor.__dlpack_c_exchange_api__ or None. Returns whether it is used.
bool know_torch(py::object tensor, py::object parameter, py::tuple dtypes, py::object strided, py::object increment_version,
                py::object current_stream, py::object exchange) {
    torch.view_of_object = nullptr;
    constexpr const char* kCapsule = "dlpack_exchange_api";
    if (PyCapsule_IsValid(exchange.ptr(), kCapsule)) {
        auto* api = static_cast<ExchangeApi*>(PyCapsule_GetPointer(exchange.ptr(), kCapsule));
        while (api != nullptr && api->major != kMajor) api = api->previous;
        if (api != nullptr) torch.view_of_object = api->view_of_object;
    }
    torch.data_ptr = PyUnicode_InternFromString("data_ptr");
    torch.numel = PyUnicode_InternFromString("numel");
    torch.dim = PyUnicode_InternFromString("dim");
    torch.is_contiguous = PyUnicode_InternFromString("is_contiguous");
    torch.get_device = PyUnicode_InternFromString("get_device");
    torch.dtype = PyUnicode_InternFromString("dtype");
    torch.is_cuda = PyUnicode_InternFromString("is_cuda");
    torch.is_cpu = PyUnicode_InternFromString("is_cpu");
    torch.layout = PyUnicode_InternFromString("layout");
    for (std::size_t i = 0; i < torch.dtypes.size(); ++i) torch.dtypes[i] = keep(dtypes[i]);
    torch.strided = keep(std::move(strided));
    torch.increment_version = keep(std::move(increment_version));
    torch.current_stream = keep(std::move(current_stream));
    torch.tensor = keep(std::move(tensor));
    torch.parameter = keep(std::move(parameter));
    return torch.view_of_object != nullptr;
}

const Binding binding([](py::module_& m) {
    m.def("know_torch", &know_torch, py::arg("tensor"), py::arg("parameter"), py::arg("dtypes"), py::arg("strided"),
          py::arg("increment_version"), py::arg("current_stream"), py::arg("exchange"),
          "Tells the module which types and dtypes are torch's, and how to read a tensor.");
});

}  // namespace

bool same_shape(const TensorView& a, const TensorView& b) {
    if (a.ndim != b.ndim || a.size != b.size) return false;
    if (a.shape == nullptr) return true;
    for (int d = 0; d < a.ndim; ++d) {
        if (a.shape[d] != b.shape[d]) return false;
    }
    return true;
}

void increment_version(PyObject* tensors) {
    PyObject* nothing = PyObject_CallOneArg(torch.increment_version, tensors);
    if (nothing == nullptr) throw py::error_already_set();
    Py_DECREF(nothing);
}

std::uintptr_t current_stream(int device) {
    const py::object stream = py::reinterpret_borrow<py::object>(torch.current_stream)(device);
    return stream.cast<std::uintptr_t>();
}

bool read_tensor(PyObject* tensor, TensorView& view) {
    auto* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
    if (type != torch.parameter && type != torch.tensor) return false;
    return torch.view_of_object != nullptr ? read_by_exchange(tensor, view) : read_by_methods(tensor, view);
}

}  // namespace fastprune
