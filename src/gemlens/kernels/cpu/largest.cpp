#include "largest.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>

namespace gemlens {
namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr std::int64_t FIRST = 64;  // tiles that are computed before it is known what the others must reach

float above_all(float number) { return number == number ? number : INFINITE; }

float kth_largest(std::vector<float> numbers, std::int64_t k) {
    const auto place = numbers.begin() + (k - 1);
    std::nth_element(numbers.begin(), place, numbers.end(), std::greater<float>());
    return *place;
}

// What r . x is at most for a group of x, whose codes are 16 h + 7.5 + r with each r at most 7.5: by Hoelder 7.5 times the
// sizes of some numbers of x, and by Cauchy and Schwarz |r| times the size of the others. The largest are taken for the
// first as long as that is less for most r.
Reach reach_of(const Group& x) {
    constexpr float USUAL = 26.1f;  // |r| of 32 even chances
    int sizes[32], square = 0;
    std::transform(x.codes, x.codes + 32, sizes, [](int code) { return std::abs(code); });
    std::sort(sizes, sizes + 32, std::greater<int>());
    for (const int size : sizes) square += size * size;
    Reach best{0.0f, std::sqrt(static_cast<float>(square))};
    float sum = 0.0f;
    for (const int size : sizes) {
        sum += 7.5f * static_cast<float>(size);
        square -= size * size;
        const Reach next{sum, std::sqrt(static_cast<float>(square))};
        if (next.alone + USUAL * next.others < best.alone + USUAL * best.others) best = next;
    }
    return best;
}

}  // namespace

// No product is given without being computed, and none is left out that could be among the k largest: a tile is passed
// over only if the most that its products can be lies below k products that were computed.
//
// Where the token is two lines, their products are added, and so are the most that these can be.
//
// Rounding: a product is a sum of G terms, of all lines, computed with at most G + 3 roundings of 2^-24 of the terms' sizes,
// here and in `screen`. A term is at most 128 sqrt(32) |x|, and |r| at least 0.5 sqrt(32), so that what is larger by
// 2 (G + 3) 2^-24 256 holds both.
std::int64_t largest(const Matrix& matrix, const Tokens& token, std::int64_t k, float* products) {
    const std::int64_t tiles = matrix.tile_rows(), blocks = matrix.blocks, lines = token.lines(), groups = lines * blocks;
    const Group* const x = token.groups();
    const float slack = 1.0f + 3.1e-5f * static_cast<float>(groups + 3);
    std::vector<Reach> reaches(static_cast<std::size_t>(groups));
    std::transform(x, x + groups, reaches.begin(), [slack](const Group& group) {
        const auto [alone, others] = reach_of(group);
        const float size = group.scale * slack;
        return Reach{alone * size, others * size * kernels().screen_step};
    });
    std::vector<float> most(static_cast<std::size_t>(tiles));
    spread(tiles, 64, [&](std::int64_t first, std::int64_t last) {
        kernels().screen(matrix.tiles, blocks, first, last, x, lines, reaches.data(), most.data());
        std::fill(products + 16 * first, products + std::min(16 * last, matrix.rows), -INFINITE);
    });
    std::transform(most.begin(), most.end(), most.begin(), above_all);
    std::vector<std::int64_t> computed;
    std::vector<float> found;  // the products of these tiles
    const auto compute = [&](auto is_wanted) {
        const std::size_t before = computed.size();
        for (std::int64_t i = 0; i < tiles; ++i)
            if (is_wanted(most[static_cast<std::size_t>(i)])) computed.push_back(i);
        const std::int64_t count = static_cast<std::int64_t>(computed.size() - before);
        spread(count, 4, [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t i = first; i < last; ++i) {
                const std::int64_t tile = computed[before + static_cast<std::size_t>(i)];
                kernels().linear(matrix.format, matrix.tiles, matrix.rows, blocks, tile, tile + 1, x, lines, matrix.parts, products);
            }
        });
        for (auto tile = computed.begin() + static_cast<std::ptrdiff_t>(before); tile != computed.end(); ++tile)
            for (std::int64_t n = 16 * *tile; n < std::min(16 * *tile + 16, matrix.rows); ++n)
                found.push_back(above_all(products[n]));
    };
    const float high = kth_largest(most, std::min(std::max(k, FIRST), tiles));
    compute([&](float reach) { return reach >= high; });
    const float least = kth_largest(found, std::min(k, static_cast<std::int64_t>(found.size())));
    compute([&](float reach) { return reach < high && reach >= least; });
    const float last = kth_largest(found, k);
    for (const std::int64_t tile : computed)
        for (std::int64_t n = 16 * tile; n < std::min(16 * tile + 16, matrix.rows); ++n)
            if (products[n] < last) products[n] = -INFINITE;
    return static_cast<std::int64_t>(computed.size());
}

}  // namespace gemlens
