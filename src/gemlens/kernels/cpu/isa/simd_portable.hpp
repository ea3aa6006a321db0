// Sixteen rows in plain C++. See simd.hpp.
#pragma once

#include "scalars.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {  // each instruction set compiles this file anew

struct Simd {
    struct Codes { std::uint8_t at[64]; };
    struct Wide { std::uint8_t at[64]; };
    struct Ints { std::int32_t at[ROWS]; };
    struct Floats { float at[ROWS]; };

    static Codes load(const std::uint8_t* bytes) {
        Codes codes;
        std::memcpy(codes.at, bytes, sizeof codes.at);
        return codes;
    }
    static Codes nibbles(Codes bytes, int shift) {
        for (auto& byte : bytes.at) byte = byte >> shift & 15;
        return bytes;
    }
    template <class Any>
    static Floats column(const Any& codes, int i) {
        Floats values;
        for (int row = 0; row < ROWS; ++row) values.at[row] = codes.at[4 * row + i];
        return values;
    }
    static Codes add_where(Codes codes, const std::uint8_t* bits) {
        for (int i = 0; i < 64; ++i) codes.at[i] += ((bits[i / 8] >> (i % 8)) & 1) << 4;
        return codes;
    }
    static Codes add_pair(Codes codes, Codes bits, int shift) {
        for (int i = 0; i < 64; ++i) codes.at[i] |= ((bits.at[i] >> shift) & 3) << 4;
        return codes;
    }
    static Wide above(Codes high, Codes low) {
        Wide codes;
        for (int i = 0; i < 64; ++i) codes.at[i] = static_cast<std::uint8_t>(low.at[i] | high.at[i] << 4);
        return codes;
    }
    template <class Any>
    static void put(Any codes, std::uint8_t* bytes) { std::memcpy(bytes, codes.at, sizeof codes.at); }
    static constexpr int WIDE_ZERO = 0;
    static Ints ints(std::int32_t number) {
        Ints sums;
        for (auto& each : sums.at) each = number;
        return sums;
    }
    template <int FACTOR>
    static Ints times(std::int32_t number) { return ints(FACTOR * number); }
    static constexpr int ASKING = 4;
    static constexpr std::int64_t SCREENED = 4;
    static constexpr int TOGETHER = 1;
    template <class Tile, int COUNT, class Quad>
    static void multiply(Quad quad, const Group* x, std::int64_t stride, Ints* first, Ints* second) {
        constexpr int OWN = Tile::MOST > 63 ? 128 : 0;
        for (int t = 0; t < COUNT; ++t) {
            const Group& group = x[t * stride];
            Ints halves[] = {times<Tile::ZERO>(group.less[0]), times<Tile::ZERO>(group.less[1])};
            for (int j = 0; j < QUADS; ++j) {
                const auto codes = quad(j);
                for (int row = 0; row < ROWS; ++row)
                    for (int i = 0; i < 4; ++i)
                        halves[j / (QUADS / 2)].at[row] += (codes.at[4 * row + i] - OWN) * group.codes[4 * j + i];
            }
            first[t] = Tile::SPLIT ? halves[0] : plus(halves[0], halves[1]);
            second[t] = halves[1];
        }
    }
    static std::int32_t less_of(const Group& group) { return group.less[0] + group.less[1]; }
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
    static Floats halves(const std::uint8_t* bytes) { return widened(bytes, from_half); }
    static Floats brains(const std::uint8_t* bytes) { return widened(bytes, from_brain); }
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

    static std::int32_t put_codes(const float* numbers, float factor, float largest, Group& group) {
        group.less[0] = group.less[1] = 0;
        for (int i = 0; i < GROUP; ++i) {
            group.codes[i] = std::fabs(numbers[i]) <= largest ? static_cast<std::int8_t>(std::nearbyint(numbers[i] * factor)) : 0;
            group.less[i / 16] -= group.codes[i];
        }
        return less_of(group);
    }

private:
    static Floats widened(const std::uint8_t* bytes, float (*from)(std::uint16_t)) {
        Floats values;
        for (int row = 0; row < ROWS; ++row) {
            std::uint16_t bits;
            std::memcpy(&bits, bytes + 2 * row, sizeof bits);
            values.at[row] = from(bits);
        }
        return values;
    }
};

}  // namespace GEMLENS_ISA
}  // namespace gemlens
