/* Linear models in one call each: value and gradient, the dense Hessian, a product with it. The formulas are those of the
   modules of raphson/linear, which say what they mean. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ROWS (2048 / sizeof(REAL)) /* examples at a time */
#define CHUNK 96          /* products of features at a time: with that many examples they stay in the second-level cache */
#define LINE (64 / sizeof(REAL)) /* numbers in a cache line */
#define APART (ROWS + LINE) /* a cache line more: rows a power of two apart would fight for the same places */
#define CACHED 32768      /* numbers that stay in the second-level cache between two looks at them */
#define STRIP 1024        /* columns whose sums stay in the first-level cache */
#define TALL 4
#define WIDE 3
#define SMALLEST 0x1p-60  /* in single precision smaller entries would make subnormal numbers of products */

/* n examples of d columns, cut into parts for as many threads, and c outputs with coefficients; sums over examples are
   multiplied by scale. The table x is (d, n), its rows `stride` apart, or where it is by rows the table as given,
   (n, d) without the ones: column j is then (x_j - center_j) factor_j, after a column of ones where there is an intercept.
   Evaluations read such a table in place, or turn it into columns as it is read. */
struct model {
    size_t n, d, c, stride, parts;
    int by_rows, intercept, in_place;
    int exponential; /* whether the log-partition function is e^f, of one output, and not the log-sum-exp */
    const double *x, *center, *factor, *weights;     /* weights (n,) or NULL */
    const double *penalty_outputs, *penalty_columns; /* (c, c), (d,); or both NULL */
    double scale;
};

/* Where to evaluate: coefficients, the targets' linear term, (c, d) each; whether one more output is zero. Where to put
   probabilities or means, (c and the reference, n), in double or in single precision, or NULL; and the gradient's largest
   entry: times the first row of units (3, d), plus the second times the intercept's, less the third. */
struct point {
    const double *coef, *linear, *units;
    double *norm, *p;
    float *single_p;
    int reference;
};

/* Which q entries k <= l of diag p - p p^T to take, p of at least c rows of n. */
struct entries {
    const double *p;
    const int64_t *k, *l;
    size_t q;
};

static size_t padded(size_t length, size_t unit)
{
    return (length + unit - 1) / unit * unit;
}

/* A table (n, d), its rows `stride` apart, with the class of each row or NULL: where to add sums, (classes, d), and squares. */
struct columns {
    size_t n, d, stride;
    const double *x;
    const int64_t *codes;
    double *sums, *squares;
};

/* Where a part of the examples begins: a multiple of so many. */
static size_t part_start(size_t n, size_t part, size_t parts, size_t unit)
{
    const size_t start = padded(n, unit) / unit * part / parts * unit;
    return start < n ? start : n;
}

#define TEMPLATE "linear_sums.h"
#include "instructions.h"
