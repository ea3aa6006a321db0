// The kernels of one instruction set, compiled once for each; GEMLENS_ISA is its name.
#include "../kernels.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "look.hpp"
#include "numbers.hpp"
#include "tiles.hpp"
#include "tokens.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {
namespace {

constexpr int AHEAD = 2048;  // bytes that are asked for before they are read
constexpr std::int64_t CACHE = 1 << 18;  // bytes of lines that are read again for each tile

// Where the tiles of 16 rows begin, and what lies behind all tiles of the matrix.
template <class Tile, class Byte>
struct Place {
    Byte *tile, *rest;
    Place(Byte* tiles, std::int64_t rows, std::int64_t blocks, std::int64_t number)
        : tile(tiles + number * blocks * Tile::TILE),
          rest(tiles + ((rows + ROWS - 1) / ROWS * Tile::TILE + number * Tile::REST) * blocks) {}
};

// What stands for zero among the codes of a tile; `ZERO` is 0 where an instruction set takes it away by itself.
template <class Tile>
constexpr int OWN_ZERO = Tile::MOST == 255 ? 128 : Tile::ZERO;

template <class Tile>
constexpr bool CAN_SCREEN = std::is_same_v<Tile, TileQ8_0>;

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
    if (is_of_numbers(format)) return Layout{1, 2, NUMBERS, 0};
    if (format != Q4_0 && format != Q5_0 && format != Q8_0 && format != Q4_K && format != Q5_K && format != Q6_K)
        return Layout{};
    return with_tile(format, [](auto tile) {
        using Tile = decltype(tile);
        return Layout{Tile::BLOCK, Tile::BYTES, Tile::TILE + Tile::REST, CAN_SCREEN<Tile> ? static_cast<int>(sizeof(float)) : 0};
    });
}

float pack(int format, const std::uint8_t* file, std::int64_t rows, std::int64_t blocks, std::int64_t first,
           std::int64_t last, std::uint8_t* tiles) {
    if (is_of_numbers(format)) {
        pack_numbers(file, rows, blocks, first, last, tiles);
        return 0.0f;
    }
    return with_tile(format, [&](auto tile) {
        using Tile = decltype(tile);
        using At = Place<Tile, std::uint8_t>;
        double most = 0.0;
        const At begin(tiles, rows, blocks, first), end(tiles, rows, blocks, last);
        std::fill(begin.tile, end.tile, std::uint8_t{0});
        std::fill(begin.rest, end.rest, std::uint8_t{0});
        for (std::int64_t row = first * ROWS; row < std::min(rows, last * ROWS); ++row) {
            const At at(tiles, rows, blocks, row / ROWS);
            double squares = 0.0;
            for (std::int64_t block = 0; block < blocks; ++block) {
                const std::uint8_t* const from = file + (row * blocks + block) * Tile::BYTES;
                Tile::pack(static_cast<int>(row % ROWS), from, at.tile + block * Tile::TILE, at.rest + block * Tile::REST);
                if constexpr (CAN_SCREEN<Tile>) squares += Tile::squares(from);
            }
            most = std::max(most, squares);
        }
        return static_cast<float>(std::sqrt(most));
    });
}

void row(int format, const std::uint8_t* tiles, std::int64_t rows, std::int64_t blocks, std::int64_t row,
         float* weights) {
    if (is_of_numbers(format)) return row_of_numbers(format, tiles, blocks, row, weights);
    with_tile(format, [&](auto tile) {
        using Tile = decltype(tile);
        auto [tile_at, rest] = Place<Tile, const std::uint8_t>(tiles, rows, blocks, row / ROWS);
        const int lane = static_cast<int>(row % ROWS);
        for (std::int64_t block = 0; block < blocks; ++block, tile_at += Tile::TILE, rest += Tile::REST)
            for (int group = 0; group < Tile::BLOCK / GROUP; ++group) {
                std::uint8_t bytes[QUADS][64];
                for (int j = 0; j < QUADS; ++j) Simd::put(Tile::codes(tile_at, rest, group, j), bytes[j]);
                float scales[2][ROWS], offsets[ROWS] = {};
                for (int half = 0; half < 2; ++half) Simd::store(scales[half], Tile::scale(tile_at, group, half));
                if constexpr (Tile::HAS_OFFSET) Simd::store(offsets, Tile::offset(tile_at, group));
                for (int i = 0; i < GROUP; ++i) {
                    const int code = bytes[quad_of(i)][byte_of(lane, i)] - OWN_ZERO<Tile>;
                    *weights++ = scales[i / 16][lane] * static_cast<float>(code) - offsets[lane];
                }
            }
    });
}

