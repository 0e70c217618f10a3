// What the layers of both families share. A layer is
//   MIX     norm, token shift, the blends                           by rows
//   AMOUNTS RWKV-6: first half of what its blends depend on          by tiles
//   BLEND   RWKV-6: second half, the blends                         by stretches of channels
//   FIRST   products of the blends: r k v ..., and the first half of each LoRA path    by tiles
//   HEADS   second half of the LoRA paths, the recurrence, group norm, gate   by heads
//   MERGE   codes for the output projection                         by rows
//   PROJECT x += output                                             by tiles
//   SHIFT   norm, token shift, blends                               by rows
//   EXPAND  relu(key)^2; RWKV-6: sigmoid(receptance)                 by tiles
//   SPARSE  codes, and what is not zero                             by rows
//   SHRINK  FFN value, in partial sums where there are few rows     by stretches and parts
//   SUM     x += the partial sums, gated in RWKV-6                   by rows
// and after the last layer come the head's norm and its product.
namespace {

constexpr float LN_EPS = 1e-5f, GROUP_EPS = 64e-5f;

// Codes of channels [from, to) of a row; `from` is a multiple of STRETCH.
inline void code_stretch(const Acts &a, const Matrix &w, int row, int from, int to) {
    if (!w.integer()) return;
    const long block = row * a.lds + from / w.block;
    quantise(a.x + row * a.ldx + from, to - from, w.block, a.q + row * a.ldq + from, a.scale + block, a.sum + block);
}

inline void code_row(const Acts &a, const Matrix &w, int row) { code_stretch(a, w, row, 0, w.k); }

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

// Of the time mix, with two rows of the worker's room.
inline Shifted time_shift(const Step &s, const Layer &layer, int index, int worker) {
    const long width = s.model->width, slot = long(index) * s.batch * width;
    float *room = s.model->work->scratch[worker].rows;
    return {s, layer.vector[LN1_WEIGHT], layer.vector[LN1_BIAS], s.att_in + slot, s.att_out + slot, room, room + width};
}

// What becomes of a product.
enum Then { STORE, TANH, SIGMOID, SILU, SQUARE };

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
            if (then == SILU) x = fmul(x, fsigmoid(x));
            if (then == SQUARE) x = fmul(frelu(x), frelu(x));
            fstore((wide == TILE ? to : found) + i, x);
        }
        if (wide < TILE) __builtin_memcpy(to, found, sizeof(float) * wide);
    }
}

// out[i] += x, times gate[i] if there is a gate.
inline void add_to(float *out, F x, const float *gate) {
    fstore(out, gate ? ffma(x, fload(gate), fload(out)) : fadd(x, fload(out)));
}

// x += a tile of a product; the matrix fills its tiles.
void add_tile(const Step &s, const Matrix &w, int tile, const Acts &a, const float *gate, int worker) {
    Scratch &scratch = s.model->work->scratch[worker];
    product(w, tile, a, s.rows(), scratch, scratch.out);
    for (int row = 0; row < s.rows(); ++row)
        for (int i = 0; i < TILE; i += W) {
            const long at = long(row) * s.model->width + tile * TILE + i;
            add_to(s.model->work->x + at, fload(scratch.out + row * TILE + i), gate ? gate + at : nullptr);
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

// The matrix of one head of the state at a position, [key][value]: the one before it, and where the new one goes.
struct HeadState {
    const float *in;
    float *out;
};
inline HeadState head_state(const Step &s, int index, int head, int row) {
    const long slot = ((long(index) * s.batch + row / s.length) * s.model->heads() + head) * HEAD * HEAD;
    return {row % s.length ? s.wkv_out + slot : s.wkv_in + slot, s.wkv_out + slot};
}

void merge(const Step &s, const Layer &layer, int unit) {
    for (int row = unit * FEW; row < s.rows() && row < (unit + 1) * FEW; ++row)
        code_row(s.model->work->output, layer.matrix[OUTPUT], row);
}

void shift(Step &s, const Layer &layer, int index, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const long slot = long(index) * s.batch * m.width;
    float *room = w.scratch[worker].rows;
    Shifted shifted{s,    layer.vector[LN2_WEIGHT], layer.vector[LN2_BIAS], s.ffn_in + slot, s.ffn_out + slot,
                    room, room + m.width};
    auto blend = [&](const Acts &a, const Matrix &matrix, const float *amount, int row) {
        float *to = const_cast<float *>(a.x) + row * a.ldx;
        for (int i = 0; i < m.width; i += W) {
            F now = fload(shifted.now + i), delta = fsub(fload(shifted.before + i), now);
            fstore(to + i, ffma(delta, fload(amount + i), now));
        }
        code_row(a, matrix, row);
    };
    for (int row = unit * FEW; row < s.rows() && row < (unit + 1) * FEW; ++row) {
        shifted(row);
        blend(w.key, layer.matrix[FFN_KEY], layer.vector[FFN_X_K], row);
        if (layer.vector[FFN_X_R]) blend(w.receptance, layer.matrix[FFN_RECEPTANCE], layer.vector[FFN_X_R], row);
    }
}

void expand(const Step &s, const Layer &layer, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const Matrix &key = layer.matrix[FFN_KEY], &receptance = layer.matrix[FFN_RECEPTANCE];
    if (unit < key.tiles) return tile_of(s, key, unit, w.key, s.rows(), w.hidden, m.hidden, SQUARE, worker);
    tile_of(s, receptance, unit - key.tiles, w.receptance, s.rows(), w.gate, m.width, SIGMOID, worker);
}

void sparse(const Step &s, const Layer &layer, int unit) {
    Work &w = *s.model->work;
    const Matrix &matrix = layer.matrix[FFN_VALUE];
    const int from = unit * FEW, rows = s.rows() - from < FEW ? s.rows() - from : FEW;
    for (int row = from; row < from + rows; ++row) code_row(w.value, matrix, row);
    if (s.rows() <= FEW) list_active(matrix, w.value, rows, w.active);
}

inline const float *ffn_gate(const Step &s, const Layer &layer) {
    return layer.matrix[FFN_RECEPTANCE].tiles ? s.model->work->gate : nullptr;
}

void shrink(const Step &s, const Layer &layer, int unit, int worker) {
    Work &w = *s.model->work;
    const Matrix &matrix = layer.matrix[FFN_VALUE];
    if (s.rows() > FEW) {
        w.bytes_read[worker] += matrix.bytes() / size_t(s.model->width / TILE);
        return add_tile(s, matrix, unit, w.value, ffn_gate(s, layer), worker);
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
    const float *gate = ffn_gate(s, layer);
    for (int stretch = 0; stretch < matrix.tiles; ++stretch)
        for (int i = 0; i < matrix.width; i += W) {
            const float *from = w.parts + (long(stretch) * matrix.parts() * FEW + row) * matrix.width + i;
            const long at = long(row) * m.width + stretch * matrix.width + i;
            F total = fset(0.0f);
            for (int part = 0; part < matrix.parts(); ++part)
                total = fadd(total, fload(from + long(part) * FEW * matrix.width));
            add_to(w.x + at, total, gate ? gate + at : nullptr);
        }
}

void last_norm(const Step &s) {
    const Model &m = *s.model;
    Work &w = *m.work;
    for (int b = 0; b < s.batch; ++b) {
        float *to = w.last + long(b) * m.width;
        norm(w.x + (long(b) * s.length + s.length - 1) * m.width, m.width, LN_EPS, m.ln_weight, m.ln_bias, to);
        code_row(w.head, m.head, b);
    }
}

} // namespace
