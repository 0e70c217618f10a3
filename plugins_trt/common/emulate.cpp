// How tests steer the emulation, and hear what it found.
#include "emulate.h"

#include "types.h"

// `reverse`: threads run from the last to the first. `skip_barrier`: that __syncthreads (from 0) does nothing; -1: none.
VRWKV_EXPORT void vrwkv_emulate(int32_t reverse, int32_t skip_barrier) {
    emulate::reverse = reverse != 0;
    emulate::skip_barrier = skip_barrier;
}

// What went wrong in a call that returned 999.
VRWKV_EXPORT char const* vrwkv_emulate_message() { return emulate::message.c_str(); }

// How many __syncthreads the first thread of the last block passed.
VRWKV_EXPORT int32_t vrwkv_emulate_barriers() { return emulate::fibers.empty() ? 0 : emulate::fibers[0].barriers; }
