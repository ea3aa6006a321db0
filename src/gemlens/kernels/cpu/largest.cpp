#include "largest.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <mutex>
#include <numeric>

namespace gemlens {
namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr float COMPUTED = std::numeric_limits<float>::quiet_NaN();  // in the place of what a tile can be at most
constexpr std::int64_t FIRST = 64;  // tiles that are computed before it is known what the others must reach
constexpr std::int64_t STRETCH = 256;  // tiles of which one is computed before, where the largest product alone is wanted
constexpr std::int64_t SOME = 16;  // tiles that are computed at once, where all are

float above_all(float number) { return number == number ? number : INFINITE; }

float kth_largest(std::vector<float> numbers, std::int64_t k) {
    const auto place = numbers.begin() + (k - 1);
    std::nth_element(numbers.begin(), place, numbers.end(), std::greater<float>());
    return *place;
}

// What r . x is at most for a group of x, whose codes are 16 h + 7.5 + r with each r at most 7.5: by Hoelder 7.5 times the
// sizes of some numbers of x, and by Cauchy and Schwarz |r| times the size of the others. The largest are taken for the
// first as long as that is less for most r.
struct Rest {
    float alone, others;
};
Rest rest_of(const Group& x) {
    constexpr float USUAL = 26.1f;  // |r| of 32 even chances
    int sizes[32], square = 0;
    std::transform(x.codes, x.codes + 32, sizes, [](int code) { return std::abs(code); });
    std::sort(sizes, sizes + 32, std::greater<int>());
    for (const int size : sizes) square += size * size;
    Rest best{0.0f, std::sqrt(static_cast<float>(square))};
    float sum = 0.0f;
    for (const int size : sizes) {
        sum += 7.5f * static_cast<float>(size);
        square -= size * size;
        const Rest next{sum, std::sqrt(static_cast<float>(square))};
        if (next.alone + USUAL * next.others < best.alone + USUAL * best.others) best = next;
    }
    return best;
}

// What the products of tokens with the rows of tiles can be at most, found without the lower halves of codes.
//
// Where a token is two lines, upper halves meet the first alone. The second is what that leaves, less than a step of each
// number: its product with a row is at most its size times that of the largest row, by Cauchy and Schwarz.
//
// A peak is a group of its own, whose r is at most 7.5.
//
// Rounding: a product is a sum of G terms, of all groups and peaks of all lines, computed with at most G + 2 roundings of 2^-24
// of the terms' sizes; in `screen` a term is added in two parts, which makes at most 2 G + 4. A term is at most 128 sqrt(32) |x|,
// and |r| at least 0.5 sqrt(32), so that what is larger by 3 (G + 2) 2^-24 256 holds both.
class Screen {
public:
    Screen(const Matrix& matrix, const Tokens& x)
        : matrix_(matrix), x_(x),
          slack_(1.0f + 4.6e-5f * static_cast<float>(2 * matrix.parts * matrix.blocks + 2)) {  // as many peaks as groups
        for (std::int64_t t = 0; t < x.count; ++t) {
            const Group *const first = x.groups() + t * stride(), *const second = first + matrix.blocks;
            std::transform(first, second, std::back_inserter(reaches_), [&](const Group& group) { return reach_of(group); });
            seconds_.push_back(size_of(second, first + stride()) * matrix.largest_row() * slack_);
        }
        columns_.resize(static_cast<std::size_t>(x.count / SUMS * columns_of(matrix.blocks)));
        for (std::int64_t i = 0; i < x.count / SUMS; ++i)
            gather(x.groups() + i * SUMS * stride(), stride(), 1, matrix.blocks, columns_.data() + i * columns_of(matrix.blocks));
    }

    // What a token's second line adds to a product at most.
    float second(std::int64_t token) const { return seconds_[static_cast<std::size_t>(token)]; }

    // most[token * next + tile], from `first` tile to before `last`; what is no number is larger than all.
    void operator()(std::int64_t first, std::int64_t last, float* most, std::int64_t next) const {
        kernels().screen(matrix_.tiles, matrix_.blocks, first, last, x_.groups(), stride(), columns_.data(), reaches_.data(),
                         x_.count, most, next);
        for (std::int64_t t = 0; t < x_.count; ++t)
            std::transform(most + t * next + first, most + t * next + last, most + t * next + first,
                           [more = second(t)](float reach) { return above_all(reach + more); });
    }

