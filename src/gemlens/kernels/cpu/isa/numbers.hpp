// Weights that are numbers of two bytes: F16 and BF16. A tile is 16 rows' weights of one column after the other.
#pragma once

#include "simd.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {

constexpr int F16 = 1, BF16 = 30;  // ggml's numbers
constexpr std::int64_t NUMBERS = 2 * ROWS;  // bytes of a column of a tile

inline bool is_of_numbers(int format) { return format == F16 || format == BF16; }

void pack_numbers(const std::uint8_t* file, std::int64_t rows, std::int64_t width, std::int64_t first, std::int64_t last,
                  std::uint8_t* tiles);
void row_of_numbers(int format, const std::uint8_t* tiles, std::int64_t width, std::int64_t row, float* weights);
void linear_numbers(int format, const std::uint8_t* tiles, std::int64_t rows, std::int64_t width, std::int64_t first,
                    std::int64_t last, const float* x, std::int64_t tokens, float* y, std::int64_t next);

}  // namespace GEMLENS_ISA
}  // namespace gemlens
