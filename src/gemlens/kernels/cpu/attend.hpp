// Attention on all threads, of few tokens or many.
#pragma once

#include <cstdint>

#include "engine.hpp"

namespace gemlens {

// Heads of queries and of keys, and how scores are made.
struct Heads {
    std::int64_t heads, kv_heads, size;
    float scale, cap;  // cap 0: none
};

// Keys and values of some rows, [rows, K, length, size] in whatever order but for the last, and who sees whom; no sight: all
// see all.
struct Memory {
    std::int64_t rows, steps, length;
    const void *keys, *values;
    Kept kept;
    std::int64_t row, head, token;  // from one to the next, in numbers
    const Sight* sight;
    bool is_coarse = false;  // eight bits are enough where many attend, all see all and there is no cap
};

// queries [rows, steps, N, size] -> mixed, of the same shape; it may take their place
void attend(const Heads& heads, const Memory& memory, const float* queries, float* mixed);

}  // namespace gemlens
