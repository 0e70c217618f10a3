// Starts a recurrence: token by token for short series, in chunks for long ones.
#pragma once

#include "chunk.cuh"
#include "recurrent.cuh"
#include "types.h"

namespace vrwkv {

constexpr int kChunkedFrom = 33;  // tokens: below, two launches and a workspace cost more than they save

// X is Wkv6 or Wkv7; its two kernels, and the shared memory of the second.
template <bool DELTA, class T, class X>
int run_recurrence(X const& x, int batch, void (*recurrent)(X), void (*prepare)(X, void*, int, int),
                   size_t prepare_bytes, void* workspace, Path path, void* stream) {
    bool const chunked = path == Path::chunked || (path == Path::automatic && x.length >= kChunkedFrom);
    if (path == Path::chunked && workspace == nullptr) return kInvalid;
    if (!chunked || workspace == nullptr)
        return launch(recurrent, recurrent_grid(batch, x.heads), kRecurrentWarps * kLanes, 0, stream, x);
    constexpr int kTokens = kSegmentChunks * kChunk;
    auto const h = static_cast<unsigned>(x.heads), b = static_cast<unsigned>(batch);
    for (int first = 0; first < x.length; first += kTokens) {
        int const tokens = x.length - first < kTokens ? x.length - first : kTokens;
        int const chunks = (tokens + kChunk - 1) / kChunk;
        int error = launch(prepare, dim3(static_cast<unsigned>(chunks), h, b), kChunkThreads, prepare_bytes, stream, x,
                           workspace, first, chunks);
        if (error != 0) return error;
        Advance<T> const walk{x.v, workspace, first == 0 ? x.state_in : x.state_out, x.y, x.state_out, x.length,
                              x.heads, first, chunks};
        error = launch(wkv_advance<T, DELTA>, dim3(h, b), kChunkThreads,
                       kStages<kTerms<T>> * sizeof(Record<kTerms<T>, DELTA>), stream, walk);
        if (error != 0) return error;
    }
    return 0;
}

template <bool DELTA>
size_t workspace_bytes(int32_t type, int batch, int length, int heads) {
    if (length < kChunkedFrom) return 0;
    if (type == static_cast<int32_t>(Type::f32)) return segment_bytes<float, DELTA>(batch, length, heads);
    return segment_bytes<half_t, DELTA>(batch, length, heads);
}

// Calls `f` with a null pointer of each type: of series and of decays. kInvalid for a pair that no kernel has.
template <class F>
int with_types(int32_t type, int32_t decay_type, F f) {
    bool const same = type == decay_type, wide = decay_type == static_cast<int32_t>(Type::f32);
    constexpr float const* f32 = nullptr;
    constexpr half_t const* f16 = nullptr;
    constexpr bf16_t const* bf16 = nullptr;
    switch (static_cast<Type>(type)) {
        case Type::f32: return same ? f(f32, f32) : kInvalid;
        case Type::f16: return same ? f(f16, f16) : wide ? f(f16, f32) : kInvalid;
        case Type::bf16: return same ? f(bf16, bf16) : wide ? f(bf16, f32) : kInvalid;
    }
    return kInvalid;
}

inline bool sizes_fit(int batch, int length, int heads) {
    return batch >= 1 && length >= 1 && heads >= 1 && batch <= 65535 && heads <= 65535;  // the grid's limits
}

}  // namespace vrwkv
