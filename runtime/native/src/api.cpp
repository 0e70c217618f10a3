// The C face, for ctypes. The caller has checked every shape and every size; nothing here reads a file.
#include "model.h"

#include <cstdio>
#include <cstring>
#include <new>

using namespace vrwkv;

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

struct Job {
    const Source *source;
    const Matrix *matrix;
    const Isa *isa;
};

void pack_unit(void *context, int, int unit, int) {
    const Job &job = *static_cast<Job *>(context);
    pack_tile(*job.source, *job.matrix, unit, job.isa->position);
}

void pack(Pool &pool, const Isa *isa, const Source &source, const Matrix &matrix) {
    Job job{&source, &matrix, isa};
    pool.run(1, &matrix.tiles, pack_unit, &job);
    release(source);
}

void room_of(Plan &room, Matrix &m) {
    room(m.data, m.tile_bytes() * m.tiles);
    if (m.integer()) room(m.scale, m.scales());
    if (m.format == I4) room(m.zero, m.scales());
}

const Isa *usable(const char *name) {
    const Isa *isa = isa_by_name(name);
    return isa && isa->supported() ? isa : nullptr;
}

} // namespace

struct Sizes {
    int32_t family, layers, width, hidden, vocab, threads;
    int32_t rank[4]; // RWKV-7: of w a v g; RWKV-6: of a mix, of the decay
};

// Which functions and structures these are: the runtime and the library are of the same version, or do not work.
EXPORT int32_t vrwkv_version() { return 2; }

// Names of the instruction sets of this build that this machine runs, the best first, each ending in a space.
EXPORT void vrwkv_isas(char *out, int32_t size) {
    out[0] = 0;
    for (const Isa *isa : all_isas())
        if (isa->supported() && std::strlen(out) + std::strlen(isa->name) + 2 < size_t(size)) {
            std::strcat(out, isa->name);
            std::strcat(out, " ");
        }
}

// Repack a model. `vectors`: those of each layer, then the last norm's two; `sources`: the matrices of each layer, then
// the head; both as parts.h lists them. Returns nullptr without memory or without that instruction set.
EXPORT Model *vrwkv_open(const Sizes *sizes, const char *isa, const float *const *vectors, const Source *sources) try {
    auto model = std::make_unique<Model>();
    Model &m = *model;
    m.isa = usable(isa);
    if (!m.isa) return nullptr;
    m.family = Family(sizes->family);
    m.layers = sizes->layers, m.width = sizes->width, m.hidden = sizes->hidden, m.vocab = sizes->vocab;
    for (int i = 0; i < 4; ++i) m.rank[i] = sizes->rank[i];
    m.pool = std::make_unique<Pool>(sizes->threads);
    m.layer.resize(m.layers);
    for (Layer &layer : m.layer) layer.vector.resize(m.vectors()), layer.matrix.resize(m.matrices());
    float *copies = nullptr;
    const size_t count = size_t(m.layers) * m.vectors() + 2;
    Plan room;
    for (int pass = 0; pass < 2; ++pass) {
        const Source *source = sources;
        for (Layer &layer : m.layer)
            for (int i = 0; i < m.matrices(); ++i, ++source)
                if (source->data) {
                    if (!pass) layer.matrix[i] = shape_of(*source, i == FFN_VALUE ? ROWS : TILES);
                    room_of(room, layer.matrix[i]);
                }
        if (!pass) m.head = shape_of(*source, TILES);
        room_of(room, m.head);
        room(copies, count * m.width);
        if (pass) break;
        m.weights = std::make_unique<Arena>(m.bytes = room.bytes);
        room.arena = m.weights.get();
    }
    auto copy = [&](size_t i) -> const float * {
        if (!vectors[i]) return nullptr;
        return static_cast<float *>(std::memcpy(copies + i * m.width, vectors[i], sizeof(float) * m.width));
    };
    const Source *source = sources;
    for (int l = 0; l < m.layers; ++l) {
        for (int i = 0; i < m.vectors(); ++i) m.layer[l].vector[i] = copy(size_t(l) * m.vectors() + i);
        for (int i = 0; i < m.matrices(); ++i, ++source)
            if (source->data) pack(*m.pool, m.isa, *source, m.layer[l].matrix[i]);
    }
    m.ln_weight = copy(count - 2), m.ln_bias = copy(count - 1);
    pack(*m.pool, m.isa, *source, m.head);
    return model.release();
} catch (const std::exception &) {
    return nullptr;
}

EXPORT void vrwkv_close(Model *model) { delete model; }

EXPORT const char *vrwkv_isa(const Model *model) { return model->isa->name; }

EXPORT int64_t vrwkv_weight_bytes(const Model *model) { return int64_t(model->bytes); }

// Bytes of weights that the last call read, if every weight but the skipped ones is read once for each MOST_ROWS rows.
EXPORT int64_t vrwkv_bytes_read(const Model *model) {
    size_t bytes = model->bytes;
    for (const Layer &layer : model->layer) bytes -= layer.matrix[FFN_VALUE].bytes();
    if (model->work)
        for (size_t one : model->work->bytes_read) bytes += one;
    return int64_t(bytes);
}

// Run a call. Returns 0, or -1 without memory.
EXPORT int32_t vrwkv_run(Model *model, const Call *call) try {
    std::lock_guard<std::mutex> alone(model->busy);
    feed(*model, *call);
    return 0;
} catch (const std::exception &) {
    return -1;
}

// One product, for tests: out [rows, n] = x [rows, k] @ source. Returns the bytes of weights read, or -1.
EXPORT int64_t vrwkv_multiply(const char *isa, const Source *source, int32_t layout, const float *x, int32_t rows,
                              float *out) try {
    const Isa *chosen = usable(isa);
    if (!chosen) return -1;
    Pool pool(1);
    Matrix m = shape_of(*source, Layout(layout));
    Plan room;
    room_of(room, m);
    Arena arena(room.bytes);
    room.arena = &arena;
    room_of(room, m);
    pack(pool, chosen, *source, m);
    return int64_t(chosen->multiply(m, x, rows, out));
} catch (const std::exception &) {
    return -1;
}
