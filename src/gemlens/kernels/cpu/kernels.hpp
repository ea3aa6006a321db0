// What each instruction set offers: one table of functions, chosen once when the module is loaded.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemlens {

// 32 numbers of a token in eight bits: number i is about scale * codes[i]. If the largest stands out of the token it is a peak:
// its code is 0, and it stays as it is, so that the others have steps of their own size.
struct Group {
    std::int8_t codes[32];
    float scale;
    float total;  // minus the sum of these numbers
    std::int32_t less[2];  // of sums of codes, as an instruction set wants it: in most minus that of each half
    float peak;  // 0 where there is none
    std::int32_t next;  // of the token's peaks that are not in front of this group, the first: a number of it, or -1
};
// Mean squares of a token, by which the square of what stands out is larger than that of any other of its 32 numbers; as in
// kernels/reference.py.
constexpr double PEAK = 3.0;

constexpr int PANEL = 8;  // lines whose groups lie side by side where there are many
constexpr int SUMS = 4;  // lines whose peaks are gathered, as many as have their sums in registers
// Of some lines, those peaks that are the same number of a token; 0 where it is none.
struct Column {
    std::int32_t number;  // -1 behind the last
    float peaks[SUMS];
};
inline std::int64_t columns_of(std::int64_t groups) { return groups * SUMS + 1; }  // at most

struct Layout {
    int block, bytes, tile;  // weights of a row in a block, its bytes in a file, bytes of 16 of them as kernels read them
    int last;  // bytes behind all tiles: a float where rows can be screened, the size of the largest
};

// How numbers of keys and values are kept: as float, bfloat16, or bytes. After the bytes of a head come floats, by each of
// which 32 of them are multiplied.
enum class Kept { FLOATS, BRAINS, BYTES };  // numbered as in kernels/attention.py
constexpr std::int64_t BYTES = 32;  // that share a float
inline std::int64_t width_of_bytes(std::int64_t size) { return size + 4 * ((size + BYTES - 1) / BYTES); }
inline std::int64_t size_of(Kept kept) { return kept == Kept::FLOATS ? 4 : kept == Kept::BRAINS ? 2 : 1; }

// Some of the keys that the queries of one group of heads see, and what is made of them.
struct Look {
    const float* queries;  // [count, size]
    const void *keys, *values;  // [length, size]
    std::int64_t next;  // from key to key, in numbers, and so with values
    Kept kept;
    const bool* seen;  // [length], or null: all
    std::int64_t count, size, length;
    float scale, cap;  // cap 0: none
    float* mixed;  // [count, size], the sum of values times weights
    float *most, *total;  // [count]: the largest score, and the sum of exp(score - most), the weights
};

// What a group's product with 16 rows of Q8_0 is at most, per scale of theirs: `step` times the product with upper halves of
// codes, and `rest`; and what lower halves can add: `alone`, and `others` times a tile's size of them.
struct Reach {
    float step, rest, alone, others;
};

