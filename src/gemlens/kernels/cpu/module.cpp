// gemlens.kernels._cpu: the kernels for Python. Tensors come as addresses; gemlens.kernels.native has checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "attend.hpp"
#include "engine.hpp"
#include "largest.hpp"
#include "layer.hpp"
#include "patch_layer.hpp"
#include "pieces.hpp"

namespace nb = nanobind;

namespace gemlens {
namespace {

template <class T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Layout layout(int format) { return kernels().layout(format); }

// Asks for large pages, so that reading a matrix misses fewer translations of addresses; where there are none it is as before.
void widen_pages(std::uintptr_t begin, std::int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t page = 4096;
    const std::uintptr_t first = (begin + page - 1) / page * page, last = (begin + static_cast<std::uintptr_t>(bytes)) / page * page;
    if (first < last) madvise(at<void>(first), last - first, MADV_HUGEPAGE);
#endif
}

void pack(int format, std::uintptr_t file, std::int64_t rows, std::int64_t blocks, std::uintptr_t tiles) {
    const std::int64_t tile_rows = (rows + 15) / 16;
    std::mutex joining;
    float largest = 0.0f;
    spread(tile_rows, 1, [&](std::int64_t first, std::int64_t last) {
        const float own = kernels().pack(format, at<std::uint8_t>(file), rows, blocks, first, last, at<std::uint8_t>(tiles));
        const std::lock_guard<std::mutex> lock(joining);
        largest = std::max(largest, own);
    });
    if (layout(format).last > 0) std::memcpy(at<std::uint8_t>(tiles) + tile_rows * blocks * layout(format).tile, &largest, sizeof largest);
}

// Whether there are all these rows; else nothing is written.
bool rows(int format, std::uintptr_t tiles, std::int64_t rows, std::int64_t blocks, std::uintptr_t numbers,
          std::int64_t count, std::uintptr_t weights) {
    const std::int64_t width = blocks * layout(format).block, *wanted = at<std::int64_t>(numbers);
    const auto is_row = [&](std::int64_t number) { return 0 <= number && number < rows; };
    if (!std::all_of(wanted, wanted + count, is_row)) return false;
    for (std::int64_t i = 0; i < count; ++i)
        kernels().row(format, at<std::uint8_t>(tiles), rows, blocks, wanted[i], at<float>(weights) + i * width);
    return true;
}

void to_brains(std::uintptr_t numbers, std::int64_t count, std::uintptr_t brains) {
    spread(count, 4096, [&](std::int64_t first, std::int64_t last) {
        kernels().to_brains(at<float>(numbers) + first, last - first, at<std::uint16_t>(brains) + first);
    });
}

// numbers [count, size] -> bytes, and the floats behind them
void to_bytes(std::uintptr_t numbers, std::int64_t count, std::int64_t size, std::uintptr_t bytes) {
    spread(count, 16, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i)
            kernels().to_bytes(at<float>(numbers) + i * size, size, at<std::int8_t>(bytes) + i * width_of_bytes(size));
    });
}

void norm(std::uintptr_t x, std::uintptr_t weight, std::int64_t tokens, std::int64_t size, float eps, std::uintptr_t y) {
    spread(tokens, 8, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t)
            kernels().norm(at<float>(x) + t * size, at<float>(weight), size, eps, at<float>(y) + t * size);
    });
}

void linear(int format, std::uintptr_t tiles, std::int64_t rows, std::int64_t blocks, int parts, std::uintptr_t x,
            std::int64_t tokens, std::uintptr_t y) {
    const Matrix matrix{format, at<std::uint8_t>(tiles), rows, blocks, parts};
    multiply({{&matrix, at<float>(y)}}, quantized(matrix, at<float>(x), tokens));
}

std::int64_t largest_of(int format, std::uintptr_t tiles, std::int64_t rows, std::int64_t blocks, int parts, std::uintptr_t x,
                        std::int64_t k, bool screens, std::uintptr_t products) {
    return largest({format, at<std::uint8_t>(tiles), rows, blocks, parts}, at<float>(x), k, screens, at<float>(products));
}

std::int64_t best_of(int format, std::uintptr_t tiles, std::int64_t rows, std::int64_t blocks, int parts, std::uintptr_t x,
                     std::int64_t tokens, bool screens, std::uintptr_t products, std::uintptr_t numbers) {
    std::vector<Best> found(static_cast<std::size_t>(tokens));
    const std::int64_t computed = best({format, at<std::uint8_t>(tiles), rows, blocks, parts}, at<float>(x), tokens, screens, found.data());
    for (std::size_t t = 0; t < found.size(); ++t) {
        at<float>(products)[t] = found[t].product;
        at<std::int64_t>(numbers)[t] = found[t].row;
    }
    return computed;
}

