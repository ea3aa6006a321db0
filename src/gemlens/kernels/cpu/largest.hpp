// The rows whose products with a token are the largest, found without reading all of a matrix.
#pragma once

#include <cstdint>

#include "engine.hpp"

namespace gemlens {

struct Best {
    float product;
    std::int64_t row;
};

// Of one token and Q8_0. products [rows]: no smaller than the k-th largest, others -inf; a product that is no number counts as
// larger than all. `screens` asks not to read all; else the first of a token's lines is multiplied with all, and the second only
// where that may be among the largest. Returns how many tiles were computed after that; -1 where the token has numbers that
// are none or are too large to screen with, and nothing is written.
std::int64_t largest(const Matrix& matrix, const float* x, std::int64_t k, bool screens, float* products);

// Of each token the largest product, and the first row that has it; what is no number counts as above. `screens` asks not to
// compute all where that can be. Returns how many tiles were computed, for all tokens together.
std::int64_t best(const Matrix& matrix, const float* x, std::int64_t tokens, bool screens, Best* found);

}  // namespace gemlens
