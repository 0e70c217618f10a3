// Prefill in chunks of 16 tokens: what both recurrences share.
//
// Two kernels take turns. `prepare` (in wkv6/ and wkv7/) works on all chunks at once and writes one record each: factors
// so that, with S the state before the chunk and V its values,
//   u = X S + Xv V (WKV-7 only),   y = Q S + P V,   S' = diag(end) S + Bᵀ u + Kᵀ V.
// `advance` then walks the chunks in order. Its products run on tensor cores, and each warp owns 16 value columns, so no
// warp waits for another's result. Every factor is at most a plain input times decays, never a decay's inverse: decays
// of any strength are safe, and repeated keys are solved by substitution, not by powers of a matrix.
//
// Factors are sums of bfloat16 terms (two for 16-bit inputs, three for float32), stored in the order in which `mma`
// wants its `b` fragments; the state stays in float32 accumulators throughout.
#pragma once

#include "mma.cuh"

namespace vrwkv {

constexpr int kChunk = 16;
constexpr int kSegmentChunks = 32;  // chunks prepared at a time: bounds the workspace
constexpr int kChunkThreads = 128;
constexpr int kPitch = 72;  // of a row of 64 in shared memory: fragments are read without bank conflicts

// Tiles of a record: rows X and Q times state, rows Xv and P times values, then columns B and K.
template <bool DELTA>
struct Tiles {
    static constexpr int rows = DELTA ? 4 : 2;   // groups of eight tokens: X then Q, or Q alone
    static constexpr int steps = DELTA ? 2 : 1;  // groups of sixteen tokens: B then K, or K alone
    static constexpr int values = rows * 4, columns = values + rows, count = columns + steps * 8;
};

template <int TERMS, bool DELTA>
struct Record {
    uint2 tiles[TERMS][Tiles<DELTA>::count][kLanes];
    float end[kHead];
};

template <class T>
constexpr int kTerms = sizeof(T) == 2 ? 2 : 3;

// Bytes of all records of one segment.
template <class T, bool DELTA>
size_t segment_bytes(int batch, int length, int heads) {
    int const chunks = (length + kChunk - 1) / kChunk;
    size_t const kept = static_cast<size_t>(chunks < kSegmentChunks ? chunks : kSegmentChunks);
    return static_cast<size_t>(batch) * heads * kept * sizeof(Record<kTerms<T>, DELTA>);
}

// 16 tokens of one head into rows of shared memory; tokens past `count` are zero. All threads of the block.
template <class T>
__device__ __forceinline__ void read_chunk(float (&rows)[kChunk][kPitch], T const* x, size_t width, int count) {
    for (int i = static_cast<int>(threadIdx.x); i < kChunk * kHead / 4; i += kChunkThreads) {
        int const t = i / (kHead / 4), channel = i % (kHead / 4) * 4;
        Four<T> four{};
        if (t < count) four = load4(x + t * width + channel);
#pragma unroll
        for (int j = 0; j < 4; j++) rows[t][channel + j] = t < count ? to_float(four.at[j]) : 0.f;
    }
}

// Log decays become decays.
__device__ __forceinline__ void exponentials(float (&rows)[kChunk][kPitch]) {
    for (int i = static_cast<int>(threadIdx.x); i < kChunk * kHead; i += kChunkThreads) {
        float& x = rows[i / kHead][i % kHead];
        x = expf(x);
    }
}

// Stores the four values of a lane in a tile: rows k = 2t, 2t + 1, 2t + 8, 2t + 9 of column g.
template <int TERMS, bool DELTA>
__device__ __forceinline__ void store_tile(Record<TERMS, DELTA>& record, int tile, int lane, float const (&x)[4]) {
    uint32_t low[TERMS], high[TERMS];
    split<TERMS>(x[0], x[1], low);
    split<TERMS>(x[2], x[3], high);
#pragma unroll
    for (int n = 0; n < TERMS; n++) record.tiles[n][tile][lane] = make_uint2(low[n], high[n]);
}

// Four elements of a row of `rows`, as columns of a tile: token 8 * group + g, channels from `first`.
__device__ __forceinline__ void across(float const* row, int first, int t, float (&x)[4]) {
    x[0] = row[first + 2 * t];
    x[1] = row[first + 2 * t + 1];
    x[2] = row[first + 2 * t + 8];
    x[3] = row[first + 2 * t + 9];
}
__device__ __forceinline__ void down(float const (&rows)[kChunk][kPitch], int channel, int t, float (&x)[4]) {
    x[0] = rows[2 * t][channel];
    x[1] = rows[2 * t + 1][channel];
    x[2] = rows[2 * t + 8][channel];
    x[3] = rows[2 * t + 9][channel];
}

template <class T>
struct Advance {
    T const* v;  // [batch, length, heads * 64]
    void const* records;
    float const* state_in;
    T* y;
    float* state_out;
    int length, heads;
    int first, chunks;  // the segment: its first token, its chunks
};

// One tile of the record as `b`, times `a`.
template <int TERMS, bool DELTA>
__device__ __forceinline__ void multiply(float (&c)[4], Left<TERMS> const& a, Record<TERMS, DELTA> const& record,
                                         int tile, int lane) {
    uint2 b[TERMS];
#pragma unroll
    for (int n = 0; n < TERMS; n++) b[n] = record.tiles[n][tile][lane];
    mma_split<TERMS>(c, a, b);
}

// Accumulators of two neighbouring tiles as the `a` of the next product.
template <int TERMS>
__device__ __forceinline__ void as_left(Left<TERMS>& a, float const (&low)[4], float const (&high)[4]) {
    a.set(0, low[0], low[1]);
    a.set(1, low[2], low[3]);
    a.set(2, high[0], high[1]);
    a.set(3, high[2], high[3]);
}

// float32 inputs need three terms: one buffer then, so that a block keeps within 48 KiB.
template <int TERMS>
constexpr int kStages = TERMS == 2 ? 2 : 1;

template <class T, bool DELTA>
__global__ void __launch_bounds__(kChunkThreads, 1) wkv_advance(Advance<T> x) {
    constexpr int TERMS = kTerms<T>, STAGES = kStages<TERMS>;
    using Chunk = Record<TERMS, DELTA>;
    using Tile = Tiles<DELTA>;
    struct Shared { Chunk stage[STAGES]; };
    Shared& shared = shared_as<Shared>();
    int const thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, g = lane / 4, t = lane % 4;
    int const head = static_cast<int>(blockIdx.x), value = thread / kLanes * 16 + g;
    size_t const row = static_cast<size_t>(blockIdx.y) * x.heads + head;
    size_t const matrix = row * kHead * kHead, width = static_cast<size_t>(x.heads) * kHead;
    size_t const series = static_cast<size_t>(blockIdx.y) * x.length * width + static_cast<size_t>(head) * kHead;
    Chunk const* const records = static_cast<Chunk const*>(x.records) + row * x.chunks;

    auto fetch = [&](int chunk) {
        auto* const to = reinterpret_cast<uint4*>(&shared.stage[chunk % STAGES]);
        auto const* const from = reinterpret_cast<uint4 const*>(records + chunk);
        for (int i = thread; i < static_cast<int>(sizeof(Chunk) / 16); i += kChunkThreads) copy_async(to + i, from + i);
        copies_commit();
    };

    float s[8][4];  // the state, transposed: values g and g + 8 (of this warp's sixteen) at keys 8n + 2t and 8n + 2t + 1
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] = x.state_in[matrix + (8 * n + 2 * t + i % 2) * kHead + value + i / 2 * 8];