// What a tile says of a group besides its codes: the scale of each half, and the offset of 16 rows.
template <class Tile>
struct Scales {
    Simd::Floats halves[2], offset;
    Scales() = default;
    Scales(const std::uint8_t* tile, int group) {
        halves[0] = Tile::scale(tile, group, 0);
        if constexpr (Tile::SPLIT) halves[1] = Tile::scale(tile, group, 1);
        if constexpr (Tile::HAS_OFFSET) offset = Tile::offset(tile, group);
    }
};

// Adds the products of 16 rows, whose codes are quad(0) to quad(7), with a group of COUNT lines; line t's is x[t * stride].
template <class Tile, int COUNT, class Quad>
void add_products(Quad quad, const Scales<Tile>& scales, const Group* x, std::int64_t stride, Simd::Floats results[COUNT]) {
    constexpr int SOME = std::min(COUNT, Simd::TOGETHER);
#pragma GCC unroll (Simd::TOGETHER == 1 ? 8 : 1)  // or results would lie in memory
    for (int begin = 0; begin < COUNT; begin += SOME, x += SOME * stride) {
        Simd::Ints first[SOME], second[SOME];
        Simd::template multiply<Tile, SOME>(quad, x, stride, first, second);
#pragma GCC unroll 4
        for (int t = 0; t < SOME; ++t) {
            const Group& group = x[t * stride];
            auto& result = results[begin + t];
            const auto step = Simd::all(group.scale);
            result = Simd::multiply_add(Simd::multiply(scales.halves[0], step), Simd::real(first[t]), result);
            if constexpr (Tile::SPLIT)
                result = Simd::multiply_add(Simd::multiply(scales.halves[1], step), Simd::real(second[t]), result);
            if constexpr (Tile::HAS_OFFSET) result = Simd::multiply_add(scales.offset, Simd::all(group.total), result);
        }
    }
}

// Adds the products of 16 rows, whose weights of number n are weights_at(n), with the peaks of a line.
template <class WeightsAt>
void add_peaks(WeightsAt weights_at, const Group* x, std::int64_t groups, Simd::Floats& result) {
    for (std::int64_t g = 0; g < groups && x[g].next >= 0; ++g) {
        const std::int32_t number = x[g].next;
        g = number / GROUP;
        result = Simd::multiply_add(weights_at(number), Simd::all(x[g].peak), result);
    }
}

// The same of SUMS lines.
template <class WeightsAt>
void add_peaks(WeightsAt weights_at, const Column* columns, Simd::Floats* results) {
    Simd::Floats sums[SUMS];
    std::copy_n(results, SUMS, sums);
    for (; columns->number >= 0; ++columns) {
        const auto weights = weights_at(columns->number);
#pragma GCC unroll 4
        for (int t = 0; t < SUMS; ++t) sums[t] = Simd::multiply_add(weights, Simd::all(columns->peaks[t]), sums[t]);
    }
    std::copy_n(sums, SUMS, results);
}

// The same of COUNT lines.
template <int COUNT, class WeightsAt>
void add_peaks(WeightsAt weights_at, const Group* x, std::int64_t stride, std::int64_t groups, const Column* columns,
               Simd::Floats* results) {
    if constexpr (COUNT % SUMS == 0) {
        for (int t = 0; t < COUNT; t += SUMS, columns += columns_of(groups)) add_peaks(weights_at, columns, results + t);
    } else {
        for (int t = 0; t < COUNT; ++t) add_peaks(weights_at, x + t * stride, groups, results[t]);
    }
}

