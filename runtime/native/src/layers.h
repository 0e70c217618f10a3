// The phases of a step. A layer is
//   MIX     norm, token shift, the six blends                      by rows
//   FIRST   their products: r k v, and the first half of each LoRA path    by tiles
//   HEADS   second half of the LoRA paths, the recurrence, group norm, gate   by heads
//   MERGE   codes for the output projection                         by rows
//   PROJECT x += output                                             by tiles
//   SHIFT   norm, token shift, blend                                by rows
//   EXPAND  relu(key)^2                                             by tiles
//   SPARSE  codes, and what is not zero                             by rows
//   SHRINK  FFN value, in partial sums where there are few rows     by stretches and parts
//   SUM     x += the partial sums                                   by rows
// and after the last layer come the head's norm and its product. Source: RWKV-7 paper; export/arch/rwkv7.py.
namespace {

constexpr float LN_EPS = 1e-5f, GROUP_EPS = 64e-5f;
constexpr float DECAY = -0.6065306597126334f; // -exp(-0.5)

inline void code_row(const Acts &a, const Matrix &w, const float *x, int row) {
    if (w.integer()) quantise(x, w.k, w.block, a.q + row * a.ldq, a.scale + row * a.lds, a.sum + row * a.lds);
}

// Norm a row, and give the normed row before it: of the segment, or what was carried.
struct Shifted {
    const Step &s;
    const float *weight, *bias, *carried; // carried [B, C]
    float *out, *now, *before;            // out [B, C]: to carry; now, before [C]: buffers

