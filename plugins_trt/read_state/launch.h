// The image state's read-out as one call. Pointers are the device's (a host's in the emulated build).
#pragma once

#include "../common/types.h"

// inputs: q, gate, y [batch, length, heads * 64] of `type`, and the state [batch, heads, 64 keys, 64 values] in float32,
// which is only read. output: as y. Returns 0 or a cudaError_t.
VRWKV_EXPORT int32_t vrwkv_read_state(int32_t type, int32_t batch, int32_t length, int32_t heads,
                                      void const* const* inputs, void* output, void* stream);
