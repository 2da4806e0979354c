// Reads the lists that the ops on batch norm scales take.
#pragma once

#include <pybind11/pybind11.h>

#include "gamma_layers.h"

namespace fastprune {

// Reads lists of scales and, unless it is None, of gradients. False where they are not plain: contiguous, of one dtype on
// one device, each gradient with its scale's shape. Nothing is remembered from one call to the next: reading 2 × 53 tensors
// anew takes 4 µs, no more than checking that a memory of them is still true, since a gradient is a new object every step
// and a tensor may be resized or given other memory in between.
bool read_layers(pybind11::handle scales, pybind11::handle gradients, GammaLayers& found);

// Reads a list of one number or one a layer, and None or one float32 or one a layer. False where they are anything else.
bool read_strengths(pybind11::handle numbers, pybind11::handle factors, const GammaLayers& layers, Strengths& found);

// What one call needs, kept for the calling thread so that no call allocates.
struct GammaCall {
    GammaLayers layers;
    Strengths strengths;

    static GammaCall& of_this_thread();
};

}  // namespace fastprune
