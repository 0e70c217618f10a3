// A model, repacked, and the room its steps need.
#pragma once
#include "acts.h"
#include "arena.h"
#include "matrix.h"
#include "parts.h"
#include "pool.h"

#include <memory>
#include <mutex>
#include <vector>

namespace vrwkv {

constexpr int HEAD = 64;       // channels of a head
constexpr int MOST_ROWS = 128; // positions computed at once: bounds the room, longer gains nothing measurable
constexpr int STRETCH = 128;   // channels blended at once: whole blocks of codes

struct Layer {
    std::vector<const float *> vector; // by Vector; nullptr where a layer has none
    std::vector<Matrix> matrix;        // by Weights; without tiles where a layer has none
};

struct Isa;

struct Model {
    Family family = RWKV7;
    int layers = 0, width = 0, hidden = 0, vocab = 0;
    int rank[4] = {0, 0, 0, 0}; // RWKV-7: of w a v g; RWKV-6: of a mix, of the decay
    std::vector<Layer> layer;
    const float *ln_weight = nullptr, *ln_bias = nullptr;
    Matrix head;
    std::unique_ptr<Arena> weights;
    size_t bytes = 0; // of all weights
    const Isa *isa = nullptr;
    std::unique_ptr<Pool> pool;
    std::unique_ptr<struct Work> work;
    std::mutex busy;

    int heads() const { return width / HEAD; }
    int vectors() const { return family == RWKV7 ? int(rwkv7::VECTORS) : int(rwkv6::VECTORS); }
    int matrices() const { return family == RWKV7 ? int(rwkv7::MATRICES) : int(rwkv6::MATRICES); }
    bool reads_image() const { return family == RWKV6 && layer[0].matrix[rwkv6::MEM_READ].tiles; }
    int mixes() const {
        if (family == RWKV7) return rwkv7::MIXES;
        return reads_image() ? rwkv6::MIXES : rwkv6::MIX_MEM_R;
    }
};

// Activations of up to `rows` positions; row b * T + t is position t of sequence b. What a family has no use for has
// no room.
struct Work {
    int rows = 0;
    std::unique_ptr<Arena> arena;
    float *x, *mix[rwkv6::MIXES], *r, *k, *v, *low[4], *hidden, *parts, *att_shift, *ffn_shift;
    float *v_first;                           // RWKV-7
    float *normed, *delta, *first;            // RWKV-6: a row, the step back to the one before, what amounts are made of
    float *gate;                              // RWKV-6: of the time mix, then of the feed-forward
    float *read, *much;                       // HM: what the image state is read with, and how much of it is taken
    float *y;                                 // of the recurrence, over a mix that is not needed any more
    Acts coded[rwkv6::MIXES], output, key, receptance, value, head;
    float *last;                              // [sequences, width], normed, for the head
    Active active;                            // of FFN values, with up to FEW rows
    std::vector<Scratch> scratch;             // by worker
    std::vector<size_t> bytes_read;           // by worker, of FFN value matrices
    Work(const Model &model, int rows);
};

// What the library is called with: [B, T] positions. The outputs are no inputs.
struct Call {
    int32_t batch, length;
    int32_t images, orders;                // states in `image`; rows of `scan`
    const float *embeddings;               // [B, T, C]
    const float *att_in, *ffn_in, *wkv_in; // [L, B, C], [L, B, C], [L, B, H, N, N]
    const float *image;                    // [images, B, H, N, N], of HM: layer i reads state i % images
    const int64_t *scan;                   // [orders, T]: layer i reads in order i % orders; nullptr: as they stand
    float *logits, *att_out, *ffn_out, *wkv_out; // logits [B, V] of the last position
};

// The part of a call that is computed at once: some positions, in some layers.
struct Step {
    Model *model;
    const Call *call;
    int batch, length;
    const float *att_in, *ffn_in, *wkv_in;
    float *att_out, *ffn_out, *wkv_out;
    int from, to; // layers
    bool last;    // the end of the segment: logits are wanted
    int rows() const { return batch * length; }
};

// The phases of a layer; layers.h says what they do. RWKV-7 has no AMOUNTS and no BLEND.
enum Phase : int { MIX, AMOUNTS, BLEND, FIRST, HEADS, MERGE, PROJECT, SHIFT, EXPAND, SPARSE, SHRINK, SUM, PHASES };

// Make room for a step of so many rows.
void prepare(Model &model, int rows);

// Run `step`, whose embeddings are in `work->x`: logits and state are written, and what left the layers is in `x`.
void run(Step &step);

// Run a call, whatever its length, in steps of up to MOST_ROWS positions.
void feed(Model &model, const Call &call);

// What one instruction set brings.
struct Isa {
    const char *name;
    bool (*supported)();
    int (*position)(int output); // where an output lies in a row of codes
    void (*unit)(Step &, int phase, int unit, int worker);
    // One product, for tests: out [rows, n]; returns the bytes of weights read.
    size_t (*multiply)(const Matrix &, const float *x, int rows, float *out);
};

const Isa *isa_by_name(const char *name); // nullptr: not in this build. "": the best that this machine runs
std::vector<const Isa *> all_isas();

} // namespace vrwkv
