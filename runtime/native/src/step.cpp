#include "model.h"

namespace vrwkv {

namespace {

constexpr int LOOK_AHEAD = 16; // entries of the list of active inputs that may be looked at past its end

template <size_t N> int tiles_of(const Layer &layer, const int (&which)[N]) {
    int tiles = 0;
    for (int one : which) tiles += layer.matrix[one].tiles;
    return tiles;
}

// Units of a phase of a layer: independent of each other.
int units_of(const Step &s, const Layer &layer, int phase) {
    const Model &m = *s.model;
    const std::vector<Matrix> &matrix = layer.matrix;
    const bool six = m.family == RWKV6;
    switch (phase) {
    case AMOUNTS: return six ? matrix[rwkv6::MAA_W1].tiles + matrix[rwkv6::MEM_W1].tiles : 0;
    case BLEND: return six ? (m.width + STRETCH - 1) / STRETCH : 0;
    case FIRST: return six ? tiles_of(layer, rwkv6::FIRST_ORDER) : tiles_of(layer, rwkv7::FIRST_ORDER);
    case HEADS: return m.heads();
    case PROJECT: return matrix[OUTPUT].tiles;
    case EXPAND: return matrix[FFN_KEY].tiles + matrix[FFN_RECEPTANCE].tiles;
    case SHRINK: return s.rows() > FEW ? m.width / TILE : matrix[FFN_VALUE].tiles * matrix[FFN_VALUE].parts();
    case SUM: return s.rows() > FEW ? 0 : 1;
    default: return (s.rows() + FEW - 1) / FEW;
    }
}

void unit(void *step, int phase, int index, int worker) {
    Step &s = *static_cast<Step *>(step);
    s.model->isa->unit(s, phase, index, worker);
}

void plan_acts(Plan &room, Acts &a, const float *x, int k, int rows) {
    a.x = x, a.ldx = k, a.ldq = (k + 127) / 128 * 128, a.lds = (k + 15) / 16;
    room(a.q, size_t(rows) * a.ldq);
    room(a.scale, size_t(rows) * a.lds);
    room(a.sum, size_t(rows) * a.lds);
}

} // namespace

Work::Work(const Model &m, int positions) : rows((positions + FEW - 1) / FEW * FEW) {
    const size_t c = m.width, n = rows, f = m.hidden;
    const bool six = m.family == RWKV6, image = m.reads_image();
    const int mixes = m.mixes();
    const size_t low_width[] = {size_t(m.rank[0]) * (six ? mixes : 1), size_t(m.rank[1]), size_t(m.rank[2]),
                                size_t(m.rank[3])};
    scratch.resize(m.pool->threads());
    bytes_read.resize(m.pool->threads());
    size_t parts_of = 0, count_of = 0;
    for (const Layer &layer : m.layer) {
        const Matrix &w = layer.matrix[FFN_VALUE];
        size_t parts = size_t(w.parts()) * w.tiles * w.width * FEW;
        size_t counts = size_t(w.integer() ? w.blocks : w.parts()) + 1;
        parts_of = parts > parts_of ? parts : parts_of;
        count_of = counts > count_of ? counts : count_of;
    }
    Plan room;
    for (int pass = 0; pass < 2; ++pass) {
        room(x, n * c);
        for (int i = 0; i < mixes; ++i) room(mix[i], n * c);
        for (float **one : {&r, &k, &v}) room(*one, n * c);
        room(v_first, six ? 0 : n * c);
        for (float **one : {&normed, &delta, &first, &gate}) room(*one, six ? n * c : 0);
        for (float **one : {&read, &much}) room(*one, image ? n * c : 0);
        for (int i = 0; i < 4; ++i) room(low[i], n * low_width[i]);
        room(hidden, n * f);
        room(parts, parts_of);
        room(att_shift, size_t(m.layers) * n * c);
        room(ffn_shift, size_t(m.layers) * n * c);
        room(last, n * c);
        for (int i = 0; i < mixes; ++i) plan_acts(room, coded[i], mix[i], m.width, rows);
        y = six ? mix[rwkv6::MIX_R] : mix[rwkv7::MIX_R];
        plan_acts(room, output, y, m.width, rows);
        plan_acts(room, key, mix[1], m.width, rows);
        plan_acts(room, receptance, mix[2], m.width, rows);
        plan_acts(room, value, hidden, m.hidden, rows);
        plan_acts(room, head, last, m.width, rows);
        active.ldx = long(f) + 128 + LOOK_AHEAD;
        room(active.start, count_of);
        room(active.key, 2 * size_t(active.ldx));
        room(active.x, FEW * size_t(active.ldx));
        for (Scratch &one : scratch) {
            room(one.wide, size_t(CHUNK) * TILE);
            room(one.out, n * TILE);
            room(one.part, n * TILE);
            room(one.rows, 2 * c);
        }
        if (pass == 0) {
            arena = std::make_unique<Arena>(room.bytes);
            room.arena = arena.get();
        }
    }
}

void prepare(Model &m, int rows) {
    if (m.work && m.work->rows >= rows) return;
    m.work.reset(); // first: never two at a time
    m.work = std::make_unique<Work>(m, rows);
}

void run(Step &s) {
    Model &m = *s.model;
    std::vector<int> units;
    units.reserve(size_t(s.to - s.from) * PHASES + 2);
    for (int layer = s.from; layer < s.to; ++layer)
        for (int phase = 0; phase < PHASES; ++phase) units.push_back(units_of(s, m.layer[layer], phase));
    if (s.last) units.insert(units.end(), {1, (m.head.tiles + 1) / 2});
    m.pool->run(int(units.size()), units.data(), unit, &s);
}

} // namespace vrwkv
