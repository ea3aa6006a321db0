#include "engine.hpp"

#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>

namespace gemlens {
namespace {

const Kernels* chosen = &portable;
const Attention* attention = &portable_attention;
std::unique_ptr<Pool> threads_of_all = std::make_unique<Pool>(1);

constexpr std::int64_t STRETCH = 256;  // tokens that go through a layer's products together
constexpr std::int64_t LINES = 24;  // of queries that attend together

// Room for numbers that are all written before they are read.
class Numbers {
public:
    explicit Numbers(std::int64_t count) : place_(new float[static_cast<std::size_t>(count)]) {}
    float* data() const { return place_.get(); }

private:
    std::unique_ptr<float[]> place_;
};

std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found;
#if defined(GEMLENS_X86)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni"))
        found.push_back(&avx512);
    if (has_avx2) found.push_back(&avx2);
#endif
    found.push_back(&portable);
    return found;
}

const Attention* attention_of(const Kernels* kernels) {
#if defined(GEMLENS_X86)
    if (kernels == &avx512) return __builtin_cpu_supports("avx512bf16") ? &bf16_attention : &avx512_attention;
    if (kernels == &avx2) return &avx2_attention;
#endif
    return &portable_attention;
}

}  // namespace

std::vector<std::string> names() {
    std::vector<std::string> found;
    for (const Kernels* each : usable()) found.emplace_back(each->name);
    return found;
}

void use(const std::string& name, int threads) {
    for (const Kernels* each : usable())
        if (name == each->name) {
            chosen = each;
            attention = attention_of(each);
            if (threads_of_all->size() != threads) threads_of_all = std::make_unique<Pool>(threads);
            return;
        }
    throw std::invalid_argument("no such kernels: " + name);
}

const Kernels& kernels() { return *chosen; }
Pool& pool() { return *threads_of_all; }

Tokens quantized(const float* x, std::int64_t tokens, std::int64_t width) {
    const std::int64_t groups = width / 32, panel = tokens < MANY ? 1 : PANEL;
    Tokens found{tokens, std::vector<Group>(static_cast<std::size_t>((tokens + panel - 1) / panel * panel * groups))};
    spread(tokens, 8, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t)
            chosen->quantize(x + t * width, groups, panel, found.groups.data() + t / panel * panel * groups + t % panel);
    });
    return found;
}

void multiply(std::initializer_list<Product> products, const Tokens& x) {
    const auto linear = x.count < MANY ? chosen->linear : chosen->linear_panels;
    std::int64_t count = 0;
    for (const Product& product : products) count += product.matrix->tile_rows();
    spread(count, 4, [&](std::int64_t first, std::int64_t last) {
        std::int64_t before = 0;
        for (const auto& [matrix, y] : products) {
            const std::int64_t own = matrix->tile_rows();
            const std::int64_t from = std::clamp<std::int64_t>(first - before, 0, own);
            const std::int64_t to = std::clamp<std::int64_t>(last - before, 0, own);
            if (from < to)
                linear(matrix->format, matrix->tiles, matrix->rows, matrix->blocks, from, to, x.groups.data(), x.count, y);
            before += own;
        }
    });
}

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
        sizes[static_cast<std::size_t>(g)] = std::sqrt(square) * x[g].scale * chosen->screen_step * slack;
    }
    spread(tiles, 64, [&](std::int64_t first, std::int64_t last) {
        chosen->screen(matrix.tiles, groups, first, last, x, sizes.data(), most.data());
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
                chosen->linear(matrix.format, matrix.tiles, matrix.rows, groups, tile, tile + 1, x, 1, products.data());
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

namespace {

// Keys are cut into pieces, so that all threads have work with one token of one row.
void attend_few(const Heads& at, const Memory& memory, const float* queries, float* mixed) {
    const std::int64_t kv_heads = at.kv_heads, size = at.size, each = at.heads / kv_heads;
    const std::int64_t pieces = (memory.length + LOOK - 1) / LOOK;
    const std::int64_t groups = memory.rows * memory.steps * kv_heads;  // of heads that see the same keys
    std::vector<float> parts(static_cast<std::size_t>(groups * pieces * each * (size + 2)));
    const auto part_of = [&](std::int64_t group, std::int64_t piece) {
        return parts.data() + (group * pieces + piece) * each * (size + 2);
    };
    spread(groups * pieces, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t number = first; number < last; ++number) {
            const std::int64_t group = number / pieces, piece = number % pieces;
            const std::int64_t token = group / kv_heads, head = group % kv_heads, row = token / memory.steps;
            const std::int64_t from = piece * LOOK, place = row * memory.row + head * memory.head + from * size;
            const std::int64_t length = std::min(LOOK, memory.length - from);
            bool seen[LOOK];
            if (memory.sight) attention->see(*memory.sight, row, token % memory.steps, from, length, seen);
            float* part = part_of(group, piece);
            chosen->look({queries + group * each * size, memory.keys + place, memory.values + place,
                          memory.sight ? seen : nullptr, each, size, length, at.scale, at.cap, part, part + each * size,
                          part + each * (size + 1)});
        }
    });
    for (std::int64_t group = 0; group < groups; ++group)
        for (std::int64_t q = 0; q < each; ++q) {
            float most = -std::numeric_limits<float>::infinity(), total = 0.0f;
            for (std::int64_t piece = 0; piece < pieces; ++piece)
                most = std::max(most, part_of(group, piece)[each * size + q]);
            float* result = mixed + (group * each + q) * size;
            std::fill(result, result + size, 0.0f);
            for (std::int64_t piece = 0; piece < pieces; ++piece) {
                const float *part = part_of(group, piece), own = part[each * size + q];
                if (own == -std::numeric_limits<float>::infinity()) continue;  // nothing of it is seen
                const float share = std::exp(own - most);
                total += share * part[each * (size + 1) + q];
                for (std::int64_t i = 0; i < size; ++i) result[i] += share * part[q * size + i];
            }
            for (std::int64_t i = 0; i < size; ++i) result[i] /= total;
        }
}

void attend_many(const Heads& at, const Memory& memory, const float* queries, float* mixed) {
    const std::int64_t kv_heads = at.kv_heads, size = at.size, each = at.heads / kv_heads;
    const std::int64_t most = std::max<std::int64_t>(1, LINES / each);
    const std::int64_t steps = (memory.length + STEP - 1) / STEP, bytes = attention->step_bytes(size);
    const std::int64_t pairs = memory.rows * kv_heads, parts = (memory.steps + most - 1) / most;
    const std::unique_ptr<std::uint8_t[]> packed(new std::uint8_t[static_cast<std::size_t>(pairs * steps * bytes)]);
    spread(pairs * steps, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t pair = i / steps, from = i % steps * STEP;
            const std::int64_t place = pair / kv_heads * memory.row + pair % kv_heads * memory.head + from * size;
            attention->pack(memory.keys + place, memory.values + place, std::min(STEP, memory.length - from), size,
                            packed.get() + i * bytes);
        }
    });
    // Later tokens see more: the longest parts come first, each alone, so that threads end together.
    pool().run(static_cast<int>(pairs * parts), [&](int number) {
        const std::int64_t part = parts - 1 - number / pairs, pair = number % pairs, row = pair / kv_heads;
        const std::int64_t first = part * most;
        const std::int64_t place = ((row * memory.steps + first) * at.heads + pair % kv_heads * each) * size;
        attention->mix({queries + place, at.heads * size, std::min(most, memory.steps - first), each, size,
                        packed.get() + pair * steps * bytes, memory.length, memory.sight, row, first, at.scale, at.cap,
                        mixed + place});
    });
}

}  // namespace

