/* Newton's method from start to end for one instruction set, one of the parts of _kernel_sums.h: on small data a step's arithmetic
   is over before the calls around it are. It takes the steps of solve/_quasi_newton.py with a factor at each, and hands
   back to it where anything else than a full step is called for. */

#ifndef PIVOTS
#define PIVOTS 4 /* rows of the factor that are taken off the rest at once: one load and one store serve four products */
#endif

/* row -= sum of factors[k] times rows[k], of `count` rows, from place `from` on. */
static inline void NAME(take_off)(double *row, const double *const *rows, const double *factors, int count, size_t from,
                                  size_t p)
{
    size_t j = from;
    if (count == PIVOTS) {
        const double a = factors[0], b = factors[1], c = factors[2], d = factors[3];
        for (; j + LANES <= p; j += LANES)
            *(NAME(vec) *)(row + j) -= a * *(const NAME(vec) *)(rows[0] + j) + b * *(const NAME(vec) *)(rows[1] + j) +
                                       c * *(const NAME(vec) *)(rows[2] + j) + d * *(const NAME(vec) *)(rows[3] + j);
    }
    for (; j < p; j++)
        for (int k = 0; k < count; k++)
            row[j] -= factors[k] * rows[k][j];
}

/* The factor R, rows of its upper triangle, of a positive definite matrix R^T R, in its place; returns whether there is one. */
static int NAME(cholesky)(double *a, size_t p)
{
    for (size_t first = 0; first < p; first += PIVOTS) {
        const double *rows[PIVOTS];
        const int count = p - first < PIVOTS ? (int)(p - first) : PIVOTS;
        double factors[PIVOTS];
        for (int k = 0; k < count; k++) {
            double *row = a + (first + k) * p;
            for (int i = 0; i < k; i++)
                factors[i] = rows[i][first + k];
            NAME(take_off)(row, rows, factors, k, first + k, p);
            if (!(row[first + k] > 0) || isinf(row[first + k]))
                return 0;
            const double inverse = 1.0 / sqrt(row[first + k]);
            for (size_t j = first + k; j < p; j++)
                row[j] *= inverse;
            rows[k] = row;
        }
        for (size_t i = first + count; i < p; i++) {
            for (int k = 0; k < count; k++)
                factors[k] = rows[k][i];
            NAME(take_off)(a + i * p, rows, factors, count, i, p);
        }
    }
    return 1;
}

/* Solve R^T R x = b with the factor; x holds b before. */
static void NAME(solve)(const double *factor, size_t p, double *x)
{
    for (size_t k = 0; k < p; k++) {
        const double *row = factor + k * p;
        x[k] /= row[k];
        for (size_t j = k + 1; j < p; j++)
            x[j] -= x[k] * row[j];
    }
    for (size_t k = p; k-- > 0;) {
        const double *row = factor + k * p;
        double rest = x[k];
        for (size_t j = k + 1; j < p; j++)
            rest -= row[j] * x[j];
        x[k] = rest / row[k];
    }
}

/* The dense Hessian at p in double precision, summed in single precision if asked for. */
static int NAME(dense)(const struct model *s, const struct entries *of, int single, float *narrow, double *out)
{
    const size_t size = s->c * s->d;
    if (!single)
        return NAME(hessian)(s, of, 0, out);
    const int failed = SINGLE(hessian)(s, of, 0, narrow);
    for (size_t i = 0; !failed && i < size * size; i++)
        out[i] = narrow[i];
    return failed;
}

struct NAME(state) {
    double value, norm, *coef, *gradient, *p;
};

static int NAME(evaluate_at)(const struct model *s, const struct newton *how, struct NAME(state) *at)
{
    const struct point point = {at->coef, how->linear, how->reference};
    if (NAME(evaluate)(s, &point, &at->value, at->gradient, at->p, NULL))
        return -1;
    at->norm = gradient_norm(&how->units, s->c, s->d, at->gradient);
    return 0;
}

