// The product with 8-bit weights for every type and every kind of scale.
#include "launch.h"

#include "run.cuh"

int32_t vrwkv_matmul_w8(int32_t type, int32_t scale_type, int32_t tokens, int32_t inputs, int32_t outputs, int32_t group,
                        void const* x, void const* codes, void const* scales, void* y, void* stream) {
    using namespace vrwkv;
    bool const grouped = group != 0;
    if (tokens < 1 || outputs < 1 || inputs < 16 || inputs % 16 != 0) return kInvalid;
    if (outputs > 65535 * kManyRows) return kInvalid;  // the grid's limit
    if (grouped && (group < 0 || inputs % group != 0 || (group != 32 && group % 64 != 0))) return kInvalid;
    bool const wide = scale_type == static_cast<int32_t>(Type::f32);
    if (!wide && scale_type != type) return kInvalid;
    auto call = [&](auto const* series) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(series)>>;
        auto fill = [&](auto weights) {
            return MatMul<T, decltype(weights)>{static_cast<T const*>(x), static_cast<int8_t const*>(codes), scales,
                                                static_cast<T*>(y), tokens, inputs, outputs, group, wide};
        };
        if (!grouped) return run_matmul<false>(fill(Codes8<false>{}), stream);
        if (group == 32) return run_matmul<true>(fill(Codes8<true>{}), stream);
        return run_matmul<true>(fill(Codes8<false>{}), stream);
    };
    switch (static_cast<Type>(type)) {
        case Type::f32: return call(static_cast<float const*>(nullptr));
        case Type::f16: return call(static_cast<half_t const*>(nullptr));
        case Type::bf16: return call(static_cast<bf16_t const*>(nullptr));
    }
    return kInvalid;
}