struct Kernels {
    const char* name;
    Layout (*layout)(int format);  // block 0 for a format that is not known
    // rows [rows, blocks * bytes] of a file -> tiles; rows from `first` tile to before `last`. Gives the size of the largest of
    // these rows, where they can be screened
    float (*pack)(int format, const std::uint8_t* file, std::int64_t rows, std::int64_t blocks, std::int64_t first,
                  std::int64_t last, std::uint8_t* tiles);
    // row `row` of tiles -> weights [blocks * block]
    void (*row)(int format, const std::uint8_t* tiles, std::int64_t rows, std::int64_t blocks, std::int64_t row,
                float* weights);
    // group g goes to quantized[g * stride]; and what it leaves of the numbers to the group that is `rest` after it, unless
    // that is 0
    void (*quantize)(const float* numbers, std::int64_t groups, std::int64_t stride, std::int64_t rest, Group* quantized);
    // y[t * next + n] = sum over k of x[t, k] * w[n, k], for the rows of tiles from `first` to before `last`, counted from the
    // first of these; `parts` lines of x, one after the other, are a token, whose products are the sum of theirs. The peaks of
    // SUMS lines from t on are columns[t / SUMS * columns_of(G)] and those that follow, in the order of their numbers
    void (*linear)(int format, const std::uint8_t* tiles, std::int64_t rows, std::int64_t blocks, std::int64_t first,
                   std::int64_t last, const Group* x, const Column* columns, std::int64_t lines, int parts, float* y,
                   std::int64_t next);
    // the same for many lines, whose groups come in panels: group g of line t is x[(t / PANEL * G + g) * PANEL + t % PANEL]
    void (*linear_panels)(int format, const std::uint8_t* tiles, std::int64_t rows, std::int64_t blocks,
                          std::int64_t first, std::int64_t last, const Group* x, const Column* columns, std::int64_t lines,
                          int parts, float* y, std::int64_t next);
    // the same with weights that are numbers, F16 or BF16, and tokens as they are; `width` of them to a row
    void (*linear_numbers)(int format, const std::uint8_t* tiles, std::int64_t rows, std::int64_t width,
                           std::int64_t first, std::int64_t last, const float* x, std::int64_t tokens, float* y,
                           std::int64_t next);
    // x / rms(x) * weight
    void (*norm)(const float* x, const float* weight, std::int64_t size, float eps, float* y);
    // (x - mean(x)) / deviation(x) * weight + bias
    void (*layer_norm)(const float* x, const float* weight, const float* bias, std::int64_t size, float eps, float* y);
    // the halves of a head, against each other
    void (*rotate)(float* head, const float* cos, const float* sin, std::int64_t size);
    // gate = gelu(gate) * up, with tanh
    void (*gate)(float* gate, const float* up, std::int64_t size);
    // y = gelu(x + bias), with tanh
    void (*activate)(const float* x, const float* bias, std::int64_t size, float* y);
    // at most LOOK keys
    void (*look)(const Look& at);
    // numbers in bfloat16, to the nearest even
    void (*to_brains)(const float* numbers, std::int64_t count, std::uint16_t* brains);
    // numbers in bytes, and behind them the floats by which these are multiplied
    void (*to_bytes)(const float* numbers, std::int64_t count, std::int8_t* bytes);
    // what the products of tokens with the rows of each tile of Q8_0 from `first` to before `last` are at most, to
    // most[t * next + tile]; the first line of token t is at x[t * stride], its peaks are as in `linear`, of tokens, and reaches
    // are [tokens, blocks]
    void (*screen)(const std::uint8_t* tiles, std::int64_t blocks, std::int64_t first, std::int64_t last, const Group* x,
                   std::int64_t stride, const Column* columns, const Reach* reaches, std::int64_t tokens, float* most,
                   std::int64_t next);
    float screen_step;  // of a tile's sizes
    std::int64_t screened;  // of how many tokens of one line at once a screen takes less time than all products
};

constexpr std::int64_t LOOK = 128;

// Positions, blocks and segments of tokens, as gemlens.spans has them: row r's are at + r * row. No segments: at is null.
struct Sight {
    struct Numbers {
        const std::int64_t* at;
        std::int64_t row;
    };
    Numbers query_position, query_block, query_segment, key_position, key_block, key_segment;
    std::int64_t window;
};

// Some tokens of a row, and the heads that share one head of keys.
struct Mix {
    const float* queries;  // of head h of token t: + t * next_token + h * size
    std::int64_t next_token, tokens, each, size;
    const std::uint8_t* packed;  // keys and values, STEP at a time
    std::int64_t length;
    const Sight* sight;
    std::int64_t row, first;  // where these tokens' numbers are
    float scale, cap;  // cap 0: none
    float* mixed;  // as queries
};

// Attention of many tokens, by numbers of some kind.
struct Mixer {
    std::int64_t (*step_bytes)(std::int64_t size);  // of STEP keys and their values, packed
    // from key to key it is `next` numbers, and so with values
    void (*pack)(const void* keys, const void* values, Kept kept, std::int64_t length, std::int64_t size, std::int64_t next,
                 std::uint8_t* packed);
    void (*mix)(const Mix& at);
};

struct Attention {
    // which of `count` keys a token sees; whether it sees any
    bool (*see)(const Sight& sight, std::int64_t row, std::int64_t token, std::int64_t from, std::int64_t count,
                bool* seen);
    Mixer mixer;
};

constexpr std::int64_t STEP = 128;

extern const Kernels portable, avx2, avx512;
extern const Attention portable_attention, avx2_attention, avx512_attention, bf16_attention;
extern const Mixer mixer_in_bytes;  // for avx512 alone; all see all, and there is no cap

}  // namespace gemlens
