// Weights of 16 rows side by side: what a file holds, in an order that a processor reads in one go.
//
//     blocks of 16 rows, as ggml-common.h lays them out -> one tile of about as many bytes -> codes, scales, offsets
//
// A weight is scale * code - offset. In a tile, four neighbouring codes of each row follow each other, row after row: the
// 64 bytes of a quad. Nibbles of quads 0..3 lie low and of 4..7 high; fifth and further bits follow in the same order.
// Formats whose codes have a sign store them plus `zero`, so that all codes are unsigned.
#pragma once

#include "simd.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {  // each instruction set compiles this file anew

enum Format : int { Q4_0 = 2, Q5_0 = 6, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14 };  // ggml's numbers

inline std::uint16_t half_at(const std::uint8_t* bytes) {
    std::uint16_t bits;
    std::memcpy(&bits, bytes, sizeof bits);
    return bits;
}

// Where code i of 32 of a row lies among the 64 bytes of its quad.
inline int quad_of(int i) { return i / 4; }
inline int byte_of(int row, int i) { return 4 * row + i % 4; }

// Four codes at a time: those of a quad are four bytes of a word. Each puts the 32 codes of a row's group.
inline std::uint32_t word_at(const std::uint8_t* bytes) {
    std::uint32_t word;
    std::memcpy(&word, bytes, sizeof word);
    return word;
}
inline void put_nibbles(std::uint8_t* nibbles, int row, const std::uint8_t* codes) {
    for (int j = 0; j < 4; ++j) {
        const std::uint32_t low = word_at(codes + 4 * j) & 0x0f0f0f0f, high = word_at(codes + 4 * (j + 4)) & 0x0f0f0f0f;
        const std::uint32_t both = low | high << 4;
        std::memcpy(nibbles + 64 * j + 4 * row, &both, sizeof both);
    }
}
// Bit i of `fifths` is that of code i.
inline void put_fifths(std::uint8_t* bits, int row, std::uint32_t fifths) {
    for (int j = 0; j < QUADS; ++j) bits[8 * j + row / 2] |= static_cast<std::uint8_t>((fifths >> (4 * j) & 15) << (row % 2 * 4));
}
inline std::uint32_t fifths_of(const std::uint8_t* codes) {
    std::uint32_t all = 0;
    for (int j = 0; j < QUADS; ++j) {
        const std::uint32_t fifths = word_at(codes + 4 * j) >> 4 & 0x01010101;
        all |= ((fifths | fifths >> 7 | fifths >> 14 | fifths >> 21) & 15) << (4 * j);
    }
    return all;
}
inline void put_pairs(std::uint8_t* pairs, int row, const std::uint8_t* codes) {
    for (int part = 0; part < 2; ++part) {
        std::uint32_t four = 0;
        for (int j = 0; j < 4; ++j) four |= (word_at(codes + 16 * part + 4 * j) >> 4 & 0x03030303) << (2 * j);
        std::memcpy(pairs + 64 * part + 4 * row, &four, sizeof four);
    }
}
// Of Q4_0 and Q5_0, whose 16 bytes hold codes 0..15 low and 16..31 high: a quad's bytes are as they are wanted.
inline void put_bytes(std::uint8_t* nibbles, int row, const std::uint8_t* bytes) {
    for (int j = 0; j < 4; ++j) std::memcpy(nibbles + 64 * j + 4 * row, bytes + 4 * j, 4);
}

inline Simd::Codes nibbles_of(const std::uint8_t* nibbles, int quad) {
    return Simd::nibbles(Simd::load(nibbles + 64 * (quad % 4)), quad / 4 * 4);
}

// The six-bit steps and offsets of the eight groups of a Q4_K or Q5_K block; see kernels/reference.py.
inline void steps_of(const std::uint8_t* packed, int group, int& step, int& offset) {
    if (group < 4) {
        step = packed[group] & 63;
        offset = packed[group + 4] & 63;
    } else {
        step = (packed[group + 4] & 15) | ((packed[group - 4] >> 2) & 48);
        offset = (packed[group + 4] >> 4) | ((packed[group] >> 2) & 48);
    }
}