// Weight i of a group of 16 rows, without its offset; `codes` are those of its quad.
template <class Tile>
Simd::Floats weights_of(int i, const typename Tile::Codes& codes, const Scales<Tile>& scales) {
    auto steps = Simd::column(codes, i % 4);
    if constexpr (OWN_ZERO<Tile> > 0) steps = Simd::plus(steps, Simd::all(-OWN_ZERO<Tile>));
    return Simd::multiply(scales.halves[Tile::SPLIT ? i / (GROUP / 2) : 0], steps);
}

// Puts the products of `count` lines with the rows of a tile, 16 or the last `width`, to y[token * next].
void put_products(const Simd::Floats* results, int count, int parts, std::int64_t width, float* y, std::int64_t next) {
    for (; count > 0; y += next, results += parts, count -= parts) {
        const auto products = parts == 2 ? Simd::plus(results[0], results[1]) : results[0];
        if (width >= ROWS) {
            Simd::store(y, products);
        } else {
            float values[ROWS];
            Simd::store(values, products);
            std::copy(values, values + width, y);
        }
    }
}

// A processor asks for memory ahead by itself, but not in time where a block meets several lines, and some never do.
template <int BYTES>
void ask_for(const std::uint8_t* memory, int ahead) {
    for (int i = 0; i < BYTES; i += 64) __builtin_prefetch(memory + ahead + i);
}

template <class Tile, int COUNT>
void few_lines(Place<Tile, const std::uint8_t> at, std::int64_t blocks, std::int64_t width, const Group* x,
               const Column* columns, int parts, float* y, std::int64_t next) {
    constexpr int EACH = Tile::BLOCK / GROUP, OWN = AHEAD / (Tile::REST > 0 ? 2 : 1);
    const std::int64_t groups = blocks * EACH;
    const auto first = at;
    const Group* const begin = x;
    Simd::Floats results[COUNT];
    for (auto& result : results) result = Simd::zero();
    for (std::int64_t block = 0; block < blocks; ++block, at.tile += Tile::TILE, at.rest += Tile::REST) {
        for (int g = 0; g < EACH; ++g, ++x) {
            if (COUNT >= Simd::ASKING) {
                ask_for<Tile::TILE / EACH>(at.tile + g * (Tile::TILE / EACH), OWN);
                ask_for<Tile::REST / EACH>(at.rest, OWN);
            }
            const Scales<Tile> scales(at.tile, g);
            if constexpr (COUNT < 8) {  // else unpacked codes would take more registers than there are
                add_products<Tile, COUNT>([&](int j) { return Tile::codes(at.tile, at.rest, g, j); }, scales, x, groups, results);
            } else {
                typename Tile::Codes codes[QUADS];
                for (int j = 0; j < QUADS; ++j) codes[j] = Tile::codes(at.tile, at.rest, g, j);
                add_products<Tile, COUNT>([&](int j) -> const auto& { return codes[j]; }, scales, x, groups, results);
            }
        }
    }
    const auto weights_at = [=](std::int32_t number) {
        const int block = number / Tile::BLOCK, g = number % Tile::BLOCK / GROUP, i = number % GROUP;
        const std::uint8_t *tile = first.tile + block * Tile::TILE, *rest = first.rest + block * Tile::REST;
        return weights_of<Tile>(i, Tile::codes(tile, rest, g, quad_of(i)), Scales<Tile>(tile, g));
    };
    add_peaks<COUNT>(weights_at, begin, groups, groups, columns, results);
    put_products(results, COUNT, parts, width, y, next);
}

// some(count, first) for COUNT lines at a time, and what is left in halves, quarters and so on.
template <int COUNT, class Some>
void cut(std::int64_t lines, Some some, std::int64_t first = 0) {
    for (; first + COUNT <= lines; first += COUNT) some(std::integral_constant<int, COUNT>{}, first);
    if constexpr (COUNT > 1) cut<COUNT / 2>(lines, some, first);
}

