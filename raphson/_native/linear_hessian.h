/* The dense Hessian, a part of linear_sums.h: entries of the output Hessians times products of two features, summed, each
   number once; a single output has too few entries to fill a tile, so there the features themselves are the tall side. */

/* One entry, that of outputs k and l, for some rows, times their weights. In single precision what would make subnormal
   numbers of products is zero. */
static TARGET void NAME(fill_entry)(const struct model *s, const double *p, size_t k, size_t l, size_t from, size_t rows,
                                    REAL *entry)
{
    const double *left = p + k * s->n + from, *right = p + l * s->n + from, one = k == l;
    for (size_t t = 0; t < rows; t++) {
        const double value = s->exponential ? left[t] : left[t] * (one - right[t]);
        entry[t] = sizeof(REAL) < sizeof(double) && fabs(value) < SMALLEST ? 0 : (REAL)value;
    }
    NAME(weigh)(s, from, rows, 1, entry);
}

static TARGET void NAME(hessian_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(job) *job = data;
    const struct model *s = job->s;
    const size_t n = s->n, d = s->d, q = job->of->q, height = job->height, width = job->width, stacked = q == 1;
    const size_t blocks = padded(n, ROWS) / ROWS, first_block = blocks * part / parts;
    REAL *sums = job->sums + part * job->share, *a = sums + job->room, *x = a + height * APART;
    REAL *products = x + padded(d, WIDE) * APART;
    for (size_t block = blocks * (part + 1) / parts; block-- > first_block;) {
        const size_t from = block * ROWS, rows = n - from < ROWS ? n - from : ROWS, length = padded(rows, LANES);
        REAL entry[ROWS];
        NAME(load_table)(s, from, rows, x);
        for (size_t e = 0, k = 0, l = 0; e < q; e++, l = job->of->own || l + 1 == s->c ? ++k : l + 1) {
            NAME(fill_entry)(s, job->of->p, s->exponential ? e : k, l, from, rows, stacked ? entry : a + e * APART);
            for (size_t i = 0; stacked && i < d; i++)
                for (size_t t = 0; t < rows; t++)
                    a[i * APART + t] = entry[t] * x[i * APART + t];
        }
        size_t i = 0, j = 0; /* the next product of two features */
        for (size_t first = 0; first < width; first += CHUNK) {
            const size_t count = width - first < CHUNK ? width - first : CHUNK;
            const REAL *b = stacked ? x + first * APART : products;
            for (size_t r = 0; !stacked && r < count && i < d; r++) { /* what fills up the last tile is of no use */
                const REAL *left = x + i * APART, *right = x + j * APART;
                for (size_t t = 0; t < length; t++)
                    products[r * APART + t] = left[t] * right[t];
                if (++j == d)
                    j = ++i;
            }
            NAME(tiles)(a, height, b, first, count, stacked, length, sums, width);
        }
    }
}

static TARGET int NAME(hessian)(const struct model *s, const struct entries *of, void *to)
{
    REAL *out = to;
    const size_t d = s->d, q = of->q, p = s->c * d;
    const int stacked = q == 1;
    struct NAME(job) job = {.s = s, .of = of, .height = padded(stacked ? d : q, TALL),
                            .width = padded(stacked ? d : d * (d + 1) / 2, WIDE)};
    if (NAME(sum)(&job, NAME(hessian_part), 0, job.height + padded(d, WIDE) + (stacked ? 0 : CHUNK)))
        return -1;
    for (size_t e = 0, k = 0, l = 0; e < q; e++, l = of->own || l + 1 == s->c ? ++k : l + 1) {
        const size_t stride = of->own ? d : p;
        REAL *upper = out + (of->own ? e * d * d : k * d * p + l * d), *lower = of->own ? upper : out + l * d * p + k * d;
        const REAL *sum = job.sums + e * job.width;
        for (size_t i = 0; i < d; i++)
            for (size_t j = i; j < d; j++) {
                REAL v = (REAL)s->scale * (stacked ? sum[i * job.width + j] : *sum++);
                if (i == j && s->penalty_columns)
                    v += (REAL)(((k == l ? s->penalty_outputs[0] : 0) + s->penalty_outputs[1]) * s->penalty_columns[i]);
                upper[i * stride + j] = upper[j * stride + i] = v;
                lower[i * stride + j] = lower[j * stride + i] = v;
            }
    }
    free(job.block);
    return 0;
}
