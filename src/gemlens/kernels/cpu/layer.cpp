#include "layer.hpp"

#include <algorithm>

namespace gemlens {
namespace {

constexpr std::int64_t STRETCH = 256;  // tokens that go through a layer's products together

}  // namespace

Tokens Layer::normed(std::int64_t tokens, const float* hidden, const float* weight) const {
    const std::int64_t width = query.width();
    return quantized_of(tokens, width, [&](std::int64_t t, float* y) {
        kernels().norm(hidden + t * width, weight, width, eps, y);
    });
}

void Layer::project(std::int64_t tokens, const float* hidden, const Rotation& by, float* queries, float* keys,
                    float* values) const {
    multiply({{&query, queries}, {&key, keys}, {&value, values}}, normed(tokens, hidden, before_attention));
    const auto turn = [&](float* head, const float* weight, std::int64_t token) {
        if (weight) kernels().norm(head, weight, size, eps, head);
        const std::int64_t place = token % by.turns * size;
        kernels().rotate(head, by.cos + place, by.sin + place, size);
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
                kernels().norm(own, weight, width, eps, scaled.data());
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
            kernels().gate(inner.data() + from, upper.data() + from, (last - first) * gate.rows);
        });
        multiply({{&down, part.data()}}, quantized(inner.data(), count, gate.rows));
        add(count, part.data(), after_mlp, own, own);
    }
}

void Layer::run(std::int64_t rows, std::int64_t steps, const Rotation& by, const Seen& seen, float* hidden) const {
    const std::int64_t tokens = rows * steps, own = kv_heads * size;
    const Numbers queries(tokens * heads * size), mixed(tokens * heads * size), keys(tokens * own), values(tokens * own);
    project(tokens, hidden, by, queries.data(), keys.data(), values.data());
    spread(tokens, 16, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first * kv_heads; i < last * kv_heads; ++i) {
            const std::int64_t token = i / kv_heads, slot = seen.length - steps + token % steps;
            const std::int64_t place = token / steps * seen.row + i % kv_heads * seen.head + slot * size;
            kernels().to_brains(keys.data() + i * size, size, seen.keys + place);
            kernels().to_brains(values.data() + i * size, size, seen.values + place);
        }
    });
    attend({heads, kv_heads, size, scale, cap},
           {rows, steps, seen.length, seen.keys, seen.values, true, seen.row, seen.head, seen.sight}, queries.data(),
           mixed.data());
    finish(tokens, mixed.data(), hidden, hidden);
}

}  // namespace gemlens
