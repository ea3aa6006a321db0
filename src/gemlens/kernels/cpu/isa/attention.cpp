// Attention of many tokens, compiled once for each instruction set: who sees whom, and the sum of what is seen.
//
//     keys, values -> packed, 64 bytes at a time -> scores of a few queries with STEP keys -> weights -> values times weights
//
// Queries of one block are of tokens that follow each other and of heads that share their keys: these are the lines. With
// pairs of bfloat16, 64 bytes are 16 times two numbers, else 16 numbers; sums and weights are in float32.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../kernels.hpp"
#include "lines.hpp"
#include "simd.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {
namespace {

#if defined(GEMLENS_BF16)
constexpr int DEPTH = 2;
using Number = std::uint16_t;
void put_numbers(const float* values, float factor, std::int64_t count, Number* numbers) {
    std::int64_t i = 0;
    for (; i + ROWS <= count; i += ROWS) {
        const __m256bh sixteen = _mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(values + i), _mm512_set1_ps(factor)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers + i), reinterpret_cast<__m256i>(sixteen));
    }
    for (; i < count; ++i) numbers[i] = to_brain(factor * values[i]);
}
void put_brains(const std::uint16_t* brains, std::int64_t count, Number* numbers) { std::copy_n(brains, count, numbers); }
// Weights of scores, 2^(score - most), and what they add to 16 totals. Both are as good as numbers of bfloat16 need it.
void put_weights(float* scores, int count, float most, float* totals, Number* weights) {
    __m512 total = _mm512_loadu_ps(totals);
    for (int j = 0; j < count; j += ROWS) {
        const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(most));
        // Nothing is left of less than 2^-126; what is no number stays none, as bfloat16 has no ninth bit from below.
        const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLE_UQ);
        const __m512 power = _mm512_maskz_mov_ps(counts, power_of(x));
        total = _mm512_add_ps(total, power);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + j), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(power)));
    }
    _mm512_storeu_ps(totals, total);
}
Simd::Floats add(Simd::Floats sums, const void* tile, const void* x) {
    std::int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    const __m512i pairs = _mm512_loadu_si512(tile), same = _mm512_set1_epi32(pair);
    return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(same));
}
#else
constexpr int DEPTH = 1;
using Number = float;
void put_numbers(const float* values, float factor, std::int64_t count, Number* numbers) {
    for (std::int64_t i = 0; i < count; ++i) numbers[i] = factor * values[i];
}
void put_brains(const std::uint16_t* brains, std::int64_t count, Number* numbers) {
    std::transform(brains, brains + count, numbers, from_brain);
}
void put_weights(float* scores, int count, float most, float* totals, Number* weights) {
    for (int j = 0; j < count; j += ROWS)
#pragma omp simd
        for (int i = 0; i < ROWS; ++i) {
            const float score = scores[j + i];
            weights[j + i] = score == NOT_SEEN ? 0.0f : exp_of(0.69314718f * (score - most));
            totals[i] += weights[j + i];
        }
}
Simd::Floats add(Simd::Floats sums, const void* tile, const void* x) {
    return Simd::multiply_add(Simd::load(static_cast<const float*>(tile)), Simd::all(*static_cast<const float*>(x)), sums);
}
#endif
constexpr int EACH = ROWS * DEPTH;  // numbers of a tile
constexpr std::int64_t LINE = DEPTH * sizeof(Number);  // bytes of a line that are multiplied at once

// Bytes of packed keys or values of STEP keys.
std::int64_t keys_bytes(std::int64_t size) { return STEP / ROWS * (up_to(size, DEPTH) / DEPTH) * TILE; }
std::int64_t values_bytes(std::int64_t size) { return STEP / DEPTH * (up_to(size, ROWS) / ROWS) * TILE; }

void pack_step(const void* keys, const void* values, Kept kept, std::int64_t length, std::int64_t size, std::int64_t next,
               std::uint8_t* packed) {
    const std::int64_t depths = up_to(size, DEPTH) / DEPTH, widths = up_to(size, ROWS) / ROWS;
    std::memset(packed, 0, static_cast<std::size_t>(keys_bytes(size) + values_bytes(size)));
    auto* key_tiles = reinterpret_cast<Number*>(packed);
    auto* value_tiles = reinterpret_cast<Number*>(packed + keys_bytes(size));
    thread_local std::vector<Number> key, value;
    thread_local std::vector<float> wide;
    wide.resize(static_cast<std::size_t>(size));
    key.assign(static_cast<std::size_t>(depths * DEPTH), Number{});
    value.assign(static_cast<std::size_t>(widths * ROWS), Number{});
    for (std::int64_t t = 0; t < length; ++t) {
        const auto put = [&](const void* states, Number* numbers) {
            if (kept == Kept::BRAINS) return put_brains(static_cast<const std::uint16_t*>(states) + t * next, size, numbers);
            widen(states, t * next, kept, size, wide.data());
            put_numbers(wide.data(), 1.0f, size, numbers);
        };
        put(keys, key.data());
        put(values, value.data());
        for (std::int64_t d = 0; d < depths; ++d)
            std::copy_n(key.data() + d * DEPTH, DEPTH, key_tiles + (t / ROWS * depths + d) * EACH + t % ROWS * DEPTH);
        Number* tile = value_tiles + t / DEPTH * widths * EACH + t % DEPTH;
        for (std::int64_t i = 0; i < widths * ROWS; ++i) tile[i * DEPTH] = value[static_cast<std::size_t>(i)];
    }
}

