// Attention of a few tokens, compiled once for each instruction set: each key is read once for up to four queries.
#include "look.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "simd.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {
namespace {

using Brain = std::uint16_t;
using Byte = std::int8_t;

// Of the `size` numbers of a head: sixteen from number i on, which is a multiple of them, or that one.
Simd::Floats sixteen(const float* head, std::int64_t, std::int64_t i) { return Simd::load(head + i); }
Simd::Floats sixteen(const Brain* head, std::int64_t, std::int64_t i) {
    return Simd::brains(reinterpret_cast<const std::uint8_t*>(head + i));
}
Simd::Floats sixteen(const Byte* head, std::int64_t size, std::int64_t i) {
    const auto steps = Simd::signed_bytes(reinterpret_cast<const std::uint8_t*>(head + i));
    return Simd::multiply(steps, Simd::all(step_of(head, size, i)));
}
float number(const float* head, std::int64_t, std::int64_t i) { return head[i]; }
float number(const Brain* head, std::int64_t, std::int64_t i) { return from_brain(head[i]); }
float number(const Byte* head, std::int64_t size, std::int64_t i) { return step_of(head, size, i) * static_cast<float>(head[i]); }

// Scores of COUNT queries [COUNT, size] with one key, which is read once for all of them.
template <int COUNT, class Stored>
void scores_of(const float* queries, const Stored* key, std::int64_t size, float* scores, std::int64_t stride) {
    Simd::Floats sums[COUNT];
    for (auto& sum : sums) sum = Simd::zero();
    std::int64_t i = 0;
    for (; i + ROWS <= size; i += ROWS) {
        const auto part = sixteen(key, size, i);
#pragma GCC unroll 4
        for (int q = 0; q < COUNT; ++q) sums[q] = Simd::multiply_add(Simd::load(queries + q * size + i), part, sums[q]);
    }
    for (int q = 0; q < COUNT; ++q) {
        float score = Simd::sum(sums[q]);
        for (std::int64_t rest = i; rest < size; ++rest) score += queries[q * size + rest] * number(key, size, rest);
        scores[q * stride] = score;
    }
}

// COUNT sums over keys of weights [COUNT, stride] times values, WIDE times 16 columns of them from one on; the next value is
// `next` further.
template <int COUNT, int WIDE, class Stored>
void mix_columns(const float* weights, std::int64_t stride, const Stored* values, std::int64_t length, std::int64_t next,
                 std::int64_t size, std::int64_t column, float* mixed) {
    Simd::Floats sums[COUNT][WIDE];
    for (auto& row : sums)
        for (auto& sum : row) sum = Simd::zero();
    for (std::int64_t t = 0; t < length; ++t)
#pragma GCC unroll 4
        for (int c = 0; c < WIDE; ++c) {
            const auto part = sixteen(values + t * next, size, column + c * ROWS);
#pragma GCC unroll 4
            for (int q = 0; q < COUNT; ++q)
                sums[q][c] = Simd::multiply_add(Simd::all(weights[q * stride + t]), part, sums[q][c]);
        }
    for (int q = 0; q < COUNT; ++q)
        for (int c = 0; c < WIDE; ++c) Simd::store(mixed + q * size + column + c * ROWS, sums[q][c]);
}

template <int COUNT, class Stored>
void look_of(const Look& at, std::int64_t first) {
    const float* queries = at.queries + first * at.size;
    const Stored *keys = static_cast<const Stored*>(at.keys), *values = static_cast<const Stored*>(at.values);
    float scores[COUNT][LOOK];
    for (std::int64_t t = 0; t < at.length; ++t)
        scores_of<COUNT>(queries, keys + t * at.next, at.size, &scores[0][t], LOOK);
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
    constexpr int WIDE = Simd::COLUMNS;
    float* mixed = at.mixed + first * at.size;
    std::int64_t i = 0;
    for (; i + WIDE * ROWS <= at.size; i += WIDE * ROWS)
        mix_columns<COUNT, WIDE>(scores[0], LOOK, values, at.length, at.next, at.size, i, mixed);
    for (; i + ROWS <= at.size; i += ROWS)
        mix_columns<COUNT, 1>(scores[0], LOOK, values, at.length, at.next, at.size, i, mixed);
    for (; i < at.size; ++i)
        for (int q = 0; q < COUNT; ++q) {
            float sum = 0.0f;
            for (std::int64_t t = 0; t < at.length; ++t) sum += scores[q][t] * number(values + t * at.next, at.size, i);
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
    std::int8_t* end = bytes + count;
    for (std::int64_t i = 0; i < count; i += BYTES, end += sizeof(float)) {
        const std::int64_t some = std::min(BYTES, count - i);
        const Steps steps = steps_to(largest_of(numbers + i, some));
        for (std::int64_t j = i; j < i + some; ++j) bytes[j] = static_cast<std::int8_t>(whole_of(steps.factor * numbers[j]));
        std::memcpy(end, &steps.scale, sizeof steps.scale);
    }
}

}  // namespace GEMLENS_ISA
}  // namespace gemlens
