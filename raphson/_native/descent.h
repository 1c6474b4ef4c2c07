/* Steps of limited-memory BFGS for a linear model, a part of linear_sums.h: what raphson/solve/_lbfgs.py does for any objective, in
   one call. */

#define TRIALS 20       /* lengths tried for a step */
#define SUFFICIENT 1e-4 /* share of the predicted decrease that a step must achieve */

/* About the inverse Hessian times the gradient. */
static TARGET void NAME(precondition)(const struct descent *of)
{
    const size_t d = of->model.d;
    for (size_t k = 0; k < of->model.c; k++) {
        const double *g = (const double *)of->pairs.gradient + k * d, *diagonal = of->diagonal + k * d, *means = of->means;
        double *restrict to = of->fresh + k * d;
        for (size_t j = 0; !means && j < d; j++)
            to[j] = g[j] / diagonal[j];
        for (size_t j = 0; means && j < d; j++)
            to[j] = (g[j] - *g * means[j]) / diagonal[j];
        *to -= means ? NAME(dot)(to, means, d) : 0;
    }
}

static TARGET int JOIN(JOIN(pass, float), BITS)(const struct model *, const struct pass *);

/* Value and gradient where a step leads; of a table in single precision what is computed with is, and no more. */
static TARGET int NAME(reach)(const struct descent *of)
{
    const size_t p = of->pairs.p;
    float *narrow = (float *)(of->fresh + p);
    struct pass at = of->at;
    if (!of->model.single)
        return NAME(pass)(&of->model, &at);
    for (size_t j = 0; j < p; j++)
        narrow[j] = (float)of->reached[j];
    at.coef = narrow, at.out = narrow + p;
    if (JOIN(JOIN(pass, float), BITS)(&of->model, &at))
        return -1;
    for (size_t j = 0; j < p; j++)
        ((double *)of->at.out)[j] = narrow[p + j];
    return 0;
}

/* Returns whether memory ran out; where no length of the direction helps there are no trials. */
static inline TARGET INLINE int NAME(step)(struct descent *of)
{
    struct pairs *pairs = &of->pairs;
    const size_t p = pairs->p;
    double *direction = pairs->out, *scale = pairs->scale;
    NAME(precondition)(of);
    if (pairs->before)
        NAME(pairs)(pairs);
    else if (!*scale)
        *scale = 1 / fmax(sqrt(NAME(dot)(of->fresh, of->fresh, p)), DBL_MIN);
    for (size_t j = 0; !pairs->before && j < p; j++)
        direction[j] = -*scale * of->fresh[j];
    memcpy(of->solved, of->fresh, p * sizeof(double));
    const double slope = NAME(dot)(direction, pairs->gradient, p), before = *of->at.value;
    const double rounding = of->rounding * fmax(fabs(before), 1);
    for (of->trials = 1; slope < 0 && of->trials <= TRIALS; of->trials++) {
        for (size_t j = 0; j < p; j++)
            of->reached[j] = of->theta[j] + of->length * direction[j];
        *of->at.norm = 0;
        if (NAME(reach)(of))
            return -1;
        of->at.copy = NULL; /* it is made */
        const double value = *of->at.value, fall = -slope * of->length, excess = value - before + fall;
        int taken = value <= before - SUFFICIENT * fall && isfinite(*of->at.norm);
        double share = isfinite(value) && excess > 0 ? fall / (2 * excess) : 0.1; /* the parabola through values and slope */
        if (!taken && fall <= rounding && value <= of->lowest + rounding) {
            /* the value can no longer judge, its slope can: the approximate Wolfe condition (Hager and Zhang 2005) */
            taken = NAME(dot)(of->at.out, direction, p) <= (2 * SUFFICIENT - 1) * slope;
            share = 0.5;
        }
        for (size_t j = 0; taken && j < p; j++)
            of->step[j] = of->reached[j] - of->theta[j];
        if (taken)
            return 0;
        of->length *= share < 0.1 ? 0.1 : share > 0.5 ? 0.5 : share;
    }
    of->trials = 0;
    return 0;
}

/* Returns whether memory ran out; where there are no trials, the last step that was wanted has no length that helps. */
static TARGET int NAME(descend)(struct descent *of)
{
    struct pairs *pairs = &of->pairs;
    const size_t p = pairs->p, apart = padded(p, UNIT);
    double *const reached = of->reached, *const out = of->at.out, *const turns = of->turns;
    of->trials = 1;
    for (of->taken = 0; of->trials && of->taken < of->most && (!of->taken || *of->at.norm > of->tol);) {
        if (turns)
            of->reached = turns + of->taken % 2 * apart, of->at.out = turns + (2 + of->taken % 3) * apart;
        of->at.coef = of->reached;
        of->length = of->taken ? fmin(1, of->growth * of->length) : of->length;
        if (NAME(step)(of))
            return -1;
        if (!of->trials)
            continue;
        double *path = of->path + 3 * of->taken++;
        path[0] = *of->at.value, path[1] = *of->at.norm, path[2] = of->trials;
        of->lowest = fmin(of->lowest, path[0]);
        of->theta = of->reached, pairs->before = pairs->gradient, pairs->gradient = of->at.out;
    }
    if (turns && of->taken) {
        memcpy(reached, of->theta, p * sizeof(double));
        memcpy(out, pairs->gradient, p * sizeof(double));
        memcpy(turns + 5 * apart, pairs->before, p * sizeof(double));
    }
    return 0;
}
