// A decoder's layer: in two parts around attention, or whole.
#pragma once

#include <cstdint>

#include "attend.hpp"
#include "engine.hpp"

namespace gemlens {

// What tokens are rotated by: [turns, size] each; token t by number t % turns.
struct Rotation {
    const float *cos, *sin;
    std::int64_t turns;
};

// What a layer has seen: as `Memory`, in bfloat16 or bytes, but the last `steps` tokens of each row are still to be written.
struct Seen {
    void *keys, *values;
    Kept kept;
    std::int64_t row, head, length;
    const Sight* sight;
};

// A decoder's layer. Weights of norms are 1 + what a checkpoint has; null where a version has no such norm.
struct Layer {
    Matrix query, key, value, output, gate, up, down;
    const float *before_attention, *after_attention, *before_mlp, *after_mlp, *query_norm, *key_norm;
    std::int64_t heads, kv_heads, size;
    float eps, scale, cap;  // cap 0: none

    // hidden [tokens, D] -> queries [tokens, N, size], keys and values [tokens, K, size], but for what is null
    void project(std::int64_t tokens, const float* hidden, const Rotation& by, float* queries, float* keys,
                 float* values) const;
    // mixed [tokens, N * size], hidden [tokens, D] -> the layer's result [tokens, D]
    void finish(std::int64_t tokens, const float* mixed, const float* hidden, float* result) const;
    // hidden [rows, steps, D] becomes the layer's result; tokens before which nothing was seen attend to keys and values as they
    // are, before these are rounded to be kept
    void run(std::int64_t rows, std::int64_t steps, const Rotation& by, const Seen& seen, float* hidden) const;

private:
    void add(float* part, const float* weight, const float* hidden, float* result) const;
};

}  // namespace gemlens
