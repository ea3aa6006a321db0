// Which kernels run, on which threads; and what all that is built on them needs: products with matrices in tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "pool.hpp"
#include "room.hpp"

namespace gemlens {

std::vector<std::string> names();  // of the kernels that run here, the fastest first
void use(const std::string& name, int threads);
const Kernels& kernels();
const Attention& attention();
const Mixer& coarse_mixer();  // in eight bits, where that is faster; all must see all
Pool& pool();

// Cuts [0, count) into parts of at least `least`, a few times as many as there are threads.
template <class Each>
void spread(std::int64_t count, std::int64_t least, Each each) {
    const std::int64_t parts = std::clamp<std::int64_t>(count / least, 1, 4 * pool().size());
    pool().run(static_cast<int>(parts), [&](int part) { each(count * part / parts, count * (part + 1) / parts); });
}

struct Matrix {
    int format;
    const std::uint8_t* tiles;
    std::int64_t rows, blocks;
    int parts;  // of eight bits each, that numbers of tokens are the sum of where they are multiplied with it: 1 or 2

    bool has_numbers() const { return kernels().layout(format).block == 1; }
    std::int64_t width() const { return blocks * kernels().layout(format).block; }
    std::int64_t tile_rows() const { return (rows + 15) / 16; }
    float largest_row() const {  // its size; of Q8_0
        float size;
        std::memcpy(&size, tiles + tile_rows() * blocks * kernels().layout(format).tile, sizeof size);
        return size;
    }
};

struct Product {
    const Matrix* matrix;
    float* y;  // [tokens, rows], or null where nobody wants them
};

// Tokens as they are, and in lines of eight bits: [lines, groups], or in panels; see `linear_panels`.
class Tokens {
public:
    Tokens(const float* numbers, std::int64_t count, std::int64_t width, int parts, bool in_panels);

    // Tokens whose peaks are gathered, after all: those of a panel from `first` on, or as many without one.
    std::int64_t together() const { return PANEL / parts_; }
    void quantize(std::int64_t token) const;
    void gather(std::int64_t first) const;

    const float* numbers;
    std::int64_t count;
    std::int64_t lines() const { return count * parts_; }
    bool in_panels() const { return panel_ > 1; }
    const Group* groups() const { return groups_.data(); }
    const Column* columns() const { return columns_.data(); }

private:
    Group* place_of(std::int64_t line) const;

    std::int64_t width_;
    int parts_;
    std::int64_t panel_;
    Room<Group> groups_;
    Room<Column> columns_;
};
constexpr std::int64_t MANY = 16;

// The peaks of SUMS lines, whose groups are lines[line * next + group * stride].
void gather(const Group* lines, std::int64_t next, std::int64_t stride, std::int64_t groups, Column* columns);

// x [tokens, width], as it is multiplied with matrices like one; make(t) first makes the numbers of token t, where they are
// still to be made. In panels from `many` tokens on.
template <class Each>
Tokens quantized(const Matrix& like, const float* x, std::int64_t tokens, Each make, std::int64_t many = MANY) {
    Tokens found(x, tokens, like.width(), like.parts, tokens >= many);
    const std::int64_t each = found.together();
    spread((tokens + each - 1) / each, 8 / each, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first * each; t < std::min(tokens, last * each); ++t) {
            make(t);
            found.quantize(t);
        }
        for (; first < last; ++first) found.gather(first * each);
    });
    return found;
}
inline Tokens quantized(const Matrix& like, const float* x, std::int64_t tokens) {
    return quantized(like, x, tokens, [](std::int64_t) {});
}

// Several matrices times the same tokens; all have as many parts.
void multiply(std::initializer_list<Product> products, const Tokens& x);

// The same with the rows of a matrix's tiles from `first` to before `last`, on this thread: y[token * next + row], rows counted
// from the first of these.
void multiply(const Matrix& matrix, std::int64_t first, std::int64_t last, const Tokens& x, float* y, std::int64_t next);

}  // namespace gemlens
