// Starts a product: the kernel for few tokens, or the one for many.
#pragma once

#include "../common/types.h"
#include "many.cuh"

namespace vrwkv {

constexpr int kFewTokens = 16;  // two tiles: the second finds the weights in the cache

template <bool GROUPED, class T, class C>
int run_matmul(MatMul<T, C> const& m, void* stream) {
    auto tiles = [](int count, int size) { return static_cast<unsigned>((count + size - 1) / size); };
    if (m.tokens <= kFewTokens) {
        int const slices = (m.inputs + kSliceBlocks * kBlock - 1) / (kSliceBlocks * kBlock);
        int const warps = slices <= 4 ? 4 : slices <= 8 ? 8 : kMostWarps;  // 128 threads at least: they write the tile
        return launch(matmul_few<T, C, GROUPED>, dim3(tiles(m.outputs, kRows), tiles(m.tokens, kTokens)),
                      warps * kLanes, static_cast<size_t>(warps) * kLanes * 4 * sizeof(float), stream, m);
    }
    return launch(matmul_many<T, C, GROUPED>, dim3(tiles(m.tokens, kManyTokens), tiles(m.outputs, kManyRows)),
                  kManyThreads, sizeof(ManyShared<T>), stream, m);
}

}  // namespace vrwkv
