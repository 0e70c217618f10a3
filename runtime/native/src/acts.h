// What a product reads beside its weights.
#pragma once
#include <cstdint>

namespace vrwkv {

// Rows of activations: floats, and for integer formats their 16-bit codes, block by block.
struct Acts {
    const float *x = nullptr; // [rows, k], rows ldx apart
    long ldx = 0;
    int16_t *q = nullptr; // [rows, padded k], rows ldq apart; value = code * scale of its block
    long ldq = 0;
    float *scale = nullptr; // [rows, blocks], rows lds apart
    int32_t *sum = nullptr; // [rows, blocks], sum of the codes of a block
    long lds = 0;
};

// The inputs of a ROWS matrix that are not zero in all of up to FEW rows. An entry is a pair of inputs of one block
// (integer formats) or one input; `start` tells where the entries of each block, or part, begin.
struct Active {
    int32_t *start = nullptr; // [blocks + 1], or [parts + 1]
    int32_t *key = nullptr;   // [entries, 2] or [entries]
    int32_t *x = nullptr;     // [FEW, ldx]: pairs of codes, or floats
    long ldx = 0;
};

// Room for one thread.
struct Scratch {
    int16_t *wide = nullptr; // [CHUNK, TILE]
    float *out = nullptr;    // [rows, TILE]
    float *part = nullptr;   // [rows, TILE]
    float *rows = nullptr;   // [2, width]
};

} // namespace vrwkv
