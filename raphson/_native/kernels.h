/* What the kernels are told, and the kernels: of linear models value and gradient, the dense Hessian and products with it; sparse
   products. The formulas are those of the modules of raphson/linear, which say what they mean. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES (BITS == 128 ? 4 : BITS / 8 / sizeof(REAL)) /* in a vector; sums across them want four, of two registers if need be */
#define ROWS (2048 / sizeof(REAL)) /* examples at a time */
#define MOST 256 /* of a table that is read in place, whatever the precision */
#define WIDE_APART ((2048 + 64) / sizeof(double)) /* APART in double precision */
#define CHUNK 96          /* products of features at a time: with that many examples they stay in the second-level cache */
#define LINE (64 / sizeof(REAL)) /* numbers in a cache line */
#define APART (ROWS + LINE) /* a cache line more: rows a power of two apart would fight for the same places */
#define CACHED (262144 / sizeof(REAL))  /* numbers that stay in the second-level cache between two looks at them */
#define LARGE (24000000 / sizeof(REAL)) /* numbers of a table that no cache holds */
#define TALL 4
#define WIDE 3
#define INLINE __attribute__((always_inline))
#define SMALLEST 0x1p-60  /* in single precision smaller entries would make subnormal numbers of products */

/* A sparse matrix by rows (CSR), (rows, width), whose values have the type that is computed in. */
struct sparse {
    size_t rows, width, count;
    const int64_t *starts;   /* (rows + 1,); these and the columns are checked when they are read */
    const uint32_t *columns; /* (count,), as the values; a negative one is a large one */
    const void *values;
    int *wrong; /* becomes 1 where a row or a column is not there */
};

/* n examples of d columns, cut into parts for as many threads, and c outputs with coefficients; sums over examples are
   multiplied by scale. The table x is (d, n), its rows `stride` apart, or where there are factors the table as given, (n, d)
   without the ones: column j is then (x_j - center_j) factor_j, after a column of ones where there is an intercept. Passes
   read such a table in place, or turn it into columns as it is read; a sparse one they always read in place, and so they do one
   in single precision. The penalty is (own I + shared 1 1^T) over the outputs times that of the column. */
struct model {
    size_t n, d, c, stride, parts;
    struct sparse table; /* without starts for a dense one */
    int intercept, in_place, single; /* `single`: x is a table of floats */
    int exponential; /* whether the log-partition function is e^f, of one output, and not the log-sum-exp */
    const void *x;
    const double *center, *factor, *weights;         /* weights (n,) or NULL */
    const double *penalty_outputs, *penalty_columns; /* (own, shared), (d,); or both NULL */
    double scale;
};

/* One pass: sums of numbers of each example times its features, `out` (c, d). The numbers are p (c, n); or with coefficients the
   product of the Hessian with these, where p are probabilities or means; or without p, with the targets' linear term (c, d), the
   gradient. Features are `columns` (d, n), or NULL: the table's. All are of the type that is computed in. Of the gradient
   there are the value; its largest entry, times the first row of units (3, d), plus the second times the intercept's, less the
   third; and probabilities or means, (c and the reference, n), in double or in single precision, or NULL. The standardized rows
   of a table that is read in place go to `copy` (n, d without the ones), unless that is NULL. */
struct pass {
    const void *coef, *p, *columns;
    void *out;
    const double *linear, *units;
    double *value, *norm, *kept;
    float *kept_single, *copy;
    size_t reference; /* whether one more output is zero */
};

/* Which q entries k <= l of diag p - p p^T to take, p of at least c rows of n: each output's own, or those of every pair. Of the
   exponential they are the rows of p themselves. */
struct entries {
    const double *p;
    size_t q;
    int own;
};

#define UNIT 8 /* rows of the dense matrices of a sparse product are a multiple of this many numbers */

/* The product of a sparse matrix with a dense one, (width, apart), goes to out. */
struct product {
    struct sparse sparse;
    size_t apart; /* numbers in a row of both dense matrices */
    void *dense, *out;
};

/* Of limited-memory BFGS: `memory` pairs of p entries; `scaled` says whether the last one tells the scale of the inverse Hessian to
   begin with. Vectors have the type that is computed in: `rows` (2 memory, p), steps and changes of `solved`, which is the product
   of that inverse with the gradient; a step (p,), the gradient after and before it, and what they were solved for. Numbers stay from
   call to call: seen (memory, 2), the rows' products with the gradient; R^-1, Y^T Z and the diagonal of R; the scale; how many pairs
   were taken in, which need a curvature above a share `curved` of the mean one. The direction, minus the product with the gradient,
   goes to out. Vectors are shared out in parts, of which each has its own sums (parts, 2 memory + 2); the new pair is in the place
   `slot`, and `used` places hold one. */
struct pairs {
    size_t memory, p, parts, slot, used;
    int scaled;
    double curved, *seen, *root, *changes, *own, *scale, *taken, *room, *sums;
    const void *step, *gradient, *before, *solved, *solved_before;
    void *rows, *out;
};

/* Steps from theta, with the value there, to `reached`, at most `most` of them, until the norm is at most `tol`: pairs and
   evaluations in double precision. The last gradient goes to `at.out`; value, norm and trials of every step go to `path` (most, 3).
   Between, points and gradients take turns in room for six vectors, of which the last one then holds the gradient before the last;
   NULL for one step. The first one is tried at `length` directions, later ones at `growth` times the length before, at most 1.
   `step` and `solved` (p,) stay from call to call, `fresh` (2 p,) is room. The inverse Hessian to begin with is one over the
   diagonal (c, d), of columns less their means (d,), or NULL for those that are centered; where the pairs have no scale, a first
   direction of length one gives it. No trial may rise above `lowest` by more than a share `rounding` of the value. */
struct descent {
    struct model model;
    struct pairs pairs;
    struct pass at;
    const double *diagonal, *means, *theta;
    double *reached, *step, *solved, *fresh, *turns, *path, length, lowest, growth, tol, rounding;
    size_t most, taken;
    int trials;
};

/* Rows of a table (n, d), `stride` apart, are added to the sums of their classes (k, d), and their squares to `squares` (d,). */
struct moments {
    size_t n, d, stride;
    const void *x;
    const int64_t *codes; /* (n,), from 0 to k - 1, or NULL for 0 */
    const int64_t *order; /* (n,), in which the rows are read, or NULL */
    void *sums, *squares;
};

/* What there is for one instruction set and element type: `pass`, `hessian` and `descend`, which is in double precision only, return
   whether there was no memory; `product` and `moments` are bodies for a team of threads. */
struct kernels {
    int (*pass)(const struct model *, const struct pass *);
    int (*hessian)(const struct model *, const struct entries *, void *);
    void (*product)(const void *, size_t, size_t);
    void (*pairs)(struct pairs *);
    int (*descend)(struct descent *);
    void (*moments)(const void *, size_t, size_t);
};

static size_t padded(size_t length, size_t unit)
{
    return (length + unit - 1) / unit * unit;
}

#include "instructions.h"
