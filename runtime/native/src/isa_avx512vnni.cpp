// AVX-512 with VNNI: Cascade Lake, Ice Lake, Zen 4 and later.
#include "model.h"
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(                                                                                        \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif
#define VRWKV_VNNI 1
#include "simd_avx512.h"

#include "isa.h"

namespace vrwkv {
namespace {
bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("avx512vnni");
}
} // namespace
extern const Isa avx512vnni = {"avx512vnni", supported, position, run_unit, multiply};
} // namespace vrwkv
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
