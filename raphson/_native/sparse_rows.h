/* Products of a sparse matrix by rows (CSR) with a dense one, a part of linear_sums.h. A row of the result is a sum of rows of the
   dense matrix, which stays in registers; the rows that come next are fetched ahead, because they lie anywhere in memory. */

#define AHEAD 12 /* nonzeros */
#define UNITS 4  /* of a row of the dense matrix, that are summed in one go through a sparse row */

typedef REAL NAME(unit) __attribute__((vector_size(UNIT * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* Some units of one row of the result, from column `from` on; their number is a constant wherever this is inlined. */
static inline TARGET INLINE void NAME(sparse_row)(const struct sparse *s, size_t i, size_t from, int units)
{
    const REAL *values = s->values, *dense = (const REAL *)s->dense + from;
    NAME(unit) sum[UNITS] = {{0}};
    for (int64_t k = s->starts[i]; k < s->starts[i + 1]; k++) {
        if (s->columns[k] >= s->height) {
            __atomic_store_n(s->wrong, 1, __ATOMIC_RELAXED);
            return;
        }
        const REAL *row = dense + (size_t)s->columns[k] * s->width;
        const REAL value = values[k];
        /* beyond the end of this row are those of the next one; beyond the last one, nothing is fetched */
        const REAL *later = dense + (size_t)s->columns[k + AHEAD < s->starts[s->rows] ? k + AHEAD : k] * s->width;
        for (size_t byte = 0; byte < units * sizeof *sum; byte += 64)
            __builtin_prefetch((const char *)later + byte);
        for (int u = 0; u < units; u++)
            sum[u] += value * *(const NAME(unit) *)(row + u * UNIT);
    }
    for (int u = 0; u < units; u++)
        *(NAME(unit) *)((REAL *)s->out + i * s->width + from + u * UNIT) = sum[u];
}

static TARGET void NAME(sparse_part)(const void *data, size_t part, size_t parts)
{
    const struct sparse *s = data;
    const size_t begin = s->rows * part / parts, end = s->rows * (part + 1) / parts;
    for (size_t i = begin; i < end; i++)
        for (size_t from = 0; from < s->width; from += UNITS * UNIT)
            switch ((s->width - from) / UNIT) {
            case 1: NAME(sparse_row)(s, i, from, 1); break;
            case 2: NAME(sparse_row)(s, i, from, 2); break;
            case 3: NAME(sparse_row)(s, i, from, 3); break;
            default: NAME(sparse_row)(s, i, from, UNITS);
            }
}