// Each layout: BLOCK weights of a row in BYTES of a file; TILE bytes for 16 of them, and REST bytes behind all tiles of
// the same 16 rows.
//     pack(row, block, tile, rest)      puts a row's block into a zeroed tile
//     codes(tile, rest, group, quad)    of a group of 32, at most MOST
//     scale(tile, group, half)          of half a group; both halves are the same but in Q6_K
//     offset(tile, group)               what is subtracted, where HAS_OFFSET; else `scale * ZERO` is
struct TileQ4_0 {
    static constexpr int BLOCK = 32, BYTES = 18, TILE = 32 + 256, REST = 0, ZERO = 8;
    using Codes = Simd::Codes;
    static constexpr int MOST = 15;
    static constexpr bool HAS_OFFSET = false, SPLIT = false;
    static void pack(int row, const std::uint8_t* block, std::uint8_t* tile, std::uint8_t*) {
        std::memcpy(tile + 2 * row, block, 2);
        put_bytes(tile + 32, row, block + 2);
    }
    static Codes codes(const std::uint8_t* tile, const std::uint8_t*, int, int quad) { return nibbles_of(tile + 32, quad); }
    static Simd::Floats scale(const std::uint8_t* tile, int, int) { return Simd::halves(tile); }
};

struct TileQ5_0 {
    static constexpr int BLOCK = 32, BYTES = 22, TILE = 32 + 256 + 64, REST = 0, ZERO = 16;
    using Codes = Simd::Codes;
    static constexpr int MOST = 31;
    static constexpr bool HAS_OFFSET = false, SPLIT = false;
    static void pack(int row, const std::uint8_t* block, std::uint8_t* tile, std::uint8_t*) {
        std::memcpy(tile + 2 * row, block, 2);
        put_bytes(tile + 32, row, block + 6);
        put_fifths(tile + 288, row, word_at(block + 2));
    }
    static Codes codes(const std::uint8_t* tile, const std::uint8_t*, int, int quad) {
        return Simd::add_where(nibbles_of(tile + 32, quad), tile + 288 + 8 * quad);
    }
    static Simd::Floats scale(const std::uint8_t* tile, int, int) { return Simd::halves(tile); }
};

// Codes are cut: upper nibbles, scales and the sizes of what is left lie in front, lower nibbles behind those of all
// blocks. So half of the bytes tell what a product can be at most; see `screen` in kernels.cpp.
struct TileQ8_0 {
    static constexpr int BLOCK = 32, BYTES = 34, TILE = 32 + 16 + 256, REST = 256, ZERO = Simd::WIDE_ZERO;
    using Codes = Simd::Wide;
    static constexpr int MOST = 255;
    static constexpr bool HAS_OFFSET = false, SPLIT = false;
    static constexpr float SIZE = 2.99f;  // steps of the size of a row's lower nibbles, each less 7.5: at most 127
    static void pack(int row, const std::uint8_t* block, std::uint8_t* tile, std::uint8_t* rest) {
        std::uint8_t upper[32], lower[32];
        int squares = 0, sum = 0;
        for (int i = 0; i < 32; ++i) {
            upper[i] = (block[2 + i] ^ 0x80) >> 4;
            lower[i] = block[2 + i] & 15;
            squares += lower[i] * lower[i];
            sum += lower[i];
        }
        std::memcpy(tile + 2 * row, block, 2);
        put_nibbles(tile + 48, row, upper);
        put_nibbles(rest, row, lower);
        const auto size = std::sqrt(static_cast<float>(squares - 15 * sum + 32 * 225 / 4));
        tile[32 + row] = static_cast<std::uint8_t>(std::ceil(SIZE * size));
    }
    static double squares(const std::uint8_t* block) {  // of its weights, together
        int sum = 0;
        for (int i = 0; i < 32; ++i) sum += static_cast<std::int8_t>(block[2 + i]) * static_cast<std::int8_t>(block[2 + i]);
        const double scale = from_half(half_at(block));
        return scale * scale * sum;
    }
    static Codes codes(const std::uint8_t* tile, const std::uint8_t* rest, int, int quad) {
        return Simd::above(upper(tile, quad), nibbles_of(rest, quad));
    }
    static Simd::Codes upper(const std::uint8_t* tile, int quad) { return nibbles_of(tile + 48, quad); }
    static Simd::Floats scale(const std::uint8_t* tile, int, int) { return Simd::halves(tile); }
    static Simd::Floats size(const std::uint8_t* tile) { return Simd::signed_bytes(tile + 32); }
};