    // The same of one token, by the products of its first line.
    void by_first_line(std::int64_t first, std::int64_t last, float* most) const {
        const auto& [format, tiles, rows, blocks, parts] = matrix_;
        for (; first < last; first += SOME) {
            float products[16 * SOME];
            const std::int64_t end = std::min(last, first + SOME);
            std::fill(products, products + 16 * SOME, -INFINITE);  // of rows that are none
            kernels().linear(format, tiles, rows, blocks, first, end, x_.groups(), nullptr, 1, 1, products, 16 * SOME);
            for (std::int64_t tile = first; tile < end; ++tile) {
                float highest = -INFINITE;
                for (const float *each = products + 16 * (tile - first), *const behind = each + 16; each < behind; ++each)
                    highest = std::max(highest, above_all(*each + second(0)));
                most[tile] = highest;
            }
        }
    }

private:
    std::int64_t stride() const { return matrix_.parts * matrix_.blocks; }

    Reach reach_of(const Group& group) const {
        const Rest rest = rest_of(group);
        const float size = group.scale * slack_;
        const int sum = std::accumulate(group.codes, group.codes + 32, 0);
        // upper halves are h + 8, and 16 (h + 8) - (128 - 7.5) = 16 h + 7.5
        return Reach{16.0f * group.scale, -(128.0f - 7.5f) * group.scale * static_cast<float>(sum),
                     rest.alone * size + 7.5f * std::fabs(group.peak) * slack_, rest.others * size * kernels().screen_step};
    }

    static float size_of(const Group* groups, const Group* end) {
        double squares = 0.0;
        for (; groups < end; ++groups)
            for (const int code : groups->codes) {
                const double number = static_cast<double>(groups->scale) * code;
                squares += number * number;
            }
        return static_cast<float>(std::sqrt(squares));
    }

    const Matrix& matrix_;
    const Tokens& x_;
    float slack_;
    std::vector<Reach> reaches_;  // [tokens, blocks]
    std::vector<float> seconds_;  // [tokens]
    std::vector<Column> columns_;  // of first lines
};

// Whether all numbers are, and so small that nothing which is made of them on the way is more than a float holds.
bool can_screen(const Tokens& x, std::int64_t blocks) {
    return std::all_of(x.groups(), x.groups() + x.lines() * blocks,
                       [](const Group& group) { return group.scale < 1e30f && std::fabs(group.peak) < 1e30f; });
}

void take(Best& best, float product, std::int64_t row) {
    const float size = above_all(product), most = above_all(best.product);
    if (size > most || (size == most && row < best.row)) best = {product, row};
}

// The best of each token, among what a thread looks at before all join.
class Bests {
public:
    Bests(std::int64_t tokens, const Matrix& matrix) : all_(static_cast<std::size_t>(tokens), Best{-INFINITE, matrix.rows}), rows_(matrix.rows) {}

    // products [token * next + row] with some rows, the first of which is `from`
    void take_from(const float* products, std::int64_t next, std::int64_t from, std::int64_t count) {
        count = std::min(count, rows_ - from);
        for (Best& best : all_) {
            bool is_there = false;
            for (std::int64_t i = 0; i < count; ++i) is_there |= !(products[i] <= best.product);
            for (std::int64_t i = 0; is_there && i < count; ++i) take(best, products[i], from + i);
            products += next;
        }
    }
    void take_from(const Bests& others) {
        for (std::size_t t = 0; t < all_.size(); ++t) take(all_[t], others.all_[t].product, others.all_[t].row);
    }
    Best& operator[](std::int64_t token) { return all_[static_cast<std::size_t>(token)]; }

private:
    std::vector<Best> all_;
    std::int64_t rows_;
};

// Takes what is best of the products with a tile; no second line is multiplied where the first says enough.
void take_products(const Matrix& matrix, const Group* line, float second, std::int64_t tile, Best& best) {
    float products[16], more[16];
    const std::int64_t count = std::min<std::int64_t>(16, matrix.rows - 16 * tile);
    const auto multiply = [&](const Group* one, float* y) {
        kernels().linear(matrix.format, matrix.tiles, matrix.rows, matrix.blocks, tile, tile + 1, one, nullptr, 1, 1, y, 16);
    };
    multiply(line, products);
    if (matrix.parts == 2) {
        const auto can_be_best = [&](float product) { return above_all(product + second) >= above_all(best.product); };
        if (std::none_of(products, products + count, can_be_best)) return;
        multiply(line + matrix.blocks, more);
        std::transform(products, products + count, more, products, std::plus<float>());
    }
    for (std::int64_t i = 0; i < count; ++i) take(best, products[i], 16 * tile + i);
}

}  // namespace

