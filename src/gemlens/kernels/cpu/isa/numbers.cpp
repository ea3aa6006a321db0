// Products with weights that are numbers, in float32 throughout; compiled once for each instruction set.
#include "numbers.hpp"

#include <algorithm>
#include <cstring>

namespace gemlens {
inline namespace GEMLENS_ISA {
namespace {

constexpr int CHAINS = 4;  // of sums that do not wait for each other

template <bool HALF>
Simd::Floats column(const std::uint8_t* place) {
    return HALF ? Simd::halves(place) : Simd::brains(place);
}

// 16 rows times COUNT tokens.
template <bool HALF, int COUNT>
void multiply(const std::uint8_t* tile, std::int64_t width, const float* x, std::int64_t stride, std::int64_t keep,
              float* y) {
    Simd::Floats sums[COUNT][CHAINS];
    for (auto& row : sums)
        for (auto& sum : row) sum = Simd::zero();
    std::int64_t k = 0;
    const auto add = [&](int chain) {
        const auto weights = column<HALF>(tile + (k + chain) * NUMBERS);
#pragma GCC unroll 4
        for (int t = 0; t < COUNT; ++t)
            sums[t][chain] = Simd::multiply_add(weights, Simd::all(x[t * width + k + chain]), sums[t][chain]);
    };
    for (; k + CHAINS <= width; k += CHAINS)
#pragma GCC unroll 4
        for (int chain = 0; chain < CHAINS; ++chain) add(chain);
    for (; k < width; ++k) add(0);
    for (int t = 0; t < COUNT; ++t) {
        for (int chain = 1; chain < CHAINS; ++chain) sums[t][0] = Simd::plus(sums[t][0], sums[t][chain]);
        float values[ROWS];
        Simd::store(values, sums[t][0]);
        std::copy(values, values + keep, y + t * stride);
    }
}

template <bool HALF>
void multiply_all(const std::uint8_t* tiles, std::int64_t rows, std::int64_t width, std::int64_t first, std::int64_t last,
                  const float* x, std::int64_t tokens, float* y, std::int64_t next) {
    for (std::int64_t number = first; number < last; ++number, y += ROWS) {
        const std::uint8_t* tile = tiles + number * width * NUMBERS;
        const std::int64_t keep = std::min<std::int64_t>(ROWS, rows - number * ROWS);
        std::int64_t t = 0;
        for (; t + 4 <= tokens; t += 4) multiply<HALF, 4>(tile, width, x + t * width, next, keep, y + t * next);
        for (; t < tokens; ++t) multiply<HALF, 1>(tile, width, x + t * width, next, keep, y + t * next);
    }
}

}  // namespace

void pack_numbers(const std::uint8_t* file, std::int64_t rows, std::int64_t width, std::int64_t first, std::int64_t last,
                  std::uint8_t* tiles) {
    std::fill(tiles + first * width * NUMBERS, tiles + last * width * NUMBERS, std::uint8_t{0});
    for (std::int64_t row = first * ROWS; row < std::min(rows, last * ROWS); ++row)
        for (std::int64_t k = 0; k < width; ++k)
            std::memcpy(tiles + (row / ROWS * width + k) * NUMBERS + 2 * (row % ROWS), file + 2 * (row * width + k), 2);
}

void row_of_numbers(int format, const std::uint8_t* tiles, std::int64_t width, std::int64_t row, float* weights) {
    for (std::int64_t k = 0; k < width; ++k) {
        const std::uint8_t* place = tiles + (row / ROWS * width + k) * NUMBERS;
        float values[ROWS];
        Simd::store(values, format == F16 ? column<true>(place) : column<false>(place));
        weights[k] = values[row % ROWS];
    }
}

void linear_numbers(int format, const std::uint8_t* tiles, std::int64_t rows, std::int64_t width, std::int64_t first,
                    std::int64_t last, const float* x, std::int64_t tokens, float* y, std::int64_t next) {
    (format == F16 ? multiply_all<true> : multiply_all<false>)(tiles, rows, width, first, last, x, tokens, y, next);
}

}  // namespace GEMLENS_ISA
}  // namespace gemlens
