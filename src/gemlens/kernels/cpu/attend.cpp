#include "attend.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace gemlens {
namespace {

constexpr std::int64_t LINES = 96;  // of queries that attend together

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
            const std::int64_t from = piece * LOOK, place = row * memory.row + head * memory.head + from * memory.token;
            const std::int64_t length = std::min(LOOK, memory.length - from);
            bool seen[LOOK];
            if (memory.sight) attention().see(*memory.sight, row, token % memory.steps, from, length, seen);
            float* part = part_of(group, piece);
            const std::int64_t bytes = place * size_of(memory.kept);
            kernels().look({queries + group * each * size, static_cast<const char*>(memory.keys) + bytes,
                          static_cast<const char*>(memory.values) + bytes, memory.token, memory.kept,
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

void attend_many(const Mixer& by, const Heads& at, const Memory& memory, const float* queries, float* mixed) {
    const std::int64_t kv_heads = at.kv_heads, size = at.size, each = at.heads / kv_heads;
    const std::int64_t most = std::max<std::int64_t>(1, LINES / each);
    const std::int64_t steps = (memory.length + STEP - 1) / STEP, bytes = by.step_bytes(size);
    const std::int64_t pairs = memory.rows * kv_heads, parts = (memory.steps + most - 1) / most;
    const Room<std::uint8_t> packed(pairs * steps * bytes);
    spread(pairs * steps, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t pair = i / steps, from = i % steps * STEP;
            const std::int64_t place = pair / kv_heads * memory.row + pair % kv_heads * memory.head + from * memory.token;
            const auto at_place = [&](const void* states) {
                return static_cast<const char*>(states) + place * size_of(memory.kept);
            };
            by.pack(at_place(memory.keys), at_place(memory.values), memory.kept, std::min(STEP, memory.length - from), size,
                    memory.token, packed.data() + i * bytes);
        }
    });
    // Later tokens see more: the longest parts come first, each alone, so that threads end together.
    pool().run(static_cast<int>(pairs * parts), [&](int number) {
        const std::int64_t part = parts - 1 - number / pairs, pair = number % pairs, row = pair / kv_heads;
        const std::int64_t first = part * most;
        const std::int64_t place = ((row * memory.steps + first) * at.heads + pair % kv_heads * each) * size;
        by.mix({queries + place, at.heads * size, std::min(most, memory.steps - first), each, size,
                packed.data() + pair * steps * bytes, memory.length, memory.sight, row, first, at.scale, at.cap, mixed + place});
    });
}

}  // namespace

void attend(const Heads& heads, const Memory& memory, const float* queries, float* mixed) {
    if (memory.steps < MANY) return attend_few(heads, memory, queries, mixed);
    const bool is_coarse = memory.is_coarse && !memory.sight && heads.cap == 0.0f;
    attend_many(is_coarse ? coarse_mixer() : attention().mixer, heads, memory, queries, mixed);
}

}  // namespace gemlens