// No product is given without being computed, and none is left out that could be among the k largest: a tile is passed
// over only if the most that its products can be lies below k products that were computed.
std::int64_t largest(const Matrix& matrix, const float* x, std::int64_t k, bool screens, float* products) {
    const Tokens token = quantized(matrix, x, 1);
    if (!can_screen(token, matrix.blocks)) return -1;
    const std::int64_t tiles = matrix.tile_rows();
    const Screen screen(matrix, token);
    std::vector<float> most(static_cast<std::size_t>(tiles));
    spread(tiles, 64, [&](std::int64_t first, std::int64_t last) {
        if (screens) screen(first, last, most.data(), tiles);
        else screen.by_first_line(first, last, most.data());
        std::fill(products + 16 * first, products + std::min(16 * last, matrix.rows), -INFINITE);
    });
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
                multiply(matrix, tile, tile + 1, token, products + 16 * tile, matrix.rows);
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

// As above with k = 1, but what a thread finds stays with it, and nothing is sorted: of each stretch of tiles, the one that
// may hold most is computed while the stretch is screened; the largest product of these is what others must reach. A second
// line is not multiplied where the first says enough, for one token even without a screen.
std::int64_t best(const Matrix& matrix, const float* x, std::int64_t tokens, bool screens, Best* found) {
    screens = screens && tokens <= std::min(kernels().screened * matrix.parts, MANY);
    const Tokens all = quantized(matrix, x, tokens, [](std::int64_t) {}, screens ? tokens + 1 : MANY);
    const std::int64_t tiles = matrix.tile_rows();
    const bool has_seconds = matrix.parts == 2 && kernels().layout(matrix.format).last > 0;
    Bests bests(tokens, matrix);
    std::mutex joining;
    const auto each_part = [&](std::int64_t least, auto look) {  // look(first, last, bests)
        const Bests before = bests;
        spread(tiles, least, [&](std::int64_t first, std::int64_t last) {
            Bests own = before;
            look(first, last, own);
            const std::lock_guard<std::mutex> lock(joining);
            bests.take_from(own);
        });
    };
    std::atomic<std::int64_t> computed = tokens * tiles;
    if ((screens || (tokens == 1 && has_seconds)) && can_screen(all, matrix.blocks)) {
        const Screen screen(matrix, all);
        const auto compute = [&](std::int64_t t, std::int64_t tile, Best& own) {
            take_products(matrix, all.groups() + t * matrix.parts * matrix.blocks, screen.second(t), tile, own);
        };
        if (!screens) {
            each_part(SOME, [&](std::int64_t first, std::int64_t last, Bests& own) {
                for (; first < last; ++first) compute(0, first, own[0]);
            });
            found[0] = bests[0];
            return computed;
        }
        computed = 0;
        const Numbers most(tokens * tiles);
        each_part(STRETCH, [&](std::int64_t first, std::int64_t last, Bests& own) {
            for (; first < last; first += STRETCH) {
                const std::int64_t end = std::min(last, first + STRETCH);
                screen(first, end, most.data(), tiles);
                for (std::int64_t t = 0; t < tokens; ++t, ++computed) {
                    float* const its = most.data() + t * tiles;
                    float* const highest = std::max_element(its + first, its + end);
                    compute(t, highest - its, own[t]);
                    *highest = COMPUTED;
                }
            }
        });
        Bests reached = bests;
        each_part(64, [&](std::int64_t first, std::int64_t last, Bests& own) {
            for (; first < last; ++first)
                for (std::int64_t t = 0; t < tokens; ++t)
                    if (most.data()[t * tiles + first] >= above_all(reached[t].product)) {
                        compute(t, first, own[t]);
                        ++computed;
                    }
        });
    } else {
        each_part(SOME, [&](std::int64_t first, std::int64_t last, Bests& own) {
            std::vector<float> products(static_cast<std::size_t>(tokens * 16 * SOME));
            for (; first < last; first += SOME) {
                const std::int64_t end = std::min(last, first + SOME);
                multiply(matrix, first, end, all, products.data(), 16 * SOME);
                own.take_from(products.data(), 16 * SOME, 16 * first, 16 * (end - first));
            }
        });
    }
    for (std::int64_t t = 0; t < tokens; ++t) found[t] = bests[t];
    return computed;
}

}  // namespace gemlens
