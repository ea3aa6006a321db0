// The largest products of a token with the rows of a matrix, without computing all.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.hpp"

namespace gemlens {

struct Candidate {
    std::int64_t row;
    float product;
};

// All rows of a matrix in Q8_0 whose products with a token are no smaller than the k-th largest, exact to the last bit.
std::vector<Candidate> largest(const Matrix& matrix, const Group* x, std::int64_t k);

}  // namespace gemlens
