// Sixteen rows in AVX2: two registers. See simd.hpp.
#pragma once

#include <immintrin.h>

#include "scalars.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {  // each instruction set compiles this file anew

struct Simd {
    struct Codes { __m256i part[2]; };
    struct Wide { Codes high, low; };  // nibbles
    struct Ints { __m256i part[2]; };
    struct Floats { __m256 part[2]; };

    template <class Result, class Each>
    static Result both(Each each) { return Result{{each(0), each(1)}}; }

    static Codes load(const std::uint8_t* bytes) {
        return both<Codes>([&](int i) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes) + i); });
    }
    static Codes low(Codes bytes) {
        return both<Codes>([&](int i) { return _mm256_and_si256(bytes.part[i], _mm256_set1_epi8(15)); });
    }
    static Codes high(Codes bytes) {
        return low(both<Codes>([&](int i) { return _mm256_srli_epi16(bytes.part[i], 4); }));
    }
    static Codes add_where(Codes codes, const std::uint8_t* bits) {
        const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                                2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
        const __m256i each = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
        return both<Codes>([&](int i) {
            std::int32_t four;
            std::memcpy(&four, bits + 4 * i, sizeof four);
            const __m256i bytes = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(four), spread), each);
            const __m256i is_set = _mm256_cmpeq_epi8(bytes, each);
            return _mm256_add_epi8(codes.part[i], _mm256_and_si256(is_set, _mm256_set1_epi8(16)));
        });
    }
    template <int SHIFT>
    static Codes add_pair(Codes codes, Codes bits) {
        return both<Codes>([&](int i) {
            const __m256i two = _mm256_and_si256(_mm256_srli_epi16(bits.part[i], SHIFT), _mm256_set1_epi8(3));
            return _mm256_or_si256(codes.part[i], _mm256_slli_epi16(two, 4));
        });
    }
    static Wide above(Codes high, Codes low) { return {high, low}; }
    static void put(Codes codes, std::uint8_t* bytes) { std::memcpy(bytes, codes.part, sizeof codes.part); }
    static void put(Wide codes, std::uint8_t* bytes) {
        put(both<Codes>([&](int i) { return _mm256_or_si256(_mm256_slli_epi16(codes.high.part[i], 4), codes.low.part[i]); }), bytes);
    }
    static constexpr int WIDE_ZERO = 128;
    static Ints ints(std::int32_t number) {
        return both<Ints>([&](int) { return _mm256_set1_epi32(number); });
    }
    template <int FACTOR>
    static Ints times(std::int32_t number) {
        if (FACTOR == 0) return ints(0);
        return both<Ints>([&](int) { return _mm256_slli_epi32(_mm256_set1_epi32(number), log2_of(FACTOR)); });
    }
    static constexpr int TOGETHER = 4;
    // Of nibbles, the sums of both halves come as `first`.
    template <int ZERO, int MOST, int COUNT>
    static void multiply(const Codes* codes, const Group* x, std::int64_t stride, Ints* first, Ints* second) {
        std::fill_n(first, COUNT, ints(0));
        std::fill_n(second, COUNT, ints(0));
        add<1, MOST, COUNT>([=](int j) { return codes + j; }, x, stride, first, second);
        add_less<ZERO, MOST <= 15, COUNT>(x, stride, first, second);
    }
    template <int ZERO, int MOST, int COUNT>
    static void multiply(const Wide* codes, const Group* x, std::int64_t stride, Ints* first, Ints* second) {
        std::fill_n(first, COUNT, ints(0));
        std::fill_n(second, COUNT, ints(0));
        add<1, 15, COUNT>([=](int j) { return &codes[j].low; }, x, stride, first, second);
        add<16, 15, COUNT>([=](int j) { return &codes[j].high; }, x, stride, first, second);
        add_less<ZERO, true, COUNT>(x, stride, first, second);
    }
    static Ints plus(Ints a, Ints b) {
        return both<Ints>([&](int i) { return _mm256_add_epi32(a.part[i], b.part[i]); });
    }
    static constexpr int LINES = 3, COLUMNS = 2;
    static Floats load(const float* place) {
        return both<Floats>([&](int i) { return _mm256_loadu_ps(place + 8 * i); });
    }
    static Floats zero() { return all(0.0f); }
    static Floats all(float value) { return both<Floats>([&](int) { return _mm256_set1_ps(value); }); }
    static Floats real(Ints sums) {
        return both<Floats>([&](int i) { return _mm256_cvtepi32_ps(sums.part[i]); });
    }
    static Floats halves(const std::uint8_t* bytes) {
        return both<Floats>([&](int i) {
            return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes) + i));
        });
    }
    static Floats brains(const std::uint8_t* bytes) {
        return both<Floats>([&](int i) {
            const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes) + i);
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
        });
    }
    static Floats plus(Floats a, Floats b) {
        return both<Floats>([&](int i) { return _mm256_add_ps(a.part[i], b.part[i]); });
    }
    static Floats signed_bytes(const std::uint8_t* bytes) {
        return both<Floats>([&](int i) {
            const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + 8 * i));
            return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
        });
    }
    static Floats absolute(Floats a) {
        return both<Floats>([&](int i) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.part[i]); });
    }
    static float sum(Floats a) {
        const __m256 eight = _mm256_add_ps(a.part[0], a.part[1]);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    static Floats multiply(Floats a, Floats b) {
        return both<Floats>([&](int i) { return _mm256_mul_ps(a.part[i], b.part[i]); });
    }
    static Floats multiply_add(Floats a, Floats b, Floats sum) {
        return both<Floats>([&](int i) { return _mm256_fmadd_ps(a.part[i], b.part[i], sum.part[i]); });
    }
    static void store(float* place, Floats values) {
        _mm256_storeu_ps(place, values.part[0]);
        _mm256_storeu_ps(place + 8, values.part[1]);
    }

    static void put_codes(const float* numbers, float factor, Group& group) {
        const auto eight = [&](int i) {
            const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(numbers + 8 * i), _mm256_set1_ps(factor));
            return _mm256_cvtps_epi32(_mm256_and_ps(scaled, _mm256_cmp_ps(scaled, scaled, _CMP_ORD_Q)));
        };
        const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(eight(0), eight(1)), _mm256_packs_epi32(eight(2), eight(3)));
        const __m256i codes = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(group.codes), codes);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
        const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(-1)), zero = _mm256_setzero_si256();
        const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(fours, zero), zero);
        group.less[0] = _mm256_extract_epi32(sums, 0);
        group.less[1] = _mm256_extract_epi32(sums, 4);
    }

