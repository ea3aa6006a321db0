// gemlens.kernels._cpu: the kernels for Python. Tensors come as addresses; gemlens.kernels.native has checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "attend.hpp"
#include "engine.hpp"
#include "largest.hpp"
#include "layer.hpp"

namespace nb = nanobind;

namespace gemlens {
namespace {

template <class T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Layout layout(int format) { return kernels().layout(format); }

void pack(int format, std::uintptr_t file, std::int64_t rows, std::int64_t blocks, std::uintptr_t tiles) {
    spread((rows + 15) / 16, 1, [&](std::int64_t first, std::int64_t last) {
        kernels().pack(format, at<std::uint8_t>(file), rows, blocks, first, last, at<std::uint8_t>(tiles));
    });
}

void rows(int format, std::uintptr_t tiles, std::int64_t rows, std::int64_t blocks, std::uintptr_t numbers,
          std::int64_t count, std::uintptr_t weights) {
    const std::int64_t width = blocks * layout(format).block;
    for (std::int64_t i = 0; i < count; ++i)
        kernels().row(format, at<std::uint8_t>(tiles), rows, blocks, at<std::int64_t>(numbers)[i],
                      at<float>(weights) + i * width);
}

void linear(int format, std::uintptr_t tiles, std::int64_t rows, std::int64_t blocks, std::uintptr_t x,
            std::int64_t tokens, std::uintptr_t y) {
    const Matrix matrix{format, at<std::uint8_t>(tiles), rows, blocks};
    multiply({{&matrix, at<float>(y)}}, quantized(at<float>(x), tokens, matrix.width()));
}

nb::tuple largest_of(int format, std::uintptr_t tiles, std::int64_t rows, std::int64_t blocks, std::uintptr_t x,
                     std::int64_t k) {
    std::vector<Candidate> found;
    {
        const nb::gil_scoped_release released;
        const Matrix matrix{format, at<std::uint8_t>(tiles), rows, blocks};
        found = largest(matrix, quantized(at<float>(x), 1, matrix.width()).groups.data(), k);
    }
    std::vector<std::int64_t> numbers;
    std::vector<float> products;
    for (const auto& [row, product] : found) {
        numbers.push_back(row);
        products.push_back(product);
    }
    return nb::make_tuple(numbers, products);
}

Matrix matrix(const nb::tuple& parts) {
    return {nb::cast<int>(parts[0]), at<std::uint8_t>(nb::cast<std::uintptr_t>(parts[1])),
            nb::cast<std::int64_t>(parts[2]), nb::cast<std::int64_t>(parts[3])};
}

// `spans`: address and row of positions, blocks and segments of queries, then of keys.
Sight sight_of(const std::vector<std::int64_t>& spans, std::int64_t window) {
    Sight found{};
    Sight::Numbers* places[] = {&found.query_position, &found.query_block, &found.query_segment,
                                &found.key_position,   &found.key_block,   &found.key_segment};
    for (std::size_t i = 0; i < spans.size() / 2; ++i)
        *places[i] = {at<std::int64_t>(static_cast<std::uintptr_t>(spans[2 * i])), spans[2 * i + 1]};
    found.window = window;
    return found;
}

void attend_of(std::int64_t rows, std::int64_t steps, std::int64_t length, std::int64_t heads, std::int64_t kv_heads,
               std::int64_t size, std::uintptr_t query, std::uintptr_t keys, std::uintptr_t values, std::int64_t row,
               std::int64_t head, const std::vector<std::int64_t>& spans, std::int64_t window, float scale, float cap,
               std::uintptr_t mixed) {
    const nb::gil_scoped_release released;
    const Sight sight = sight_of(spans, window);
    const Sight* who = spans.empty() ? nullptr : &sight;
    attend({heads, kv_heads, size, scale, cap}, {rows, steps, length, at<float>(keys), at<float>(values), row, head, who},
           at<float>(query), at<float>(mixed));
}

Layer layer(const nb::list& matrices, const std::vector<std::uintptr_t>& norms, std::int64_t heads,
            std::int64_t kv_heads, std::int64_t size, float eps) {
    Layer made{};
    Matrix* places[] = {&made.query, &made.key, &made.value, &made.output, &made.gate, &made.up, &made.down};
    for (std::size_t i = 0; i < 7; ++i) *places[i] = matrix(nb::cast<nb::tuple>(matrices[i]));
    const float** weights[] = {&made.before_attention, &made.after_attention, &made.before_mlp,
                               &made.after_mlp, &made.query_norm, &made.key_norm};
    for (std::size_t i = 0; i < 6; ++i) *weights[i] = at<float>(norms[i]);
    made.heads = heads, made.kv_heads = kv_heads, made.size = size;
    made.eps = eps;
    return made;
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
    module.def("largest", largest_of);
    module.def("attend", attend_of);
    module.def("layer", layer);
    nb::class_<Layer>(module, "Layer")
        .def(
            "project",
            [](const Layer& layer, std::int64_t tokens, std::uintptr_t hidden, std::uintptr_t cos, std::uintptr_t sin,
               std::int64_t turns, std::uintptr_t query, std::uintptr_t key, std::uintptr_t value) {
                layer.project(tokens, at<float>(hidden), {at<float>(cos), at<float>(sin), turns}, at<float>(query),
                              at<float>(key), at<float>(value));
            },
            free)
        .def(
            "finish",
            [](const Layer& layer, std::int64_t tokens, std::uintptr_t mixed, std::uintptr_t hidden,
               std::uintptr_t result) {
                layer.finish(tokens, at<float>(mixed), at<float>(hidden), at<float>(result));
            },
            free);
}
