#include "layer.hpp"

#include <algorithm>

namespace gemlens {
namespace {

constexpr std::int64_t STRETCH = 256;  // tokens that go through a layer's products together, so that what lies between stays small

}  // namespace

void Layer::project(std::int64_t tokens, const float* hidden, const Rotation& by, float* queries, float* keys,
                    float* values) const {
    const std::int64_t width = query.width();
    const Numbers normed(std::min(tokens, STRETCH) * width);
    const auto from = [&](float* states, std::int64_t token, std::int64_t count) {  // of so many heads
        return states ? states + token * count * size : nullptr;
    };
    const auto turn = [&](float* states, std::int64_t count, const float* weight, std::int64_t token) {
        if (!states) return;
        const std::int64_t place = token % by.turns * size;
        for (float *head = from(states, token, count), *const end = from(states, token + 1, count); head < end; head += size) {
            if (weight) kernels().norm(head, weight, size, eps, head);
            kernels().rotate(head, by.cos + place, by.sin + place, size);
        }
    };
    for (std::int64_t begin = 0; begin < tokens; begin += STRETCH) {
        const std::int64_t count = std::min(STRETCH, tokens - begin);
        multiply({{&query, from(queries, begin, heads)}, {&key, from(keys, begin, kv_heads)}, {&value, from(values, begin, kv_heads)}},
                 quantized(query, normed.data(), count, [&](std::int64_t t) {
                     kernels().norm(hidden + (begin + t) * width, before_attention, width, eps, normed.data() + t * width);
                 }));
        spread(count, 16, [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t t = begin + first; t < begin + last; ++t) {
                turn(queries, heads, query_norm, t);
                turn(keys, kv_heads, key_norm, t);
            }
        });
    }
}

// result = hidden + norm(part), of one token; the part is overwritten.
void Layer::add(float* part, const float* weight, const float* hidden, float* result) const {
    const std::int64_t width = query.width();
    if (weight) kernels().norm(part, weight, width, eps, part);
    for (std::int64_t i = 0; i < width; ++i) result[i] = hidden[i] + part[i];
}

void Layer::finish(std::int64_t tokens, const float* mixed, const float* hidden, float* result) const {
    const std::int64_t most = std::min(tokens, STRETCH), width = query.width();
    const Numbers part(most * width), normed(most * width), inner(most * gate.rows), upper(most * up.rows);
    for (std::int64_t begin = 0; begin < tokens; begin += STRETCH) {
        const std::int64_t count = std::min(STRETCH, tokens - begin);
        float* own = result + begin * width;
        multiply({{&output, part.data()}}, quantized(output, mixed + begin * heads * size, count));
        multiply({{&gate, inner.data()}, {&up, upper.data()}},
                 quantized(gate, normed.data(), count, [&](std::int64_t t) {
                     const std::int64_t at = t * width;
                     add(part.data() + at, after_attention, hidden + begin * width + at, own + at);
                     kernels().norm(own + at, before_mlp, width, eps, normed.data() + at);
                 }));
        multiply({{&down, part.data()}}, quantized(down, inner.data(), count, [&](std::int64_t t) {
                     kernels().gate(inner.data() + t * gate.rows, upper.data() + t * gate.rows, gate.rows);
                 }));
        spread(count, 8, [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t at = first * width; at < last * width; at += width)
                add(part.data() + at, after_mlp, own + at, own + at);
        });
    }
}

void Layer::run(std::int64_t rows, std::int64_t steps, const Rotation& by, const Seen& seen, float* hidden) const {
    const std::int64_t tokens = rows * steps, own = kv_heads * size;
    const Numbers queries(tokens * heads * size), keys(tokens * own), values(tokens * own);
    project(tokens, hidden, by, queries.data(), keys.data(), values.data());
    const bool in_bytes = seen.kept == Kept::BYTES;
    const std::int64_t next = in_bytes ? width_of_bytes(size) : size;
    const auto put = [&](const float* states, void* all, std::int64_t place) {
        if (in_bytes)
            kernels().to_bytes(states, size, static_cast<std::int8_t*>(all) + place);
        else
            kernels().to_brains(states, size, static_cast<std::uint16_t*>(all) + place);
    };
    spread(tokens, 16, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first * kv_heads; i < last * kv_heads; ++i) {
            const std::int64_t token = i / kv_heads, slot = seen.length - steps + token % steps;
            const std::int64_t place = token / steps * seen.row + i % kv_heads * seen.head + slot * next;
            put(keys.data() + i * size, seen.keys, place);
            put(values.data() + i * size, seen.values, place);
        }
    });
    const Memory fresh{rows, steps, steps, keys.data(), values.data(), Kept::FLOATS, steps * own, size, own, seen.sight};
    const Memory all{rows, steps, seen.length, seen.keys, seen.values, seen.kept, seen.row, seen.head, next, seen.sight};
    attend({heads, kv_heads, size, scale, cap}, seen.length == steps ? fresh : all, queries.data(), queries.data());
    finish(tokens, queries.data(), hidden, hidden);
}

}  // namespace gemlens
