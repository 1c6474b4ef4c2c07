/* Pairs of limited-memory BFGS, a part of linear_sums.h: one is taken in, and the gradient multiplied by the inverse Hessian that
   they make. The formula is that of raphson/solve/_pairs.py. */

#define PIECE (128 * LINE) /* entries of a vector at a time, 8 KB, which stay in the nearest cache for all pairs */

static TARGET double NAME(dot)(const REAL *a, const REAL *b, size_t length)
{
    NAME(vec) sums[4] = {{0}};
    size_t t = 0;
    for (; t + 4 * LANES <= length; t += 4 * LANES)
        for (int i = 0; i < 4; i++)
            sums[i] += *(const NAME(vec) *)(a + t + i * LANES) * *(const NAME(vec) *)(b + t + i * LANES);
    const NAME(four) four = NAME(folded)((sums[0] + sums[1]) + (sums[2] + sums[3]));
    double sum = ((double)four[0] + four[1]) + ((double)four[2] + four[3]);
    for (; t < length; t++)
        sum += (double)a[t] * b[t];
    return sum;
}

/* Where a part of vectors begins: parts are of whole pieces. */
static TARGET size_t NAME(begin)(const struct pairs *of, size_t part)
{
    const size_t first = padded(of->p, PIECE) / PIECE * part / of->parts * PIECE;
    return first < of->p ? first : of->p;
}

/* Of a part of vectors: the step becomes `rows`, s and Z in turns, and products with the change of the gradient, of the new pair,
   and with the gradient, of all pairs, go to `sums`. */
static TARGET void NAME(products_part)(const void *data, size_t part, size_t Py_UNUSED(parts))
{
    const struct pairs *of = data;
    const size_t p = of->p, end = NAME(begin)(of, part + 1);
    const REAL *gradient = of->gradient, *before = of->before, *solved = of->solved, *solved_before = of->solved_before;
    REAL *rows = of->rows, *s = rows + 2 * of->slot * p, *z = s + p;
    double *sums = of->sums + part * 2 * (of->memory + 1);
    memset(sums, 0, 2 * (of->memory + 1) * sizeof(double));
    for (size_t first = NAME(begin)(of, part), count; first < end; first += count) {
        count = first + PIECE < end ? PIECE : end - first; /* a piece of the gradient stays in the cache for all pairs */
        REAL change[PIECE];
        memcpy(s + first, (const REAL *)of->step + first, count * sizeof(REAL));
        for (size_t j = 0; j < count; j++) {
            change[j] = gradient[first + j] - before[first + j];
            z[first + j] = solved[first + j] - solved_before[first + j];
        }
        for (size_t h = 0; h < 2; h++)
            sums[h] += NAME(dot)(s + h * p + first, change, count);
        for (size_t i = 0; i < 2 * of->used; i++)
            sums[2 + i] += NAME(dot)(rows + i * p + first, gradient + first, count);
    }
}

/* Take in a step, and the products that the inverse Hessian needs. */
static TARGET void NAME(take_pair)(const struct pairs *of, double *products)
{
    const size_t m = of->memory, slot = of->slot, used = of->used;
    run_team(NAME(products_part), of, of->parts, of->parts);
    for (size_t part = 1; part < of->parts; part++)
        for (size_t i = 0; i < 2 * (m + 1); i++)
            of->sums[i] += of->sums[part * 2 * (m + 1) + i];
    const double *of_pair = of->sums;
    memcpy(products, of->sums + 2, 2 * used * sizeof(double));
    for (size_t i = 0; i < 2 * used; i++) { /* with the change of the gradient: of the others from what was before it, a pass less */
        const double now = products[i];
        products[i] = i / 2 == slot ? of_pair[i % 2] : now - of->seen[i];
        of->seen[i] = now;
    }
    for (size_t i = 0; i < m; i++) /* without the oldest pair R^-1 has one row and one column less, wherever they are */
        of->root[slot * m + i] = of->root[i * m + slot] = of->changes[slot * m + i] = of->changes[i * m + slot] = 0;
    of->own[slot] = 0;
    const double curvature = products[2 * slot], size = products[2 * slot + 1];
    if (!(size > 0 && curvature > of->curved * *of->scale * size)) {
        memset((REAL *)of->rows + 2 * slot * of->p, 0, 2 * of->p * sizeof(REAL));
        of->seen[2 * slot] = of->seen[2 * slot + 1] = 0;
        return;
    }
    *of->scale = of->scaled ? curvature / size : 1;
    for (size_t k = 0; k < used; k++) {
        double sum = 0;
        for (size_t l = 0; l < used; l++)
            sum += l == slot ? 0 : of->root[k * m + l] * products[2 * l];
        of->root[k * m + slot] = -sum / curvature;
        of->changes[k * m + slot] = of->changes[slot * m + k] = products[2 * k + 1];
    }
    of->root[slot * m + slot] = 1 / curvature, of->own[slot] = curvature;
    *of->taken += 1;
}

/* A part of the direction, from the pairs' shares in it: -scale times `solved`, and of each s and Z. */
static TARGET void NAME(direction_part)(const void *data, size_t part, size_t Py_UNUSED(parts))
{
    const struct pairs *of = data;
    const size_t p = of->p, m = of->memory, end = NAME(begin)(of, part + 1);
    const double *a = of->room, *shares = a + 2 * m, scale = *of->scale;
    for (size_t first = NAME(begin)(of, part), count; first < end; first += count) {
        count = first + PIECE < end ? PIECE : end - first;
        REAL sums[PIECE];
        for (size_t j = 0; j < count; j++)
            sums[j] = (REAL)-scale * ((const REAL *)of->solved)[first + j];
        for (size_t k = 0; k < of->used; k++) {
            const REAL *s = (const REAL *)of->rows + 2 * k * p + first, *z = s + p;
            const REAL own = (REAL)shares[k], other = (REAL)(-scale * a[k]);
            for (size_t j = 0; j < count; j++)
                sums[j] -= own * s[j] + other * z[j];
        }
        memcpy((REAL *)of->out + first, sums, count * sizeof(REAL));
    }
}

static TARGET void NAME(pairs)(struct pairs *of)
{
    const size_t m = of->memory, taken = (size_t)*of->taken, used = of->used = taken < m ? taken + 1 : m;
    double *a = of->room, *inner = a + m, *shares = inner + m; /* of Z, and of the steps */
    of->slot = taken % m;
    NAME(take_pair)(of, a);
    const double scale = *of->scale;
    for (size_t k = 0; k < used; k++)
        for (size_t l = a[k] = 0; l < used; l++)
            a[k] += of->root[k * m + l] * of->seen[2 * l];
    for (size_t k = 0; k < used; k++) {
        inner[k] = -of->seen[2 * k + 1];
        for (size_t l = 0; l < used; l++)
            inner[k] += of->changes[k * m + l] * a[l];
        inner[k] = scale * inner[k] + of->own[k] * a[k];
    }
    for (size_t k = 0; k < used; k++)
        for (size_t l = shares[k] = 0; l < used; l++)
            shares[k] += inner[l] * of->root[l * m + k];
    run_team(NAME(direction_part), of, of->parts, of->parts);
}
