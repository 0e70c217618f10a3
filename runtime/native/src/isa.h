// The body of every isa_*.cpp: the vectors are chosen, the rest is the same.
#include "kernels.h"
#include "rows.h"
#include "maths.h"
#include "layers.h"
#include "rwkv6.h"
#include "rwkv7.h"
#include "phases.h"

namespace {

// One product with rooms of its own, for tests.
size_t multiply(const Matrix &w, const float *x, int rows, float *out) {
    const int padded = (rows + FEW - 1) / FEW * FEW, k = w.k, inputs = w.integer() ? w.padded() : k;
    const int blocks = w.integer() ? w.blocks : w.parts();
    Acts a;
    a.x = x, a.ldx = k, a.ldq = inputs, a.lds = blocks;
    a.q = new int16_t[size_t(padded) * inputs]();
    a.scale = new float[size_t(padded) * blocks]();
    a.sum = new int32_t[size_t(padded) * blocks]();
    Scratch scratch;
    scratch.wide = new int16_t[size_t(CHUNK) * TILE];
    scratch.part = new float[size_t(padded) * TILE];
    float *tile = new float[size_t(padded) * (w.width > TILE ? w.width : TILE)];
    Active list;
    list.ldx = inputs + 16;
    list.start = new int32_t[blocks + 1];
    list.key = new int32_t[2 * size_t(list.ldx)]();
    list.x = new int32_t[FEW * size_t(list.ldx)]();
    if (w.integer())
        for (int row = 0; row < rows; ++row)
            quantise(x + long(row) * k, k, w.block, a.q + row * a.ldq, a.scale + row * a.lds, a.sum + row * a.lds);
    size_t bytes = w.bytes();
    const bool few = w.layout == ROWS && rows <= FEW;
    if (few) list_active(w, a, rows, list), bytes = 0;
    const int wide = few ? w.width : TILE;
    for (int t = 0; t * wide < w.n; ++t)
        for (int part = 0; part < (few ? w.parts() : 1); ++part) {
            few ? void(bytes += partial(w, t, part, list, a, rows, tile)) : product(w, t, a, rows, scratch, tile);
            for (int row = 0; row < rows; ++row)
                for (int i = 0; i < wide && t * wide + i < w.n; ++i) {
                    float &to = out[long(row) * w.n + t * wide + i];
                    to = part ? to + tile[row * wide + i] : tile[row * wide + i];
                }
        }
    delete[] a.q, delete[] a.scale, delete[] a.sum, delete[] scratch.wide, delete[] scratch.part, delete[] tile;
    delete[] list.start, delete[] list.key, delete[] list.x;
    return bytes;
}

} // namespace
