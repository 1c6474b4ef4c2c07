/* Rows of a sparse product for one instruction set and element type, as instructions.h includes it. */

typedef REAL NAME(vec) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* `vectors` vectors of one row of the result: `vectors` is a constant wherever this is inlined. */
static inline TARGET __attribute__((always_inline)) void NAME(row)(const struct sparse *s, int64_t start, int64_t end,
                                                            size_t from, int vectors, REAL *out)
{
    const REAL *values = s->values, *dense = (const REAL *)s->dense + from;
    NAME(vec) sum[VECTORS] = {{0}};
    for (int64_t k = start; k < end; k++) {
        const REAL *row = dense + (size_t)s->columns[k] * s->width;
        const REAL value = values[k];
        /* beyond the end of this row are those of the next one; beyond the last one, nothing is fetched */
        const REAL *later = dense + (size_t)s->columns[k + AHEAD < s->starts[s->rows] ? k + AHEAD : k] * s->width;
        for (size_t byte = 0; byte < vectors * LANES * sizeof(REAL); byte += 64)
            __builtin_prefetch((const char *)later + byte);
        for (int v = 0; v < vectors; v++)
            sum[v] += value * *(const NAME(vec) *)(row + v * LANES);
    }
    for (int v = 0; v < vectors; v++)
        *(NAME(vec) *)(out + v * LANES) = sum[v];
}

static TARGET void NAME(part)(const void *data, size_t part, size_t parts)
{
    const struct sparse *s = data;
    const size_t begin = first_row(s, part, parts), end = first_row(s, part + 1, parts), all = s->width / LANES;
    uint32_t largest = 0; /* column: a negative one is a large one */
    for (int64_t k = s->starts[begin]; k < s->starts[end]; k++)
        largest = (uint32_t)s->columns[k] > largest ? (uint32_t)s->columns[k] : largest;
    if (s->starts[begin] < s->starts[end] && largest >= s->height) {
        __atomic_store_n(s->wrong, 1, __ATOMIC_RELAXED);
        return;
    }
    for (size_t i = begin; i < end; i++)
        for (size_t v = 0; v < all; v += VECTORS) {
            REAL *out = (REAL *)s->out + i * s->width + v * LANES;
            switch (all - v) {
            case 1: NAME(row)(s, s->starts[i], s->starts[i + 1], v * LANES, 1, out); break;
            case 2: NAME(row)(s, s->starts[i], s->starts[i + 1], v * LANES, 2, out); break;
            case 3: NAME(row)(s, s->starts[i], s->starts[i + 1], v * LANES, 3, out); break;
            default: NAME(row)(s, s->starts[i], s->starts[i + 1], v * LANES, VECTORS, out);
            }
        }
}
