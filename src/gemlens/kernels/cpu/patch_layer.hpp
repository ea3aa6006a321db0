// A layer of the picture encoder, in which every patch sees every patch.
#pragma once

#include <cstdint>

#include "engine.hpp"

namespace gemlens {

struct Affine {
    Matrix matrix;
    const float* bias;
};

struct Norm {
    const float *weight, *bias;
};

struct PatchLayer {
    Affine query, key, value, output, inner, outer;
    Norm before_attention, before_mlp;
    std::int64_t heads;
    float eps;

    // hidden [rows, patches, D] -> the layer's result, of the same shape
    void run(std::int64_t rows, std::int64_t patches, const float* hidden, float* result) const;

private:
    void normalize(const Norm& norm, const float* hidden, float* normed) const;
    void finish(std::int64_t tokens, const float* mixed, const float* hidden, float* result) const;
};

}  // namespace gemlens