static int NAME(finite)(const struct NAME(state) *at)
{
    return isfinite(at->value) && isfinite(at->norm);
}

/* coef (c, d) holds the start before, and where it ended after. */
static int NAME(newton)(const struct model *s, const struct model *dense, const struct newton *how, double *coef,
                        struct newton_result *result)
{
    const size_t size = s->c * s->d, outputs = (s->c + how->reference) * s->n;
    const size_t vectors = 3 * (2 * size + outputs);
    double *memory = malloc((size * size + vectors) * sizeof(double));
    float *narrow = how->single ? malloc(size * size * sizeof(float)) : NULL;
    double *factor = memory, *next = memory + size * size, *step = how->step;
    struct NAME(state) states[3], *at = states, *reached = states + 1, *trial = states + 2;
    int failed = !memory || (how->single && !narrow);
    result->steps = 0;
    result->decrement_squared = NAN;
    result->ended = UNFINISHED;
    for (int i = 0; !failed && i < 3; i++, next += 2 * size + outputs)
        states[i] = (struct NAME(state)){.coef = next, .gradient = next + size, .p = next + 2 * size};
    if (!failed) {
        memcpy(at->coef, coef, size * sizeof(double));
        failed = NAME(evaluate_at)(s, how, at);
        record(how, result, at->value, at->norm);
    }
    while (!failed && NAME(finite)(at)) {
        if (at->norm <= how->tol)
            result->ended = CONVERGED;
        if (result->ended == CONVERGED || result->steps == how->limit)
            break;
        const struct entries of = {at->p, how->k, how->l, how->q};
        if ((failed = NAME(dense)(dense, &of, how->single, narrow, factor)) || !NAME(cholesky)(factor, size))
            break;
        for (size_t i = 0; i < size; i++)
            step[i] = -at->gradient[i];
        NAME(solve)(factor, size, step);
        double slope = 0;
        for (size_t i = 0; i < size; i++)
            slope += step[i] * at->gradient[i];
        result->decrement_squared = -slope;
        if (!(slope < 0))
            break;
        const double least = how->rounding * fmax(fabs(at->value), 1.0);
        double length = 1;
        int found;
        for (;; length *= 0.5) { /* a decrease below rounding cannot be judged: there the gradient norm decides */
            for (size_t i = 0; i < size; i++)
                reached->coef[i] = at->coef[i] + length * step[i];
            failed = NAME(evaluate_at)(s, how, reached);
            found = NAME(finite)(reached) && (reached->value <= at->value + how->armijo * length * slope ||
                                              (-slope * length <= 16 * least && reached->norm < at->norm));
            if (failed || found || -slope * length <= least)
                break;
        }
        if (failed || !found)
            break;
        double distance = 1;
        for (size_t extension = 0; length == 1.0 && extension < how->extensions; extension++) {
            double share = 0; /* of the slope that is left at the end of the step */
            for (size_t i = 0; i < size; i++)
                share += step[i] * reached->gradient[i] / slope;
            if (!(how->steep < share && share < 1.0))
                break;
            const double longer = 1.0 / (1.0 - sqrt(share));
            distance *= longer < how->longest ? longer : how->longest;
            for (size_t i = 0; i < size; i++)
                trial->coef[i] = at->coef[i] + distance * step[i];
            if ((failed = NAME(evaluate_at)(s, how, trial)) || !NAME(finite)(trial) || !(trial->value < reached->value))
                break;
            struct NAME(state) *better = trial;
            trial = reached;
            reached = better;
        }
        struct NAME(state) *left = at;
        at = reached;
        reached = left;
        result->steps++;
        record(how, result, at->value, at->norm);
    }
    if (!failed)
        memcpy(coef, at->coef, size * sizeof(double));
    free(memory);
    free(narrow);
    return failed ? -1 : 0;
}
