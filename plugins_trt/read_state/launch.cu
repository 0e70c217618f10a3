// The image state's read-out for every type.
#include "launch.h"

#include "kernel.cuh"

int32_t vrwkv_read_state(int32_t type, int32_t batch, int32_t length, int32_t heads, void const* const* inputs,
                         void* output, void* stream) {
    using namespace vrwkv;
    if (batch < 1 || length < 1 || heads < 1 || batch > 65535 || heads > 65535) return kInvalid;
    auto call = [&](auto const* series) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(series)>>;
        auto input = [&](int i) { return static_cast<T const*>(inputs[i]); };
        ReadState<T> const x{input(0), input(1), input(2), static_cast<float const*>(inputs[3]), static_cast<T*>(output),
                             length, heads};
        dim3 grid = recurrent_grid(batch, heads);
        grid.x *= static_cast<unsigned>((length + kSliceTokens - 1) / kSliceTokens);
        return launch(read_state_kernel<T>, grid, kRecurrentWarps * kLanes, 0, stream, x);
    };
    switch (static_cast<Type>(type)) {
        case Type::f32: return call(static_cast<float const*>(nullptr));
        case Type::f16: return call(static_cast<half_t const*>(nullptr));
        case Type::bf16: return call(static_cast<bf16_t const*>(nullptr));
    }
    return kInvalid;
}
