#include "engine.hpp"

#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace gemlens {
namespace {

const Kernels* chosen = &portable;
const Attention* chosen_attention = &portable_attention;
std::unique_ptr<Pool> threads_of_all = std::make_unique<Pool>(1);
std::mutex remaking;
std::atomic<bool> is_forked{false};  // a child has the pool's memory but not its threads

std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found;
#if defined(GEMLENS_X86)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni"))
        found.push_back(&avx512);
    if (has_avx2) found.push_back(&avx2);
#endif
    found.push_back(&portable);
    return found;
}

const Attention* attention_of(const Kernels* kernels) {
#if defined(GEMLENS_X86)
    if (kernels == &avx512) return __builtin_cpu_supports("avx512bf16") ? &bf16_attention : &avx512_attention;
    if (kernels == &avx2) return &avx2_attention;
#endif
    return &portable_attention;
}

void watch_forks() {
#if !defined(_WIN32)
    static const int watched = pthread_atfork(nullptr, nullptr, [] { is_forked = true; });
    static_cast<void>(watched);
#endif
}

}  // namespace

std::vector<std::string> names() {
    std::vector<std::string> found;
    for (const Kernels* each : usable()) found.emplace_back(each->name);
    return found;
}

void use(const std::string& name, int threads) {
    watch_forks();
    for (const Kernels* each : usable())
        if (name == each->name) {
            chosen = each;
            chosen_attention = attention_of(each);
            if (pool().size() != threads) threads_of_all = std::make_unique<Pool>(threads);
            return;
        }
    throw std::invalid_argument("no such kernels: " + name);
}

const Kernels& kernels() { return *chosen; }

Pool& pool() {
    if (is_forked.load(std::memory_order_acquire)) {
        const std::lock_guard<std::mutex> lock(remaking);
        if (is_forked) {
            Pool* const lost = threads_of_all.release();  // without its threads it cannot end
            threads_of_all = std::make_unique<Pool>(lost->size());
            is_forked.store(false, std::memory_order_release);
        }
    }
    return *threads_of_all;
}

const Attention& attention() { return *chosen_attention; }

const Mixer& coarse_mixer() {
#if defined(GEMLENS_X86)
    if (chosen == &avx512) return mixer_in_bytes;
#endif
    return chosen_attention->mixer;
}

Tokens::Tokens(const float* numbers, std::int64_t count, std::int64_t width, int parts, bool in_panels)
    : numbers(numbers), count(count), width_(width), parts_(parts), panel_(in_panels ? PANEL : 1) {
    const std::int64_t panels = (lines() + panel_ - 1) / panel_, groups = width / 32;
    groups_ = Room<Group>(panels * panel_ * groups);
    columns_ = Room<Column>(panels * panel_ / SUMS * columns_of(groups));
    Group nothing{};
    nothing.next = -1;
    for (std::int64_t line = lines(); line % panel_; ++line)  // of the last panel, which nobody reads the products of
        for (std::int64_t g = 0; g < groups; ++g) place_of(line)[g * panel_] = nothing;
}

Group* Tokens::place_of(std::int64_t line) const {
    return groups_.data() + line / panel_ * panel_ * (width_ / 32) + line % panel_;
}

void Tokens::quantize(std::int64_t token) const {
    Group *own = place_of(token * parts_), *last = place_of(token * parts_ + parts_ - 1);
    chosen->quantize(numbers + token * width_, width_ / 32, panel_, last - own, own);
}

void Tokens::gather(std::int64_t first) const {
    const std::int64_t groups = width_ / 32, whole = in_panels() ? PANEL : lines() - first * parts_;
    for (std::int64_t line = 0; line + SUMS <= std::min<std::int64_t>(PANEL, whole); line += SUMS) {
        const std::int64_t begin = first * parts_ + line;
        Column* const own = columns_.data() + begin / SUMS * columns_of(groups);
        gemlens::gather(place_of(begin), in_panels() ? 1 : groups, panel_, groups, own);
    }
}

void gather(const Group* lines, std::int64_t next, std::int64_t stride, std::int64_t groups, Column* columns) {
    constexpr std::int32_t NONE = std::numeric_limits<std::int32_t>::max();
    std::int32_t numbers[SUMS];  // of the next peak of each line
    const auto look = [&](int line, std::int64_t g) {
        const std::int32_t number = g < groups ? lines[line * next + g * stride].next : -1;
        numbers[line] = number >= 0 ? number : NONE;
    };
    for (int line = 0; line < SUMS; ++line) look(line, 0);
    for (;; ++columns) {
        const std::int32_t number = *std::min_element(numbers, numbers + SUMS);
        *columns = Column{number < NONE ? number : -1, {}};
        if (number == NONE) break;
        for (int line = 0; line < SUMS; ++line)
            if (numbers[line] == number) {
                columns->peaks[line] = lines[line * next + number / 32 * stride].peak;
                look(line, number / 32 + 1);
            }
    }
}

void multiply(std::initializer_list<Product> products, const Tokens& x) {
    std::int64_t count = 0;
    for (const Product& product : products) count += product.y ? product.matrix->tile_rows() : 0;
    spread(count, 4, [&](std::int64_t first, std::int64_t last) {
        std::int64_t before = 0;
        for (const auto& [matrix, y] : products) {
            if (!y) continue;
            const std::int64_t own = matrix->tile_rows();
            const std::int64_t from = std::clamp<std::int64_t>(first - before, 0, own);
            const std::int64_t to = std::clamp<std::int64_t>(last - before, 0, own);
            if (from < to) multiply(*matrix, from, to, x, y + 16 * from, matrix->rows);
            before += own;
        }
    });
}

void multiply(const Matrix& matrix, std::int64_t first, std::int64_t last, const Tokens& x, float* y, std::int64_t next) {
    const auto& [format, tiles, rows, blocks, parts] = matrix;
    if (matrix.has_numbers())
        chosen->linear_numbers(format, tiles, rows, blocks, first, last, x.numbers, x.count, y, next);
    else if (x.in_panels())
        chosen->linear_panels(format, tiles, rows, blocks, first, last, x.groups(), x.columns(), x.lines(), parts, y, next);
    else
        chosen->linear(format, tiles, rows, blocks, first, last, x.groups(), x.columns(), x.lines(), parts, y, next);
}

}  // namespace gemlens
