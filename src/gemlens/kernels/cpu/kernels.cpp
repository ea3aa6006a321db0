// The kernels of one instruction set, compiled once for each; GEMLENS_ISA is its name.
#include "kernels.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tiles.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {
namespace {

constexpr float SMALLEST = 1e-36f;  // as in kernels/reference.py
constexpr int TOKENS = 8;  // that share what is unpacked of a tile

template <class Use>
auto with_tile(int format, Use use) {
    switch (format) {
        case Q4_0: return use(TileQ4_0{});
        case Q5_0: return use(TileQ5_0{});
        case Q8_0: return use(TileQ8_0{});
        case Q4_K: return use(TileQ4_K{});
        case Q5_K: return use(TileQ5_K{});
        default: return use(TileQ6_K{});
    }
}

Layout layout(int format) {
    if (format != Q4_0 && format != Q5_0 && format != Q8_0 && format != Q4_K && format != Q5_K && format != Q6_K)
        return Layout{};
    return with_tile(format, [](auto tile) {
        using Tile = decltype(tile);
        return Layout{Tile::BLOCK, Tile::BYTES, Tile::TILE};
    });
}

void pack(int format, const std::uint8_t* file, std::int64_t rows, std::int64_t blocks, std::int64_t first,
          std::int64_t last, std::uint8_t* tiles) {
    with_tile(format, [&](auto tile) {
        using Tile = decltype(tile);
        std::fill(tiles + first * blocks * Tile::TILE, tiles + last * blocks * Tile::TILE, std::uint8_t{0});
        for (std::int64_t row = first * ROWS; row < std::min(rows, last * ROWS); ++row)
            for (std::int64_t block = 0; block < blocks; ++block)
                Tile::pack(static_cast<int>(row % ROWS), file + (row * blocks + block) * Tile::BYTES,
                           tiles + (row / ROWS * blocks + block) * Tile::TILE);
    });
}

void row(int format, const std::uint8_t* tiles, std::int64_t row, std::int64_t blocks, float* weights) {
    with_tile(format, [&](auto tile) {
        using Tile = decltype(tile);
        const std::uint8_t* place = tiles + row / ROWS * blocks * Tile::TILE;
        const int lane = static_cast<int>(row % ROWS);
        for (std::int64_t block = 0; block < blocks; ++block, place += Tile::TILE)
            for (int group = 0; group < Tile::BLOCK / GROUP; ++group) {
                Simd::Codes codes[QUADS];
                Tile::codes(place, group, codes);
                std::uint8_t bytes[QUADS][64];
                std::memcpy(bytes, codes, sizeof bytes);
                float scales[2][ROWS], offsets[ROWS] = {};
                for (int half = 0; half < 2; ++half) Simd::store(scales[half], Tile::scale(place, group, half));
                if constexpr (Tile::HAS_OFFSET) Simd::store(offsets, Tile::offset(place, group));
                for (int i = 0; i < GROUP; ++i) {
                    const int code = bytes[quad_of(i)][byte_of(lane, i)] - (Tile::WIDE ? 128 : Tile::ZERO);
                    *weights++ = scales[i / 16][lane] * static_cast<float>(code) - offsets[lane];
                }
            }
    });
}

void quantize(const float* numbers, std::int64_t groups, Group* quantized) {
    for (std::int64_t g = 0; g < groups; ++g, numbers += GROUP) {
        Group& group = quantized[g];
        // Sizes of floats compare as their bits do, and what is not finite is larger than all that is.
        std::uint32_t bits[GROUP], most = 0;
        std::memcpy(bits, numbers, sizeof bits);
        for (int i = 0; i < GROUP; ++i) most = std::max(most, bits[i] & 0x7fffffffu);
        const bool is_finite = most < 0x7f800000u;
        float largest;
        std::memcpy(&largest, &most, sizeof largest);
        const float inverse = is_finite && largest >= SMALLEST ? 127.0f / largest : 0.0f;
        group.scale = is_finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
        std::int32_t codes[GROUP];
        for (int i = 0; i < GROUP; ++i)
            codes[i] = is_finite ? static_cast<std::int32_t>(std::nearbyint(numbers[i] * inverse)) : 0;
        group.sums[0] = group.sums[1] = 0;
        for (int i = 0; i < GROUP; ++i) group.codes[i] = static_cast<std::int8_t>(codes[i]);
        for (int i = 0; i < 16; ++i) group.sums[0] += codes[i];
        for (int i = 16; i < GROUP; ++i) group.sums[1] += codes[i];
    }
}

// 16 rows times COUNT tokens.
template <class Tile, int COUNT>
void multiply(const std::uint8_t* tile, std::int64_t blocks, const Group* x, std::int64_t groups,
              Simd::Floats results[COUNT]) {
    constexpr int EACH = Tile::BLOCK / GROUP;
    for (int t = 0; t < COUNT; ++t) results[t] = Simd::zero();
    for (std::int64_t block = 0; block < blocks; ++block, tile += Tile::TILE, x += EACH)
        for (int g = 0; g < EACH; ++g) {
            Simd::Codes codes[QUADS];
            Tile::codes(tile, g, codes);
            const auto scale = Tile::scale(tile, g, 0);
            for (int t = 0; t < COUNT; ++t) {
                const Group& group = x[t * groups + g];
                auto first = Simd::ints(-Tile::ZERO * group.sums[0]), second = Simd::ints(-Tile::ZERO * group.sums[1]);
                for (int j = 0; j < 4; ++j) {
                    first = Simd::template dot<Tile::WIDE>(first, codes[j], group.codes + 4 * j);
                    second = Simd::template dot<Tile::WIDE>(second, codes[j + 4], group.codes + 4 * j + 16);
                }
                const auto step = Simd::all(group.scale);
                if constexpr (Tile::SPLIT) {
                    const auto other = Simd::multiply(Tile::scale(tile, g, 1), step);
                    results[t] = Simd::multiply_add(Simd::multiply(scale, step), Simd::real(first), results[t]);
                    results[t] = Simd::multiply_add(other, Simd::real(second), results[t]);
                } else {
                    const auto sums = Simd::real(Simd::plus(first, second));
                    results[t] = Simd::multiply_add(Simd::multiply(scale, step), sums, results[t]);
                }
                if constexpr (Tile::HAS_OFFSET) {
                    const float sum = -group.scale * static_cast<float>(group.sums[0] + group.sums[1]);
                    results[t] = Simd::multiply_add(Tile::offset(tile, g), Simd::all(sum), results[t]);
                }
            }
        }
}

template <class Tile, int COUNT>
void linear_block(const std::uint8_t* tile, std::int64_t rows, std::int64_t blocks, std::int64_t number, const Group* x,
                  float* y) {
    Simd::Floats results[COUNT];
    multiply<Tile, COUNT>(tile, blocks, x, blocks * (Tile::BLOCK / GROUP), results);
    const std::int64_t from = number * ROWS, width = std::min<std::int64_t>(ROWS, rows - from);
    for (int t = 0; t < COUNT; ++t) {
        float* place = y + t * rows + from;
        if (width == ROWS) {
            Simd::store(place, results[t]);
        } else {
            float values[ROWS];
            Simd::store(values, results[t]);
            std::copy(values, values + width, place);
        }
    }
}

void linear(int format, const std::uint8_t* tiles, std::int64_t rows, std::int64_t blocks, std::int64_t first,
            std::int64_t last, const Group* x, std::int64_t tokens, float* y) {
    with_tile(format, [&](auto tile) {
        using Tile = decltype(tile);
        const std::int64_t groups = blocks * (Tile::BLOCK / GROUP);
        for (std::int64_t number = first; number < last; ++number) {
            const std::uint8_t* place = tiles + number * blocks * Tile::TILE;
            std::int64_t t = 0;
            for (; t + TOKENS <= tokens; t += TOKENS)
                linear_block<Tile, TOKENS>(place, rows, blocks, number, x + t * groups, y + t * rows);
            for (; t + 4 <= tokens; t += 4)
                linear_block<Tile, 4>(place, rows, blocks, number, x + t * groups, y + t * rows);
            for (; t + 2 <= tokens; t += 2)
                linear_block<Tile, 2>(place, rows, blocks, number, x + t * groups, y + t * rows);
            for (; t < tokens; ++t)
                linear_block<Tile, 1>(place, rows, blocks, number, x + t * groups, y + t * rows);
        }
    });
}

}  // namespace
}  // namespace GEMLENS_ISA

#define GEMLENS_NAME_OF(isa) #isa
#define GEMLENS_NAME(isa) GEMLENS_NAME_OF(isa)
const Kernels GEMLENS_TABLE{GEMLENS_NAME(GEMLENS_TABLE), layout, pack, row, quantize, linear};

}  // namespace gemlens
