// The phases of RWKV-7 up to its gate. Source: RWKV-7 paper; export/arch/rwkv7.py.
namespace vrwkv::rwkv7 {
namespace {

constexpr float DECAY = -0.6065306597126334f; // -exp(-0.5)

void mix(Step &s, const Layer &layer, int index, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    Shifted shifted = time_shift(s, layer, index, worker);
    for (int row = unit * FEW; row < s.rows() && row < (unit + 1) * FEW; ++row) {
        shifted(row);
        const long at = long(row) * m.width;
        for (int i = 0; i < m.width; i += W) {
            F now = fload(shifted.now + i), delta = fsub(fload(shifted.before + i), now);
            for (int j = 0; j < MIXES; ++j)
                fstore(w.mix[j] + at + i, ffma(delta, fload(layer.vector[X_R + j] + i), now));
        }
        code_row(w.coded[MIX_R], layer.matrix[RECEPTANCE], row);
        code_row(w.coded[MIX_K], layer.matrix[KEY], row);
        code_row(w.coded[MIX_V], layer.matrix[VALUE], row);
    }
}

void first(const Step &s, const Layer &layer, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    int which = 0;
    while (unit >= layer.matrix[FIRST_ORDER[which]].tiles) unit -= layer.matrix[FIRST_ORDER[which++]].tiles;
    const Matrix &matrix = layer.matrix[FIRST_ORDER[which]];
    const int mixes[] = {MIX_W, MIX_A, MIX_V, MIX_G, MIX_R, MIX_K, MIX_V};
    const Acts &a = w.coded[mixes[which]];
    if (which < 4) {
        const Then then = which == 0 ? TANH : which == 3 ? SIGMOID : STORE;
        return tile_of(s, matrix, unit, a, s.rows(), w.low[which], m.rank[which], then, worker);
    }
    float *out[] = {w.r, w.k, &m.layer[0] == &layer ? w.v_first : w.v};
    tile_of(s, matrix, unit, a, s.rows(), out[which - 4], m.width, STORE, worker);
}

// One position of one head: state [key][value] in and out, which may be the same.
void recur(HeadState state, const float *r, const float *decay, const float *k, const float *v, const float *kappa,
           const float *b, float *y) {
    constexpr int NV = 4; // vectors of values at a time
    for (int c = 0; c < HEAD; c += NV * W) {
        F removed[NV], value[NV], out[NV];
        EACH(j, NV, removed[j] = out[j] = fset(0.0f), value[j] = fload(v + c + j * W));
        for (int i = 0; i < HEAD; ++i) {
            F x = fset(-kappa[i]);
            EACH(j, NV, removed[j] = ffma(x, fload(state.in + i * HEAD + c + j * W), removed[j]));
        }
        for (int i = 0; i < HEAD; ++i) {
            F d = fset(decay[i]), bi = fset(b[i]), ki = fset(k[i]), ri = fset(r[i]);
            EACH(j, NV,
                F now = fmul(d, fload(state.in + i * HEAD + c + j * W));
                now = ffma(ki, value[j], ffma(bi, removed[j], now));
                fstore(state.out + i * HEAD + c + j * W, now);
                out[j] = ffma(ri, now, out[j]););
        }
        EACH(j, NV, fstore(y + c + j * W, out[j]));
    }
}

// What follows the products for one head of one position; y is written over r's blend.
void head_of(const Step &s, const Layer &layer, int index, int head, int row) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const int c = head * HEAD;
    const long at = long(row) * m.width + c;
    auto vector = [&](int which) { return layer.vector[which] + c; };
    float *r = w.r + at, *k = w.k + at, *v = index ? w.v + at : w.v_first + at, *gate = w.mix[MIX_G] + at;
    float *decay = w.mix[MIX_W] + at, *rate = w.mix[MIX_A] + at, *much = w.mix[MIX_V] + at, *y = w.y + at;
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
    recur(head_state(s, index, head, row), r, decay, k, v, kappa, b, y);
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

} // namespace
} // namespace vrwkv::rwkv7
