// The two largest sizes of a group's numbers: what tells whether one of them stands out.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(GEMLENS_AVX2) || defined(GEMLENS_AVX512)
#include <immintrin.h>
#endif

#include "scalars.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {

struct Two {
    float first, second;
    int place;  // of the first; if the second is as large, of any of these
};

#if defined(GEMLENS_AVX2) || defined(GEMLENS_AVX512)
inline Two largest_two(const float* numbers) {
    const __m256i is_size = _mm256_set1_epi32(0x7fffffff);
    __m256i sizes[4], most = _mm256_setzero_si256(), next = most;
    for (int i = 0; i < 4; ++i)
        sizes[i] = _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers) + i), is_size);
    const auto join = [&](__m256i other, __m256i its_next) {
        next = _mm256_max_epu32(_mm256_max_epu32(next, its_next), _mm256_min_epu32(most, other));
        most = _mm256_max_epu32(most, other);
    };
    for (const __m256i& size : sizes) join(size, _mm256_setzero_si256());
    join(_mm256_permute2x128_si256(most, most, 1), _mm256_permute2x128_si256(next, next, 1));
    join(_mm256_shuffle_epi32(most, 0x4e), _mm256_shuffle_epi32(next, 0x4e));
    join(_mm256_shuffle_epi32(most, 0xb1), _mm256_shuffle_epi32(next, 0xb1));
    const auto equal = [&](int i) { return _mm256_cmpeq_epi32(sizes[i], most); };
    const __m256i found = _mm256_packs_epi16(_mm256_packs_epi32(equal(0), equal(1)), _mm256_packs_epi32(equal(2), equal(3)));
    const __m256i bytes = _mm256_permutevar8x32_epi32(found, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const auto first_of = [](__m256i all) { return _mm256_cvtss_f32(_mm256_castsi256_ps(all)); };
    return {first_of(most), first_of(next), __builtin_ctz(static_cast<unsigned>(_mm256_movemask_epi8(bytes)))};
}
#else
inline Two largest_two(const float* numbers) {
    std::uint32_t most = 0, next = 0;
    int place = 0;
    for (int i = 0; i < GROUP; ++i) {
        const std::uint32_t size = size_bits(numbers[i]);
        if (size > most) place = i;
        next = std::max(next, std::min(most, size));
        most = std::max(most, size);
    }
    return {from_bits(most), from_bits(next), place};
}
#endif

}  // namespace GEMLENS_ISA
}  // namespace gemlens
