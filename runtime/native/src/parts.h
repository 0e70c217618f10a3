// The weights of a layer, in the order in which the bundle's are handed over (runtime/native/rwkv7.py, rwkv6.py).
#pragma once

namespace vrwkv {

enum Family : int { RWKV7 = 0, RWKV6 = 1 };

// What both families have. Without FFN_X_R and FFN_RECEPTANCE the feed-forward has no gate (RWKV-7).
enum Vector : int { // [width]
    LN1_WEIGHT, LN1_BIAS, LN2_WEIGHT, LN2_BIAS, LN_X_WEIGHT, LN_X_BIAS, FFN_X_K, FFN_X_R, SHARED_VECTORS
};
enum Weights : int { RECEPTANCE, KEY, VALUE, OUTPUT, FFN_KEY, FFN_VALUE, FFN_RECEPTANCE, SHARED_MATRICES };

namespace rwkv7 {

enum Mix : int { MIX_R, MIX_W, MIX_K, MIX_V, MIX_A, MIX_G, MIXES };
enum Vector : int {
    X_R = SHARED_VECTORS, X_W, X_K, X_V, X_A, X_G, W0, A0, V0, K_K, K_A, R_K, VECTORS
};
enum Weights : int { W1 = SHARED_MATRICES, A1, V1, G1, W2, A2, V2, G2, MATRICES }; // V1 and V2: not in layer 0
const int FIRST_ORDER[] = {W1, A1, V1, G1, RECEPTANCE, KEY, VALUE}; // phase FIRST: the long float tiles first

} // namespace rwkv7

// RWKV-6, and HM (v6.21), whose layers also read an image state: it has all of MEM, the bias in old checkpoints only.
namespace rwkv6 {

enum Mix : int { MIX_W, MIX_K, MIX_V, MIX_R, MIX_G, MIX_MEM_R, MIX_MEM_G, MIXES };
enum Vector : int {
    MAA_X = SHARED_VECTORS, MAA, // one for each mix
    DECAY = MAA + MIXES, BONUS, MEM_GATE_BIAS, VECTORS
};
enum Weights : int {
    MAA_W1 = SHARED_MATRICES, MEM_W1, MAA_W2, // one for each mix
    DECAY_W1 = MAA_W2 + MIXES, DECAY_W2, GATE, MEM_READ, MEM_GATE, MATRICES
};
const int FIRST_ORDER[] = {DECAY_W1, KEY, VALUE, RECEPTANCE, GATE, MEM_READ, MEM_GATE}; // of each mix

} // namespace rwkv6

} // namespace vrwkv