private:
    template <int ZERO, bool ARE_ONE, int COUNT>
    static void add_less(const Group* x, std::int64_t stride, Ints* first, Ints* second) {
        if (ZERO == 0) return;
#pragma GCC unroll 4
        for (int t = 0; t < COUNT; ++t) {
            const std::int32_t* less = x[t * stride].less;
            first[t] = plus(first[t], times<ZERO>(ARE_ONE ? less[0] + less[1] : less[0]));
            if (!ARE_ONE) second[t] = plus(second[t], times<ZERO>(less[1]));
        }
    }
    template <int FACTOR, int MOST, int COUNT, class Quad>
    static void add(Quad quad, const Group* x, std::int64_t stride, Ints* first, Ints* second) {
        constexpr int FIT = std::min(32767 / (2 * 127 * MOST), QUADS), EACH = std::max(FIT, QUADS / 2);
        static_assert(EACH % FIT == 0);
        const auto product = [&](int t, int j, int i) {
            return reinterpret_cast<__v16hi>(_mm256_maddubs_epi16(quad(j)->part[i], _mm256_set1_epi32(four_of(x[t * stride], j))));
        };
        const auto whole = [](__v16hi pairs) {
            return reinterpret_cast<__v8si>(_mm256_madd_epi16(reinterpret_cast<__m256i>(pairs), _mm256_set1_epi16(FACTOR)));
        };
#pragma GCC unroll 2  // or sums would lie in memory
        for (int half = 0; half < QUADS; half += EACH) {
            __v8si sums[COUNT][2] = {};
            if constexpr (FIT < EACH) {
#pragma GCC unroll 1
                for (int j = half; j < half + EACH; j += FIT)
#pragma GCC unroll 4
                    for (int t = 0; t < COUNT; ++t)
                        for (int i = 0; i < 2; ++i) sums[t][i] += whole(product(t, j, i) + product(t, j + 1, i));
            } else {
                __v16hi pairs[COUNT][2] = {};
#pragma GCC unroll 1  // or all products would be made before they are added, and lie in memory
                for (int j = half; j < half + EACH; ++j)
#pragma GCC unroll 4
                    for (int t = 0; t < COUNT; ++t)
                        for (int i = 0; i < 2; ++i) pairs[t][i] += product(t, j, i);
#pragma GCC unroll 4
                for (int t = 0; t < COUNT; ++t)
                    for (int i = 0; i < 2; ++i) sums[t][i] = whole(pairs[t][i]);
            }
            Ints* const all = half == 0 ? first : second;
#pragma GCC unroll 4
            for (int t = 0; t < COUNT; ++t)
                for (int i = 0; i < 2; ++i) all[t].part[i] = _mm256_add_epi32(all[t].part[i], reinterpret_cast<__m256i>(sums[t][i]));
        }
    }
};

}  // namespace GEMLENS_ISA
}  // namespace gemlens