void linear(int format, const std::uint8_t* tiles, std::int64_t rows, std::int64_t blocks, std::int64_t first,
            std::int64_t last, const Group* x, const Column* columns, std::int64_t lines, int parts, float* y,
            std::int64_t next) {
    with_tile(format, [&](auto tile) {
        using Tile = decltype(tile);
        const std::int64_t groups = blocks * (Tile::BLOCK / GROUP);
        for (std::int64_t number = first; number < last; ++number, y += ROWS) {
            const Place<Tile, const std::uint8_t> at(tiles, rows, blocks, number);
            cut<8>(lines, [&](auto count, std::int64_t t) {  // an even number of lines, or a token is one
                constexpr int COUNT = decltype(count)::value;
                few_lines<Tile, COUNT>(at, blocks, rows - number * ROWS, x + t * groups, columns + t / SUMS * columns_of(groups),
                                       parts, y + t / parts * next, next);
            });
        }
    });
}

// A group of 16 rows, unpacked.
template <class Tile>
struct Weights {
    typename Tile::Codes codes[QUADS];
    Scales<Tile> scales;
};

// Many lines: a tile is unpacked once for a stretch of them that stays in a core's own cache.
void linear_panels(int format, const std::uint8_t* tiles, std::int64_t rows, std::int64_t blocks, std::int64_t first,
                   std::int64_t last, const Group* x, const Column* columns, std::int64_t lines, int parts, float* y,
                   std::int64_t next) {
    with_tile(format, [&](auto empty) {
        using Tile = decltype(empty);
        constexpr int EACH = Tile::BLOCK / GROUP;
        const std::int64_t groups = blocks * EACH, panels = (lines + PANEL - 1) / PANEL;
        const std::int64_t stretch = std::max<std::int64_t>(1, CACHE / (groups * PANEL * std::int64_t{sizeof(Group)}));
        thread_local std::vector<Weights<Tile>> unpacked;
        unpacked.resize(static_cast<std::size_t>(groups));
        for (std::int64_t begin = 0; begin < panels; begin += stretch)
            for (std::int64_t number = first; number < last; ++number) {
                auto [tile, rest] = Place<Tile, const std::uint8_t>(tiles, rows, blocks, number);
                Weights<Tile>* weights = unpacked.data();
                for (std::int64_t block = 0; block < blocks; ++block, tile += Tile::TILE, rest += Tile::REST)
                    for (int g = 0; g < EACH; ++g, ++weights) {
                        for (int j = 0; j < QUADS; ++j) weights->codes[j] = Tile::codes(tile, rest, g, j);
                        weights->scales = Scales<Tile>(tile, g);
                    }
                for (std::int64_t panel = begin; panel < std::min(panels, begin + stretch); ++panel) {
                    const Group* own = x + panel * groups * PANEL;
                    Simd::Floats results[PANEL];
                    for (auto& result : results) result = Simd::zero();
                    weights = unpacked.data();
                    for (std::int64_t g = 0; g < groups; ++g, ++weights, own += PANEL)
                        add_products<Tile, PANEL>([=](int j) -> const auto& { return weights->codes[j]; }, weights->scales, own, 1, results);
                    const int count = static_cast<int>(std::min<std::int64_t>(PANEL, lines - panel * PANEL));
                    const auto weights_at = [all = unpacked.data()](std::int32_t number) {
                        const auto& [codes, scales] = all[number / GROUP];
                        return weights_of<Tile>(number % GROUP, codes[quad_of(number % GROUP)], scales);
                    };
                    for (int t = 0; t < PANEL; t += SUMS)
                        add_peaks(weights_at, columns + (panel * PANEL + t) / SUMS * columns_of(groups), results + t);
                    float* const own_y = y + panel * PANEL / parts * next + (number - first) * ROWS;
                    put_products(results, count, parts, rows - number * ROWS, own_y, next);
                }
            }
    });
}

