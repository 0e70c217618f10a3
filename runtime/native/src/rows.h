// Products with a ROWS matrix that leave zeros out, for up to FEW rows of activations.
namespace {

inline int32_t both(int16_t first, int16_t second) {
    return int32_t(uint32_t(uint16_t(first)) | uint32_t(uint16_t(second)) << 16);
}

// Rows that the kernels take at once: 1, 2, 4 or FEW.
constexpr int taken(int rows) { return rows <= 2 ? rows : rows <= 4 ? 4 : FEW; }

// Whether input i is anything but zero in one of the rows.
inline bool is_active(const Matrix &w, const Acts &a, int rows, int i) {
    bool found = false;
    for (int r = 0; r < rows; ++r) found |= w.integer() ? a.q[r * a.ldq + i] != 0 : !(a.x[r * a.ldx + i] == 0.0f);
    return found;
}

// List what up to FEW rows of activations have that is not zero. Half of it is, at random: so without branches.
void list_active(const Matrix &w, const Acts &a, int rows, Active &list) {
    const int group = w.integer() ? w.block : w.part(), inputs = w.integer() ? w.padded() : w.k;
    const int keys = w.integer() ? 2 : 1; // of an entry
    int entries = 0, g = 0;
    for (int from = 0; from < inputs; from += group) {
        list.start[g++] = entries;
        const int to = from + group < inputs ? from + group : inputs;
        int32_t *key = list.key + keys * entries;
        int found = 0;
        if (rows == 1 && w.integer())
            for (int i = from; i < to; ++i) key[found] = i, found += a.q[i] != 0;
        else
            for (int i = from; i < to; ++i) key[found] = i, found += is_active(w, a, rows, i);
        const bool odd = w.integer() && found % 2; // then the last is paired with itself, times zero
        if (odd) key[found] = key[found - 1];
        const int more = (found + odd) / keys;
        for (int r = 0; r < taken(rows); ++r) {
            int32_t *x = list.x + r * list.ldx + entries;
            const int16_t *q = a.q + r * a.ldq;
            if (r >= rows)
                __builtin_memset(x, 0, sizeof(int32_t) * more);
            else if (w.integer())
                for (int e = 0; e < more; ++e) x[e] = both(q[key[2 * e]], q[key[2 * e + 1]]);
            else
                for (int e = 0; e < more; ++e) __builtin_memcpy(x + e, a.x + r * a.ldx + key[e], 4);
            if (r < rows && odd) x[more - 1] = both(q[key[found]], 0);
        }
        entries += more;
    }
    list.start[g] = entries;
}

// Active rows of codes of one block, added to out [R][width]; UNITS stretches of 2 W outputs (HALVES: of 4 W, the
// second half 32 further on), beginning with output `first`.
template <int R, int UNITS, bool HALVES>
void rows_codes(const Matrix &w, int stretch, int b, int first, const Active &list, const Acts &a, float *out) {
    constexpr int VECTORS = HALVES ? 4 : 2;
    const uint8_t *codes = w.data + w.tile_bytes() * stretch;
    const size_t row = w.row_bytes(), scales = (size_t(stretch) * w.blocks + b) * w.width;
    I acc[R][UNITS][VECTORS];
    EACH(r, R, EACH(u, UNITS, EACH(v, VECTORS, acc[r][u][v] = iset(0))));
    // Where a unit begins: in bytes of a row, and as an output.
    auto byte = [&](int u) {
        int at = first + u * (HALVES ? 4 : 2) * W;
        return HALVES ? at / GROUP * HALF_ROW + at % GROUP / 2 : at;
    };
    auto output = [&](int u, int v) {
        if (!HALVES) return first + (2 * u + v) * W;
        int at = first + u * 4 * W;
        return at / GROUP * GROUP + at % GROUP / 2 + v % 2 * W + v / 2 * HALF_ROW;
    };
    int e = list.start[b];
    do { // there is at least one
        const uint8_t *x = codes + row * list.key[2 * e], *y = codes + row * list.key[2 * e + 1];
        if (first == 0) {
            const int32_t *later = list.key + 2 * e + 8; // the list has room for this look ahead
            for (size_t i = 0; i < row; i += 64)
                __builtin_prefetch(codes + row * later[0] + i), __builtin_prefetch(codes + row * later[1] + i);
        }
        P weights[UNITS][VECTORS];
        EACH(u, UNITS,
            if constexpr (HALVES)
                pzip_halves(x + byte(u), y + byte(u), weights[u], weights[u] + 2);
            else
                pzip(x + byte(u), y + byte(u), weights[u]););
        EACH(r, R,
            P pair = pset(list.x[r * list.ldx + e]);
            EACH(u, UNITS, EACH(v, VECTORS, acc[r][u][v] = pdot(acc[r][u][v], weights[u][v], pair))););
    } while (++e < list.start[b + 1]);
    EACH(u, UNITS, EACH(v, VECTORS,
        const int o = output(u, v);
        F scale = fhalf(w.scale + scales + o);
        EACH(r, R,
            I sum = acc[r][u][v];
            if constexpr (HALVES) sum = isub(sum, imul(ibytes(w.zero + scales + o), iset(a.sum[r * a.lds + b])));
            float *to = out + r * w.width + o;
            fstore(to, ffma(ifloat(sum), fmul(scale, fset(a.scale[r * a.lds + b] * w.unit)), fload(to))););));
}

template <int R, bool HALVES>
void part_of_codes(const Matrix &w, int stretch, int part, const Active &list, const Acts &a, float *out) {
    constexpr int SPAN = (HALVES ? 4 : 2) * W, MANY = ROW_GROUPS / R / (HALVES ? 2 : 1), UNITS = MANY < 1 ? 1 : MANY;
    const int per_part = w.part() / w.block, end = (part + 1) * per_part < w.blocks ? (part + 1) * per_part : w.blocks;
    for (int b = part * per_part; b < end; ++b) {
        if (list.start[b] == list.start[b + 1]) continue;
        int first = 0;
        for (; first + UNITS * SPAN <= w.width; first += UNITS * SPAN)
            rows_codes<R, UNITS, HALVES>(w, stretch, b, first, list, a, out);
        for (; first < w.width; first += SPAN) rows_codes<R, 1, HALVES>(w, stretch, b, first, list, a, out);
    }
}

template <int R, class T> void part_of_floats(const Matrix &w, int stretch, int part, const Active &list, float *out) {
    constexpr int MANY = 2 * ROW_GROUPS / R, NV = MANY < 1 ? 1 : MANY;
    const T *weights = reinterpret_cast<const T *>(w.data + w.tile_bytes() * stretch);
    for (int first = 0; first < w.width; first += NV * W) {
        F total[R][NV];
        EACH(r, R, EACH(v, NV, total[r][v] = fset(0)));
        for (int e = list.start[part]; e < list.start[part + 1]; ++e) {
            const T *row = weights + size_t(w.width) * list.key[e] + first;
            EACH(r, R,
                float x;
                __builtin_memcpy(&x, list.x + r * list.ldx + e, 4);
                EACH(v, NV, total[r][v] = ffma(fweights(row + v * W), fset(x), total[r][v])););
        }
        EACH(r, R, EACH(v, NV, fstore(out + r * w.width + first + v * W, total[r][v])));
    }
}

template <int R>
void part_of_rows(const Matrix &w, int stretch, int part, const Active &list, const Acts &a, float *out) {
    __builtin_memset(out, 0, sizeof(float) * R * w.width);
    if (w.format == I8) return part_of_codes<R, false>(w, stretch, part, list, a, out);
    if (w.format == I4) return part_of_codes<R, true>(w, stretch, part, list, a, out);
    w.format == F32 ? part_of_floats<R, float>(w, stretch, part, list, out)
                    : part_of_floats<R, uint16_t>(w, stretch, part, list, out);
}

// out [FEW][width] = the inputs of one part of one stretch of a ROWS matrix, for up to FEW rows; returns bytes read.
size_t partial(const Matrix &w, int stretch, int part, const Active &list, const Acts &a, int rows, float *out) {
    if (rows == 1)
        part_of_rows<1>(w, stretch, part, list, a, out);
    else if (rows == 2)
        part_of_rows<2>(w, stretch, part, list, a, out);
    else if (rows <= 4)
        part_of_rows<4>(w, stretch, part, list, a, out);
    else
        part_of_rows<FEW>(w, stretch, part, list, a, out);
    if (!w.integer()) return w.row_bytes() * size_t(list.start[part + 1] - list.start[part]);
    const int per_part = w.part() / w.block, end = (part + 1) * per_part < w.blocks ? (part + 1) * per_part : w.blocks;
    size_t bytes = 0;
    for (int b = part * per_part; b < end; ++b) {
        int entries = list.start[b + 1] - list.start[b];
        if (!entries) continue;
        bool odd = list.key[2 * list.start[b + 1] - 1] == list.key[2 * list.start[b + 1] - 2];
        bytes += w.row_bytes() * size_t(2 * entries - odd) + size_t(w.width) * w.scale_bytes();
    }
    return bytes;
}

} // namespace
