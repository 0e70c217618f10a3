// WKV-7 for every pair of types.
#include "launch.h"

#include "../common/run.cuh"
#include "chunk.cuh"

size_t vrwkv_wkv7_workspace(int32_t type, int32_t batch, int32_t length, int32_t heads) {
    return vrwkv::workspace_bytes<true>(type, batch, length, heads);
}

int32_t vrwkv_wkv7(int32_t type, int32_t decay_type, int32_t batch, int32_t length, int32_t heads,
                   void const* const* inputs, void* const* outputs, void* workspace, int32_t path, void* stream) {
    using namespace vrwkv;
    if (!sizes_fit(batch, length, heads)) return kInvalid;
    return with_types(type, decay_type, [&](auto series, auto decay) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(series)>>;
        using W = std::remove_const_t<std::remove_pointer_t<decltype(decay)>>;
        auto input = [&](int i) { return static_cast<T const*>(inputs[i]); };
        Wkv7<T, W> const x{input(0), input(2), input(3), input(4), input(5), static_cast<W const*>(inputs[1]),
                           static_cast<float const*>(inputs[6]), static_cast<T*>(outputs[0]),
                           static_cast<float*>(outputs[1]), length, heads};
        return run_recurrence<true, T>(x, batch, wkv7_recurrent<T, W>, wkv7_prepare<T, W>, sizeof(Prepare7), workspace,
                                       static_cast<Path>(path), stream);
    });
}
