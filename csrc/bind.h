// How the file of an op adds its functions to the Python module: one static Binding, no list to keep elsewhere.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace fastprune {

using Bind = void (*)(pybind11::module_&);

// A function's static, so that it is there before the first Binding of any file.
inline std::vector<Bind>& bindings() {
    static std::vector<Bind> all;
    return all;
}

struct Binding {
    explicit Binding(Bind bind) { bindings().push_back(bind); }
};

}  // namespace fastprune