Matrix matrix(const nb::tuple& parts) {
    return {nb::cast<int>(parts[0]), at<std::uint8_t>(nb::cast<std::uintptr_t>(parts[1])),
            nb::cast<std::int64_t>(parts[2]), nb::cast<std::int64_t>(parts[3]), nb::cast<int>(parts[4])};
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
               std::int64_t size, std::uintptr_t query, std::uintptr_t keys, std::uintptr_t values, int kept,
               std::int64_t row, std::int64_t head, std::int64_t token, const std::vector<std::int64_t>& spans, std::int64_t window,
               float scale, float cap, bool is_coarse, std::uintptr_t mixed) {
    const nb::gil_scoped_release released;
    const Sight sight = sight_of(spans, window);
    const Sight* who = spans.empty() ? nullptr : &sight;
    attend({heads, kv_heads, size, scale, cap},
           {rows, steps, length, at<void>(keys), at<void>(values), static_cast<Kept>(kept), row, head, token, who, is_coarse},
           at<float>(query), at<float>(mixed));
}

Layer layer(const nb::list& matrices, const std::vector<std::uintptr_t>& norms, std::int64_t heads,
            std::int64_t kv_heads, std::int64_t size, float eps, float scale, float cap) {
    Layer made{};
    Matrix* places[] = {&made.query, &made.key, &made.value, &made.output, &made.gate, &made.up, &made.down};
    for (std::size_t i = 0; i < 7; ++i) *places[i] = matrix(nb::cast<nb::tuple>(matrices[i]));
    const float** weights[] = {&made.before_attention, &made.after_attention, &made.before_mlp,
                               &made.after_mlp, &made.query_norm, &made.key_norm};
    for (std::size_t i = 0; i < 6; ++i) *weights[i] = at<float>(norms[i]);
    made.heads = heads, made.kv_heads = kv_heads, made.size = size;
    made.eps = eps, made.scale = scale, made.cap = cap;
    return made;
}

// `affines` and `norms`: a matrix with the address of its bias, and addresses of weight and bias, in the order of PatchLayer.
PatchLayer patch_layer(const nb::list& affines, const std::vector<std::pair<std::uintptr_t, std::uintptr_t>>& norms,
                       std::int64_t heads, float eps) {
    PatchLayer made{};
    Affine* places[] = {&made.query, &made.key, &made.value, &made.output, &made.inner, &made.outer};
    for (std::size_t i = 0; i < 6; ++i) {
        const nb::tuple parts = nb::cast<nb::tuple>(affines[i]);
        *places[i] = {matrix(parts), at<float>(nb::cast<std::uintptr_t>(parts[5]))};
    }
    made.before_attention = {at<float>(norms[0].first), at<float>(norms[0].second)};
    made.before_mlp = {at<float>(norms[1].first), at<float>(norms[1].second)};
    made.heads = heads, made.eps = eps;
    return made;
}

// What one layer of many is given: the layer, addresses of keys and values, the way from row to row and from head to
// head, the length, addresses of cosines and sines, and who sees whom: a number of `views`, or -1.
struct Turn {
    const Layer* layer;
    Seen seen;
    const float *cos, *sin;
};

Turn turn_of(const nb::tuple& given, Kept kept, const std::vector<Sight>& sights) {
    const auto number = [&](std::size_t i) { return nb::cast<std::int64_t>(given[i]); };
    const auto place = [&](std::size_t i) { return nb::cast<std::uintptr_t>(given[i]); };
    const Sight* sight = number(8) < 0 ? nullptr : &sights[static_cast<std::size_t>(number(8))];
    return {nb::cast<const Layer*>(given[0]), {at<void>(place(1)), at<void>(place(2)), kept, number(3), number(4), number(5), sight},
            at<float>(place(6)), at<float>(place(7))};
}

// hidden [rows, steps, D] goes through layers, one after the other; `views`: spans as in `attend`, and the window.
void run(const nb::list& turns, int kept, const std::vector<std::pair<std::vector<std::int64_t>, std::int64_t>>& views,
         std::int64_t rows, std::int64_t steps, std::int64_t rotations, std::uintptr_t hidden) {
    std::vector<Sight> sights;
    for (const auto& [spans, window] : views) sights.push_back(sight_of(spans, window));
    std::vector<Turn> all;
    for (const nb::handle& each : turns) all.push_back(turn_of(nb::cast<nb::tuple>(each), static_cast<Kept>(kept), sights));
    const nb::gil_scoped_release released;
    const Shelf shelf;
    for (const auto& [layer, seen, cos, sin] : all) layer->run(rows, steps, {cos, sin, rotations}, seen, at<float>(hidden));
}

