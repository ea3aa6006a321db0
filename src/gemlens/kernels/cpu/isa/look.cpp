// Attention of a few tokens, compiled once for each instruction set: each key is read once for up to four queries.
#include "look.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "simd.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {
namespace {

using Brain = std::uint16_t;
using Byte = std::int8_t;

Simd::Floats load(const float* place) { return Simd::load(place); }
Simd::Floats load(const Brain* place) { return Simd::brains(reinterpret_cast<const std::uint8_t*>(place)); }
Simd::Floats load(const Byte* place) { return Simd::signed_bytes(reinterpret_cast<const std::uint8_t*>(place)); }

float number(float value) { return value; }
float number(Brain value) { return from_brain(value); }
float number(Byte value) { return value; }


// Scores of COUNT queries [COUNT, size] with one key, which is read once for all of them.
template <int COUNT, class Stored>
void scores_of(const float* queries, const Stored* key, std::int64_t size, float* scores, std::int64_t stride) {
    Simd::Floats sums[COUNT];
    for (auto& sum : sums) sum = Simd::zero();
    std::int64_t i = 0;
    for (; i + ROWS <= size; i += ROWS) {
        const auto part = load(key + i);
#pragma GCC unroll 4
        for (int q = 0; q < COUNT; ++q) sums[q] = Simd::multiply_add(Simd::load(queries + q * size + i), part, sums[q]);
    }
    for (int q = 0; q < COUNT; ++q) {
        float score = Simd::sum(sums[q]);
        for (std::int64_t rest = i; rest < size; ++rest) score += queries[q * size + rest] * number(key[rest]);
        scores[q * stride] = score;
    }
}

// COUNT sums over keys of weights [COUNT, stride] times values, WIDE times 16 columns of them; the next is `next` further.
template <int COUNT, int WIDE, class Stored>
void mix_columns(const float* weights, std::int64_t stride, const Stored* values, std::int64_t length, std::int64_t next,
                 std::int64_t size, float* mixed) {
    Simd::Floats sums[COUNT][WIDE];
    for (auto& row : sums)
        for (auto& sum : row) sum = Simd::zero();
    for (std::int64_t t = 0; t < length; ++t)
#pragma GCC unroll 4
        for (int c = 0; c < WIDE; ++c) {
            const auto part = load(values + t * next + c * ROWS);
#pragma GCC unroll 4
            for (int q = 0; q < COUNT; ++q)
                sums[q][c] = Simd::multiply_add(Simd::all(weights[q * stride + t]), part, sums[q][c]);
        }
    for (int q = 0; q < COUNT; ++q)
        for (int c = 0; c < WIDE; ++c) Simd::store(mixed + q * size + c * ROWS, sums[q][c]);
}

template <int COUNT, class Stored>
void look_of(const Look& at, std::int64_t first) {
    const float* queries = at.queries + first * at.size;
    const Stored *keys = static_cast<const Stored*>(at.keys), *values = static_cast<const Stored*>(at.values);
    float scores[COUNT][LOOK];
    const auto scale = [&](std::int64_t t, const Stored* states) {
        if constexpr (std::is_same_v<Stored, Byte>)
            for (int q = 0; q < COUNT; ++q) scores[q][t] *= step_of(states + t * at.next, at.size);
    };
    for (std::int64_t t = 0; t < at.length; ++t) {
        scores_of<COUNT>(queries, keys + t * at.next, at.size, &scores[0][t], LOOK);
        scale(t, keys);
    }
    for (int q = 0; q < COUNT; ++q) {
        float most = -std::numeric_limits<float>::infinity(), total = 0.0f;
        for (std::int64_t t = 0; t < at.length; ++t) {
            float score = at.scale * scores[q][t];
            if (at.cap != 0.0f) score = at.cap * std::tanh(score / at.cap);
            scores[q][t] = at.seen && !at.seen[t] ? -std::numeric_limits<float>::infinity() : score;
            most = std::max(most, scores[q][t]);
        }
#pragma omp simd reduction(+ : total)
        for (std::int64_t t = 0; t < at.length; ++t) {
            const bool is_seen = !(scores[q][t] == -std::numeric_limits<float>::infinity());
            scores[q][t] = is_seen ? exp_of(scores[q][t] - most) : 0.0f;
            total += scores[q][t];
        }
        at.most[first + q] = most;
        at.total[first + q] = total;
    }
    for (std::int64_t t = 0; t < at.length; ++t) scale(t, values);
    constexpr int WIDE = Simd::COLUMNS;
    float* mixed = at.mixed + first * at.size;
    std::int64_t i = 0;
    for (; i + WIDE * ROWS <= at.size; i += WIDE * ROWS)
        mix_columns<COUNT, WIDE>(scores[0], LOOK, values + i, at.length, at.next, at.size, mixed + i);
    for (; i + ROWS <= at.size; i += ROWS)
        mix_columns<COUNT, 1>(scores[0], LOOK, values + i, at.length, at.next, at.size, mixed + i);
    for (; i < at.size; ++i)
        for (int q = 0; q < COUNT; ++q) {
            float sum = 0.0f;
            for (std::int64_t t = 0; t < at.length; ++t) sum += scores[q][t] * number(values[t * at.next + i]);
            mixed[q * at.size + i] = sum;
        }
}

template <class Stored>
void look_at(const Look& at) {
    std::int64_t q = 0;
    for (; q + 4 <= at.count; q += 4) look_of<4, Stored>(at, q);
    for (; q + 2 <= at.count; q += 2) look_of<2, Stored>(at, q);
    for (; q < at.count; ++q) look_of<1, Stored>(at, q);
}

}  // namespace

void look(const Look& at) {
    at.kept == Kept::BYTES ? look_at<Byte>(at) : at.kept == Kept::BRAINS ? look_at<Brain>(at) : look_at<float>(at);
}

void to_brains(const float* numbers, std::int64_t count, std::uint16_t* brains) {
    std::transform(numbers, numbers + count, brains, to_brain);
}

void to_bytes(const float* numbers, std::int64_t count, std::int8_t* bytes) {
    const Steps steps = steps_of(numbers, count);
    for (std::int64_t i = 0; i < count; ++i) bytes[i] = static_cast<std::int8_t>(whole_of(steps.factor * numbers[i]));
    std::memcpy(bytes + count, &steps.scale, sizeof steps.scale);
}

}  // namespace GEMLENS_ISA
}  // namespace gemlens
