// One number at a time: what kernels of every instruction set are made of besides simd.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../kernels.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {  // each instruction set compiles this file anew

constexpr int ROWS = 16;   // of a tile
constexpr int GROUP = 32;  // weights of a row that share a scale
constexpr int QUADS = GROUP / 4;
constexpr float SMALLEST = 1e-36f;  // of numbers in bytes; as in kernels/reference.py

inline std::uint32_t to_bits(float number) {
    std::uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return bits;
}
inline float from_bits(std::uint32_t bits) {
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

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
    const float power = from_bits(static_cast<std::uint32_t>(static_cast<std::int32_t>(turns) + 127) << 23);
    return number == number ? sum * power : number;
}

// Sizes of floats compare as their bits do, and what is not finite is larger than all that is.
inline std::uint32_t size_bits(float number) { return to_bits(number) & 0x7fffffffu; }
inline float largest_of(const float* numbers, std::int64_t count) {
    std::uint32_t most = 0;
    for (std::int64_t i = 0; i < count; ++i) most = std::max(most, size_bits(numbers[i]));
    return from_bits(most);
}

// How numbers become bytes: times `factor` they are steps of `scale`, of which the largest has 127. What is not finite makes
// all of them 0 and the scale NaN.
struct Steps {
    float factor, scale;
};
inline Steps steps_to(float largest) {
    if (!(largest <= std::numeric_limits<float>::max())) return {0.0f, std::numeric_limits<float>::quiet_NaN()};
    return {largest >= SMALLEST ? 127.0f / largest : 0.0f, largest / 127.0f};
}

// What stands behind `count` bytes: of number i, the size of its steps.
inline float step_of(const std::int8_t* bytes, std::int64_t count, std::int64_t i) {
    float step;
    std::memcpy(&step, bytes + count + i / BYTES * std::int64_t{sizeof step}, sizeof step);
    return step;
}

// Four codes of a group, as a number.
inline std::int32_t four_of(const Group& x, int quad) {
    std::int32_t four;
    std::memcpy(&four, x.codes + 4 * quad, sizeof four);
    return four;
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
    return from_bits(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (fraction << 13));
}

inline float from_brain(std::uint16_t brain) { return from_bits(static_cast<std::uint32_t>(brain) << 16); }  // of bfloat16

inline std::uint16_t to_brain(float value) {  // to the nearest even
    const std::uint32_t bits = to_bits(value);
    return static_cast<std::uint16_t>(value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0u);
}

}  // namespace GEMLENS_ISA
}  // namespace gemlens
