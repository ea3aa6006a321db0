// What happens to a token between products, compiled once for each instruction set.
#include "tokens.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "simd.hpp"
#include "sizes.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {
namespace {

// `largest` is the size of the largest that is no peak; where that is hardly there or not finite, all codes are 0.
void put_group(const float* numbers, float largest, Group& group) {
    const Steps steps = steps_to(largest);
    const std::int32_t less = Simd::put_codes(numbers, steps.factor, steps.factor == 0.0f ? -1.0f : largest, group);
    group.scale = steps.scale;
    group.total = group.scale * static_cast<float>(less) - group.peak;
}

// In several sums, as each addition waits for the one before it.
template <class Number>
Number squares_of(const float* x, std::int64_t size) {
    constexpr int AT_ONCE = 128 / sizeof(Number);
    Number sums[AT_ONCE] = {};
    std::int64_t i = 0;
    for (; i + AT_ONCE <= size; i += AT_ONCE)
        for (int j = 0; j < AT_ONCE; ++j) sums[j] += static_cast<Number>(x[i + j]) * static_cast<Number>(x[i + j]);
    for (; i < size; ++i) sums[0] += static_cast<Number>(x[i]) * static_cast<Number>(x[i]);
    return std::accumulate(sums, sums + AT_ONCE, Number{0});
}

// By how much a peak's square is larger than those of its group's others; infinite or NaN where a number of the token is.
double rise_of_peaks(const float* numbers, std::int64_t count) {
    return std::max(PEAK * squares_of<double>(numbers, count) / static_cast<double>(count), double{SMALLEST} * SMALLEST);
}

// With tanh: x (1 + tanh(z)) / 2 = x / (1 + exp(-2 z)).
inline float gelu(float x) { return x / (1.0f + exp_of(-1.5957691216f * (x + 0.044715f * x * x * x))); }

}  // namespace

// First peaks and then codes, as a processor looks only so far ahead: so it works on several groups at once.
void quantize(const float* numbers, std::int64_t groups, std::int64_t stride, std::int64_t rest, Group* quantized) {
    const double least = rise_of_peaks(numbers, groups * GROUP);
    const auto square = [](float size) { return static_cast<double>(size) * size; };
    std::int32_t next = -1;
    for (std::int64_t g = groups; g-- > 0;) {
        const float* own = numbers + g * GROUP;
        const auto [largest, after, place] = largest_two(own);
        // Without a branch, as nobody can tell which group has a peak.
        const std::uint32_t is_peak = square(largest) - square(after) > least, mask = 0 - is_peak;
        const auto choose = [mask](std::uint32_t a, std::uint32_t b) { return (a & mask) | (b & ~mask); };
        Group& group = quantized[g * stride];
        group.peak = from_bits(choose(to_bits(own[place]), 0));
        group.scale = from_bits(choose(to_bits(after), to_bits(largest)));  // until it has codes
        next = static_cast<std::int32_t>(choose(static_cast<std::uint32_t>(g * GROUP + place), static_cast<std::uint32_t>(next)));
        group.next = next;
    }
    for (std::int64_t g = 0; g < groups; ++g) {
        const float* own = numbers + g * GROUP;
        Group& group = quantized[g * stride];
        const float largest = group.scale;
        put_group(own, largest, group);
        if (rest == 0) continue;
        float left[GROUP];
        for (int i = 0; i < GROUP; ++i)
            left[i] = std::fabs(own[i]) > largest ? 0.0f : std::fma(-group.scale, static_cast<float>(group.codes[i]), own[i]);
        Group& second = quantized[g * stride + rest];
        second.peak = 0.0f;
        second.next = -1;
        put_group(left, largest_of(left, GROUP), second);
    }
}

void norm(const float* x, const float* weight, std::int64_t size, float eps, float* y) {
    const float factor = 1.0f / std::sqrt(squares_of<float>(x, size) / static_cast<float>(size) + eps);
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) y[i] = x[i] * factor * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, std::int64_t size, float eps, float* y) {
    float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < size; ++i) sum += x[i];
    const float mean = sum / static_cast<float>(size);
#pragma omp simd reduction(+ : squares)
    for (std::int64_t i = 0; i < size; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const float factor = 1.0f / std::sqrt(squares / static_cast<float>(size) + eps);
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) y[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

void rotate(float* head, const float* cos, const float* sin, std::int64_t size) {
    const std::int64_t half = size / 2;
#pragma omp simd
    for (std::int64_t i = 0; i < half; ++i) {
        const float first = head[i], second = head[i + half];
        head[i] = first * cos[i] - second * sin[i];
        head[i + half] = second * cos[i + half] + first * sin[i + half];
    }
}

void gate(float* gate, const float* up, std::int64_t size) {
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) gate[i] = gelu(gate[i]) * up[i];
}

void activate(const float* x, const float* bias, std::int64_t size, float* y) {
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) y[i] = gelu(x[i] + bias[i]);
}

}  // namespace GEMLENS_ISA
}  // namespace gemlens
