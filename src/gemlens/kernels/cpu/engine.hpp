// What runs on all threads: products with matrices in tiles, and the parts of a decoder's layer around attention.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "pool.hpp"

namespace gemlens {

std::vector<std::string> names();  // of the kernels that run here, the fastest first
void use(const std::string& name, int threads);
const Kernels& kernels();
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

    std::int64_t width() const { return blocks * kernels().layout(format).block; }
    std::int64_t tile_rows() const { return (rows + 15) / 16; }
};

struct Product {
    const Matrix* matrix;
    float* y;  // [tokens, rows]
};

// Tokens in eight bits: [tokens, groups], or in panels where there are MANY; see `linear_panels`.
struct Tokens {
    std::int64_t count;
    std::vector<Group> groups;
};
constexpr std::int64_t MANY = 16;

Tokens quantized(const float* x, std::int64_t tokens, std::int64_t width);

// Several matrices times the same tokens.
void multiply(std::initializer_list<Product> products, const Tokens& x);

struct Candidate {
    std::int64_t row;
    float product;
};

// All rows of a matrix in Q8_0 whose products with a token are no smaller than the k-th largest, exact to the last bit.
std::vector<Candidate> largest(const Matrix& matrix, const Group* x, std::int64_t k);

// What tokens are rotated by: [turns, size] each; token t by number t % turns.
struct Rotation {
    const float *cos, *sin;
    std::int64_t turns;
};

// Heads of queries and of keys, and how scores are made.
struct Heads {
    std::int64_t heads, kv_heads, size;
    float scale, cap;  // cap 0: none
};

// Keys and values of some rows, [rows, K, length, size], and who sees whom; no sight: all see all.
struct Memory {
    std::int64_t rows, steps, length;
    const float *keys, *values;
    std::int64_t row, head;  // from one to the next, in numbers
    const Sight* sight;
};

// queries [rows, steps, N, size] -> mixed, of the same shape
void attend(const Heads& heads, const Memory& memory, const float* queries, float* mixed);

// A decoder's layer. Weights of norms are 1 + what a checkpoint has; null where a version has no such norm.
struct Layer {
    Matrix query, key, value, output, gate, up, down;
    const float *before_attention, *after_attention, *before_mlp, *after_mlp, *query_norm, *key_norm;
    std::int64_t heads, kv_heads, size;
    float eps;

    // hidden [tokens, D] -> queries [tokens, N, size], keys and values [tokens, K, size]
    void project(std::int64_t tokens, const float* hidden, const Rotation& by, float* queries, float* keys,
                 float* values) const;
    // mixed [tokens, N * size], hidden [tokens, D] -> the layer's result [tokens, D]
    void finish(std::int64_t tokens, const float* mixed, const float* hidden, float* result) const;

private:
    Tokens normed(std::int64_t tokens, const float* hidden, const float* weight) const;
    void add(std::int64_t tokens, const float* part, const float* weight, const float* hidden, float* result) const;
};

}  // namespace gemlens
