// Attention of many tokens that all see each other, in eight bits, for processors with products of these.
//
//     keys, values -> packed, 64 bytes at a time -> scores of a few queries with STEP keys -> weights -> values times weights
//
// A query and a key have a scale each, a column of values one for STEP keys, and the weights of a line for STEP keys are
// 255ths of the largest of them. Sums of products are exact; they are scaled and added up in float32.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "../kernels.hpp"
#include "lines.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {
namespace {

constexpr int DEPTH = 4;  // numbers that are multiplied and added at once
constexpr float STEPS = 127.0f, WEIGHTS = 255.0f, LOG2_WEIGHTS = 7.99435344f;
constexpr int ZERO = 128;  // what is added to codes of keys, so that they have no sign

// Where things lie in STEP packed keys and their values of `size` numbers.
struct Packed {
    std::int64_t depths, width;
    explicit Packed(std::int64_t size) : depths(up_to(size, DEPTH) / DEPTH), width(up_to(size, ROWS)) {}
    std::int64_t values() const { return STEP / ROWS * depths * TILE; }
    std::int64_t key_scales() const { return values() + STEP * width; }
    std::int64_t value_scales() const { return key_scales() + STEP * std::int64_t{sizeof(float)}; }
    std::int64_t bytes() const { return up_to(value_scales() + width * std::int64_t{sizeof(float)}, TILE); }
};

std::int64_t step_bytes(std::int64_t size) { return Packed(size).bytes(); }

// Of codes for numbers of at most this size: NaN where it is not finite; where it is almost 0, all codes are 0.
float scale_of(float largest) {
    if (!(largest <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
    return largest < 1e-36f ? 1.0f : largest / STEPS;
}

float larger(float size, float number) {  // what is no number is larger than all others
    const float own = std::fabs(number);
    return own <= size || size != size ? size : own;
}

float scale_of(const float* numbers, std::int64_t count) { return scale_of(std::accumulate(numbers, numbers + count, 0.0f, larger)); }

// 0 where the scale is NaN, and all codes shall be 0.
float inverse_of(float scale) { return scale == scale ? 1.0f / scale : 0.0f; }

int code_of(float number, float inverse) { return inverse > 0.0f ? static_cast<int>(std::nearbyint(number * inverse)) : 0; }

void pack_some(const float* keys, const float* values, std::int64_t length, std::int64_t size, std::int64_t next,
               std::uint8_t* packed) {
    const Packed at(size);
    std::memset(packed, 0, static_cast<std::size_t>(at.bytes()));
    auto* key_scales = reinterpret_cast<float*>(packed + at.key_scales());
    auto* value_scales = reinterpret_cast<float*>(packed + at.value_scales());
    bool are_finite = true;
    for (std::int64_t t = 0; t < length; ++t, keys += next) {
        const float scale = key_scales[t] = scale_of(keys, size), inverse = inverse_of(scale);
        are_finite &= scale == scale;
        std::uint8_t* own = packed + t / ROWS * at.depths * TILE + t % ROWS * DEPTH;
        for (std::int64_t i = 0; i < size; ++i)
            own[i / DEPTH * TILE + i % DEPTH] = static_cast<std::uint8_t>(code_of(keys[i], inverse) + ZERO);
        for (std::int64_t i = 0; i < size; ++i) value_scales[i] = larger(value_scales[i], values[t * next + i]);
    }
    std::transform(value_scales, value_scales + size, value_scales, [](float largest) { return scale_of(largest); });
    thread_local std::vector<float> inverses;
    inverses.resize(static_cast<std::size_t>(size));
    std::transform(value_scales, value_scales + size, inverses.begin(), inverse_of);
    for (std::int64_t t = 0; t < length; ++t, values += next) {
        auto* own = reinterpret_cast<std::int8_t*>(packed + at.values() + t / DEPTH * at.width * DEPTH + t % DEPTH);
        for (std::int64_t i = 0; i < size; ++i)
            own[i * DEPTH] = static_cast<std::int8_t>(code_of(values[i], inverses[static_cast<std::size_t>(i)]));
    }
    if (!are_finite) std::fill_n(value_scales, size, std::numeric_limits<float>::quiet_NaN());  // all lines see these keys
}

void pack(const void* keys, const void* values, Kept kept, std::int64_t length, std::int64_t size, std::int64_t next,
          std::uint8_t* packed) {
    if (kept == Kept::FLOATS)
        return pack_some(static_cast<const float*>(keys), static_cast<const float*>(values), length, size, next, packed);
    thread_local std::vector<float> numbers;
    numbers.resize(static_cast<std::size_t>(2 * length * size));
    float* wide = numbers.data();
    for (const void* states : {keys, values})
        for (std::int64_t t = 0; t < length; ++t, wide += size) widen(states, t * next, kept, size, wide);
    pack_some(numbers.data(), numbers.data() + length * size, length, size, size, packed);
}

__m512i four(const void* numbers) {
    std::int32_t same;
    std::memcpy(&same, numbers, sizeof same);
    return _mm512_set1_epi32(same);
}

using Sums = __v16si;  // __m512i would lie in memory, where there are many

Sums add(Sums sums, __m512i without_sign, __m512i with_sign) {
    return reinterpret_cast<Sums>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums), without_sign, with_sign));
}
__m512 real(Sums sums) { return _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(sums)); }

// 2^x, as 2^-30 where it is less; what is no number stays none.
__m512 weight_of(__m512 x) { return power_of(_mm512_max_ps(_mm512_set1_ps(-30.0f), x)); }

struct Query {
    const std::int8_t* codes;
    float scale;  // powers of 2 are of products with keys times it
    std::int32_t less;  // what ZERO adds to products of codes, negative
};

