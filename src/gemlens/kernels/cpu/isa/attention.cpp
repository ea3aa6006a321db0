// Attention of many tokens, compiled once for each instruction set: who sees whom, and the sum of what is seen.
//
//     keys, values -> packed, 64 bytes at a time -> scores of a few queries with STEP keys -> weights -> values times weights
//
// Queries of one block are of tokens that follow each other and of heads that share their keys: these are the lines. With
// numbers of sixteen bits, 64 bytes are 16 times two, else 16 times one. A query, a key and a value may have a scale each, and
// the weights of a line for STEP keys, which take the values' scales with them: so what is not seen changes nothing.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../kernels.hpp"
#include "attended.hpp"
#include "lines.hpp"
#include "simd.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {
namespace {

constexpr int EACH = ROWS * DEPTH;  // numbers of a tile
constexpr std::int64_t LINE = DEPTH * sizeof(Number);  // bytes of a line that are multiplied at once

// Bytes of packed keys or values of STEP keys, and of all of them with the scales of both.
std::int64_t keys_bytes(std::int64_t size) { return STEP / ROWS * (up_to(size, DEPTH) / DEPTH) * TILE; }
std::int64_t values_bytes(std::int64_t size) { return STEP / DEPTH * (up_to(size, ROWS) / ROWS) * TILE; }
std::int64_t step_bytes(std::int64_t size) { return keys_bytes(size) + values_bytes(size) + 2 * STEP * std::int64_t{sizeof(float)}; }

void pack_step(const void* keys, const void* values, Kept kept, std::int64_t length, std::int64_t size, std::int64_t next,
               std::uint8_t* packed) {
    const std::int64_t depths = up_to(size, DEPTH) / DEPTH, widths = up_to(size, ROWS) / ROWS;
    std::memset(packed, 0, static_cast<std::size_t>(step_bytes(size)));
    auto* key_tiles = reinterpret_cast<Number*>(packed);
    auto* value_tiles = reinterpret_cast<Number*>(packed + keys_bytes(size));
    auto* scales = reinterpret_cast<float*>(packed + keys_bytes(size) + values_bytes(size));
    thread_local std::vector<Number> key, value;
    thread_local std::vector<float> wide;
    wide.resize(static_cast<std::size_t>(size));
    key.assign(static_cast<std::size_t>(depths * DEPTH), Number{});
    value.assign(static_cast<std::size_t>(widths * ROWS), Number{});
    for (std::int64_t t = 0; t < length; ++t) {
        const auto put = [&](const void* states, std::int64_t terms, Number* numbers) {
#if defined(GEMLENS_BF16)
            if (kept == Kept::BRAINS) {
                std::copy_n(static_cast<const std::uint16_t*>(states) + t * next, size, numbers);
                return 1.0f;
            }
#endif
            widen(states, t * next, kept, size, wide.data());
            return put_numbers(wide.data(), 1.0f, size, terms, numbers);
        };
        scales[t] = put(keys, size, key.data());
        scales[STEP + t] = put(values, STEP, value.data());
        for (std::int64_t d = 0; d < depths; ++d)
            std::copy_n(key.data() + d * DEPTH, DEPTH, key_tiles + (t / ROWS * depths + d) * EACH + t % ROWS * DEPTH);
        Number* tile = value_tiles + t / DEPTH * widths * EACH + t % DEPTH;
        for (std::int64_t i = 0; i < widths * ROWS; ++i) tile[i * DEPTH] = value[static_cast<std::size_t>(i)];
    }
}

bool see(const Sight& sight, std::int64_t row, std::int64_t token, std::int64_t from, std::int64_t count, bool* seen) {
    const auto of = [&](const Sight::Numbers& numbers) { return numbers.at + row * numbers.row; };
    const std::int64_t position = of(sight.query_position)[token], block = of(sight.query_block)[token];
    const std::int64_t *positions = of(sight.key_position) + from, *blocks = of(sight.key_block) + from;
    const std::int64_t window = sight.window;
    int any = 0;
    for (std::int64_t j = 0; j < count; ++j) {
        seen[j] = (blocks[j] == block) | ((blocks[j] < block) & (position - positions[j] < window));
        any |= seen[j];
    }
    if (!any || !sight.query_segment.at) return any;
    const std::int64_t segment = of(sight.query_segment)[token], *segments = of(sight.key_segment) + from;
    any = 0;
    for (std::int64_t j = 0; j < count; ++j) {
        seen[j] &= segments[j] == segment;
        any |= seen[j];
    }
    return any;
}

// Keys of a step, from a first one to before another; tiles are whole.
struct Keys {
    int from = STEP, to = 0;
    static Keys of(const bool* seen) {
        Keys found;
        for (int begin = 0; begin < STEP; begin += ROWS)
            if (std::memchr(seen + begin, true, ROWS)) found.add({begin, begin + ROWS});
        return found;
    }
    void add(const Keys& keys) { from = std::min(from, keys.from), to = std::max(to, keys.to); }
};

// Scores of one line with some keys -> numbers of their weights, and what values times these are multiplied by. `hidden` is -inf
// for keys that are not seen, else 0; or null, where all are seen.
float weigh(float* scores, int count, const float* hidden, float cap, const float* scales, Line& line, float* mixed, std::int64_t width,
            Number* weights) {
    if (cap != 0.0f)
        for (int j = 0; j < count; ++j) scores[j] = cap * std::tanh(scores[j] / cap);
    if (hidden)
#pragma omp simd
        for (int j = 0; j < count; ++j) scores[j] = hidden[j] < 0.0f ? hidden[j] : scores[j];
    float largest = NOT_SEEN;
#pragma omp simd reduction(max : largest)
    for (int j = 0; j < count; ++j) largest = largest < scores[j] ? scores[j] : largest;
    line.see(largest, mixed, width);
    if (line.most != NOT_SEEN) return put_weights(scores, count, line.most, scales, line.totals, weights);
    std::fill(weights, weights + count, Number{});
    return 0.0f;
}

void mix(const Mix& at) {
    const std::int64_t size = at.size, depths = up_to(size, DEPTH) / DEPTH, width = up_to(size, ROWS);
    const int lines = static_cast<int>(at.tokens * at.each);
    const auto room = [&](std::int64_t each) { return static_cast<std::size_t>(lines * each); };
    thread_local std::vector<Number> queries;
    thread_local std::vector<float> mixed;
    float scores[SOME * STEP], factors[SOME];
    Number weights[SOME * STEP];
    queries.assign(room(depths * DEPTH), Number{});
    mixed.assign(room(width), 0.0f);
    std::vector<Line> known(static_cast<std::size_t>(lines));
    std::vector<float> scales, hidden(static_cast<std::size_t>(at.tokens * STEP));
    std::vector<Keys> sees(static_cast<std::size_t>(at.tokens));
    const auto add_one = [](const Sums& sums, const void* tile, const void* x) { return add(sums, tile, x); };
    const float cap = LOG2_E * at.cap, scale = LOG2_E * at.scale;
    for (int line = 0; line < lines; ++line)
        scales.push_back(put_numbers(at.queries + place_of(at, line), scale, size, size, queries.data() + line * depths * DEPTH));
    for (std::int64_t from = 0; from < at.length; from += STEP) {
        const std::int64_t count = std::min<std::int64_t>(STEP, at.length - from);
        const bool is_whole = !at.sight && count == STEP;
        for (std::int64_t t = 0; t < at.tokens; ++t) {
            Keys& own = sees[static_cast<std::size_t>(t)] = is_whole ? Keys{0, STEP} : Keys{};
            if (is_whole) continue;
            bool seen[STEP] = {};
            if (!at.sight) std::fill(seen, seen + count, true);
            if (at.sight) see(*at.sight, at.row, at.first + t, from, count, seen);
            for (int j = 0; j < STEP; ++j) hidden[static_cast<std::size_t>(t * STEP + j)] = seen[j] ? 0.0f : NOT_SEEN;
            own = Keys::of(seen);
        }
        const std::uint8_t *key_tiles = at.packed + from / STEP * step_bytes(size), *value_tiles = key_tiles + keys_bytes(size);
        const auto* key_scales = reinterpret_cast<const float*>(value_tiles + values_bytes(size));
        for (int first = 0; first < lines; first += SOME) {  // so that what they are given stays in the nearest cache
            const int some = std::min(SOME, lines - first);
            Keys seen;
            for (std::int64_t t = first / at.each; t <= (first + some - 1) / at.each; ++t) seen.add(sees[static_cast<std::size_t>(t)]);
            if (seen.to == 0) continue;
            const int begin = seen.from, columns = (seen.to - begin) / ROWS;
            float* own = mixed.data() + first * width;
            const float *own_scales = scales.data() + first, *seen_scales = key_scales + begin;
            each_block(
                some, {queries.data() + first * depths * DEPTH, depths * LINE, LINE},
                {key_tiles + begin / ROWS * depths * TILE, depths * TILE, TILE}, columns, depths,
                [](int, std::int64_t) { return Sums{}; }, add_one,
                [&](int line, std::int64_t c, const Sums& sums) {
                    put_scores(sums, own_scales[line], seen_scales + c * ROWS, scores + line * STEP + c * ROWS);
                });
            for (int line = 0; line < some; ++line)
                factors[line] = weigh(scores + line * STEP, columns * ROWS,
                                      is_whole ? nullptr : hidden.data() + (first + line) / at.each * STEP + begin, cap,
                                      seen_scales + STEP, known[static_cast<std::size_t>(first + line)], own + line * width, width,
                                      weights + line * STEP);
            each_block(
                some, {weights, STEP * std::int64_t{sizeof(Number)}, LINE},
                {value_tiles + begin / DEPTH * (width / ROWS) * TILE, TILE, width / ROWS * TILE}, width / ROWS, columns * ROWS / DEPTH,
                [=](int line, std::int64_t c) { return sums_from(own + line * width + c * ROWS); }, add_one,
                [&](int line, std::int64_t c, const Sums& sums) { put_values(sums, factors[line], own + line * width + c * ROWS); });
        }
    }
    put_mixed(at, known, mixed.data(), width);
}

}  // namespace
}  // namespace GEMLENS_ISA

const Attention GEMLENS_ATTENTION{see, {step_bytes, pack_step, mix}};

}  // namespace gemlens
