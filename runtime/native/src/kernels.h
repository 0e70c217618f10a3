// Products of activations and packed weights, in the lanes of one simd_*.h.
//
// F is W floats, I is W 32-bit sums, P is W pairs of 16-bit values, the pair of an output in its lane. pdot adds the
// dot products of pairs; pcodes, phalves and pzip make pairs of 8-bit codes, of 4-bit codes (low and high half of each
// byte) and of two rows of codes. fatmost and fatleast keep NaN. An output is always summed in the same order, whatever
// the number of rows and whatever zeros are left out: results do not depend on batch, segment or threads.
namespace {

using namespace vrwkv;

constexpr int NT = TILE / W; // vectors of a tile

template <int N> struct Count {
    static constexpr int value = N;
    constexpr operator int() const { return N; }
};

// EACH(i, N, statement;) runs the statement for i = 0 ... N - 1, written out: the values of an array that is only
// indexed so stay in registers, which compilers do not manage with loops they unroll late.
#if defined(VRWKV_SCALAR) // nothing to gain
#define EACH(i, N, ...)                                                                                               \
    for (int i = 0; i < N; ++i) {                                                                                     \
        __VA_ARGS__;                                                                                                  \
    }
#else
#define INLINE __attribute__((always_inline))
template <int N, class Body> INLINE inline void each_of(const Body &body) {
    if constexpr (N > 0) {
        each_of<N - 1>(body);
        body(Count<N - 1>{});
    }
}
#define EACH(i, N, ...) each_of<N>([&](auto i) INLINE { __VA_ARGS__; })
#endif

// Call body(Count<R>, first row) for groups of rows.
template <int MOST, class Body> void in_groups(int rows, Body body) {
    int row = 0;
    for (; rows - row >= MOST; row += MOST) body(Count<MOST>{}, row);
    if constexpr (MOST > 8)
        if (rows - row >= 8) body(Count<8>{}, row), row += 8;
    if constexpr (MOST > 4)
        if (rows - row >= 4) body(Count<4>{}, row), row += 4;
    if constexpr (MOST > 2)
        if (rows - row >= 2) body(Count<2>{}, row), row += 2;
    if (row < rows) body(Count<1>{}, row);
}

inline int32_t pair_at(const int16_t *q, int pair) {
    int32_t both;
    __builtin_memcpy(&both, q + 2 * pair, 4);
    return both;
}

// Codes of one row, to 16 bits: all but exact, unlike the usual 8.
void quantise(const float *x, int k, int block, int16_t *q, float *scale, int32_t *sum) {
    for (int b = 0; b * block < k; ++b, q += block) {
        const float *p = x + b * block;
        float padded[128];
        if ((b + 1) * block > k) {
            for (int i = 0; i < block; ++i) padded[i] = b * block + i < k ? p[i] : 0.0f;
            p = padded;
        }
        I most = iset(0), total = iset(0);
        for (int i = 0; i < block; i += W) most = imax(most, imagnitude(fload(p + i)));
        int32_t bits = imost(most);
        float top;
        __builtin_memcpy(&top, &bits, 4);
        bool finite = bits < 0x7f800000, tiny = top < 1e-30f;
        F inverse = fset(finite && !tiny ? 32767.0f / top : 0.0f);
        for (int i = 0; i < block; i += W) {
            I code = finite ? iround(fmul(fload(p + i), inverse)) : iset(1); // 1 * NaN: every output becomes NaN
            istore16(q + i, code);
            total = iadd(total, code);
        }
        scale[b] = !finite ? __builtin_nanf("") : tiny ? 0.0f : top / 32767.0f;
        sum[b] = isum(total);
    }
}

// Blocks of packed codes against R rows; NV vectors of the tile from vector `first` on. out [R][TILE] is overwritten.
template <int R, int NV, bool HALVES>
void tile_codes(const Matrix &w, int tile, int first, const Acts &a, int row, float *out) {
    constexpr int SETS = R * NV <= 4 ? 2 : 1; // more sums at a time where few outputs wait for each other
    const int pairs = w.block / 2, bytes = HALVES ? TILE : 2 * TILE;
    const uint8_t *codes = w.data + w.tile_bytes() * tile + first * 2 * W;
    size_t scales = size_t(tile) * w.blocks * TILE + first * W;
    F total[R][NV];
    EACH(r, R, EACH(v, NV, total[r][v] = fset(0)));
    for (int b = 0; b < w.blocks; ++b, codes += pairs * bytes, scales += TILE) {
        const int16_t *q[R];
        I acc[SETS][R][NV];
        EACH(r, R, q[r] = a.q + (row + r) * a.ldq + b * w.block);
        EACH(s, SETS, EACH(r, R, EACH(v, NV, acc[s][r][v] = iset(0))));
        int p = 0;
        do { // at least once
            const uint8_t *here = codes + p * bytes;
            __builtin_prefetch(here + 2048), __builtin_prefetch(here + 2048 + TILE * 2);
            P low[NV], high[NV];
            EACH(v, NV,
                if constexpr (HALVES)
                    phalves(here + v * 2 * W, low[v], high[v]);
                else
                    low[v] = pcodes(here + v * 2 * W), high[v] = pcodes(here + 2 * TILE + v * 2 * W););
            EACH(r, R,
                P x = pset(pair_at(q[r], p)), y = pset(pair_at(q[r], p + 1));
                EACH(v, NV, acc[0][r][v] = pdot(acc[0][r][v], low[v], x));
                EACH(v, NV, acc[SETS - 1][r][v] = pdot(acc[SETS - 1][r][v], high[v], y)););
            p += 2;
        } while (p < pairs);
        EACH(v, NV,
            F scale = fhalf(w.scale + scales + v * W);
            EACH(r, R,
                I sum = SETS == 2 ? iadd(acc[0][r][v], acc[SETS - 1][r][v]) : acc[0][r][v];
                long at = (row + r) * a.lds + b;
                if constexpr (HALVES) sum = isub(sum, imul(ibytes(w.zero + scales + v * W), iset(a.sum[at])));
                total[r][v] = ffma(ifloat(sum), fmul(scale, fset(a.scale[at] * w.unit)), total[r][v]);););
    }
    EACH(r, R, EACH(v, NV, fstore(out + r * TILE + (first + v) * W, total[r][v])));
}

inline F fweights(const float *p) { return fload(p); }
inline F fweights(const uint16_t *p) { return fhalf(p); }

// Inputs [from, to) of float or half weights, rows of weights `stride` apart, added to out [R][TILE].
template <int R, int NV, class T>
void tile_floats(const T *w, long stride, int from, int to, int first, const Acts &a, int row, float *out) {
    F total[R][NV];
    EACH(r, R, EACH(v, NV, total[r][v] = fload(out + r * TILE + (first + v) * W)));
    const T *here = w + long(from) * stride + first * W;
    const float *x = a.x + row * a.ldx;
    for (int i = from; i < to; ++i, here += stride) {
        __builtin_prefetch(here + 8 * stride), __builtin_prefetch(here + 8 * stride + 16);
        F weights[NV];
        EACH(v, NV, weights[v] = fweights(here + v * W));
        EACH(r, R,
            F one = fset(x[r * a.ldx + i]);
            EACH(v, NV, total[r][v] = ffma(weights[v], one, total[r][v])););
    }
    EACH(r, R, EACH(v, NV, fstore(out + r * TILE + (first + v) * W, total[r][v])));
}

// Widened codes [pairs][TILE][2] of some blocks, beginning with block `b0` of the activations, added to out [R][TILE].
template <int R, int NV>
void tile_wide(const int16_t *wide, const Matrix &w, const uint16_t *scale, int b0, int blocks, int first,
               const Acts &a, int row, float *out) {
    const int16_t *here = wide + first * 2 * W;
    for (int b = 0; b < blocks; ++b, scale += w.width) {
        const int16_t *q[R];
        I acc[R][NV];
        EACH(r, R, q[r] = a.q + (row + r) * a.ldq + (b0 + b) * w.block);
        EACH(r, R, EACH(v, NV, acc[r][v] = iset(0)));
        int p = 0;
        do { // at least once, and said so: the compiler then keeps the sums in their registers
            P weights[NV];
            EACH(v, NV, weights[v] = pload(here + v * 2 * W));
            EACH(r, R,
                P x = pset(pair_at(q[r], p));
                EACH(v, NV, acc[r][v] = pdot(acc[r][v], weights[v], x)););
            here += 2 * TILE;
        } while (++p < w.block / 2);
        EACH(v, NV,
            F s = fhalf(scale + (first + v) * W);
            EACH(r, R,
                float *to = out + r * TILE + (first + v) * W;
                F x = fset(a.scale[(row + r) * a.lds + b0 + b] * w.unit);
                fstore(to, ffma(ifloat(acc[r][v]), fmul(s, x), fload(to)));););
    }
}

// Pairs of 16-bit weights, zero points taken off, of 32 outputs and the inputs of some blocks.
void widen(const Matrix &w, int tile, int b0, int blocks, int16_t *to) {
    const int stretch = tile * TILE / w.width, offset = tile * TILE % w.width, row = int(w.row_bytes());
    const uint8_t *codes = w.data + w.tile_bytes() * stretch;
    for (int b = b0; b < b0 + blocks; ++b) {
        P zero[NT] = {};
        if (w.format == I4)
            for (int v = 0; v < NT; ++v)
                zero[v] = pboth(ibytes(w.zero + (size_t(stretch) * w.blocks + b) * w.width + offset + v * W));
        for (int p = b * w.block / 2; p < (b + 1) * w.block / 2; ++p, to += 2 * TILE) {
            P out[NT], other[NT];
            if (w.layout == TILES && w.format == I8) {
                for (int v = 0; v < NT; ++v) out[v] = pcodes(codes + p * 2 * TILE + v * 2 * W);
            } else if (w.layout == TILES) {
                const uint8_t *here = codes + p / 2 * 2 * TILE;
                P *low = p & 1 ? other : out, *high = p & 1 ? out : other;
                for (int v = 0; v < NT; ++v) phalves(here + v * 2 * W, low[v], high[v]);
            } else if (w.format == I8) {
                const uint8_t *here = codes + 2 * p * row + offset;
                for (int v = 0; v < NT; v += 2) pzip(here + v * W, here + row + v * W, out + v);
            } else {
                const uint8_t *here = codes + 2 * p * row + offset / GROUP * HALF_ROW;
                bool high = offset % GROUP >= HALF_ROW;
                for (int v = 0; v < NT; v += 2)
                    pzip_halves(here + v * W, here + row + v * W, (high ? other : out) + v, (high ? out : other) + v);
            }
            for (int v = 0; v < NT; ++v) pstore(to + v * 2 * W, w.format == I4 ? psub(out[v], zero[v]) : out[v]);
        }
    }
}

template <int R> constexpr int vectors() { return R <= 2 || NT == 2 ? NT : 2; }

// Inputs [from, to) of 32 outputs of a float or half matrix, added to out [rows][TILE].
template <class T> void add_floats(const Matrix &w, int tile, int from, int to, const Acts &a, int rows, float *out) {
    const int stretch = tile * TILE / w.width, offset = tile * TILE % w.width;
    const T *weights = reinterpret_cast<const T *>(w.data + w.tile_bytes() * stretch) + offset;
    in_groups<ROWS_AT_ONCE>(rows, [&](auto count, int row) {
        constexpr int R = decltype(count)::value, NV = vectors<R>();
        for (int first = 0; first < NT; first += NV)
            tile_floats<R, NV>(weights, w.width, from, to, first, a, row, out + row * TILE);
    });
}

// The same for codes, by way of `scratch`; `from` and `to` are multiples of the block.
void add_wide(const Matrix &w, int tile, int from, int to, const Acts &a, int rows, float *out, int16_t *wide) {
    const int stretch = tile * TILE / w.width, offset = tile * TILE % w.width;
    for (; from < to; from += CHUNK) {
        int b0 = from / w.block, blocks = ((to < from + CHUNK ? to : from + CHUNK) - from + w.block - 1) / w.block;
        const uint16_t *scale = w.scale + (size_t(stretch) * w.blocks + b0) * w.width + offset;
        widen(w, tile, b0, blocks, wide);
        in_groups<ROWS_AT_ONCE>(rows, [&](auto count, int row) {
            constexpr int R = decltype(count)::value, NV = vectors<R>();
            for (int first = 0; first < NT; first += NV)
                tile_wide<R, NV>(wide, w, scale, b0, blocks, first, a, row, out + row * TILE);
        });
    }
}

// out [rows][TILE] = all inputs of outputs [32 tile, 32 tile + 32). For any number of rows in TILES; ROWS with few
// rows go through `partial`.
void product(const Matrix &w, int tile, const Acts &a, int rows, const Scratch &scratch, float *out) {
    if (w.integer() && w.layout == TILES && rows <= FEW) {
        in_groups<(ROWS_AT_ONCE < FEW ? ROWS_AT_ONCE : FEW)>(rows, [&](auto count, int row) {
            constexpr int R = decltype(count)::value, NV = vectors<R>();
            for (int first = 0; first < NT; first += NV)
                w.format == I8 ? tile_codes<R, NV, false>(w, tile, first, a, row, out + row * TILE)
                               : tile_codes<R, NV, true>(w, tile, first, a, row, out + row * TILE);
        });
        return;
    }
    const int end = w.integer() ? w.padded() : w.k, part = w.layout == ROWS ? w.part() : end;
    __builtin_memset(out, 0, sizeof(float) * rows * TILE);
    for (int from = 0; from < end; from += part) {
        float *to = w.layout == ROWS ? scratch.part : out;
        int until = from + part < end ? from + part : end;
        if (w.layout == ROWS) __builtin_memset(to, 0, sizeof(float) * rows * TILE);
        if (w.integer())
            add_wide(w, tile, from, until, a, rows, to, scratch.wide);
        else if (w.format == F32)
            add_floats<float>(w, tile, from, until, a, rows, to);
        else
            add_floats<uint16_t>(w, tile, from, until, a, rows, to);
        if (w.layout == ROWS)
            for (int i = 0; i < rows * TILE; i += W) fstore(out + i, fadd(fload(out + i), fload(to + i)));
    }
}

} // namespace