Query quantized(const float* numbers, std::int64_t size, float factor, std::int8_t* codes) {
    thread_local std::vector<float> own;
    own.resize(static_cast<std::size_t>(size));
    std::transform(numbers, numbers + size, own.begin(), [&](float number) { return factor * number; });
    Query found{codes, scale_of(own.data(), size), 0};
    const float inverse = inverse_of(found.scale);
    for (std::int64_t i = 0; i < size; ++i) {
        codes[i] = static_cast<std::int8_t>(code_of(own[static_cast<std::size_t>(i)], inverse));
        found.less -= ZERO * codes[i];
    }
    return found;
}

// The scores of `lines` queries with STEP keys -> weights. A line's factor makes numbers of its weights that count against
// its `most`; what was summed before is scaled to that.
void weigh(int lines, const Query* queries, float* scores, int count, Line* known, float* mixed, std::int64_t width, float* factors,
           std::uint8_t* weights) {
    float largest[SOME], powers[2 * ROWS] = {};
    static_assert(SOME <= 2 * ROWS);
    for (int line = 0; line < lines; ++line) {
        float* own = scores + line * STEP;
        std::fill(own + count, own + STEP, NOT_SEEN);
        float most = NOT_SEEN;
#pragma omp simd reduction(max : most)
        for (int j = 0; j < STEP; ++j) most = most < own[j] ? own[j] : most;
        largest[line] = queries[line].scale * most;
        known[line].see(largest[line], mixed + line * width, width);
        powers[line] = largest[line] - known[line].most;
    }
    for (int line = 0; line < SOME; line += ROWS)
        _mm512_storeu_ps(powers + line, _mm512_mul_ps(weight_of(_mm512_loadu_ps(powers + line)), _mm512_set1_ps(1.0f / WEIGHTS)));
    for (int line = 0; line < lines; ++line) {
        factors[line] = powers[line];
        const __m512 scale = _mm512_set1_ps(queries[line].scale), zero = _mm512_set1_ps(largest[line] - LOG2_WEIGHTS);
        __m512i sum = _mm512_setzero_si512();
        for (int j = 0; j < STEP; j += ROWS) {
            const __m512 score = _mm512_loadu_ps(scores + line * STEP + j);
            const __m512i codes = _mm512_cvtps_epi32(weight_of(_mm512_fmsub_ps(score, scale, zero)));
            sum = _mm512_add_epi32(sum, codes);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(weights + line * STEP + j), _mm512_cvtepi32_epi8(codes));
        }
        float* totals = known[line].totals;
        const __m512 all = _mm512_cvtepi32_ps(sum), factor = _mm512_set1_ps(factors[line]);
        _mm512_storeu_ps(totals, _mm512_fmadd_ps(all, factor, _mm512_loadu_ps(totals)));
    }
}

void mix(const Mix& at) {
    const Packed place(at.size);
    const std::int64_t depths = place.depths, width = place.width;
    const int lines = static_cast<int>(at.tokens * at.each);
    std::vector<std::int8_t> codes(static_cast<std::size_t>(lines * depths * DEPTH));
    std::vector<float> mixed(static_cast<std::size_t>(lines * width));
    std::vector<Line> known(static_cast<std::size_t>(lines));
    std::vector<Query> queries;
    for (int line = 0; line < lines; ++line)
        queries.push_back(quantized(at.queries + place_of(at, line), at.size, LOG2_E * at.scale, codes.data() + line * depths * DEPTH));
    float scores[SOME * STEP], factors[SOME];
    std::uint8_t weights[SOME * STEP];
    for (std::int64_t from = 0; from < at.length; from += STEP) {
        const std::uint8_t *keys = at.packed + from / STEP * place.bytes(), *values = keys + place.values();
        const auto* key_scales = reinterpret_cast<const float*>(keys + place.key_scales());
        const auto* value_scales = reinterpret_cast<const float*>(keys + place.value_scales());
        for (int first = 0; first < lines; first += SOME) {
            const int some = std::min(SOME, lines - first);
            const Query* asked = queries.data() + first;
            float* own = mixed.data() + first * width;
            each_block(
                some, {asked->codes, depths * DEPTH, DEPTH}, {keys, depths * TILE, TILE}, STEP / ROWS, depths,
                [=](int line, std::int64_t) { return reinterpret_cast<Sums>(_mm512_set1_epi32(asked[line].less)); },
                [](Sums sums, const void* tile, const void* x) { return add(sums, _mm512_loadu_si512(tile), four(x)); },
                [&](int line, std::int64_t c, Sums sums) {
                    const __m512 scale = _mm512_loadu_ps(key_scales + c * ROWS);
                    _mm512_storeu_ps(scores + line * STEP + c * ROWS, _mm512_mul_ps(real(sums), scale));
                });
            weigh(some, asked, scores, static_cast<int>(std::min(STEP, at.length - from)), known.data() + first, own, width, factors,
                  weights);
            each_block(
                some, {weights, STEP, DEPTH}, {values, TILE, width * DEPTH}, width / ROWS, STEP / DEPTH,
                [](int, std::int64_t) { return Sums{}; },
                [](Sums sums, const void* tile, const void* x) { return add(sums, four(x), _mm512_loadu_si512(tile)); },
                [&](int line, std::int64_t c, Sums sums) {
                    float* to = own + line * width + c * ROWS;
                    const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(value_scales + c * ROWS), _mm512_set1_ps(factors[line]));
                    _mm512_storeu_ps(to, _mm512_fmadd_ps(real(sums), scale, _mm512_loadu_ps(to)));
                });
        }
    }
    put_mixed(at, known, mixed.data(), width);
}

}  // namespace
}  // namespace GEMLENS_ISA

const Mixer mixer_in_bytes{step_bytes, pack, mix};

}  // namespace gemlens