// `scores`: address of as many doubles as there are bytes in `lengths` and in `roles`.
void make_pieces(Pieces* place, const nb::bytes& characters, const nb::bytes& lengths, std::uintptr_t scores, const nb::bytes& roles,
                 std::int32_t unknown, bool has_bytes) {
    const auto numbers = [](const nb::bytes& bytes) { return static_cast<const std::uint8_t*>(bytes.data()); };
    const std::string_view all(characters.c_str(), characters.size());
    new (place) Pieces({all, numbers(lengths), at<double>(scores), numbers(roles), lengths.size()}, unknown, has_bytes);
}

std::int32_t checked(const Pieces& pieces, std::int64_t id) {
    if (id < 0 || id >= pieces.count()) throw nb::index_error("no such piece");
    return static_cast<std::int32_t>(id);
}

// Ids, and places where they are wanted.
auto encode(const Pieces& pieces, std::string_view text, bool split, bool with_places) {
    Encoded result = pieces.encode(text, split, with_places);
    return std::make_pair(std::move(result.ids), std::move(result.places));
}

// Strings as GGUF files list them: a length in eight bytes, then the bytes. Each is called for each of `count` from byte
// `at` on; where they end, or -1 where one ends behind the data or is refused.
template <class Each>
std::int64_t walk(const nb::object& data, std::int64_t at, std::int64_t count, Each each) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(data.ptr(), &buffer, PyBUF_SIMPLE) < 0) throw nb::python_error();
    const auto* bytes = static_cast<const char*>(buffer.buf);
    for (; count && at >= 0; --count) {
        std::uint64_t length = 0;
        const std::int64_t left = buffer.len - at - 8;
        if (left >= 0) std::memcpy(&length, bytes + at, sizeof length);
        const bool is_there = left >= 0 && length <= static_cast<std::uint64_t>(left);
        at = is_there && each(bytes + at + 8, static_cast<Py_ssize_t>(length)) ? at + 8 + static_cast<std::int64_t>(length) : -1;
    }
    PyBuffer_Release(&buffer);
    return at;
}

std::int64_t end_of_strings(const nb::object& data, std::int64_t at, std::int64_t count) {
    return walk(data, at, count, [](const char*, Py_ssize_t) { return true; });
}

// None where one is not UTF-8.
nb::object strings(const nb::object& data, std::int64_t at, std::int64_t count) {
    nb::list found;
    const std::int64_t end = walk(data, at, count, [&](const char* text, Py_ssize_t length) {
        const nb::object decoded = nb::steal(PyUnicode_DecodeUTF8(text, length, nullptr));
        if (decoded.is_valid()) found.append(decoded);
        else PyErr_Clear();
        return decoded.is_valid();
    });
    return end < 0 ? nb::none() : nb::object(found);
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
        return nb::make_tuple(found.tile, found.last);
    });
    module.def("widen_pages", widen_pages);
    module.def("pack", pack, free);
    module.def("rows", rows, free);
    module.def("norm", norm, free);
    module.def("to_brains", to_brains, free);
    module.def("to_bytes", to_bytes, free);
    module.def("linear", linear, free);
    module.def("largest", largest_of, free);
    module.def("best", best_of, free);
    module.def("attend", attend_of);
    module.def("layer", layer);
    module.def("run", run);
    module.def("patch_layer", patch_layer);
    nb::class_<PatchLayer>(module, "PatchLayer")
        .def(
            "run",
            [](const PatchLayer& layer, std::int64_t rows, std::int64_t patches, std::uintptr_t hidden,
               std::uintptr_t result) { layer.run(rows, patches, at<float>(hidden), at<float>(result)); },
            free);
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
    module.def("end_of_strings", end_of_strings);
    module.def("strings", strings);
    nb::class_<Pieces>(module, "Pieces")
        .def("__init__", make_pieces)
        .def("distinct", &Pieces::distinct)
        .def("find", [](const Pieces& pieces, const nb::bytes& text) { return pieces.find({text.c_str(), text.size()}); })
        .def("text", [](const Pieces& pieces, std::int64_t id) { return pieces.text(checked(pieces, id)); })
        .def("cost", [](const Pieces& pieces, std::int64_t id) { return pieces.cost(checked(pieces, id)); })
        .def("encode", encode, free);
}
