// A call of any length, in steps of so many positions as there is room for.
#include "model.h"

#include <cstring>

namespace vrwkv {

namespace {

// Positions that fit into one step.
int most_of(const Call &c) { return c.batch > MOST_ROWS ? 1 : MOST_ROWS / c.batch; }

// Prepare positions [from, from + length) in layers [first, to). What is not the beginning of a segment goes on from
// the call's own output, which it overwrites while it reads.
Step step_of(Model &m, const Call &c, int from, int first, int to) {
    const int most = most_of(c), length = c.length - from < most ? c.length - from : most;
    Step s{&m, &c, c.batch, length, c.att_in, c.ffn_in, c.wkv_in, c.att_out, c.ffn_out, c.wkv_out, first, to, false};
    prepare(m, s.rows());
    if (from) {
        const size_t shift = size_t(c.batch) * m.width, at = shift * first, bytes = 4 * shift * (to - first);
        std::memcpy(m.work->att_shift + at, c.att_out + at, bytes);
        std::memcpy(m.work->ffn_shift + at, c.ffn_out + at, bytes);
        s.att_in = m.work->att_shift, s.ffn_in = m.work->ffn_shift, s.wkv_in = c.wkv_out;
    }
    return s;
}

void forget_bytes(Model &m) {
    for (size_t &one : m.work->bytes_read) one = 0;
}

// All layers of some positions, then of the next.
void in_order(Model &m, const Call &c) {
    const size_t row = size_t(m.width);
    for (int from = 0; from < c.length; from += most_of(c)) {
        Step s = step_of(m, c, from, 0, m.layers);
        s.last = from + s.length == c.length;
        forget_bytes(m);
        for (int b = 0; b < c.batch; ++b) {
            const float *first = c.embeddings + (size_t(b) * c.length + from) * row;
            std::memcpy(m.work->x + b * s.length * row, first, 4 * s.length * row);
        }
        run(s);
    }
}

// All positions in one layer, in its order, then in the next layer.
void scanned(Model &m, const Call &c) {
    const size_t row = size_t(m.width), bytes = 4 * row;
    std::vector<float> x(c.embeddings, c.embeddings + row * c.batch * c.length);
    for (int layer = 0; layer < m.layers; ++layer)
        for (int from = 0; from < c.length; from += most_of(c)) {
            Step s = step_of(m, c, from, layer, layer + 1);
            if (!layer && !from) forget_bytes(m);
            const std::vector<size_t> before = m.work->bytes_read;
            const int64_t *order = c.scan + size_t(layer % c.orders) * c.length + from;
            auto place = [&](int b, int t) { return x.data() + (size_t(b) * c.length + order[t]) * row; };
            for (int b = 0; b < c.batch; ++b)
                for (int t = 0; t < s.length; ++t)
                    std::memcpy(m.work->x + (b * s.length + t) * row, place(b, t), bytes);
            run(s);
            for (int b = 0; b < c.batch; ++b)
                for (int t = 0; t < s.length; ++t)
                    std::memcpy(place(b, t), m.work->x + (b * s.length + t) * row, bytes);
            if (from + s.length < c.length) m.work->bytes_read = before; // as `in_order` counts: the last step's
        }
    Step s = step_of(m, c, 0, m.layers, m.layers);
    s.length = 1, s.last = true;
    for (int b = 0; b < c.batch; ++b)
        std::memcpy(m.work->x + b * row, x.data() + (size_t(b + 1) * c.length - 1) * row, bytes);
    run(s);
}

} // namespace

void feed(Model &m, const Call &c) { c.scan ? scanned(m, c) : in_order(m, c); }

} // namespace vrwkv
