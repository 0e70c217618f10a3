// What every kernel needs: element types, vector loads, warp sums, launching; on CUDA or on its emulation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef VRWKV_EMULATE
#include "emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
using half_t = __half;
using bf16_t = __nv_bfloat16;
#endif

namespace vrwkv {

constexpr int kHead = 64;  // channels per head, keys and values alike
constexpr int kLanes = 32;
constexpr unsigned kAll = 0xffffffffu;

template <class T>
struct IsHalf {
    static constexpr bool value = false;
};
template <>
struct IsHalf<half_t> {
    static constexpr bool value = true;
};

template <class T>
struct alignas(4 * sizeof(T)) Four {
    T at[4];
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half_t x) { return static_cast<float>(x); }
__device__ __forceinline__ float to_float(bf16_t x) { return static_cast<float>(x); }
template <class T>
__device__ __forceinline__ T from_float(float x) {
    return T(x);
}

// Four neighbours in one load or store; `p` is aligned to four elements.
template <class T>
__device__ __forceinline__ Four<T> load4(T const* p) {
    return *reinterpret_cast<Four<T> const*>(p);
}
template <class T>
__device__ __forceinline__ void store4(T* p, float const (&x)[4]) {
    Four<T> four;
#pragma unroll
    for (int i = 0; i < 4; i++) four.at[i] = from_float<T>(x[i]);
    *reinterpret_cast<Four<T>*>(p) = four;
}

// The block's shared memory, whose size the launch gave.
template <class T>
__device__ __forceinline__ T& shared_as() {
#ifdef VRWKV_EMULATE
    return *reinterpret_cast<T*>(emulate::shared.data());
#else
    extern __shared__ __align__(16) unsigned char vrwkv_shared[];
    return *reinterpret_cast<T*>(vrwkv_shared);
#endif
}

// 16 bytes from global to shared memory, in the background where the device can (sm_80 and later).
__device__ __forceinline__ void copy_async(void* to, void const* from) {
#if defined(VRWKV_EMULATE)
    emulate::copy_async(to, from);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    auto const address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#else
    *static_cast<uint4*>(to) = *static_cast<uint4 const*>(from);
#endif
}
__device__ __forceinline__ void copies_commit() {
#if defined(VRWKV_EMULATE)
    emulate::commit();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most `ALLOWED` of this thread's groups are under way. Other threads' copies need a barrier besides.
template <int ALLOWED>
__device__ __forceinline__ void copies_wait() {
#if defined(VRWKV_EMULATE)
    emulate::wait(ALLOWED);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(ALLOWED) : "memory");
#endif
}

// Returns 0, or a cudaError_t as int; 999 where the emulation found a mistake.
template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared_bytes, void* stream, A... arguments) {
#ifdef VRWKV_EMULATE
    (void)stream;
    return emulate::launch(grid, threads, shared_bytes, kernel, arguments...);
#else
    kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(static_cast<P>(arguments)...);
    return static_cast<int>(cudaPeekAtLastError());
#endif
}

}  // namespace vrwkv
