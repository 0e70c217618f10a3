#include "model.h"

#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vrwkv {

namespace {

constexpr size_t LARGE_PAGE = size_t(2) << 20;
constexpr int LOOK_AHEAD = 16; // entries of the list of active inputs that may be looked at past its end

int units_of(const Step &s, int phase) {
    const Model &m = *s.model;
    const int index = phase / PHASES;
    if (index == m.layers) return phase % PHASES == 0 ? 1 : (m.head.tiles + 1) / 2;
    const Matrix *matrix = m.layer[index].matrix;
    switch (phase % PHASES) {
    case FIRST: {
        int tiles = 0;
        for (int which : FIRST_ORDER) tiles += matrix[which].tiles;
        return tiles;
    }
    case HEADS: return m.heads();
    case PROJECT: return matrix[OUTPUT].tiles;
    case EXPAND: return matrix[FFN_KEY].tiles;
    case SHRINK:
        return s.rows() > FEW ? m.width / TILE : matrix[FFN_VALUE].tiles * matrix[FFN_VALUE].parts();
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

Arena::Arena(size_t bytes) : size_((bytes + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE) {
#if defined(__linux__)
    // Mapped, so that pages that are never touched cost nothing, and given back when the model is closed.
    const int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *found = mmap(nullptr, size_ + LARGE_PAGE, PROT_READ | PROT_WRITE, how, -1, 0);
    if (found == MAP_FAILED) throw std::bad_alloc();
    char *raw = static_cast<char *>(found);
    size_t skip = (LARGE_PAGE - uintptr_t(raw) % LARGE_PAGE) % LARGE_PAGE;
    if (skip) munmap(raw, skip);
    if (skip < LARGE_PAGE) munmap(raw + skip + size_, LARGE_PAGE - skip);
    start_ = raw + skip;
    if (bytes >= LARGE_PAGE) madvise(start_, bytes / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE);
#else
    start_ = static_cast<char *>(std::aligned_alloc(4096, size_));
    if (!start_) throw std::bad_alloc();
    std::memset(start_, 0, size_);
#endif
}

Arena::~Arena() {
#if defined(__linux__)
    munmap(start_, size_);
#else
    std::free(start_);
#endif
}

void *Arena::take_bytes(size_t bytes) {
    void *here = start_ + used_;
    used_ += rounded(bytes);
    return here;
}

Work::Work(const Model &m, int positions) : rows((positions + FEW - 1) / FEW * FEW) {
    const size_t c = m.width, n = rows, f = m.hidden;
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
        for (float *&one : mix) room(one, n * c);
        for (float **one : {&r, &k, &v, &v_first}) room(*one, n * c);
        for (int i = 0; i < 4; ++i) room(low[i], n * m.rank[i]);
        room(hidden, n * f);
        room(parts, parts_of);
        room(att_shift, size_t(m.layers) * n * c);
        room(ffn_shift, size_t(m.layers) * n * c);
        room(last, n * c);
        const float *mixed[] = {mix[MIX_R], mix[MIX_K], mix[MIX_V]};
        for (int i = 0; i < 3; ++i) plan_acts(room, coded[i], mixed[i], m.width, rows);
        plan_acts(room, output, mix[MIX_R], m.width, rows);
        plan_acts(room, key, mix[MIX_K], m.width, rows);
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
    const int phases = m.layers * PHASES + (s.last ? 2 : 0);
    std::vector<int> units(phases);
    for (int phase = 0; phase < phases; ++phase) units[phase] = units_of(s, phase);
    m.pool->run(phases, units.data(), unit, &s);
}

} // namespace vrwkv
