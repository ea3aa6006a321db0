#include "patch_layer.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "attend.hpp"

namespace gemlens {
namespace {

constexpr std::int64_t STRETCH = 256;  // patches that go through a layer's products together

// result = hidden + part + bias, of one patch
void add(std::int64_t width, const float* part, const float* bias, const float* hidden, float* result) {
    for (std::int64_t i = 0; i < width; ++i) result[i] = hidden[i] + part[i] + bias[i];
}

// Takes from keys [tokens, width] what they have in common: scores change by the same for all of them, so that weights
// stay, and fewer bits are spent on it.
void center(std::int64_t tokens, std::int64_t width, float* keys) {
    spread(width, 64, [&](std::int64_t first, std::int64_t last) {
        std::vector<float> mean(static_cast<std::size_t>(last - first));
        const auto each = [&](auto use) {
            for (std::int64_t t = 0; t < tokens; ++t)
                for (std::int64_t i = first; i < last; ++i) use(keys[t * width + i], mean[static_cast<std::size_t>(i - first)]);
        };
        each([&](float number, float& all) { all += number / static_cast<float>(tokens); });
        each([](float& number, float all) { number -= all; });
    });
}

}  // namespace

void PatchLayer::normalize(const Norm& norm, const float* hidden, float* normed) const {
    kernels().layer_norm(hidden, norm.weight, norm.bias, query.matrix.width(), eps, normed);
}

void PatchLayer::run(std::int64_t rows, std::int64_t patches, const float* hidden, float* result) const {
    const Shelf shelf;
    const std::int64_t width = query.matrix.rows, size = width / heads, most = std::min(patches, STRETCH);
    const Numbers normed(most * width), queries(patches * width), keys(patches * width), values(patches * width);
    for (std::int64_t row = 0; row < rows; ++row) {
        const float* own = hidden + row * patches * width;
        for (std::int64_t begin = 0; begin < patches; begin += STRETCH) {
            const std::int64_t count = std::min(STRETCH, patches - begin), from = begin * width;
            multiply({{&query.matrix, queries.data() + from},
                      {&key.matrix, keys.data() + from},
                      {&value.matrix, values.data() + from}},
                     quantized(query.matrix, normed.data(), count, [&](std::int64_t t) {
                         normalize(before_attention, own + from + t * width, normed.data() + t * width);
                     }));
            spread(count, 8, [&](std::int64_t first, std::int64_t last) {
                for (std::int64_t at = from + first * width; at < from + last * width; at += width)
                    for (std::int64_t i = 0; i < width; ++i) {  // what is added to all keys alike, `center` would take away
                        queries.data()[at + i] += query.bias[i];
                        values.data()[at + i] += value.bias[i];
                    }
            });
        }
        center(patches, width, keys.data());
        const float scale = 1.0f / std::sqrt(static_cast<float>(size));
        attend({heads, heads, size, scale, 0.0f},
               {1, patches, patches, keys.data(), values.data(), Kept::FLOATS, patches * width, size, width, nullptr,
                query.matrix.parts == 1 && !query.matrix.has_numbers()},
               queries.data(), queries.data());
        finish(patches, queries.data(), own, result + row * patches * width);
    }
}

// A stretch of patches after the other, so that what lies between the products stays small.
void PatchLayer::finish(std::int64_t tokens, const float* mixed, const float* hidden, float* result) const {
    const std::int64_t most = std::min(tokens, STRETCH), width = query.matrix.rows;
    const std::int64_t wide = inner.matrix.rows, padded = outer.matrix.width();
    const Numbers part(most * width), normed(most * width), raised(most * wide), activated(most * padded);
    for (std::int64_t begin = 0; begin < tokens; begin += STRETCH) {
        const std::int64_t count = std::min(STRETCH, tokens - begin);
        float* own = result + begin * width;
        multiply({{&output.matrix, part.data()}}, quantized(output.matrix, mixed + begin * width, count));
        multiply({{&inner.matrix, raised.data()}}, quantized(inner.matrix, normed.data(), count, [&](std::int64_t t) {
                     const std::int64_t at = t * width;
                     add(width, part.data() + at, output.bias, hidden + begin * width + at, own + at);
                     normalize(before_mlp, own + at, normed.data() + at);
                 }));
        multiply({{&outer.matrix, part.data()}}, quantized(outer.matrix, activated.data(), count, [&](std::int64_t t) {
                     float* y = activated.data() + t * padded;
                     kernels().activate(raised.data() + t * wide, inner.bias, wide, y);
                     std::fill(y + wide, y + padded, 0.0f);
                 }));
        spread(count, 8, [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t at = first * width; at < last * width; at += width)
                add(width, part.data() + at, outer.bias, own + at, own + at);
        });
    }
}

}  // namespace gemlens
