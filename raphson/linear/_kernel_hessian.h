/* The dense Hessian; one of the parts of _kernel_sums.h. */

/* The dense Hessian: entries of the output Hessians times products of two features, summed over examples, each number
   once; a single output has too few entries to fill a tile, so there the features themselves are the tall side. */
struct NAME(hessian_job) {
    const struct model *s;
    const struct entries *of;
    struct NAME(sums) sums;
};

static void NAME(hessian_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(hessian_job) *job = data;
    const struct model *s = job->s;
    const size_t n = s->n, d = s->d, q = job->of->q, height = job->sums.height, width = job->sums.width;
    const size_t end = part_start(n, part + 1, parts);
    const int stacked = q == 1;
    REAL *sums = job->sums.memory + part * job->sums.share, *a = sums + job->sums.room, *x = a + height * APART;
    REAL *products = x + padded(d, WIDE) * APART;
    for (size_t from = part_start(n, part, parts); from < end; from += ROWS) {
        const size_t rows = end - from < ROWS ? end - from : ROWS, length = padded(rows, LANES);
        double entry[ROWS];
        NAME(load_table)(s, from, rows, length, x);
        if (rows < ROWS)
            memset(a, 0, height * APART * sizeof(REAL));
        for (size_t e = 0; e < q; e++) {
            fill_entry(s, job->of, e, from, rows, sizeof(REAL) < sizeof(double) ? SMALLEST : 0.0, entry);
            if (stacked)
                for (size_t i = 0; i < d; i++)
                    for (size_t t = 0; t < rows; t++)
                        a[i * APART + t] = (REAL)entry[t] * x[i * APART + t];
            else
                for (size_t t = 0; t < rows; t++)
                    a[e * APART + t] = (REAL)entry[t];
        }
        size_t i = 0, j = 0; /* the next product of two features */
        for (size_t first = 0; first < width; first += CHUNK) {
            const size_t count = width - first < CHUNK ? width - first : CHUNK;
            const REAL *b = stacked ? x + first * APART : products;
            for (size_t r = 0; !stacked && r < count; r++) {
                const REAL *left = x + i * APART, *right = x + j * APART;
                REAL *next = products + r * APART;
                if (i < d)
                    for (size_t t = 0; t < length; t++)
                        next[t] = left[t] * right[t];
                else /* what fills up the last tile */
                    memset(next, 0, length * sizeof(REAL));
                if (++j == d)
                    j = ++i;
            }
            for (size_t k = 0; k < height; k += TALL) {
                const size_t diagonal = stacked ? k / WIDE * WIDE : 0;
                for (size_t l = diagonal > first ? diagonal - first : 0; l < count; l += WIDE)
                    NAME(tile)(a + k * APART, b + l * APART, length, sums + k * width + first + l, width);
            }
        }
    }
}

static int NAME(hessian)(const struct model *s, const struct entries *of, int blocks, REAL *out)
{
    const size_t d = s->d, q = of->q, p = s->c * d;
    const int stacked = q == 1;
    const size_t height = padded(stacked ? d : q, TALL), width = padded(stacked ? d : d * (d + 1) / 2, WIDE);
    const size_t made = height + padded(d, WIDE) + (stacked ? 0 : CHUNK);
    struct NAME(hessian_job) job = {.s = s, .of = of};
    if (NAME(make_sums)(&job.sums, s->parts, height, width, 0, made))
        return -1;
    run_team(NAME(hessian_part), &job, s->parts, s->parts);
    const REAL *sums = NAME(add_up)(&job.sums, s->parts);
    for (size_t e = 0; e < q; e++) {
        const size_t k = of->k[e], l = of->l[e], stride = blocks ? d : p;
        REAL *upper = out + (blocks ? e * d * d : k * d * p + l * d), *lower = blocks ? upper : out + l * d * p + k * d;
        const REAL *sum = sums + e * width;
        for (size_t i = 0; i < d; i++)
            for (size_t j = i; j < d; j++) {
                REAL v = (REAL)s->scale * (stacked ? sums[i * width + j] : *sum++);
                if (i == j && s->penalty_columns)
                    v += (REAL)(s->penalty_outputs[k * s->c + l] * s->penalty_columns[i]);
                upper[i * stride + j] = upper[j * stride + i] = v;
                lower[i * stride + j] = lower[j * stride + i] = v;
            }
    }
    free(job.sums.block);
    return 0;
}
