// What attention of many tokens is made of, whatever numbers it multiplies: lines, one for each query of a head.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../kernels.hpp"
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

// The numbers that begin with number `from` of some that are kept, as floats.
inline void widen(const void* all, std::int64_t from, Kept kept, std::int64_t count, float* numbers) {
    const void* const place = static_cast<const char*>(all) + from * size_of(kept);
    const auto* const bytes = static_cast<const std::int8_t*>(place);
    const auto* const brains = static_cast<const std::uint16_t*>(place);
    if (kept == Kept::BYTES) {
        for (std::int64_t i = 0; i < count; ++i) numbers[i] = step_of(bytes, count, i) * static_cast<float>(bytes[i]);
    } else if (kept == Kept::BRAINS) {
        std::transform(brains, brains + count, numbers, from_brain);
    } else {
        std::copy_n(static_cast<const float*>(place), count, numbers);
    }
}

// Where the query of a line is, and what is made of it.
inline std::int64_t place_of(const Mix& at, int line) { return line / at.each * at.next_token + line % at.each * at.size; }

// mixed [lines, width], sums of values times weights -> what the queries see.
inline void put_mixed(const Mix& at, const std::vector<Line>& known, const float* mixed, std::int64_t width) {
    for (const Line& line : known) {
        const float total = std::accumulate(line.totals, line.totals + ROWS, 0.0f);
        float* to = at.mixed + place_of(at, static_cast<int>(&line - known.data()));
        for (std::int64_t i = 0; i < at.size; ++i) to[i] = mixed[i] / total;
        mixed += width;
    }
}

#if defined(GEMLENS_AVX512)
// 2^x for x from -126 to 127, to 1e-4 of it: a polynomial of degree 3 for what is left of x after its nearest whole number,
// which is added to the exponent.
inline __m512 power_of(__m512 x) {
    const __m512 shift = _mm512_set1_ps(12582912.0f);  // shift + x is to the nearest whole
    const __m512 shifted = _mm512_add_ps(x, shift), rest = _mm512_sub_ps(x, _mm512_sub_ps(shifted, shift));
    __m512 power = _mm512_set1_ps(5.5171630e-2f);
    for (const float factor : {2.4261114e-1f, 6.9326100e-1f, 9.9992807e-1f})
        power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(factor));
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(power), exponent));
}
#elif defined(GEMLENS_AVX2)
// The same to 3e-6, by a polynomial of degree 4.
inline __m256 power_of(__m256 x) {
    const __m256 shift = _mm256_set1_ps(12582912.0f);
    const __m256 shifted = _mm256_add_ps(x, shift), rest = _mm256_sub_ps(x, _mm256_sub_ps(shifted, shift));
    __m256 power = _mm256_set1_ps(9.5701048e-3f);
    for (const float factor : {5.5917869e-2f, 2.4024745e-1f, 6.9312181e-1f, 9.9999926e-1f})
        power = _mm256_fmadd_ps(power, rest, _mm256_set1_ps(factor));
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(power), exponent));
}
#endif

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
