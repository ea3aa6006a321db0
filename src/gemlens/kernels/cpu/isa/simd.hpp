// Sixteen rows at a time: the few operations that kernels are written in, once per instruction set.
//
// A `Codes` is 64 unsigned bytes: of each of 16 rows, four neighbouring weights. `dot` multiplies them with four
// numbers of a token, so that one `Ints` holds the sums of 16 rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../kernels.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {  // each instruction set compiles this file anew

constexpr int ROWS = 16;   // of a tile
constexpr int GROUP = 32;  // weights of a row that share a scale
constexpr int QUADS = GROUP / 4;
constexpr float SMALLEST = 1e-36f;  // of numbers in bytes; as in kernels/reference.py

constexpr int log2_of(int power) { return power > 1 ? 1 + log2_of(power / 2) : 0; }

// e^x to about 1e-7 of it, for numbers from -87 to 88; others count as the nearest of these.
inline float exp_of(float number) {
    const float x = std::min(std::max(-87.0f, number), 88.0f);  // -87 where it is no number
    const float turns = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // to the nearest whole number
    const float rest = (x - turns * 0.693359375f) + turns * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    for (const float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        sum = sum * rest + factor;
    sum = sum * rest * rest + rest + 1.0f;
    const std::int32_t bits = (static_cast<std::int32_t>(turns) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return number == number ? sum * power : number;
}

// How numbers become bytes: times `factor` they are steps of `scale`, of which the largest has 127. What is not finite makes
// all of them 0 and the scale NaN.
struct Steps {
    float factor, scale;
};
inline Steps steps_of(const float* numbers, std::int64_t count) {
    // Sizes of floats compare as their bits do, and what is not finite is larger than all that is.
    std::uint32_t most = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, numbers + i, sizeof bits);
        most = std::max(most, bits & 0x7fffffffu);
    }
    float largest;
    std::memcpy(&largest, &most, sizeof largest);
    if (most >= 0x7f800000u) return {0.0f, std::numeric_limits<float>::quiet_NaN()};
    return {largest >= SMALLEST ? 127.0f / largest : 0.0f, largest / 127.0f};
}

// What stands behind `count` bytes: of number i, the size of its steps.
inline float step_of(const std::int8_t* bytes, std::int64_t count, std::int64_t i) {
    float step;
    std::memcpy(&step, bytes + count + i / BYTES * std::int64_t{sizeof step}, sizeof step);
    return step;
}

// The nearest whole number; 0 for what is no number.
inline std::int32_t whole_of(float number) {
    return number == number ? static_cast<std::int32_t>(std::nearbyint(number)) : 0;
}

inline float from_half(std::uint16_t bits) {
    const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent == 0) {
        const float value = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -value : value;
    }
    const std::uint32_t wide = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (fraction << 13);
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

