/* Products with the Hessian; one of the parts of _kernel_sums.h. */

/* The product of the Hessian with v (c, d), from linear predictors of v; the Hessian is not formed. The features are read
   from x, (d, n), or where that is NULL from the model's table. */
struct NAME(product_job) {
    const struct model *s;
    const REAL *x, *p, *v;
    struct NAME(sums) sums;
};

static void NAME(product_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(product_job) *job = data;
    const struct model *s = job->s;
    const size_t n = s->n, d = s->d, c = s->c, height = job->sums.height;
    const size_t end = part_start(n, part + 1, parts);
    REAL *sums = job->sums.memory + part * job->sums.share;
    REAL *u = sums + job->sums.room, *shares = u + height * APART, *x = shares + height * APART;
    for (size_t from = part_start(n, part, parts); from < end; from += ROWS) {
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
        NAME(tiles)(u, c, x, job->sums.width, length, sums);
    }
}

static int NAME(product)(const struct model *s, const REAL *x, const REAL *p, const REAL *v, REAL *out)
{
    const size_t d = s->d, c = s->c, height = padded(c, TALL), width = padded(d, WIDE);
    struct NAME(product_job) job = {.s = s, .x = x, .p = p, .v = v};
    if (NAME(make_sums)(&job.sums, s->parts, height, width, 0, 2 * height + width))
        return -1;
    run_team(NAME(product_part), &job, s->parts, s->parts);
    const REAL *sums = NAME(add_up)(&job.sums, s->parts);
    for (size_t k = 0; k < c; k++)
        for (size_t j = 0; j < d; j++) {
            REAL penalty = 0;
            for (size_t l = 0; l < c; l++)
                penalty += (REAL)s->penalty_outputs[k * c + l] * v[l * d + j];
            out[k * d + j] = (REAL)s->scale * sums[k * width + j] + penalty * (REAL)s->penalty_columns[j];
        }
    free(job.sums.block);
    return 0;
}
