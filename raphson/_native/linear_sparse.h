/* Sparse matrices by rows (CSR), a part of linear_sums.h: their products with dense ones, and models whose table they are. Of a
   column the numbers of all outputs, coefficients or sums, lie together, `apart` apart: one, or whole units. */

#define EACH (32 / sizeof(REAL)) /* numbers in a unit */
#define UNITS 8 /* in one go through a row */
#define AHEAD 12 /* nonzeros whose column's numbers are fetched before their turn: they lie anywhere in memory */

typedef REAL NAME(unit) __attribute__((vector_size(32), aligned(sizeof(REAL)), may_alias));

/* Whether some rows lie among the nonzeros, in columns that there are. */
static TARGET int NAME(are_rows)(const struct sparse *s, size_t from, size_t rows)
{
    const int64_t *starts = s->starts + from, end = starts[rows];
    int holds = starts[0] >= 0 && (uint64_t)end <= s->count;
    for (size_t t = 0; t < rows; t++)
        holds &= starts[t] <= starts[t + 1];
    uint32_t last = 0;
    for (int64_t i = holds ? starts[0] : end; i < end; i++)
        last = s->columns[i] > last ? s->columns[i] : last;
    holds = holds && (starts[0] == end || last < s->width);
    if (!holds)
        __atomic_store_n(s->wrong, 1, __ATOMIC_RELAXED);
    return holds;
}

/* Some units of one row, f, `stride` apart: its product with the columns' numbers, or `back`, what f times the row adds to these.
   How many units is a constant wherever this is inlined; of few, sums of every other nonzero wait for each other half as long. */
static inline TARGET INLINE void NAME(row)(int back, int units, const struct sparse *s, size_t row, REAL *numbers, size_t apart,
                                           REAL *f, size_t stride)
{
    const REAL *values = s->values;
    const uint32_t *columns = s->columns;
    const size_t end = s->starts[row + 1], chains = back || units > 4 ? 1 : 2;
    NAME(unit) sums[2][UNITS] = {{{0}}};
    for (size_t k = 0; back && k < units * EACH; k++)
        sums[0][k / EACH][k % EACH] = f[k * stride];
    for (size_t i = s->starts[row]; i < end; i += chains)
        for (size_t h = 0; h < chains && i + h < end; h++) {
            NAME(unit) *at = (NAME(unit) *)(numbers + columns[i + h] * apart);
            const REAL value = values[i + h];
#pragma GCC unroll 8
            for (int u = 0; u < units; u++)
                if (back)
                    at[u] += value * sums[0][u];
                else
                    sums[h][u] += value * at[u];
        }
    for (int u = 0; !back && u < units; u++) {
        const NAME(unit) sum = sums[0][u] + sums[1][u];
        for (size_t k = 0; k < EACH; k++)
            f[(u * EACH + k) * stride] = sum[k];
    }
}

/* The same for all units of some rows, of which f has one every `next` numbers. */
static inline TARGET INLINE void NAME(through)(int back, const struct sparse *s, size_t from, size_t rows, REAL *numbers,
                                               size_t apart, REAL *f, size_t stride, size_t next)
{
    for (size_t t = 0; apart == 1 && t < rows; t++) {
        const REAL *values = s->values, number = f[t];
        const size_t end = s->starts[from + t + 1];
        size_t i = s->starts[from + t];
        REAL sums[4] = {0};
        for (; back && i < end; i++)
            numbers[s->columns[i]] += number * values[i];
        for (; i + 4 <= end; i += 4)
            for (int u = 0; u < 4; u++)
                sums[u] += values[i + u] * numbers[s->columns[i + u]];
        for (; i < end; i++)
            sums[0] += values[i] * numbers[s->columns[i]];
        f[t] = back ? number : (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
    for (size_t t = 0; apart > 1 && t < rows; t++)
        for (size_t k = 0, units; k < apart; k += units * EACH) {
            REAL *at = f + t * next + k * stride;
            units = (apart - k) / EACH;
            switch (units = units >= UNITS ? UNITS : units > 4 ? 4 : units) {
            case 1: NAME(row)(back, 1, s, from + t, numbers + k, apart, at, stride); break;
            case 2: NAME(row)(back, 2, s, from + t, numbers + k, apart, at, stride); break;
            case 3: NAME(row)(back, 3, s, from + t, numbers + k, apart, at, stride); break;
            case 4: NAME(row)(back, 4, s, from + t, numbers + k, apart, at, stride); break;
            default: NAME(row)(back, UNITS, s, from + t, numbers + k, apart, at, stride);
            }
        }
}

static TARGET void NAME(product_part)(const void *data, size_t part, size_t parts)
{
    const struct product *of = data;
    const size_t begin = of->sparse.rows * part / parts, end = of->sparse.rows * (part + 1) / parts;
    for (size_t from = begin; from < end; from += ROWS) {
        const size_t rows = end - from < ROWS ? end - from : ROWS;
        if (!NAME(are_rows)(&of->sparse, from, rows))
            return;
        NAME(through)(0, &of->sparse, from, rows, of->dense, of->apart, (REAL *)of->out + from * of->apart, 1, of->apart);
    }
}

/* The constants (c,) and slopes (width, apart) that coefficients stand for. */
static TARGET void NAME(by_column)(const struct model *s, const REAL *coef, size_t apart, REAL *constants, REAL *slopes)
{
    const size_t width = s->d - s->intercept;
    for (size_t k = 0; k < s->c; k++)
        constants[k] = s->intercept ? coef[k * s->d] : 0;
    for (size_t first = 0; first < width; first += LINE) /* whole lines are read */
        for (size_t k = 0; k < s->c; k++) {
            REAL shift = 0;
            for (size_t j = first; j < first + LINE && j < width; j++) {
                const REAL slope = coef[k * s->d + s->intercept + j] * (REAL)s->factor[j];
                slopes[j * apart + k] = slope;
                shift += slope * (REAL)s->center[j];
            }
            constants[k] -= shift;
        }
}
