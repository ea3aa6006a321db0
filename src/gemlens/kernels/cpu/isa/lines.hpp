// What attention of many tokens is made of, whatever numbers it multiplies: lines, one for each query of a head.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "simd.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {

constexpr std::int64_t TILE = 64;  // bytes
constexpr int SOME = 24;  // lines that are worked on together, so that what they need stays in the nearest cache
constexpr float LOG2_E = 1.44269504f;  // scores are multiplied by it, so that weights are powers of 2
constexpr float NOT_SEEN = -std::numeric_limits<float>::infinity();
constexpr float SLACK = 8.0f;

inline std::int64_t up_to(std::int64_t count, std::int64_t step) { return (count + step - 1) / step * step; }

// What is known of a line while its keys come step after step. Weights are 2^(score - most); `most` lies at most SLACK
// below the largest score so far, so that what was summed seldom has to be scaled to another.
struct Line {
    float most = NOT_SEEN;
    float totals[ROWS] = {};  // parts of the sum of weights

    void see(float largest, float* mixed, std::int64_t width) {
        if (!(largest > most + SLACK)) return;
        const float before = most == NOT_SEEN ? 0.0f : std::exp2(most - largest);
        for (float& total : totals) total *= before;
        for (std::int64_t i = 0; i < width; ++i) mixed[i] *= before;
        most = largest;
    }
};

// Bytes of numbers: those that are multiplied at once lie side by side, then come those of the next depth.
struct Lines {
    const void* place;
    std::int64_t next_line, next_depth;
};
struct Columns {  // of tiles
    const void* place;
    std::int64_t next_column, next_depth;
};

// Sums of products of `lines` lines with COLUMNS columns of 16, some lines at a time in registers: begin(line, column)
// gives one, add(sum, tile, x) adds to it for each of `depths`, and end(line, column, sum) takes it.
template <int COLUMNS, class Begin, class Add, class End>
void each_block(int lines, Lines x, std::int64_t first_column, Columns tiles, std::int64_t depths, Begin begin, Add add, End end) {
    const auto block = [&](auto count, int first) {
        constexpr int LINES = decltype(count)::value;
        const auto* own = static_cast<const std::uint8_t*>(x.place) + first * x.next_line;
        const auto* tile = static_cast<const std::uint8_t*>(tiles.place) + first_column * tiles.next_column;
        decltype(begin(0, first_column)) all[LINES][COLUMNS];
#pragma GCC unroll 8  // or sums would lie in memory
        for (int l = 0; l < LINES; ++l)
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; ++c) all[l][c] = begin(first + l, first_column + c);
        for (std::int64_t d = 0; d < depths; ++d, own += x.next_depth, tile += tiles.next_depth)
#pragma GCC unroll 8
            for (int l = 0; l < LINES; ++l)
#pragma GCC unroll 4
                for (int c = 0; c < COLUMNS; ++c) all[l][c] = add(all[l][c], tile + c * tiles.next_column, own + l * x.next_line);
#pragma GCC unroll 8
        for (int l = 0; l < LINES; ++l)
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; ++c) end(first + l, first_column + c, all[l][c]);
    };
    int line = 0;
    for (; line + Simd::LINES <= lines; line += Simd::LINES) block(std::integral_constant<int, Simd::LINES>{}, line);
    for (; line < lines; ++line) block(std::integral_constant<int, 1>{}, line);
}

// The same for any number of columns.
template <class Begin, class Add, class End>
void each_block(int lines, Lines x, Columns tiles, std::int64_t columns, std::int64_t depths, Begin begin, Add add, End end) {
    std::int64_t first = 0;
    for (; first + Simd::COLUMNS <= columns; first += Simd::COLUMNS)
        each_block<Simd::COLUMNS>(lines, x, first, tiles, depths, begin, add, end);
    for (; first < columns; ++first) each_block<1>(lines, x, first, tiles, depths, begin, add, end);
}

}  // namespace GEMLENS_ISA
}  // namespace gemlens
