// An RWKV-7 model, repacked, and the room its steps need.
#pragma once
#include "acts.h"
#include "matrix.h"
#include "pool.h"

#include <memory>
#include <mutex>
#include <vector>

namespace vrwkv {

constexpr int HEAD = 64;       // channels of a head
constexpr int MOST_ROWS = 128; // positions computed at once: bounds the room, longer gains nothing measurable

enum Mix : int { MIX_R, MIX_W, MIX_K, MIX_V, MIX_A, MIX_G, MIXES };
enum Vector : int { // [width], in the order in which the bundle's are handed over
    LN1_WEIGHT, LN1_BIAS, LN2_WEIGHT, LN2_BIAS, X_R, X_W, X_K, X_V, X_A, X_G, W0, A0, V0, K_K, K_A, R_K,
    LN_X_WEIGHT, LN_X_BIAS, FFN_X_K, VECTORS
};
enum Weights : int { // in the order in which the bundle's are handed over; V1 and V2 are empty in layer 0
    W1, A1, V1, G1, RECEPTANCE, KEY, VALUE, W2, A2, V2, G2, OUTPUT, FFN_KEY, FFN_VALUE, MATRICES
};

struct Layer {
    const float *vector[VECTORS];
    Matrix matrix[MATRICES];
};

// Memory of one piece, aligned, zeroed, in large pages where the system has them.
class Arena {
  public:
    explicit Arena(size_t bytes);
    ~Arena();
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;
    template <class T> T *take(size_t count) { return static_cast<T *>(take_bytes(count * sizeof(T))); }
    static size_t rounded(size_t bytes) { return (bytes + 127) / 128 * 128; }

  private:
    void *take_bytes(size_t bytes);
    char *start_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

// Counts what an arena must hold, then hands it out: `room` is called twice, with the same requests.
struct Plan {
    Arena *arena = nullptr;
    size_t bytes = 0;
    template <class T> void operator()(T *&pointer, size_t count) {
        if (arena)
            pointer = arena->take<T>(count);
        else
            bytes += Arena::rounded(count * sizeof(T));
    }
};

struct Isa;

struct Model {
    int layers = 0, width = 0, hidden = 0, vocab = 0, rank[4] = {0, 0, 0, 0}; // ranks of w a v g
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
};

// Activations of up to `rows` positions; row b * T + t is position t of sequence b.
struct Work {
    int rows = 0;
    std::unique_ptr<Arena> arena;
    float *x, *mix[MIXES], *r, *k, *v, *v_first, *low[4], *hidden, *parts, *att_shift, *ffn_shift;
    Acts coded[3], output, key, value, head; // coded: r k v
    float *last;                              // [sequences, width], normed, for the head
    Active active;                            // of FFN values, with up to FEW rows
    std::vector<Scratch> scratch;             // by worker
    std::vector<size_t> bytes_read;           // by worker, of FFN value matrices
    Work(const Model &model, int rows);
};

// One call: [B, T] positions.
struct Step {
    Model *model;
    int batch, length;
    const float *att_in, *ffn_in, *wkv_in; // [L, B, C], [L, B, C], [L, B, H, N, N]
    float *logits, *att_out, *ffn_out, *wkv_out;
    bool last; // the end of the segment: logits are wanted
    int rows() const { return batch * length; }
};

const int FIRST_ORDER[] = {W1, A1, V1, G1, RECEPTANCE, KEY, VALUE}; // phase FIRST: the long float tiles first

enum Phase : int { MIX, FIRST, HEADS, MERGE, PROJECT, SHIFT, EXPAND, SPARSE, SHRINK, SUM, PHASES };

// Make room for a step of so many rows.
void prepare(Model &model, int rows);

// Run `step`, whose embeddings are in `work->x`: logits and state are written.
void run(Step &step);

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
