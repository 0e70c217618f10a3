// The phases of RWKV-6 and of HM up to their gate. Source: Eagle and Finch paper; export/arch/rwkv6.py, hybrid.py.
namespace vrwkv::rwkv6 {
namespace {

void mix(Step &s, const Layer &layer, int index, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    Shifted shifted = time_shift(s, layer, index, worker);
    for (int row = unit * FEW; row < s.rows() && row < (unit + 1) * FEW; ++row) {
        shifted(row);
        const long at = long(row) * m.width;
        for (int i = 0; i < m.width; i += W) {
            F now = fload(shifted.now + i), delta = fsub(fload(shifted.before + i), now);
            fstore(w.normed + at + i, now), fstore(w.delta + at + i, delta);
            fstore(w.first + at + i, ffma(delta, fload(layer.vector[MAA_X] + i), now));
        }
    }
}

// What the blends depend on: `rank` numbers for each of them, side by side.
inline long amounts_width(const Model &m) { return long(m.rank[0]) * m.mixes(); }

void amounts(const Step &s, const Layer &layer, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const Matrix &own = layer.matrix[MAA_W1], &image = layer.matrix[MEM_W1];
    Acts a;
    a.x = w.first, a.ldx = m.width;
    if (unit < own.tiles) return tile_of(s, own, unit, a, s.rows(), w.low[0], amounts_width(m), TANH, worker);
    tile_of(s, image, unit - own.tiles, a, s.rows(), w.low[0] + own.n, amounts_width(m), TANH, worker);
}

void blend(const Step &s, const Layer &layer, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    Scratch &scratch = w.scratch[worker];
    const int from = unit * STRETCH, to = from + STRETCH < m.width ? from + STRETCH : m.width;
    for (int j = 0; j < m.mixes(); ++j) {
        Acts low;
        low.x = w.low[0] + j * m.rank[0], low.ldx = amounts_width(m);
        for (int c = from; c < to; c += TILE) {
            product(layer.matrix[MAA_W2 + j], c / TILE, low, s.rows(), scratch, scratch.out);
            for (int row = 0; row < s.rows(); ++row)
                for (int i = 0; i < TILE; i += W) {
                    const long at = long(row) * m.width + c + i;
                    F amount = fadd(fload(layer.vector[MAA + j] + c + i), fload(scratch.out + row * TILE + i));
                    fstore(w.mix[j] + at, ffma(fload(w.delta + at), amount, fload(w.normed + at)));
                }
        }
        for (int row = 0; row < s.rows(); ++row)
            code_stretch(w.coded[j], layer.matrix[FIRST_ORDER[j]], row, from, to);
    }
}

void first(const Step &s, const Layer &layer, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    int j = 0;
    while (unit >= layer.matrix[FIRST_ORDER[j]].tiles) unit -= layer.matrix[FIRST_ORDER[j++]].tiles;
    float *out[] = {w.low[1], w.k, w.v, w.r, w.gate, w.read, w.much};
    const Then then = j == MIX_W ? TANH : j == MIX_G ? SILU : STORE;
    tile_of(s, layer.matrix[FIRST_ORDER[j]], unit, w.coded[j], s.rows(), out[j], j == MIX_W ? m.rank[1] : m.width,
            then, worker);
}

// One position of one head without the bonus: state [key][value] in and out, which may be the same.
void recur(HeadState state, const float *r, const float *decay, const float *k, const float *v, float *y) {
    constexpr int NV = 4; // vectors of values at a time
    for (int c = 0; c < HEAD; c += NV * W) {
        F value[NV], out[NV];
        EACH(j, NV, out[j] = fset(0.0f), value[j] = fload(v + c + j * W));
        for (int i = 0; i < HEAD; ++i) {
            F d = fset(decay[i]), ki = fset(k[i]), ri = fset(r[i]);
            EACH(j, NV,
                F before = fload(state.in + i * HEAD + c + j * W);
                fstore(state.out + i * HEAD + c + j * W, ffma(ki, value[j], fmul(d, before)));
                out[j] = ffma(ri, before, out[j]););
        }
        EACH(j, NV, fstore(y + c + j * W, out[j]));
    }
}

// What the image state says to one head of one position, mixed into y.
void look(const Step &s, const Layer &layer, int index, int head, int row, float *y) {
    const Model &m = *s.model;
    const long at = long(row) * m.width + head * HEAD;
    const long slot = (long(index % s.call->images) * s.batch + row / s.length) * m.heads() + head;
    const float *read = m.work->read + at, *much = m.work->much + at, *image = s.call->image + slot * HEAD * HEAD;
    const float *bias = layer.vector[MEM_GATE_BIAS];
    constexpr int NV = 4; // vectors of values at a time
    for (int c = 0; c < HEAD; c += NV * W) {
        F found[NV];
        EACH(j, NV, found[j] = fset(0.0f));
        for (int i = 0; i < HEAD; ++i) {
            F key = fset(read[i]);
            EACH(j, NV, found[j] = ffma(key, fload(image + i * HEAD + c + j * W), found[j]));
        }
        EACH(j, NV,
            const int o = c + j * W;
            F amount = fload(much + o), one = fset(1.0f);
            amount = bias ? fsigmoid(fadd(amount, fload(bias + head * HEAD + o))) : frelu(amount); // not bounded by 1
            F kept = bias ? fsub(one, amount) : frelu(fsub(one, amount));
            fstore(y + o, ffma(found[j], amount, fmul(fload(y + o), kept))););
    }
}

// What follows the products for one head of one position; y is written over r's blend.
void head_of(const Step &s, const Layer &layer, int index, int head, int row) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const int c = head * HEAD;
    const long at = long(row) * m.width + c;
    auto vector = [&](int which) { return layer.vector[which] + c; };
    float *r = w.r + at, *k = w.k + at, *v = w.v + at, *decay = w.mix[MIX_W] + at, *y = w.y + at;
    float normed[HEAD];
    for (int i = 0; i < HEAD; i += W)
        fstore(decay + i, fexp(fsub(fset(0.0f), fexp(fadd(fload(vector(DECAY) + i), fload(decay + i))))));
    recur(head_state(s, index, head, row), r, decay, k, v, y);
    F bonus = fset(dot(r, k, vector(BONUS)));
    for (int i = 0; i < HEAD; i += W) fstore(y + i, ffma(bonus, fload(v + i), fload(y + i)));
    if (layer.matrix[MEM_READ].tiles) look(s, layer, index, head, row, y);
    norm(y, HEAD, GROUP_EPS, vector(LN_X_WEIGHT), vector(LN_X_BIAS), normed);
    for (int i = 0; i < HEAD; i += W) fstore(y + i, fmul(fload(normed + i), fload(w.gate + at + i)));
}

void heads(const Step &s, const Layer &layer, int index, int head, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    Acts a;
    a.x = w.low[1], a.ldx = m.rank[1];
    for (int half = 0; half < HEAD / TILE; ++half)
        tile_of(s, layer.matrix[DECAY_W2], head * (HEAD / TILE) + half, a, s.rows(), w.mix[MIX_W], m.width, STORE,
                worker);
    for (int row = 0; row < s.rows(); ++row) head_of(s, layer, index, head, row);
}

} // namespace
} // namespace vrwkv::rwkv6
