// A weight matrix [k inputs, n outputs], repacked for the kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace vrwkv {

enum Format : int { F32 = 0, F16 = 1, I8 = 2, I4 = 3 };

// TILES: all inputs of 32 outputs lie together: every weight is read, in order, without a horizontal sum.
// ROWS: the weights of one input lie together, up to 256 outputs long: inputs that are zero are not read.
enum Layout : int { TILES = 0, ROWS = 1 };

constexpr int TILE = 32;       // outputs of a tile
constexpr int HALF_ROW = 32;   // 4-bit rows: positions i and i + 32 share a byte
constexpr int GROUP = 64;      // rows are padded to a multiple of so many outputs
constexpr int CHUNK = 512;     // inputs widened at a time for many activation rows: 32 KB
constexpr int FEW = 8;         // up to so many activation rows, codes are widened in registers and zeros skipped
constexpr int MOST_PARTS = 16; // partial sums of a ROWS matrix: it is cut by input too, so that all threads have work

// As the bundle stores it: float [k, n], or the codes of MatMulNBits.
struct Source {
    int32_t format;
    int32_t release; // the data lies in a mapped file whose pages are not needed again
    int64_t k, n, block;
    const void *data;
    const float *scale;  // [n, blocks]
    const uint8_t *zero; // [n, ceil(blocks / 2)], two to a byte; 4 bits only
};

struct Matrix {
    Format format = F32;
    Layout layout = TILES;
    int k = 0, n = 0;
    int block = 0, blocks = 0; // inputs of a block; blocks
    int width = TILE;          // outputs of a tile, or of a stretch of rows
    int tiles = 0;             // tiles, or stretches
    uint8_t *data = nullptr;   // codes, halves or floats
    uint16_t *scale = nullptr; // [tiles][blocks][width], halves: times `unit`, a power of two
    float unit = 1;            // brings the largest scale near the top of a half's range
    uint8_t *zero = nullptr;   // [tiles][blocks][width], 4 bits only
    int padded() const { return blocks * block; } // inputs of integer formats, zeros included
    bool integer() const { return format >= I8; }
    size_t row_bytes() const {
        const int bits = format == F32 ? 32 : format == F16 ? 16 : format == I8 ? 8 : 4;
        return size_t(width) * bits / 8;
    }
    size_t tile_bytes() const { return row_bytes() * (integer() ? padded() : k); }
    size_t scale_bytes() const { return format == I4 ? 3 : 2; } // of an output of a block, its zero point included
    size_t scales() const { return integer() ? size_t(tiles) * blocks * width : 0; }
    size_t bytes() const { return tile_bytes() * tiles + scales() * scale_bytes(); }
    // Inputs of one partial sum of a ROWS matrix: of its shape alone, so that no result depends on the threads.
    int part() const {
        int even = (k + MOST_PARTS - 1) / MOST_PARTS;
        int rounded = (even + 127) / 128 * 128;
        return rounded < 256 ? 256 : rounded;
    }
    int parts() const { return (k + part() - 1) / part(); }
};

// Fill in everything but the pointers. Scales are held in 16 bits: exactly, if they have no more than 11 significant
// bits, as those of `quant` have, and are not 2^29 times smaller than the largest.
Matrix shape_of(const Source &source, Layout layout);

// Repack tile `tile`. `position` is the place of an output within a row of codes (see Isa).
void pack_tile(const Source &source, const Matrix &matrix, int tile, int (*position)(int));

// Tell the system that the pages of `source` are not needed again, if they are of a file.
void release(const Source &source);

} // namespace vrwkv