struct Upper {  // nibbles of codes of Q8_0, as a tile
    static constexpr int ZERO = 0, MOST = 15;
    static constexpr bool SPLIT = false;
};

// What the products of COUNT tokens with 16 rows of Q8_0 can be at most. A code is 16 h + 7.5 + r, and of r only the size is
// read; what r . x is at most then, `reaches` say, with what rounding may add; see largest.cpp.
template <int COUNT>
void few_bounds(const std::uint8_t* tile, std::int64_t blocks, const Group* x, std::int64_t stride, const Column* columns,
                const Reach* reaches, float* most, std::int64_t next) {
    const std::uint8_t* const first = tile;
    const Group* const begin = x;
    Simd::Floats sums[COUNT];
    for (auto& sum : sums) sum = Simd::zero();
    for (std::int64_t block = 0; block < blocks; ++block, tile += TileQ8_0::TILE, ++x, ++reaches) {
        if (COUNT >= Simd::ASKING) ask_for<TileQ8_0::TILE>(tile, AHEAD);
        const auto scale = TileQ8_0::scale(tile, 0, 0), size = TileQ8_0::size(tile);
        Simd::Ints upper[COUNT], unused[COUNT];
        Simd::template multiply<Upper, COUNT>([=](int j) { return TileQ8_0::upper(tile, j); }, x, stride, upper, unused);
#pragma GCC unroll 4
        for (int t = 0; t < COUNT; ++t) {
            const auto& [step, rest, alone, others] = reaches[t * blocks];
            const auto known = Simd::multiply_add(Simd::real(upper[t]), Simd::all(step), Simd::all(rest));
            const auto reach = Simd::multiply_add(size, Simd::all(others), Simd::all(alone));
            sums[t] = Simd::multiply_add(scale, known, sums[t]);
            sums[t] = Simd::multiply_add(Simd::absolute(scale), reach, sums[t]);
        }
    }
    const auto known_at = [=](std::int32_t number) {
        const std::uint8_t* own = first + number / GROUP * TileQ8_0::TILE;
        const auto upper = Simd::column(TileQ8_0::upper(own, quad_of(number % GROUP)), number % 4);
        const auto known = Simd::multiply_add(upper, Simd::all(16.0f), Simd::all(7.5f - 128.0f));
        return Simd::multiply(TileQ8_0::scale(own, 0, 0), known);
    };
    add_peaks<COUNT>(known_at, begin, stride, blocks, columns, sums);
    for (int t = 0; t < COUNT; ++t, most += next) {
        float all[ROWS];
        Simd::store(all, sums[t]);
        *most = all[0];
        for (const float each : all)
            if (!(each <= *most)) *most = each;  // what is no number is larger than all others
    }
}

void screen(const std::uint8_t* tiles, std::int64_t blocks, std::int64_t first, std::int64_t last, const Group* x,
            std::int64_t stride, const Column* columns, const Reach* reaches, std::int64_t tokens, float* most, std::int64_t next) {
    for (std::int64_t number = first; number < last; ++number) {
        const std::uint8_t* tile = tiles + number * blocks * TileQ8_0::TILE;
        cut<4>(tokens, [&](auto count, std::int64_t t) {
            constexpr int COUNT = decltype(count)::value;
            few_bounds<COUNT>(tile, blocks, x + t * stride, stride, columns + t / SUMS * columns_of(blocks), reaches + t * blocks,
                              most + t * next + number, next);
        });
    }
}

}  // namespace
}  // namespace GEMLENS_ISA

#define GEMLENS_NAME_OF(isa) #isa
#define GEMLENS_NAME(isa) GEMLENS_NAME_OF(isa)
const Kernels GEMLENS_TABLE{GEMLENS_NAME(GEMLENS_TABLE), layout, pack, row, quantize, linear, linear_panels, linear_numbers, norm,
                            layer_norm, rotate, gate, activate, look, to_brains, to_bytes, screen, 1.0f / TileQ8_0::SIZE,
                            Simd::SCREENED};

}  // namespace gemlens