    fetch(0);
    for (int chunk = 0; chunk < x.chunks; chunk++) {
        int const start = x.first + chunk * kChunk;
        float values[2][4];  // of tokens 2t, 2t + 1, 2t + 8, 2t + 9, at values g and g + 8
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int const token = start + 2 * t + j % 2 + j / 2 * 8;
                values[i][j] = token < x.length ? to_float(x.v[series + token * width + value + 8 * i]) : 0.f;
            }
        if (STAGES == 2 && chunk + 1 < x.chunks) {
            fetch(chunk + 1);
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();  // every thread's copies are there
        Chunk const& record = shared.stage[chunk % STAGES];

        float out[Tile::rows][4] = {};  // u then y, transposed: values by tokens
#pragma unroll
        for (int step = 0; step < 4; step++) {
            Left<TERMS> a;
            as_left(a, s[2 * step], s[2 * step + 1]);
#pragma unroll
            for (int n = 0; n < Tile::rows; n++) multiply(out[n], a, record, n * 4 + step, lane);
        }
        Left<TERMS> v;
        v.set(0, values[0][0], values[0][1]);
        v.set(1, values[1][0], values[1][1]);
        v.set(2, values[0][2], values[0][3]);
        v.set(3, values[1][2], values[1][3]);
#pragma unroll
        for (int n = 0; n < Tile::rows; n++) multiply(out[n], v, record, Tile::values + n, lane);

        Left<TERMS> u;
        if constexpr (DELTA) as_left(u, out[0], out[1]);
#pragma unroll
        for (int n = 0; n < 8; n++) {
            float const end[2] = {record.end[8 * n + 2 * t], record.end[8 * n + 2 * t + 1]};
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] *= end[i % 2];
            if constexpr (DELTA) multiply(s[n], u, record, Tile::columns + n, lane);
            multiply(s[n], v, record, Tile::columns + (Tile::steps - 1) * 8 + n, lane);
        }
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int const token = start + 8 * n + 2 * t + i % 2;
                if (token < x.length)
                    x.y[series + token * width + value + i / 2 * 8] = from_float<T>(out[Tile::rows - 2 + n][i]);
            }
        __syncthreads();  // no thread reads this buffer any more: it may be filled again
        if (STAGES == 1 && chunk + 1 < x.chunks) fetch(chunk + 1);
    }
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) x.state_out[matrix + (8 * n + 2 * t + i % 2) * kHead + value + i / 2 * 8] = s[n][i];
}

}  // namespace vrwkv