    void operator()(int row) {
        const Model &m = *s.model;
        const float *x = m.work->x;
        int b = row / s.length, t = row % s.length;
        float *swap = before;
        before = now, now = swap;
        if (t == 0)
            __builtin_memcpy(before, carried + long(b) * m.width, sizeof(float) * m.width);
        else if (!warm)
            norm(x + long(row - 1) * m.width, m.width, LN_EPS, weight, bias, before);
        warm = true;
        norm(x + long(row) * m.width, m.width, LN_EPS, weight, bias, now);
        if (t == s.length - 1) __builtin_memcpy(out + long(b) * m.width, now, sizeof(float) * m.width);
    }
    bool warm = false;
};

void mix(Step &s, const Layer &layer, int index, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const long slot = long(index) * s.batch * m.width;
    float *room = w.scratch[worker].rows;
    Shifted shifted{s,    layer.vector[LN1_WEIGHT], layer.vector[LN1_BIAS], s.att_in + slot, s.att_out + slot,
                    room, room + m.width};
    for (int row = unit * FEW; row < s.rows() && row < (unit + 1) * FEW; ++row) {
        shifted(row);
        const long at = long(row) * m.width;
        for (int i = 0; i < m.width; i += W) {
            F now = fload(shifted.now + i), delta = fsub(fload(shifted.before + i), now);
            for (int j = 0; j < MIXES; ++j)
                fstore(w.mix[j] + at + i, ffma(delta, fload(layer.vector[X_R + j] + i), now));
        }
        code_row(w.coded[0], layer.matrix[RECEPTANCE], w.mix[MIX_R] + at, row);
        code_row(w.coded[1], layer.matrix[KEY], w.mix[MIX_K] + at, row);
        code_row(w.coded[2], layer.matrix[VALUE], w.mix[MIX_V] + at, row);
    }
}

// What becomes of a product.
enum Then { STORE, ADD, TANH, SIGMOID, SQUARE };

// A tile of a product: out [rows, ldo], of which only the matrix's own n columns are written.
void tile_of(const Step &s, const Matrix &w, int tile, const Acts &a, int rows, float *out, long ldo, Then then,
             int worker) {
    Scratch &scratch = s.model->work->scratch[worker];
    float *found = scratch.out;
    product(w, tile, a, rows, scratch, found);
    const int wide = w.n - tile * TILE < TILE ? w.n - tile * TILE : TILE;
    for (int row = 0; row < rows; ++row, found += TILE) {
        float *to = out + row * ldo + tile * TILE;
        for (int i = 0; i < TILE; i += W) {
            F x = fload(found + i);
            if (then == TANH) x = ftanh(x);
            if (then == SIGMOID) x = fsigmoid(x);
            if (then == SQUARE) x = fmul(frelu(x), frelu(x));
            if (wide == TILE)
                fstore(to + i, then == ADD ? fadd(x, fload(to + i)) : x);
            else
                fstore(found + i, x);
        }
        if (wide < TILE)
            for (int i = 0; i < wide; ++i) to[i] = then == ADD ? to[i] + found[i] : found[i];
    }
}

void first(const Step &s, const Layer &layer, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    int which = 0;
    while (unit >= layer.matrix[FIRST_ORDER[which]].tiles) unit -= layer.matrix[FIRST_ORDER[which++]].tiles;
    const Matrix &matrix = layer.matrix[FIRST_ORDER[which]];
    if (which < 4) {
        const int mixes[] = {MIX_W, MIX_A, MIX_V, MIX_G};
        Acts a;
        a.x = w.mix[mixes[which]], a.ldx = m.width;
        const Then then = which == 0 ? TANH : which == 3 ? SIGMOID : STORE;
        return tile_of(s, matrix, unit, a, s.rows(), w.low[which], m.rank[which], then, worker);
    }
    float *out[] = {w.r, w.k, &m.layer[0] == &layer ? w.v_first : w.v};
    tile_of(s, matrix, unit, w.coded[which - 4], s.rows(), out[which - 4], m.width, STORE, worker);
}

// One position of one head: state [key][value] in and out, which may be the same.
void recur(const float *in, float *state, const float *r, const float *decay, const float *k, const float *v,
           const float *kappa, const float *b, float *y) {
    constexpr int NV = 4; // vectors of values at a time
    for (int c = 0; c < HEAD; c += NV * W) {
        F removed[NV], value[NV], out[NV];
        EACH(j, NV, removed[j] = out[j] = fset(0.0f), value[j] = fload(v + c + j * W));
        for (int i = 0; i < HEAD; ++i) {
            F x = fset(-kappa[i]);
            EACH(j, NV, removed[j] = ffma(x, fload(in + i * HEAD + c + j * W), removed[j]));
        }
        for (int i = 0; i < HEAD; ++i) {
            F d = fset(decay[i]), bi = fset(b[i]), ki = fset(k[i]), ri = fset(r[i]);
            EACH(j, NV,
                F now = fmul(d, fload(in + i * HEAD + c + j * W));
                now = ffma(ki, value[j], ffma(bi, removed[j], now));
                fstore(state + i * HEAD + c + j * W, now);
                out[j] = ffma(ri, now, out[j]););
        }
        EACH(j, NV, fstore(y + c + j * W, out[j]));
    }
}

// Sum over a head of a product of two, or three, vectors.
inline float dot(const float *a, const float *b, const float *c = nullptr) {
    F sum = fset(0.0f);
    for (int i = 0; i < HEAD; i += W) {
        F x = fmul(fload(a + i), fload(b + i));
        sum = c ? ffma(x, fload(c + i), sum) : fadd(sum, x);
    }
    return fsum(sum);
}

// What follows the products for one head of one position; y is written over r's blend.
void head_of(const Step &s, const Layer &layer, int index, int head, int row) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const int c = head * HEAD;
    const long at = long(row) * m.width + c;
    auto vector = [&](Vector which) { return layer.vector[which] + c; };
    float *r = w.r + at, *k = w.k + at, *v = index ? w.v + at : w.v_first + at, *gate = w.mix[MIX_G] + at;
    float *decay = w.mix[MIX_W] + at, *rate = w.mix[MIX_A] + at, *much = w.mix[MIX_V] + at, *y = w.mix[MIX_R] + at;
    float kappa[HEAD], b[HEAD], normed[HEAD];
    for (int i = 0; i < HEAD; i += W) {
        fstore(decay + i, fexp(fmul(fset(DECAY), fsigmoid(fadd(fload(vector(W0) + i), fload(decay + i))))));
        fstore(rate + i, fsigmoid(fadd(fload(vector(A0) + i), fload(rate + i))));
        if (index) {
            F own = fload(v + i), to_first = fsub(fload(w.v_first + at + i), own);
            fstore(v + i, ffma(to_first, fsigmoid(fadd(fload(vector(V0) + i), fload(much + i))), own));
        }
        fstore(kappa + i, fmul(fload(k + i), fload(vector(K_K) + i)));
        F kept = ffma(fsub(fload(rate + i), fset(1.0f)), fload(vector(K_A) + i), fset(1.0f));
        fstore(k + i, fmul(fload(k + i), kept));
    }
    float length = __builtin_sqrtf(dot(kappa, kappa));
    F scale = fset(1.0f / (length < 1e-12f ? 1e-12f : length));
    for (int i = 0; i < HEAD; i += W) {
        F one = fmul(fload(kappa + i), scale);
        fstore(kappa + i, one), fstore(b + i, fmul(one, fload(rate + i)));
    }
    const int sequence = row / s.length;
    const long slot = ((long(index) * s.batch + sequence) * m.heads() + head) * HEAD * HEAD;
    recur(row % s.length ? s.wkv_out + slot : s.wkv_in + slot, s.wkv_out + slot, r, decay, k, v, kappa, b, y);
    norm(y, HEAD, GROUP_EPS, vector(LN_X_WEIGHT), vector(LN_X_BIAS), normed);
    F bonus = fset(dot(r, k, vector(R_K)));
    for (int i = 0; i < HEAD; i += W)
        fstore(y + i, fmul(ffma(bonus, fload(v + i), fload(normed + i)), fload(gate + i)));
}