inline float from_brain(std::uint16_t brain) {  // of bfloat16
    const std::uint32_t bits = static_cast<std::uint32_t>(brain) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint16_t to_brain(float value) {  // to the nearest even
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<std::uint16_t>(value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0u);
}

#if defined(GEMLENS_AVX512)

struct Simd {
    using Codes = __m512i;
    using Ints = __m512i;
    using Floats = __m512;

    static Codes load(const std::uint8_t* bytes) { return _mm512_loadu_si512(bytes); }
    static Codes low(Codes bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
    static Codes high(Codes bytes) { return low(_mm512_srli_epi16(bytes, 4)); }
    static Codes add_where(Codes codes, const std::uint8_t* bits) {  // 16, where a bit is set
        std::uint64_t mask;
        std::memcpy(&mask, bits, sizeof mask);
        return _mm512_mask_add_epi8(codes, mask, codes, _mm512_set1_epi8(16));
    }
    template <int SHIFT>
    static Codes add_pair(Codes codes, Codes bits) {  // two bits of each byte, above the low four
        const __m512i two = _mm512_and_si512(_mm512_srli_epi16(bits, SHIFT), _mm512_set1_epi8(3));
        return _mm512_or_si512(codes, _mm512_slli_epi16(two, 4));
    }
    static Codes above(Codes high, Codes low) { return _mm512_or_si512(_mm512_slli_epi16(high, 4), low); }
    static constexpr int WIDE_ZERO = 128;  // what `dot` leaves in codes of eight bits
    static Ints ints(std::int32_t number) { return _mm512_set1_epi32(number); }
    template <int FACTOR>
    static Ints times(std::int32_t number) {
        return FACTOR ? _mm512_slli_epi32(ints(number), log2_of(FACTOR)) : ints(0);
    }
    template <bool WIDE>
    static Ints dot(Ints sums, Codes codes, const std::int8_t* four) {
        std::int32_t numbers;
        std::memcpy(&numbers, four, sizeof numbers);
        return _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(numbers));
    }
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
};

#elif defined(GEMLENS_AVX2)

struct Simd {
    struct Codes { __m256i part[2]; };
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
    static Codes above(Codes high, Codes low) {
        return both<Codes>([&](int i) { return _mm256_or_si256(_mm256_slli_epi16(high.part[i], 4), low.part[i]); });
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
    template <bool WIDE>
    static Ints dot(Ints sums, Codes codes, const std::int8_t* four) {
        std::int32_t numbers;
        std::memcpy(&numbers, four, sizeof numbers);
        const __m256i x = _mm256_set1_epi32(numbers), one = _mm256_set1_epi16(1), nibble = _mm256_set1_epi8(15);
        return both<Ints>([&](int i) {
            // A pair of products must fit into 16 bits: with codes up to 63 it does. Wide ones are cut into nibbles.
            if constexpr (WIDE) {
                const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(codes.part[i], nibble), x);
                const __m256i shifted = _mm256_and_si256(_mm256_srli_epi16(codes.part[i], 4), nibble);
                const __m256i high = _mm256_maddubs_epi16(shifted, x);
                const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(low, one),
                                                     _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
                return _mm256_add_epi32(sums.part[i], sum);
            }
            const __m256i pairs = _mm256_maddubs_epi16(codes.part[i], x);
            return _mm256_add_epi32(sums.part[i], _mm256_madd_epi16(pairs, one));
        });
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
};

#else

struct Simd {
    struct Codes { std::uint8_t at[64]; };
    struct Ints { std::int32_t at[ROWS]; };
    struct Floats { float at[ROWS]; };

    static Codes load(const std::uint8_t* bytes) {
        Codes codes;
        std::memcpy(codes.at, bytes, sizeof codes.at);
        return codes;
    }
    static Codes low(Codes bytes) {
        for (auto& byte : bytes.at) byte &= 15;
        return bytes;
    }
    static Codes high(Codes bytes) {
        for (auto& byte : bytes.at) byte >>= 4;
        return bytes;
    }
    static Codes add_where(Codes codes, const std::uint8_t* bits) {
        for (int i = 0; i < 64; ++i) codes.at[i] += ((bits[i / 8] >> (i % 8)) & 1) << 4;
        return codes;
    }
    template <int SHIFT>
    static Codes add_pair(Codes codes, Codes bits) {
        for (int i = 0; i < 64; ++i) codes.at[i] |= ((bits.at[i] >> SHIFT) & 3) << 4;
        return codes;
    }
    static Codes above(Codes high, Codes low) {
        for (int i = 0; i < 64; ++i) low.at[i] |= high.at[i] << 4;
        return low;
    }
    static constexpr int WIDE_ZERO = 0;
    static Ints ints(std::int32_t number) {
        Ints sums;
        for (auto& each : sums.at) each = number;
        return sums;
    }
    template <int FACTOR>
    static Ints times(std::int32_t number) { return ints(FACTOR * number); }
    template <bool WIDE>
    static Ints dot(Ints sums, Codes codes, const std::int8_t* four) {
        for (int row = 0; row < ROWS; ++row)
            for (int i = 0; i < 4; ++i) sums.at[row] += (codes.at[4 * row + i] - (WIDE ? 128 : 0)) * four[i];
        return sums;
    }
    static Ints plus(Ints a, Ints b) {
        for (int row = 0; row < ROWS; ++row) a.at[row] += b.at[row];
        return a;
    }
    static constexpr int LINES = 2, COLUMNS = 1;
    static Floats load(const float* place) {
        Floats values;
        std::memcpy(values.at, place, sizeof values.at);
        return values;
    }
    static Floats zero() { return Floats{}; }
    static Floats all(float value) {
        Floats values;
        for (auto& each : values.at) each = value;
        return values;
    }
    static Floats real(Ints sums) {
        Floats values;
        for (int row = 0; row < ROWS; ++row) values.at[row] = static_cast<float>(sums.at[row]);
        return values;
    }
    static Floats halves(const std::uint8_t* bytes) {
        Floats values;
        for (int row = 0; row < ROWS; ++row) {
            std::uint16_t bits;
            std::memcpy(&bits, bytes + 2 * row, sizeof bits);
            values.at[row] = from_half(bits);
        }
        return values;
    }
    static Floats brains(const std::uint8_t* bytes) {
        Floats values;
        for (int row = 0; row < ROWS; ++row) {
            std::uint16_t bits;
            std::memcpy(&bits, bytes + 2 * row, sizeof bits);
            const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
            std::memcpy(&values.at[row], &wide, sizeof wide);
        }
        return values;
    }
    static Floats plus(Floats a, Floats b) {
        for (int row = 0; row < ROWS; ++row) a.at[row] += b.at[row];
        return a;
    }
    static Floats signed_bytes(const std::uint8_t* bytes) {
        Floats values;
        for (int row = 0; row < ROWS; ++row) values.at[row] = static_cast<float>(static_cast<std::int8_t>(bytes[row]));
        return values;
    }
    static Floats absolute(Floats a) {
        for (auto& each : a.at) each = std::fabs(each);
        return a;
    }
    static float sum(Floats a) {
        float all = 0.0f;
        for (const float each : a.at) all += each;
        return all;
    }
    static Floats multiply(Floats a, Floats b) {
        for (int row = 0; row < ROWS; ++row) a.at[row] *= b.at[row];
        return a;
    }
    static Floats multiply_add(Floats a, Floats b, Floats sum) {
        for (int row = 0; row < ROWS; ++row) sum.at[row] = std::fma(a.at[row], b.at[row], sum.at[row]);
        return sum;
    }
    static void store(float* place, Floats values) { std::memcpy(place, values.at, sizeof values.at); }
};

#endif

}  // namespace GEMLENS_ISA
}  // namespace gemlens
