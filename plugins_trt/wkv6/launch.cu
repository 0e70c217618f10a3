// WKV-6 for every pair of types.
#include "launch.h"

#include "../common/run.cuh"
#include "chunk.cuh"

size_t vrwkv_wkv6_workspace(int32_t type, int32_t batch, int32_t length, int32_t heads) {
    return vrwkv::workspace_bytes<false>(type, batch, length, heads);
}

int32_t vrwkv_wkv6(int32_t type, int32_t decay_type, int32_t batch, int32_t length, int32_t heads,
                   void const* const* inputs, void* const* outputs, void* workspace, int32_t path, void* stream) {
    using namespace vrwkv;
    if (!sizes_fit(batch, length, heads)) return kInvalid;
    return with_types(type, decay_type, [&](auto series, auto decay) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(series)>>;
        using W = std::remove_const_t<std::remove_pointer_t<decltype(decay)>>;
        auto input = [&](int i) { return static_cast<T const*>(inputs[i]); };
        auto plain = [&](int i) { return static_cast<W const*>(inputs[i]); };
        Wkv6<T, W> const x{input(0), input(1), input(2), plain(3), plain(4), static_cast<float const*>(inputs[5]),
                           static_cast<T*>(outputs[0]), static_cast<float*>(outputs[1]), length, heads};
        return run_recurrence<false, T>(x, batch, wkv6_recurrent<T, W>, wkv6_prepare<T, W>, sizeof(Prepare6), workspace,
                                        static_cast<Path>(path), stream);
    });
}