// Steps and offsets take a byte each here: six bits are unpacked once, which makes a tile 3 % larger.
template <bool FIVE>
struct TileK {
    static constexpr int BLOCK = 256, BYTES = FIVE ? 176 : 144, EACH = FIVE ? 320 : 256;
    static constexpr int TILE = 64 + 256 + 8 * EACH, REST = 0, ZERO = 0;
    using Codes = Simd::Codes;
    static constexpr int MOST = FIVE ? 31 : 15;
    static constexpr bool HAS_OFFSET = true, SPLIT = false;
    static void pack(int row, const std::uint8_t* block, std::uint8_t* tile, std::uint8_t*) {
        std::memcpy(tile + 2 * row, block, 2);
        std::memcpy(tile + 32 + 2 * row, block + 2, 2);
        const std::uint8_t *fifth = block + 16, *nibbles = block + (FIVE ? 48 : 16);
        for (int group = 0; group < 8; ++group) {
            int step, offset;
            steps_of(block + 4, group, step, offset);
            tile[64 + 32 * group + row] = step;
            tile[64 + 32 * group + 16 + row] = offset;
            std::uint8_t* place = tile + 320 + EACH * group;
            std::uint8_t codes[32];
            for (int i = 0; i < 32; ++i) {
                codes[i] = nibbles[32 * (group / 2) + i] >> (group % 2 ? 4 : 0) & 15;
                if (FIVE) codes[i] |= ((fifth[i] >> group) & 1) << 4;
            }
            put_nibbles(place, row, codes);
            if (FIVE) put_fifths(place + 256, row, fifths_of(codes));
        }
    }
    static Codes codes(const std::uint8_t* tile, const std::uint8_t*, int group, int quad) {
        const std::uint8_t* place = tile + 320 + EACH * group;
        const auto nibbles = nibbles_of(place, quad);
        return FIVE ? Simd::add_where(nibbles, place + 256 + 8 * quad) : nibbles;
    }
    static Simd::Floats scale(const std::uint8_t* tile, int group, int) {
        return Simd::multiply(Simd::halves(tile), Simd::signed_bytes(tile + 64 + 32 * group));
    }
    static Simd::Floats offset(const std::uint8_t* tile, int group) {
        return Simd::multiply(Simd::halves(tile + 32), Simd::signed_bytes(tile + 64 + 32 * group + 16));
    }
};
using TileQ4_K = TileK<false>;
using TileQ5_K = TileK<true>;

struct TileQ6_K {
    static constexpr int BLOCK = 256, BYTES = 210, TILE = 32 + 256 + 8 * 384, REST = 0, ZERO = 32;
    using Codes = Simd::Codes;
    static constexpr int MOST = 63;
    static constexpr bool HAS_OFFSET = false, SPLIT = true;
    static void pack(int row, const std::uint8_t* block, std::uint8_t* tile, std::uint8_t*) {
        std::memcpy(tile + 2 * row, block + 208, 2);
        for (int half = 0; half < 16; ++half) tile[32 + 16 * half + row] = block[192 + half];
        for (int group = 0; group < 8; ++group) {
            const int part = group / 4, run = group % 4;  // two parts of four runs of 32 weights
            std::uint8_t codes[32];
            for (int i = 0; i < 32; ++i) {
                const int low = block[64 * part + 32 * (run % 2) + i] >> (run < 2 ? 0 : 4);
                codes[i] = (low & 15) | ((block[128 + 32 * part + i] >> (2 * run)) & 3) << 4;
            }
            std::uint8_t* place = tile + 288 + 384 * group;
            put_nibbles(place, row, codes);
            put_pairs(place + 256, row, codes);
        }
    }
    static Codes codes(const std::uint8_t* tile, const std::uint8_t*, int group, int quad) {
        const std::uint8_t* place = tile + 288 + 384 * group;
        return Simd::add_pair(nibbles_of(place, quad), Simd::load(place + 256 + 64 * (quad / 4)), 2 * (quad % 4));
    }
    static Simd::Floats scale(const std::uint8_t* tile, int group, int half) {
        return Simd::multiply(Simd::halves(tile), Simd::signed_bytes(tile + 32 + 16 * (2 * group + half)));
    }
};

}  // namespace GEMLENS_ISA
}  // namespace gemlens