void attend(const Heads& heads, const Memory& memory, const float* queries, float* mixed) {
    (memory.steps < MANY ? attend_few : attend_many)(heads, memory, queries, mixed);
}

Tokens Layer::normed(std::int64_t tokens, const float* hidden, const float* weight) const {
    const std::int64_t width = query.width();
    const Numbers found(tokens * width);
    spread(tokens, 8, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t)
            chosen->norm(hidden + t * width, weight, width, eps, found.data() + t * width);
    });
    return quantized(found.data(), tokens, width);
}

void Layer::project(std::int64_t tokens, const float* hidden, const Rotation& by, float* queries, float* keys,
                    float* values) const {
    multiply({{&query, queries}, {&key, keys}, {&value, values}}, normed(tokens, hidden, before_attention));
    const auto turn = [&](float* head, const float* weight, std::int64_t token) {
        if (weight) chosen->norm(head, weight, size, eps, head);
        const std::int64_t place = token % by.turns * size;
        chosen->rotate(head, by.cos + place, by.sin + place, size);
    };
    spread(tokens, 16, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t) {
            for (std::int64_t n = 0; n < heads; ++n) turn(queries + (t * heads + n) * size, query_norm, t);
            for (std::int64_t k = 0; k < kv_heads; ++k) turn(keys + (t * kv_heads + k) * size, key_norm, t);
        }
    });
}

void Layer::add(std::int64_t tokens, const float* part, const float* weight, const float* hidden, float* result) const {
    const std::int64_t width = query.width();
    spread(tokens, 8, [&](std::int64_t first, std::int64_t last) {
        const Numbers scaled(width);
        for (std::int64_t t = first; t < last; ++t) {
            const float* own = part + t * width;
            if (weight) {
                chosen->norm(own, weight, width, eps, scaled.data());
                own = scaled.data();
            }
            for (std::int64_t i = 0; i < width; ++i) result[t * width + i] = hidden[t * width + i] + own[i];
        }
    });
}

// A stretch of tokens after the other, so that what lies between the products stays small.
void Layer::finish(std::int64_t tokens, const float* mixed, const float* hidden, float* result) const {
    const std::int64_t most = std::min(tokens, STRETCH), width = query.width();
    const Numbers part(most * width), inner(most * gate.rows), upper(most * up.rows);
    for (std::int64_t begin = 0; begin < tokens; begin += STRETCH) {
        const std::int64_t count = std::min(STRETCH, tokens - begin);
        float* own = result + begin * width;
        multiply({{&output, part.data()}}, quantized(mixed + begin * heads * size, count, heads * size));
        add(count, part.data(), after_attention, hidden + begin * width, own);
        multiply({{&gate, inner.data()}, {&up, upper.data()}}, normed(count, own, before_mlp));
        spread(count, 4, [&](std::int64_t first, std::int64_t last) {
            const std::int64_t from = first * gate.rows;
            chosen->gate(inner.data() + from, upper.data() + from, (last - first) * gate.rows);
        });
        multiply({{&down, part.data()}}, quantized(inner.data(), count, gate.rows));
        add(count, part.data(), after_mlp, own, own);
    }
}

}  // namespace gemlens
