// The numbers that attention of many tokens multiplies, and what becomes of their sums; see attention.cpp.
//
//     put_numbers(values, factor, count, terms)   values times a factor -> numbers, of which `terms` are summed; and their scale
//     add(sums, tile, x)                          16 rows of a tile times DEPTH numbers of a line
//     put_scores(sums, scale, scales)             sums of a query with 16 keys -> scores, by the scales of both
//     put_weights(scores, most, scales, totals)   2^(score - most), added to totals -> numbers, with the values' scales; and theirs
//     sums_from(mixed), put_values(sums, factor)  what sums of values begin with, and where they go
//
// With bfloat16 and with float32 all scales are 1. With AVX2 numbers are whole and have sixteen bits, and the largest of those
// with one scale has as many steps as no sum can pass 32 bits with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "lines.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {

#if defined(GEMLENS_BF16)
constexpr int DEPTH = 2;  // numbers that are multiplied and added at once
using Number = std::uint16_t;
using Sums = Simd::Floats;
inline float put_numbers(const float* values, float factor, std::int64_t count, std::int64_t, Number* numbers) {
    std::int64_t i = 0;
    for (; i + ROWS <= count; i += ROWS) {
        const __m256bh sixteen = _mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(values + i), _mm512_set1_ps(factor)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers + i), reinterpret_cast<__m256i>(sixteen));
    }
    for (; i < count; ++i) numbers[i] = to_brain(factor * values[i]);
    return 1.0f;
}
// Weights of scores, 2^(score - most), and what they add to 16 totals. Both are as good as numbers of bfloat16 need it.
inline float put_weights(float* scores, int count, float most, const float*, float* totals, Number* weights) {
    __m512 total = _mm512_loadu_ps(totals);
    for (int j = 0; j < count; j += ROWS) {
        const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(most));
        // Nothing is left of less than 2^-126; what is no number stays none, as bfloat16 has no ninth bit from below.
        const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLE_UQ);
        const __m512 power = _mm512_maskz_mov_ps(counts, power_of(x));
        total = _mm512_add_ps(total, power);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + j), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(power)));
    }
    _mm512_storeu_ps(totals, total);
    return 1.0f;
}
inline Sums add(Sums sums, const void* tile, const void* x) {
    std::int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    const __m512i pairs = _mm512_loadu_si512(tile), same = _mm512_set1_epi32(pair);
    return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(same));
}
#elif defined(GEMLENS_AVX2)
constexpr int DEPTH = 2;
using Number = std::int16_t;
struct Sums {
    __v8si part[2];  // __m256i would lie in memory, where there are many
};
// Steps of the largest of numbers, of which so many are multiplied and summed.
inline float steps_for(std::int64_t terms) {
    return static_cast<float>(std::min(32767.0, std::floor(std::sqrt(2147483647.0 / static_cast<double>(terms)))));
}
constexpr float TINY = 1e-33f;  // steps divided by less may not be finite
// Of what is not finite all numbers are 0, and the scale is NaN.
inline float put_numbers(const float* values, float factor, std::int64_t count, std::int64_t terms, Number* numbers) {
    const float steps = steps_for(terms), largest = largest_of(values, count);
    const bool is_finite = largest <= std::numeric_limits<float>::max();
    const float inverse = is_finite && largest > TINY ? steps / largest : 0.0f;
    for (std::int64_t i = 0; i < count; ++i)
        numbers[i] = static_cast<Number>(is_finite ? std::nearbyint(values[i] * inverse) : 0.0f);
    return is_finite ? factor * (largest / steps) : std::numeric_limits<float>::quiet_NaN();
}
inline float put_weights(float* scores, int count, float most, const float* scales, float* totals, Number* weights) {
    Simd::Floats total = Simd::load(totals), sum = Simd::zero(), largest = Simd::zero();
    for (int j = 0; j < count; j += ROWS)
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            float* const own = scores + j + 8 * i;
            const __m256 x = _mm256_sub_ps(_mm256_loadu_ps(own), _mm256_set1_ps(most));
            // Nothing is left of less than 2^-126, whatever its value's scale is; what is no number stays none.
            const __m256 counts = _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_NLE_UQ);
            const __m256 power = _mm256_and_ps(counts, power_of(x));
            total.part[i] = _mm256_add_ps(total.part[i], power);
            const __m256 scaled = _mm256_and_ps(counts, _mm256_mul_ps(power, _mm256_loadu_ps(scales + j + 8 * i)));
            sum.part[i] = _mm256_add_ps(sum.part[i], scaled);  // is no number, if one of them is none
            const __m256 number = _mm256_and_ps(scaled, _mm256_cmp_ps(scaled, scaled, _CMP_ORD_Q));
            largest.part[i] = _mm256_max_ps(largest.part[i], number);
            _mm256_storeu_ps(own, number);
        }
    Simd::store(totals, total);
    float each[ROWS];
    Simd::store(each, largest);
    const float all = *std::max_element(each, each + ROWS), steps = steps_for(STEP), inverse = all > TINY ? steps / all : 0.0f;
    for (int j = 0; j < count; ++j) weights[j] = static_cast<Number>(std::nearbyint(scores[j] * inverse));
    const float whole = Simd::sum(sum);
    return whole == whole ? all / steps : whole;
}
inline Sums add(Sums sums, const void* tile, const void* x) {
    std::int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    const __m256i same = _mm256_set1_epi32(pair);
    const auto* const halves = static_cast<const __m256i*>(tile);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) sums.part[i] += reinterpret_cast<__v8si>(_mm256_madd_epi16(_mm256_loadu_si256(halves + i), same));
    return sums;
}
inline Simd::Floats real(const Sums& sums) {
    return Simd::both<Simd::Floats>([&](int i) { return _mm256_cvtepi32_ps(reinterpret_cast<__m256i>(sums.part[i])); });
}
inline Sums sums_from(const float*) { return Sums{}; }
inline void put_scores(const Sums& sums, float scale, const float* scales, float* scores) {
    Simd::store(scores, Simd::multiply(real(sums), Simd::multiply(Simd::load(scales), Simd::all(scale))));
}
inline void put_values(const Sums& sums, float factor, float* mixed) {
    Simd::store(mixed, Simd::multiply_add(real(sums), Simd::all(factor), Simd::load(mixed)));
}
#else
constexpr int DEPTH = 1;
using Number = float;
using Sums = Simd::Floats;
inline float put_numbers(const float* values, float factor, std::int64_t count, std::int64_t, Number* numbers) {
    for (std::int64_t i = 0; i < count; ++i) numbers[i] = factor * values[i];
    return 1.0f;
}
inline float put_weights(float* scores, int count, float most, const float*, float* totals, Number* weights) {
    for (int j = 0; j < count; j += ROWS)
#pragma omp simd
        for (int i = 0; i < ROWS; ++i) {
            const float score = scores[j + i];
            weights[j + i] = score == NOT_SEEN ? 0.0f : exp_of(0.69314718f * (score - most));
            totals[i] += weights[j + i];
        }
    return 1.0f;
}
inline Sums add(Sums sums, const void* tile, const void* x) {
    return Simd::multiply_add(Simd::load(static_cast<const float*>(tile)), Simd::all(*static_cast<const float*>(x)), sums);
}
#endif
#if !defined(GEMLENS_AVX2)
inline Sums sums_from(const float* mixed) { return Simd::load(mixed); }
inline void put_scores(Sums sums, float, const float*, float* scores) { Simd::store(scores, sums); }
inline void put_values(Sums sums, float, float* mixed) { Simd::store(mixed, sums); }
#endif

}  // namespace GEMLENS_ISA
}  // namespace gemlens
