#include "matrix.h"

#include <cmath>
#include <cstring>
#if defined(__linux__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace vrwkv {

namespace {

// The power of two that brings the largest of `count` scales to 2^14 ... 2^15.
float unit_of(const float *scale, size_t count) {
    float most = 0;
    for (size_t i = 0; i < count; ++i) {
        float size = std::fabs(scale[i]);
        if (size > most) most = size;
    }
    if (!(most > 0) || !std::isfinite(most)) return 1;
    int exponent;
    std::frexp(most, &exponent); // most < 2^exponent
    return std::ldexp(1.0f, exponent - 15 < -126 ? -126 : exponent - 15);
}

// To the nearest half, ties to even.
uint16_t to_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;         // NaN
    if (bits >= 0x477ff000) return sign | 0x7c00;        // 65520 and more
    if (bits >= 0x38800000) {                            // 2^-14: normal
        bits += 0xfff + (bits >> 13 & 1);
        return uint16_t(sign | (bits - (112u << 23)) >> 13);
    }
    float size = std::fabs(x) + 0.5f; // whose last place is that of the smallest halves
    std::memcpy(&bits, &size, 4);
    return uint16_t(sign | (bits - 0x3f000000));
}

} // namespace

Matrix shape_of(const Source &source, Layout layout) {
    Matrix m;
    m.format = Format(source.format);
    m.layout = layout;
    m.k = int(source.k);
    m.n = int(source.n);
    if (m.integer()) {
        m.block = int(source.block);
        m.blocks = (m.k + m.block - 1) / m.block;
        m.unit = unit_of(source.scale, size_t(m.n) * m.blocks);
    }
    if (layout == ROWS) {
        int padded = (m.n + GROUP - 1) / GROUP * GROUP;
        m.width = padded % 256 == 0 ? 256 : padded % 128 == 0 ? 128 : GROUP;
    }
    m.tiles = (m.n + m.width - 1) / m.width;
    return m;
}

namespace {

// Code of input i of output o, as the product wants it: 8 bits signed, 4 bits as they are.
inline uint8_t code(const Source &s, const Matrix &m, int64_t o, int64_t i) {
    const uint8_t *data = static_cast<const uint8_t *>(s.data);
    int64_t at = o * m.padded() + i;
    if (m.format == I8) return data[at] ^ 0x80;
    return i & 1 ? data[at / 2] >> 4 : data[at / 2] & 15;
}

// What stands for an output past the last: a weight of zero, whatever its scale.
inline uint8_t code_or_nothing(const Source &s, const Matrix &m, int64_t o, int64_t i) {
    return o < m.n ? code(s, m, o, i) : 0;
}

template <class T> void pack_floats(const Source &s, const Matrix &m, int tile) {
    const T *from = static_cast<const T *>(s.data) + int64_t(tile) * m.width;
    T *to = reinterpret_cast<T *>(m.data + m.tile_bytes() * tile);
    int64_t wide = m.n - int64_t(tile) * m.width;
    if (wide > m.width) wide = m.width;
    for (int i = 0; i < m.k; ++i, from += m.n, to += m.width) {
        std::memcpy(to, from, sizeof(T) * wide);
        std::memset(to + wide, 0, sizeof(T) * (m.width - wide));
    }
}

// Inputs in pairs: [pair][output][2]; 4 bits: the low half of a byte belongs to a pair, the high half to the next.
void pack_pairs(const Source &s, const Matrix &m, int tile) {
    uint8_t *to = m.data + m.tile_bytes() * tile;
    for (int o = 0; o < TILE; ++o) {
        int64_t from = int64_t(tile) * TILE + o;
        if (m.format == I8 && from < m.n) {
            const uint8_t *row = static_cast<const uint8_t *>(s.data) + from * m.padded();
            for (int i = 0; i < m.padded(); i += 2) {
                to[i * TILE + 2 * o] = row[i] ^ 0x80;
                to[i * TILE + 2 * o + 1] = row[i + 1] ^ 0x80;
            }
        } else if (m.format == I8) {
            for (int i = 0; i < m.padded(); i += 2) to[i * TILE + 2 * o] = to[i * TILE + 2 * o + 1] = 0;
        } else {
            for (int i = 0; i < m.padded(); i += 4)
                for (int j = 0; j < 2; ++j)
                    to[i * TILE / 2 + 2 * o + j] = uint8_t(code_or_nothing(s, m, from, i + j) |
                                                           code_or_nothing(s, m, from, i + 2 + j) << 4);
        }
    }
}

// [input][position]; 4 bits: the low half of a byte is position p, the high half p + 32 of the same 64.
void pack_rows(const Source &s, const Matrix &m, int tile, int (*position)(int)) {
    uint8_t *to = m.data + m.tile_bytes() * tile;
    if (m.format == I4) std::memset(to, 0, m.tile_bytes());
    for (int o = 0; o < m.width; ++o) {
        int64_t from = int64_t(tile) * m.width + o;
        int at = o / GROUP * GROUP + position(o % GROUP), inside = at % GROUP;
        for (int i = 0; i < m.padded(); ++i) {
            uint8_t value = code_or_nothing(s, m, from, i);
            if (m.format == I8)
                to[int64_t(i) * m.width + at] = value;
            else
                to[int64_t(i) * m.width / 2 + at / GROUP * HALF_ROW + inside % HALF_ROW] |=
                    uint8_t(inside < HALF_ROW ? value : value << 4);
        }
    }
}

void pack_scales(const Source &s, const Matrix &m, int tile) {
    size_t to = size_t(tile) * m.blocks * m.width;
    int packed = (m.blocks + 1) / 2;
    for (int b = 0; b < m.blocks; ++b)
        for (int o = 0; o < m.width; ++o, ++to) {
            int64_t from = int64_t(tile) * m.width + o;
            m.scale[to] = from < m.n ? to_half(s.scale[from * m.blocks + b] / m.unit) : 0;
            if (m.format == I4) {
                uint8_t both = from < m.n ? s.zero[from * packed + b / 2] : 0;
                m.zero[to] = b & 1 ? both >> 4 : both & 15;
            }
        }
}

void drop(const void *start, size_t bytes) {
#if defined(__linux__) || defined(__APPLE__)
    size_t page = size_t(sysconf(_SC_PAGESIZE));
    uintptr_t from = (uintptr_t(start) + page - 1) / page * page, to = (uintptr_t(start) + bytes) / page * page;
    if (to > from) madvise(reinterpret_cast<void *>(from), to - from, MADV_DONTNEED);
#else
    (void)start, (void)bytes;
#endif
}

} // namespace

void pack_tile(const Source &s, const Matrix &m, int tile, int (*position)(int)) {
    if (m.format == F32) return pack_floats<float>(s, m, tile);
    if (m.format == F16) return pack_floats<uint16_t>(s, m, tile);
    if (m.layout == TILES)
        pack_pairs(s, m, tile);
    else
        pack_rows(s, m, tile, position);
    pack_scales(s, m, tile);
}

void release(const Source &s) {
    if (!s.release) return;
    size_t weights = size_t(s.k) * s.n;
    if (s.format < I8) return drop(s.data, weights * (s.format == F32 ? 4 : 2));
    size_t blocks = size_t((s.k + s.block - 1) / s.block);
    drop(s.data, size_t(s.n) * blocks * s.block / (s.format == I4 ? 2 : 1));
    drop(s.scale, 4 * blocks * s.n);
}

} // namespace vrwkv
