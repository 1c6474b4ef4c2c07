/* Linear models in one call each: value and gradient, the dense Hessian, a product with it. The formulas are those of
   _objective.py, _hessian.py and _khatri_rao.py; _compiled.py calls this. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../_parallel.h"

#define ROWS 256          /* examples at a time */
#define CHUNK 96          /* products of features at a time: with that many examples they stay in the second-level cache */
#define LINE (64 / sizeof(REAL)) /* numbers in a cache line */
#define APART (ROWS + LINE) /* a cache line more: rows a power of two apart would fight for the same places */
#define TALL 4
#define WIDE 3
#define SMALLEST 0x1p-60  /* in single precision smaller entries would make subnormal numbers of products */

/* n examples of d columns, cut into parts for as many threads, and c outputs with coefficients; sums over examples are
   multiplied by scale. The table x is (d, n), its rows `stride` apart, or where there are factors the table as given,
   (n, d) without the ones: column j is then (x_j - center_j) factor_j, after a column of ones where there is an intercept. */
struct model {
    size_t n, d, c, stride, parts;
    int exponential; /* whether the log-partition function is e^f, of one output, and not the log-sum-exp */
    int intercept;
    const double *x, *center, *factor, *weights;     /* weights (n,) or NULL */
    const double *penalty_outputs, *penalty_columns; /* (c, c), (d,) */
    double scale;
};

