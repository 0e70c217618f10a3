// Which phase of which family is which function.
namespace {

void run_unit(Step &s, int phase, int unit, int worker) {
    const Model &m = *s.model;
    Work &w = *m.work;
    const int index = s.from + phase / PHASES;
    phase %= PHASES;
    if (index == s.to) {
        if (phase == 0) return last_norm(s);
        for (int tile = 2 * unit; tile < m.head.tiles && tile < 2 * unit + 2; ++tile)
            tile_of(s, m.head, tile, w.head, s.batch, s.call->logits, m.vocab, STORE, worker);
        return;
    }
    const Layer &layer = m.layer[index];
    const bool six = m.family == RWKV6;
    switch (phase) {
    case MIX: return six ? rwkv6::mix(s, layer, index, unit, worker) : rwkv7::mix(s, layer, index, unit, worker);
    case AMOUNTS: return rwkv6::amounts(s, layer, unit, worker);
    case BLEND: return rwkv6::blend(s, layer, unit, worker);
    case FIRST: return six ? rwkv6::first(s, layer, unit, worker) : rwkv7::first(s, layer, unit, worker);
    case HEADS: return six ? rwkv6::heads(s, layer, index, unit, worker) : rwkv7::heads(s, layer, index, unit, worker);
    case MERGE: return merge(s, layer, unit);
    case PROJECT: return add_tile(s, layer.matrix[OUTPUT], unit, w.output, nullptr, worker);
    case SHIFT: return shift(s, layer, index, unit, worker);
    case EXPAND: return expand(s, layer, unit, worker);
    case SPARSE: return sparse(s, layer, unit);
    case SHRINK: return shrink(s, layer, unit, worker);
    default:
        for (int row = 0; row < s.rows(); ++row) sum(s, layer, row);
    }
}

} // namespace
