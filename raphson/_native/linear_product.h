/* The product of the Hessian with v (c, d), a part of linear_sums.h: from linear predictors of v; the Hessian is not formed.
   The features are read from x, (d, n), or where that is NULL from the model's table. */
static TARGET void NAME(product_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(job) *job = data;
    const struct model *s = job->s;
    const size_t n = s->n, d = s->d, c = s->c, height = job->height, end = part_start(n, part + 1, parts, ROWS);
    REAL *sums = job->sums + part * job->share;
    REAL *u = sums + job->room, *shares = u + height * APART, *x = shares + height * APART;
    for (size_t from = part_start(n, part, parts, ROWS); from < end; from += ROWS) {
        const size_t rows = end - from < ROWS ? end - from : ROWS, length = padded(rows, 2 * LANES);
        if (job->x)
            NAME(load)(job->x + from, n, d, rows, length, x);
        else
            NAME(load_table)(s, from, rows, length, x);
        NAME(load)(job->p + from, n, c, rows, length, shares);
        NAME(predict)(s, job->v, x, length, u);
        for (size_t t = 0; t < length; t += LANES) {
            NAME(vec) mean = {0};
            for (size_t k = 0; !s->exponential && k < c; k++)
                mean += *(NAME(vec) *)(shares + k * APART + t) * *(NAME(vec) *)(u + k * APART + t);
            for (size_t k = 0; k < c; k++) {
                NAME(vec) *at = (NAME(vec) *)(u + k * APART + t);
                *at = *(NAME(vec) *)(shares + k * APART + t) * (*at - mean);
            }
        }
        NAME(weigh)(s, from, rows, c, u);
        NAME(tiles)(u, c, x, job->width, length, sums);
    }
}

static TARGET int NAME(product)(const struct model *s, const REAL *x, const REAL *p, const REAL *v, REAL *out)
{
    struct NAME(job) job = {.s = s, .x = x, .p = p, .v = v, .height = padded(s->c, TALL), .width = padded(s->d, WIDE)};
    if (NAME(sum)(&job, NAME(product_part), 0, 2 * job.height + job.width))
        return -1;
    NAME(penalty)(s, v, out);
    for (size_t k = 0; k < s->c; k++)
        for (size_t j = 0; j < s->d; j++)
            out[k * s->d + j] += (REAL)s->scale * job.sums[k * job.width + j];
    free(job.block);
    return 0;
}