// Lines of x times `depths` tiles each of `columns` columns of tiles, put into sums [lines, stride], or added to them.
template <bool ADDS>
void add_tiles(int lines, Lines x, Columns tiles, std::int64_t columns, std::int64_t depths, float* sums, std::int64_t stride) {
    each_block(
        lines, x, tiles, columns, depths,
        [=](int line, std::int64_t column) { return ADDS ? Simd::load(sums + line * stride + column * ROWS) : Simd::zero(); },
        [](Simd::Floats sum, const void* tile, const void* each) { return add(sum, tile, each); },
        [=](int line, std::int64_t column, Simd::Floats sum) { Simd::store(sums + line * stride + column * ROWS, sum); });
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

// Keys of a step, from a first one to before another.
struct Keys {
    int from = STEP, to = 0;
    static Keys of(const bool* seen) {
        int from = 0, to = STEP;
        while (from < to && !seen[from]) ++from;
        while (from < to && !seen[to - 1]) --to;
        return from < to ? Keys{from, to} : Keys{};
    }
    void add(const Keys& keys) { from = std::min(from, keys.from), to = std::max(to, keys.to); }
};

// Scores of one line with some keys -> their weights. `hidden` is -inf for keys that are not seen, else 0; or null, where
// all are seen.
void weigh(float* scores, int count, const float* hidden, float cap, Line& line, float* mixed, std::int64_t width, Number* weights) {
    if (cap != 0.0f)
        for (int j = 0; j < count; ++j) scores[j] = cap * std::tanh(scores[j] / cap);
    if (hidden)
#pragma omp simd
        for (int j = 0; j < count; ++j) scores[j] = hidden[j] < 0.0f ? hidden[j] : scores[j];
    float largest = NOT_SEEN;
#pragma omp simd reduction(max : largest)
    for (int j = 0; j < count; ++j) largest = largest < scores[j] ? scores[j] : largest;
    line.see(largest, mixed, width);
    if (line.most == NOT_SEEN)
        std::fill(weights, weights + count, Number{});
    else
        put_weights(scores, count, line.most, line.totals, weights);
}

void mix(const Mix& at) {
    const std::int64_t size = at.size, depths = up_to(size, DEPTH) / DEPTH, width = up_to(size, ROWS);
    const std::int64_t step_bytes = keys_bytes(size) + values_bytes(size);
    const int lines = static_cast<int>(at.tokens * at.each);
    const auto room = [&](std::int64_t each) { return static_cast<std::size_t>(lines * each); };
    thread_local std::vector<Number> queries;
    thread_local std::vector<float> mixed;
    float scores[SOME * STEP];
    Number weights[SOME * STEP];
    queries.assign(room(depths * DEPTH), Number{});
    mixed.assign(room(width), 0.0f);
    std::vector<Line> known(static_cast<std::size_t>(lines));
    std::vector<float> hidden(static_cast<std::size_t>(at.tokens * STEP));
    std::vector<Keys> sees(static_cast<std::size_t>(at.tokens));
    const float cap = LOG2_E * at.cap, scale = LOG2_E * at.scale;
    for (int line = 0; line < lines; ++line)
        put_numbers(at.queries + place_of(at, line), scale, size, queries.data() + line * depths * DEPTH);
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
        const std::uint8_t *key_tiles = at.packed + from / STEP * step_bytes, *value_tiles = key_tiles + keys_bytes(size);
        for (int first = 0; first < lines; first += SOME) {  // so that what they are given stays in the nearest cache
            const int some = std::min(SOME, lines - first);
            Keys seen;
            for (std::int64_t t = first / at.each; t <= (first + some - 1) / at.each; ++t) seen.add(sees[static_cast<std::size_t>(t)]);
            if (seen.to == 0) continue;
            const int begin = seen.from / ROWS * ROWS, columns = (seen.to - begin + ROWS - 1) / ROWS;
            float* own = mixed.data() + first * width;
            add_tiles<false>(some, {queries.data() + first * depths * DEPTH, depths * LINE, LINE},
                             {key_tiles + begin / ROWS * depths * TILE, depths * TILE, TILE}, columns, depths, scores, STEP);
            for (int line = 0; line < some; ++line)
                weigh(scores + line * STEP, columns * ROWS, is_whole ? nullptr : hidden.data() + (first + line) / at.each * STEP + begin,
                      cap, known[static_cast<std::size_t>(first + line)], own + line * width, width, weights + line * STEP);
            add_tiles<true>(some, {weights, STEP * std::int64_t{sizeof(Number)}, LINE},
                            {value_tiles + begin / DEPTH * (width / ROWS) * TILE, TILE, width / ROWS * TILE}, width / ROWS,
                            columns * ROWS / DEPTH, own, width);
        }
    }
    put_mixed(at, known, mixed.data(), width);
}

std::int64_t step_bytes(std::int64_t size) { return keys_bytes(size) + values_bytes(size); }

}  // namespace
}  // namespace GEMLENS_ISA

const Attention GEMLENS_ATTENTION{see, {step_bytes, pack_step, mix}};

}  // namespace gemlens
