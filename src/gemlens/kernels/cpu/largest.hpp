// The rows whose products with a token are the largest, found without reading all of a matrix.
#pragma once

#include <cstdint>

#include "engine.hpp"

namespace gemlens {

// Of one token. products [rows]: no smaller than the k-th largest, others -inf; a product that is no number counts as larger than all.
// Returns how many tiles were computed.
std::int64_t largest(const Matrix& matrix, const Tokens& token, std::int64_t k, float* products);

}  // namespace gemlens