void heads(const Step &s, const Layer &layer, int index, int head, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    float *out[] = {w.mix[MIX_W], w.mix[MIX_A], w.mix[MIX_V], w.mix[MIX_G]};
    for (int path = 0; path < 4; ++path) {
        if (path == 2 && index == 0) continue;
        Acts a;
        a.x = w.low[path], a.ldx = m.rank[path];
        for (int half = 0; half < HEAD / TILE; ++half)
            tile_of(s, layer.matrix[W2 + path], head * (HEAD / TILE) + half, a, s.rows(), out[path], m.width, STORE,
                    worker);
    }
    for (int row = 0; row < s.rows(); ++row) head_of(s, layer, index, head, row);
}

void shift(Step &s, const Layer &layer, int index, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const long slot = long(index) * s.batch * m.width;
    float *room = w.scratch[worker].rows;
    Shifted shifted{s,    layer.vector[LN2_WEIGHT], layer.vector[LN2_BIAS], s.ffn_in + slot, s.ffn_out + slot,
                    room, room + m.width};
    for (int row = unit * FEW; row < s.rows() && row < (unit + 1) * FEW; ++row) {
        shifted(row);
        float *to = w.mix[MIX_K] + long(row) * m.width;
        for (int i = 0; i < m.width; i += W) {
            F now = fload(shifted.now + i), delta = fsub(fload(shifted.before + i), now);
            fstore(to + i, ffma(delta, fload(layer.vector[FFN_X_K] + i), now));
        }
        code_row(w.key, layer.matrix[FFN_KEY], to, row);
    }
}

void sparse(const Step &s, const Layer &layer, int unit) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const Matrix &matrix = layer.matrix[FFN_VALUE];
    const int from = unit * FEW, rows = s.rows() - from < FEW ? s.rows() - from : FEW;
    for (int row = from; row < from + rows; ++row) code_row(w.value, matrix, w.hidden + long(row) * m.hidden, row);
    if (s.rows() <= FEW) list_active(matrix, w.value, rows, w.active);
}

void shrink(const Step &s, const Layer &layer, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const Matrix &matrix = layer.matrix[FFN_VALUE];
    if (s.rows() > FEW) {
        w.bytes_read[worker] += matrix.bytes() / size_t(m.width / TILE);
        return tile_of(s, matrix, unit, w.value, s.rows(), w.x, m.width, ADD, worker);
    }
    const int stretch = unit / matrix.parts(), part = unit % matrix.parts();
    float *out = w.parts + long(unit) * FEW * matrix.width;
    w.bytes_read[worker] += partial(matrix, stretch, part, w.active, w.value, s.rows(), out);
}

// In the order of the parts, whoever computed them.
void sum(const Step &s, const Layer &layer, int row) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const Matrix &matrix = layer.matrix[FFN_VALUE];
    for (int stretch = 0; stretch < matrix.tiles; ++stretch)
        for (int i = 0; i < matrix.width; i += W) {
            const float *from = w.parts + (long(stretch) * matrix.parts() * FEW + row) * matrix.width + i;
            float *to = w.x + long(row) * m.width + stretch * matrix.width + i;
            F total = fset(0.0f);
            for (int part = 0; part < matrix.parts(); ++part)
                total = fadd(total, fload(from + long(part) * FEW * matrix.width));
            fstore(to, fadd(total, fload(to)));
        }
}

void last_norm(const Step &s) {
    const Model &m = *s.model;
    Work &w = *m.work;
    for (int b = 0; b < s.batch; ++b) {
        float *to = w.last + long(b) * m.width;
        norm(w.x + (long(b) * s.length + s.length - 1) * m.width, m.width, LN_EPS, m.ln_weight, m.ln_bias, to);
        code_row(w.head, m.head, to, b);
    }
}

void run_unit(Step &s, int phase, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const int index = phase / PHASES;
    if (index == m.layers) {
        if (phase % PHASES == 0) return last_norm(s);
        for (int tile = 2 * unit; tile < m.head.tiles && tile < 2 * unit + 2; ++tile)
            tile_of(s, m.head, tile, w.head, s.batch, s.logits, m.vocab, STORE, worker);
        return;
    }
    const Layer &layer = m.layer[index];
    switch (phase % PHASES) {
    case MIX: return mix(s, layer, index, unit, worker);
    case FIRST: return first(s, layer, unit, worker);
    case HEADS: return heads(s, layer, index, unit, worker);
    case MERGE:
        for (int row = unit * FEW; row < s.rows() && row < (unit + 1) * FEW; ++row)
            code_row(w.output, layer.matrix[OUTPUT], w.mix[MIX_R] + long(row) * m.width, row);
        return;
    case PROJECT: return tile_of(s, layer.matrix[OUTPUT], unit, w.output, s.rows(), w.x, m.width, ADD, worker);
    case SHIFT: return shift(s, layer, index, unit, worker);
    case EXPAND: return tile_of(s, layer.matrix[FFN_KEY], unit, w.key, s.rows(), w.hidden, m.hidden, SQUARE, worker);
    case SPARSE: return sparse(s, layer, unit);
    case SHRINK: return shrink(s, layer, unit, worker);
    default:
        for (int row = 0; row < s.rows(); ++row) sum(s, layer, row);
    }
}

} // namespace
