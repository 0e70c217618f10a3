// What crosses the border between plugins and kernels: no CUDA and no TensorRT header is needed to read it.
#pragma once

#include <cstddef>
#include <cstdint>

#define VRWKV_EXPORT extern "C" __attribute__((visibility("default")))

namespace vrwkv {

enum class Type : int32_t { f32 = 0, f16 = 1, bf16 = 2 };

// Which kernel runs a recurrence: the library's own choice by length, or one of the two.
enum class Path : int32_t { automatic = 0, recurrent = 1, chunked = 2 };

constexpr int kInvalid = 1;  // cudaErrorInvalidValue

}  // namespace vrwkv
