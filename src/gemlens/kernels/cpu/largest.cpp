#include "largest.hpp"

#include <algorithm>
#include <cmath>

namespace gemlens {

// No product is found without being computed, and none is left out that could be among the k largest: a tile is passed
// over only if the most that its products can be lies below k products that were computed.
//
// Rounding: a product is a sum of G terms, computed with at most G + 3 roundings of 2^-24 of the terms' sizes, here and in
// `screen`. A term is at most 128 sqrt(32) |x|, and |r| at least 0.5 sqrt(32), so that sizes larger by 2 (G + 3) 2^-24 256
// hold both.
std::vector<Candidate> largest(const Matrix& matrix, const Group* x, std::int64_t k) {
    const std::int64_t tiles = matrix.tile_rows(), groups = matrix.blocks;
    const float slack = 1.0f + 3.1e-5f * static_cast<float>(groups + 3);
    std::vector<float> sizes(static_cast<std::size_t>(groups)), most(static_cast<std::size_t>(tiles));
    for (std::int64_t g = 0; g < groups; ++g) {
        float square = 0.0f;
        for (const std::int8_t code : x[g].codes) square += static_cast<float>(code * code);
        sizes[static_cast<std::size_t>(g)] = std::sqrt(square) * x[g].scale * kernels().screen_step * slack;
    }
    spread(tiles, 64, [&](std::int64_t first, std::int64_t last) {
        kernels().screen(matrix.tiles, groups, first, last, x, sizes.data(), most.data());
    });
    std::vector<std::int64_t> order(static_cast<std::size_t>(tiles));
    for (std::int64_t i = 0; i < tiles; ++i) order[static_cast<std::size_t>(i)] = i;
    const auto before = [&](std::int64_t a, std::int64_t b) {
        const float left = most[static_cast<std::size_t>(a)], right = most[static_cast<std::size_t>(b)];
        const bool is_left_none = !(left == left), is_right_none = !(right == right);
        return is_left_none != is_right_none ? is_left_none : left > right;
    };
    std::vector<Candidate> found;
    const Numbers products(matrix.rows);
    const auto compute = [&](std::int64_t first, std::int64_t last) {
        spread(last - first, 4, [&](std::int64_t from, std::int64_t to) {
            for (std::int64_t i = first + from; i < first + to; ++i) {
                const std::int64_t tile = order[static_cast<std::size_t>(i)];
                kernels().linear(matrix.format, matrix.tiles, matrix.rows, groups, tile, tile + 1, x, 1, products.data());
            }
        });
        for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t row = 16 * order[static_cast<std::size_t>(i)];
            for (std::int64_t n = row; n < std::min(row + 16, matrix.rows); ++n)
                found.push_back({n, products.data()[n]});
        }
    };
    const std::int64_t sure = std::min(std::max<std::int64_t>(k, 8), tiles);
    std::nth_element(order.begin(), order.begin() + (sure - 1), order.end(), before);
    compute(0, sure);
    const auto larger = [](const Candidate& a, const Candidate& b) { return a.product > b.product; };
    const auto kth = [&] {
        const std::int64_t place = std::min<std::int64_t>(k, static_cast<std::int64_t>(found.size())) - 1;
        std::nth_element(found.begin(), found.begin() + place, found.end(), larger);
        return found[static_cast<std::size_t>(place)].product;
    };
    const float least = kth();
    const auto end = std::partition(order.begin() + sure, order.end(), [&](std::int64_t tile) {
        return !(most[static_cast<std::size_t>(tile)] < least);
    });
    compute(sure, end - order.begin());
    const float last = kth();
    found.erase(std::remove_if(found.begin(), found.end(), [&](const Candidate& each) { return each.product < last; }),
                found.end());
    return found;
}

}  // namespace gemlens
