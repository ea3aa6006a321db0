// Sixteen rows in AVX2: two registers. See simd.hpp.
#pragma once

#include <immintrin.h>

#include <type_traits>

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
    static Codes nibbles(Codes bytes, int shift) {
        return both<Codes>([&](int i) { return _mm256_and_si256(_mm256_srli_epi16(bytes.part[i], shift), _mm256_set1_epi8(15)); });
    }
    static Floats column(const Codes& codes, int i) {
        alignas(16) static constexpr std::int32_t FROM[4][4] = {{-256, -252, -248, -244}, {-255, -251, -247, -243},
                                                                {-254, -250, -246, -242}, {-253, -249, -245, -241}};
        const __m256i from = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(FROM[i])));
        return both<Floats>([&](int n) { return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(codes.part[n], from)); });
    }
    static Floats column(const Wide& codes, int i) { return multiply_add(column(codes.high, i), all(16.0f), column(codes.low, i)); }
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
    static Codes add_pair(Codes codes, Codes bits, int shift) {
        return both<Codes>([&](int i) {
            const __m256i two = _mm256_and_si256(_mm256_srli_epi16(bits.part[i], shift), _mm256_set1_epi8(3));
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
    static constexpr int ASKING = 1;
    static constexpr std::int64_t SCREENED = 16;  // half of the products
    static constexpr int TOGETHER = 4;
    template <class Tile, int COUNT, class Quad>
    static void multiply(Quad quad, const Group* x, std::int64_t stride, Ints* first, Ints* second) {
        for (int t = 0; t < COUNT; ++t) first[t] = second[t] = ints(0);
        if constexpr (Tile::MOST > 63) {
            const auto low = [](const Wide& codes) -> const Codes& { return codes.low; };
            const auto high = [](const Wide& codes) -> const Codes& { return codes.high; };
            add<1, 0, 15, false, COUNT>(quad, low, x, stride, first, second);
            add<16, Tile::ZERO / 16, 15, false, COUNT>(quad, high, x, stride, first, second);
        } else {
            const auto all = [](const Codes& codes) -> const Codes& { return codes; };
            add<1, Tile::ZERO, Tile::MOST, Tile::SPLIT, COUNT>(quad, all, x, stride, first, second);
        }
    }
    static std::int32_t less_of(const Group& group) { return halves_of(group.less[0]); }
    static Ints plus(Ints a, Ints b) {
        return both<Ints>([&](int i) { return _mm256_add_epi32(a.part[i], b.part[i]); });
    }
    static constexpr int LINES = 6, COLUMNS = 1;
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

    static std::int32_t put_codes(const float* numbers, float factor, float largest, Group& group) {
        const auto eight = [&](int i) {
            const __m256 own = _mm256_loadu_ps(numbers + 8 * i), size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), own);
            const __m256 counts = _mm256_cmp_ps(size, _mm256_set1_ps(largest), _CMP_LE_OQ);
            return _mm256_cvtps_epi32(_mm256_and_ps(_mm256_mul_ps(own, _mm256_set1_ps(factor)), counts));
        };
        const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(eight(0), eight(1)), _mm256_packs_epi32(eight(2), eight(3)));
        const __m256i codes = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(group.codes), codes);
        const __m256i zero = _mm256_setzero_si256(), pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
        const __m256i fours = _mm256_add_epi16(pairs, _mm256_srli_si256(pairs, 8));
        const __m256i less = _mm256_sub_epi16(zero, _mm256_add_epi16(fours, _mm256_srli_si256(fours, 4)));
        const __m128i second = _mm256_extracti128_si256(less, 1);
        group.less[0] = _mm_cvtsi128_si32(_mm_add_epi16(_mm256_castsi256_si128(less), second));
        group.less[1] = _mm_cvtsi128_si32(second);
        return halves_of(group.less[0]);
    }

private:
    // `less` is a pair of 16 bits, whose sum is minus that of all numbers, and the same of the second half. Pairs of products
    // begin with it and are summed in 16 bits, as many as surely are no more in the end; how often they are on the way does
    // not matter.
    template <int FACTOR, int ZERO, int MOST, bool SPLIT, int COUNT, class Quad, class Part>
    static void add(Quad quad, Part part, const Group* x, std::int64_t stride, Ints* first, Ints* second) {
        constexpr int FIT = std::min(32767 / (2 * 127 * std::max(ZERO, MOST - ZERO)), QUADS);
        static_assert(SPLIT ? FIT == QUADS / 2 : FIT == QUADS || (FIT == QUADS / 2 && ZERO == 0));
        const auto start = [&](int t, int begin) {
            if (ZERO == 0) return __v16hu{};
            __m256i less = _mm256_set1_epi32(x[t * stride].less[begin / FIT]);
            if (SPLIT && begin == 0) less = _mm256_sub_epi16(less, _mm256_set1_epi32(x[t * stride].less[1]));
            return reinterpret_cast<__v16hu>(_mm256_slli_epi16(less, log2_of(ZERO)));
        };
        const auto products = [&](const auto& all, int j, int t, int i) {
            const __m256i four = _mm256_set1_epi32(four_of(x[t * stride], j));
            return reinterpret_cast<__v16hu>(_mm256_maddubs_epi16(part(all).part[i], four));
        };
#pragma GCC unroll 2  // or sums would lie in memory
        for (int begin = 0; begin < QUADS; begin += FIT) {
            __v16hu pairs[COUNT][2];
#pragma GCC unroll 4
            for (int t = 0; t < COUNT; ++t) pairs[t][0] = pairs[t][1] = start(t, begin);
            if constexpr (std::is_reference_v<decltype(quad(0))>) {  // a short loop over what lies in memory
#pragma GCC unroll 1
                for (int j = begin; j < begin + FIT; ++j) {
                    const auto& all = quad(j);
#pragma GCC unroll 4
                    for (int t = 0; t < COUNT; ++t)
                        for (int i = 0; i < 2; ++i) pairs[t][i] += products(all, j, t, i);
                }
            } else {
#pragma GCC unroll 8
                for (int n = begin; n < begin + FIT; ++n) {
                    const int j = SPLIT ? n : n / 2 + n % 2 * 4;  // nibbles of the same bytes follow each other
                    const auto& all = quad(j);
#pragma GCC unroll 4
                    for (int t = 0; t < COUNT; ++t)
                        for (int i = 0; i < 2; ++i) {
                            pairs[t][i] += products(all, j, t, i);
                            keep(pairs[t][i]);
                        }
                }
            }
            Ints* const sums = SPLIT && begin > 0 ? second : first;
#pragma GCC unroll 4
            for (int t = 0; t < COUNT; ++t)
                for (int i = 0; i < 2; ++i) {
                    const auto whole = _mm256_madd_epi16(reinterpret_cast<__m256i>(pairs[t][i]), _mm256_set1_epi16(FACTOR));
                    sums[t].part[i] = _mm256_add_epi32(sums[t].part[i], whole);
                }
        }
    }

    static std::int32_t halves_of(std::int32_t pair) { return static_cast<std::int16_t>(pair) + (pair >> 16); }

    // Or a compiler would make all products before it adds them, and put them into memory.
    static void keep(__v16hu& sums) { asm("" : "+x"(sums)); }
};

}  // namespace GEMLENS_ISA
}  // namespace gemlens
