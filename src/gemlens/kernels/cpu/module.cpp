// gemlens.kernels._cpu: the kernels for Python. Tensors come as addresses; gemlens.kernels.native has checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "pool.hpp"

namespace nb = nanobind;

namespace gemlens {
namespace {

const Kernels* chosen = &portable;
std::unique_ptr<Pool> pool = std::make_unique<Pool>(1);

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

std::vector<std::string> names() {
    std::vector<std::string> found;
    for (const Kernels* each : usable()) found.emplace_back(each->name);
    return found;
}

void use(const std::string& name, int threads) {
    for (const Kernels* each : usable())
        if (name == each->name) {
            chosen = each;
            if (pool->size() != threads) pool = std::make_unique<Pool>(threads);
            return;
        }
    throw std::invalid_argument("no such kernels: " + name);
}

template <class T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// Cuts [0, count) into parts of a few times the number of threads.
template <class Each>
void spread(std::int64_t count, std::int64_t least, Each each) {
    const std::int64_t parts = std::clamp<std::int64_t>(count / least, 1, 4 * pool->size());
    pool->run(static_cast<int>(parts), [&](int part) { each(count * part / parts, count * (part + 1) / parts); });
}

Layout layout(int format) { return chosen->layout(format); }

void pack(int format, std::uintptr_t file, std::int64_t rows, std::int64_t blocks, std::uintptr_t tiles) {
    spread((rows + 15) / 16, 1, [&](std::int64_t first, std::int64_t last) {
        chosen->pack(format, at<std::uint8_t>(file), rows, blocks, first, last, at<std::uint8_t>(tiles));
    });
}

void rows(int format, std::uintptr_t tiles, std::uintptr_t numbers, std::int64_t count, std::int64_t blocks,
          std::uintptr_t weights) {
    const std::int64_t width = blocks * layout(format).block;
    for (std::int64_t i = 0; i < count; ++i)
        chosen->row(format, at<std::uint8_t>(tiles), at<std::int64_t>(numbers)[i], blocks,
                    at<float>(weights) + i * width);
}

void linear(int format, std::uintptr_t tiles, std::int64_t rows, std::int64_t blocks, std::uintptr_t x,
            std::int64_t tokens, std::uintptr_t y) {
    const std::int64_t groups = blocks * layout(format).block / 32;
    std::vector<Group> quantized(static_cast<std::size_t>(tokens * groups));
    spread(tokens, 8, [&](std::int64_t first, std::int64_t last) {
        chosen->quantize(at<float>(x) + first * groups * 32, (last - first) * groups, quantized.data() + first * groups);
    });
    spread((rows + 15) / 16, 4, [&](std::int64_t first, std::int64_t last) {
        chosen->linear(format, at<std::uint8_t>(tiles), rows, blocks, first, last, quantized.data(), tokens,
                       at<float>(y));
    });
}

}  // namespace
}  // namespace gemlens

NB_MODULE(_cpu, module) {
    using namespace gemlens;
    const auto free = nb::call_guard<nb::gil_scoped_release>();
    module.def("names", names);
    module.def("use", use);
    module.def("layout", [](int format) {
        const Layout found = layout(format);
        return nb::make_tuple(found.block, found.bytes, found.tile);
    });
    module.def("pack", pack, free);
    module.def("rows", rows, free);
    module.def("linear", linear, free);
}
