// Runs a CUDA kernel's own source on a CPU: one fiber per thread, blocks one after another.
//
// What it shows: wrong indexes, a missing or divergent barrier, shared memory read before it was written (it is NaN at
// first) or past its end (a guard behind it), warps that do not meet, asynchronous copies nobody waits for. What it
// cannot show: races that both orders of `reverse` happen to survive, and speed.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulate {

enum class At { running, block, warp, done };
constexpr size_t kStack = 64 << 10, kGuard = 256, kSlot = 64, kWarp = 32;
constexpr unsigned char kPoison = 0xff;  // as float32, float16 and bfloat16 alike: NaN

struct Copy { void* to; void const* from; };
struct Fiber {
    ucontext_t start;
    jmp_buf here;
    std::unique_ptr<char[]> stack{new char[kStack]};
    At at = At::running;
    bool started = false;
    int barriers = 0, operation = 0;
    unsigned parity = 0;
    std::vector<std::vector<Copy>> groups{1};  // asynchronous copies: committed groups, and an open one at the end
};

inline std::vector<Fiber> fibers;
inline size_t current, live;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline std::vector<unsigned char> shared;
inline std::vector<unsigned char> slots;  // two per thread: what lanes show each other
inline std::string message;
// Warps and threads run from the last to the first. Forwards, asynchronous copies happen as late as they may; in reverse,
// at once.
inline bool reverse = false;
inline int skip_barrier = -1;  // which __syncthreads of every thread does nothing: a deliberate mistake

inline void switch_to(Fiber& fiber) {
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

inline void leave(At at) {
    Fiber& fiber = fibers[current];
    fiber.at = at;
    if (_setjmp(fiber.here) == 0) _longjmp(scheduler, 1);
}

inline void enter() {
    body();
    leave(At::done);
}

// The threads of a warp wait for each other; `operation` must be the same for all of them.
inline void meet(int operation) {
    fibers[current].operation = operation;
    leave(At::warp);
}

// Runs a warp as far as it gets alone: the most unkind order for the others, who may not have started.
inline void run_warp(size_t first, size_t end) {
    for (;;) {
        size_t moved = 0, met = 0;
        for (size_t n = first; n < end; n++) {
            size_t const i = reverse ? first + end - 1 - n : n;
            if (fibers[i].at != At::running) continue;
            current = i;
            threadIdx.x = static_cast<unsigned>(i);
            switch_to(fibers[i]);
            moved++;
        }
        for (size_t i = first; i < end; i++) met += fibers[i].at == At::warp;
        if (met == end - first) {
            for (size_t i = first; i < end; i++) {
                if (fibers[i].operation != fibers[first].operation)
                    throw std::runtime_error("the lanes of a warp meet in different operations");
                fibers[i].at = At::running;
            }
        } else if (moved == 0) {
            return;
        }
    }
}

inline void run_block(size_t shared_bytes) {
    std::fill(shared.begin(), shared.end(), kPoison);
    for (size_t i = 0; i < live; i++) {
        Fiber& fiber = fibers[i];
        fiber.at = At::running;
        fiber.started = false;
        fiber.barriers = fiber.operation = 0;
        fiber.groups.assign(1, {});
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = kStack;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, enter, 0);
    }
    for (;;) {
        size_t const warps = (live + kWarp - 1) / kWarp;
        for (size_t n = 0; n < warps; n++) {
            size_t const warp = reverse ? warps - 1 - n : n;
            run_warp(warp * kWarp, std::min((warp + 1) * kWarp, live));
        }
        size_t done = 0, at_barrier = 0;
        for (size_t i = 0; i < live; i++) {
            done += fibers[i].at == At::done;
            at_barrier += fibers[i].at == At::block;
        }
        if (done == live) break;
        if (done + at_barrier < live)
            throw std::runtime_error("threads wait for each other for ever: a barrier or a warp operation diverges");
        for (size_t i = 0; i < live; i++)
            if (fibers[i].at == At::block) fibers[i].at = At::running;
    }
    for (size_t i = 0; i < kGuard; i++)
        if (shared[shared_bytes + i] != kPoison) throw std::runtime_error("a block wrote past its shared memory");
}

template <class... P, class... A>
int launch(dim3 grid, int threads, size_t shared_bytes, void (*kernel)(P...), A... arguments) {
    gridDim = grid;
    blockDim = dim3(static_cast<unsigned>(threads));
    live = static_cast<size_t>(threads);
    if (fibers.size() < live) fibers = std::vector<Fiber>(live);
    shared.resize(shared_bytes + kGuard);
    slots.resize(2 * kSlot * live);
    body = [=] { kernel(static_cast<P>(arguments)...); };
    try {
        for (unsigned z = 0; z < grid.z; z++)
            for (unsigned y = 0; y < grid.y; y++)
                for (unsigned x = 0; x < grid.x; x++) {
                    blockIdx = dim3(x, y, z);
                    run_block(shared_bytes);
                }
    } catch (std::exception const& error) {
        message = error.what();
        return 999;
    }
    return 0;
}

// Every lane shows `mine` and gets a view of what all lanes of its warp showed. Slots alternate, so that a lane which
// is one operation ahead cannot overwrite what another still reads.
template <class T>
struct Shown {
    unsigned char const* first;
    T operator[](size_t lane) const {
        T value;
        memcpy(&value, first + lane * 2 * kSlot, sizeof value);
        return value;
    }
};
template <class T>
Shown<T> show(T const& mine, int operation) {
    static_assert(sizeof(T) <= kSlot);
    Fiber& fiber = fibers[current];
    size_t const side = (fiber.parity++ & 1) * kSlot, first = current / kWarp * kWarp;
    memcpy(slots.data() + current * 2 * kSlot + side, &mine, sizeof mine);
    meet(operation);
    return {slots.data() + first * 2 * kSlot + side};
}

inline void copy_async(void* to, void const* from) {
    if (reverse) memcpy(to, from, 16);
    else fibers[current].groups.back().push_back({to, from});
}
inline void commit() { fibers[current].groups.emplace_back(); }
inline void wait(size_t allowed) {
    auto& groups = fibers[current].groups;
    while (groups.size() > allowed + 1) {
        for (Copy const& copy : groups.front()) memcpy(copy.to, copy.from, 16);
        groups.erase(groups.begin());
    }
}

}  // namespace emulate

inline void __syncthreads() {
    if (emulate::fibers[emulate::current].barriers++ != emulate::skip_barrier) emulate::leave(emulate::At::block);
}
inline void __syncwarp() { emulate::meet(1); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    size_t const lane = emulate::current % emulate::kWarp;
    return emulate::show(value, 2)[lane ^ static_cast<size_t>(mask)];
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulate::show(value, 3)[static_cast<size_t>(lane)];
}

struct half_t {
    _Float16 bits;
    half_t() = default;
    explicit half_t(float x) : bits(static_cast<_Float16>(x)) {}
    explicit operator float() const { return static_cast<float>(bits); }
};
struct bf16_t {
    uint16_t bits;
    bf16_t() = default;
    explicit bf16_t(float x) {
        uint32_t whole;
        memcpy(&whole, &x, 4);
        bool const nan = (whole & 0x7fffffffu) > 0x7f800000u;
        bits = static_cast<uint16_t>(nan ? 0x7fff : (whole + 0x7fffu + ((whole >> 16) & 1u)) >> 16);
    }
    explicit operator float() const {
        uint32_t const whole = static_cast<uint32_t>(bits) << 16;
        float x;
        memcpy(&x, &whole, 4);
        return x;
    }
};