/* Where to evaluate: coefficients, the targets' linear term, (c, d) each; whether one more output is zero. */
struct point {
    const double *coef, *linear;
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

/* The first cache line that begins in a block: vectors that lie across two lines are stored at half the speed. */
static void *aligned(void *block)
{
    return block ? (void *)(((uintptr_t)block + 63) / 64 * 64) : NULL;
}

/* Where a part of the examples begins: a multiple of ROWS. */
static size_t part_start(size_t n, size_t part, size_t parts)
{
    const size_t start = padded(n, ROWS) / ROWS * part / parts * ROWS;
    return start < n ? start : n;
}

/* One entry of diag p - p p^T, or for the exponential one row of p itself, for some rows, times their weights; before
   them, what is below `smallest` is zero. */
static void fill_entry(const struct model *s, const struct entries *of, size_t e, size_t from, size_t rows,
                       double smallest, double *entry)
{
    const double *left = of->p + (s->exponential ? e : (size_t)of->k[e]) * s->n + from;
    const double *right = of->p + of->l[e] * s->n + from, one = of->k[e] == of->l[e];
    if (s->exponential)
        memcpy(entry, left, rows * sizeof(double));
    else
        for (size_t t = 0; t < rows; t++)
            entry[t] = left[t] * (one - right[t]);
    for (size_t t = 0; t < rows; t++)
        entry[t] = fabs(entry[t]) < smallest ? 0.0 : entry[t];
    for (size_t t = 0; s->weights && t < rows; t++)
        entry[t] *= s->weights[from + t];
}

/* What the tolerance counts in: entry j of a row of the gradient times factor_j, plus the row's first entry times shift_j;
   of its size what is above floor_j. Each (d,), the last one or NULL. */
struct units {
    const double *factor, *shift, *floor;
};

/* The largest entry of a gradient (c, d) in these units; not a number where one is not. */
static double gradient_norm(const struct units *units, size_t c, size_t d, const double *gradient)
{
    double largest = 0;
    for (size_t k = 0; k < c; k++)
        for (size_t j = 0; j < d; j++) {
            const double *row = gradient + k * d;
            double size = fabs(row[j] * units->factor[j] + row[0] * units->shift[j]);
            if (units->floor)
                size = size - units->floor[j] < 0 ? 0 : size - units->floor[j];
            if (!(size <= largest))
                largest = size;
            if (isnan(size))
                return size;
        }
    return largest;
}

/* How to take Newton steps, with the names of solve/_quasi_newton.py, and room for the last one. */
struct newton {
    const double *linear; /* the targets' linear term, (c, d) */
    int reference, single;
    const int64_t *k, *l; /* all pairs of outputs */
    size_t q, limit, extensions;
    double armijo, rounding, steep, longest, tol;
    struct units units;
    double *step, *history; /* (c, d); (limit + 1, 3): value, gradient norm and seconds */
};

enum { UNFINISHED, CONVERGED };

struct newton_result {
    size_t steps;
    int ended;
    double decrement_squared;
};

static void record(const struct newton *how, const struct newton_result *result, double value, double norm)
{
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    double *line = how->history + 3 * result->steps;
    line[0] = value;
    line[1] = norm;
    line[2] = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The sums; Newton's method in double precision calls those in single precision. */
#define TEMPLATE "linear/_kernel_sums.h"
#include "../_each_instruction_set.h"

static struct {
    int (*evaluate)(const struct model *, const struct point *, double *, double *, double *, float *);
    int (*hessian)(const struct model *, const struct entries *, int, double *);
    int (*hessian_single)(const struct model *, const struct entries *, int, float *);
    int (*product)(const struct model *, const double *, const double *, const double *, double *);
    int (*product_single)(const struct model *, const float *, const float *, const float *, float *);
    int (*adjoint)(const struct model *, const double *, double *);
    int (*newton)(const struct model *, const struct model *, const struct newton *, double *, struct newton_result *);
} kernels;

#define CHOOSE(WIDTH) \
    kernels.evaluate = evaluate_double_##WIDTH, kernels.hessian = hessian_double_##WIDTH, \
    kernels.hessian_single = hessian_float_##WIDTH, kernels.product = product_double_##WIDTH, \
    kernels.product_single = product_float_##WIDTH, kernels.adjoint = adjoint_double_##WIDTH, \
    kernels.newton = newton_double_##WIDTH

static void *pointer(PyObject *address)
{
    return address == Py_None ? NULL : PyLong_AsVoidPtr(address);
}

/* Every function takes the model first: n, d, c, stride, x, center, factor, intercept, weights, penalty_outputs,
   penalty_columns, scale, exponential, parts. */
#define MODEL 14

static struct model parse_model(PyObject *const *args)
{
    return (struct model){.n = PyLong_AsSize_t(args[0]), .d = PyLong_AsSize_t(args[1]), .c = PyLong_AsSize_t(args[2]),
                          .stride = PyLong_AsSize_t(args[3]), .x = pointer(args[4]), .center = pointer(args[5]),
                          .factor = pointer(args[6]), .intercept = PyObject_IsTrue(args[7]),
                          .weights = pointer(args[8]), .penalty_outputs = pointer(args[9]),
                          .penalty_columns = pointer(args[10]), .scale = PyFloat_AsDouble(args[11]),
                          .exponential = PyObject_IsTrue(args[12]), .parts = PyLong_AsSize_t(args[13])};
}

static int wrong_count(Py_ssize_t count, Py_ssize_t wanted)
{
    if (count != wanted)
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, count);
    return count != wanted;
}

static PyObject *evaluate(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (wrong_count(count, MODEL + 6))
        return NULL;
    const struct model s = parse_model(args);
    args += MODEL;
    const struct point at = {pointer(args[0]), pointer(args[1]), PyObject_IsTrue(args[2])};
    double *gradient = pointer(args[3]), *p = pointer(args[4]), value;
    float *single_p = pointer(args[5]);
    if (PyErr_Occurred())
        return NULL;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = kernels.evaluate(&s, &at, &value, gradient, p, single_p);
    Py_END_ALLOW_THREADS
    return failed ? PyErr_NoMemory() : PyFloat_FromDouble(value);
}

static PyObject *hessian(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (wrong_count(count, MODEL + 7))
        return NULL;
    const struct model s = parse_model(args);
    args += MODEL;
    const struct entries of = {pointer(args[0]), pointer(args[1]), pointer(args[2]), PyLong_AsSize_t(args[3])};
    const int blocks = PyObject_IsTrue(args[4]), single = PyObject_IsTrue(args[5]);
    void *out = pointer(args[6]);
    if (PyErr_Occurred())
        return NULL;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = single ? kernels.hessian_single(&s, &of, blocks, out) : kernels.hessian(&s, &of, blocks, out);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *product(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (wrong_count(count, MODEL + 5))
        return NULL;
    const struct model s = parse_model(args);
    args += MODEL;
    const void *x = pointer(args[0]), *p = pointer(args[1]), *v = pointer(args[2]);
    const int single = PyObject_IsTrue(args[3]);
    void *out = pointer(args[4]);
    if (PyErr_Occurred())
        return NULL;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = single ? kernels.product_single(&s, x, p, v, out) : kernels.product(&s, x, p, v, out);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *adjoint(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (wrong_count(count, MODEL + 2))
        return NULL;
    const struct model s = parse_model(args);
    const double *t = pointer(args[MODEL]);
    double *out = pointer(args[MODEL + 1]);
    if (PyErr_Occurred())
        return NULL;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = kernels.adjoint(&s, t, out);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *norm(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (wrong_count(count, 6))
        return NULL;
    const size_t c = PyLong_AsSize_t(args[0]), d = PyLong_AsSize_t(args[1]);
    const double *gradient = pointer(args[2]);
    const struct units units = {pointer(args[3]), pointer(args[4]), pointer(args[5])};
    return PyErr_Occurred() ? NULL : PyFloat_FromDouble(gradient_norm(&units, c, d, gradient));
}

static PyObject *newton(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (wrong_count(count, MODEL + 20))
        return NULL;
    const struct model s = parse_model(args);
    args += MODEL;
    struct model dense = s;
    dense.parts = PyLong_AsSize_t(args[0]);
    const struct newton how = {.linear = pointer(args[1]), .reference = PyObject_IsTrue(args[2]),
                               .single = PyObject_IsTrue(args[3]), .k = pointer(args[4]), .l = pointer(args[5]),
                               .q = PyLong_AsSize_t(args[6]), .limit = PyLong_AsSize_t(args[7]),
                               .extensions = PyLong_AsSize_t(args[8]), .armijo = PyFloat_AsDouble(args[9]),
                               .rounding = PyFloat_AsDouble(args[10]), .steep = PyFloat_AsDouble(args[11]),
                               .longest = PyFloat_AsDouble(args[12]), .tol = PyFloat_AsDouble(args[13]),
                               .units = {pointer(args[14]), pointer(args[15]), pointer(args[16])},
                               .step = pointer(args[17]), .history = pointer(args[18])};
    double *coef = pointer(args[19]);
    struct newton_result result;
    if (PyErr_Occurred())
        return NULL;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = kernels.newton(&s, &dense, &how, coef, &result);
    Py_END_ALLOW_THREADS
    return failed ? PyErr_NoMemory()
                  : Py_BuildValue("(ind)", result.ended, (Py_ssize_t)result.steps, result.decrement_squared);
}

#include "../_vectors.h"

static PyMethodDef methods[] = {
    {"evaluate", (PyCFunction)(void (*)(void))evaluate, METH_FASTCALL, NULL},
    {"hessian", (PyCFunction)(void (*)(void))hessian, METH_FASTCALL, NULL},
    {"product", (PyCFunction)(void (*)(void))product, METH_FASTCALL, NULL},
    {"adjoint", (PyCFunction)(void (*)(void))adjoint, METH_FASTCALL, NULL},
    {"norm", (PyCFunction)(void (*)(void))norm, METH_FASTCALL, NULL},
    {"newton", (PyCFunction)(void (*)(void))newton, METH_FASTCALL, NULL},
    {"use_vectors", use_vectors, METH_O, NULL},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "_kernel", .m_size = -1,
                                        .m_methods = methods};

PyMODINIT_FUNC PyInit__kernel(void)
{
    choose_longest();
    find_threads();
    return PyModule_Create(&definition);
}
