// Sixteen rows at a time: the few operations that kernels are written in, once per instruction set.
//
// A `Codes` is 64 unsigned bytes of at most six bits: of each of 16 rows, four neighbouring weights; a `Wide` the same of
// eight bits. `multiply` takes the eight of a group, quad(0) to quad(7), less Tile::ZERO times the numbers of some lines, so
// that one `Ints` holds the sums of 16 rows: `first` all of the group, or, where the tile is SPLIT, each its half.
// `column` gives number i of each row's four. `put_codes` rounds 32 numbers times a factor to whole ones, but for what is
// larger than `largest` or no number, which becomes 0, and gives minus their sum; what it keeps of sums, in `less`, is as
// `multiply` wants it.
#pragma once

#if defined(GEMLENS_AVX512)
#include "simd_avx512.hpp"
#elif defined(GEMLENS_AVX2)
#include "simd_avx2.hpp"
#else
#include "simd_portable.hpp"
#endif
