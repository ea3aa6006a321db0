// Sixteen rows in AVX-512: one register. See simd.hpp.
#pragma once

#include <immintrin.h>

#include "scalars.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {  // each instruction set compiles this file anew

struct Simd {
    using Codes = __m512i;
    using Wide = Codes;
    using Ints = __m512i;
    using Floats = __m512;

    static Codes load(const std::uint8_t* bytes) { return _mm512_loadu_si512(bytes); }
    static Codes nibbles(Codes bytes, int shift) {
        return _mm512_and_si512(_mm512_srli_epi16(bytes, static_cast<unsigned>(shift)), _mm512_set1_epi8(15));
    }
    static Floats column(Codes codes, int i) {
        return real(_mm512_dpbusd_epi32(ints(0), codes, ints(1 << (8 * i))));
    }
    static Codes add_where(Codes codes, const std::uint8_t* bits) {  // 16, where a bit is set
        std::uint64_t mask;
        std::memcpy(&mask, bits, sizeof mask);
        return _mm512_mask_add_epi8(codes, mask, codes, _mm512_set1_epi8(16));
    }
    static Codes add_pair(Codes codes, Codes bits, int shift) {  // two bits of each byte, above the low four
        const __m512i two = _mm512_and_si512(_mm512_srli_epi16(bits, shift), _mm512_set1_epi8(3));
        return _mm512_or_si512(codes, _mm512_slli_epi16(two, 4));
    }
    static Wide above(Codes high, Codes low) { return _mm512_or_si512(_mm512_slli_epi16(high, 4), low); }
    static void put(Codes codes, std::uint8_t* bytes) { _mm512_storeu_si512(bytes, codes); }
    static constexpr int WIDE_ZERO = 128;  // what `add` leaves in codes of eight bits
    static Ints ints(std::int32_t number) { return _mm512_set1_epi32(number); }
    template <int FACTOR>
    static Ints times(std::int32_t number) {
        return FACTOR ? _mm512_slli_epi32(ints(number), log2_of(FACTOR)) : ints(0);
    }
    static constexpr int ASKING = 4;  // lines from which on it pays to ask for memory ahead
    static constexpr std::int64_t SCREENED = 4;  // tokens: reading less saves more than a screen's sums cost
    static constexpr int TOGETHER = 1;  // lines that are multiplied with one code after the other
    template <class Tile, int COUNT, class Quad>
    static void multiply(Quad quad, const Group* x, std::int64_t stride, Ints* first, Ints* second) {
        for (int t = 0; t < COUNT; ++t) {
            const Group& group = x[t * stride];
            first[t] = times<Tile::ZERO>(group.less[0]);
            second[t] = times<Tile::ZERO>(group.less[1]);
            for (int j = 0; j < QUADS / 2; ++j) {
                first[t] = _mm512_dpbusd_epi32(first[t], quad(j), four(group, j));
                second[t] = _mm512_dpbusd_epi32(second[t], quad(j + QUADS / 2), four(group, j + QUADS / 2));
            }
            if (!Tile::SPLIT) first[t] = plus(first[t], second[t]);
        }
    }
    static std::int32_t less_of(const Group& group) { return group.less[0] + group.less[1]; }
    static Ints plus(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
    static constexpr int LINES = 6, COLUMNS = 4;  // of sums that registers hold
    static Floats load(const float* place) { return _mm512_loadu_ps(place); }
    static Floats zero() { return _mm512_setzero_ps(); }
    static Floats all(float value) { return _mm512_set1_ps(value); }
    static Floats real(Ints sums) { return _mm512_cvtepi32_ps(sums); }
    static Floats halves(const std::uint8_t* bytes) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
    }
    static Floats brains(const std::uint8_t* bytes) {  // of bfloat16
        const __m256i sixteen = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 16));
    }
    static Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
    static Floats signed_bytes(const std::uint8_t* bytes) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))));
    }
    static Floats absolute(Floats a) { return _mm512_abs_ps(a); }
    static float sum(Floats a) { return _mm512_reduce_add_ps(a); }
    static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static Floats multiply_add(Floats a, Floats b, Floats sum) { return _mm512_fmadd_ps(a, b, sum); }
    static void store(float* place, Floats values) { _mm512_storeu_ps(place, values); }

    static std::int32_t put_codes(const float* numbers, float factor, float largest, Group& group) {
        __m128i* const codes = reinterpret_cast<__m128i*>(group.codes);
        for (int half = 0; half < 2; ++half) {
            const __m512 own = _mm512_loadu_ps(numbers + 16 * half);
            const __mmask16 counts = _mm512_cmp_ps_mask(_mm512_abs_ps(own), _mm512_set1_ps(largest), _CMP_LE_OQ);
            const __m512 scaled = _mm512_maskz_mul_ps(counts, own, _mm512_set1_ps(factor));
            _mm_storeu_si128(codes + half, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(scaled)));
            const __m128i sums = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), _mm_loadu_si128(codes + half));
            const __m128i pairs = _mm_add_epi32(sums, _mm_srli_si128(sums, 8));
            group.less[half] = -_mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_srli_si128(pairs, 4)));
        }
        return less_of(group);
    }

private:
    static __m512i four(const Group& x, int quad) { return _mm512_set1_epi32(four_of(x, quad)); }
};

}  // namespace GEMLENS_ISA
}  // namespace gemlens
