/* The compiled module: what Python hands over is checked here, whoever calls, before anything is read or written. An array
   comes as (address, number of elements, type), its elements one after another; the type is a letter of Python's `struct`. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "threads.h"

#include "linear.h"
#include "sparse.h"

static struct {
    int (*evaluate)(const struct model *, const struct point *, const double *, double *, double *);
    int (*hessian)(const struct model *, const struct entries *, int, double *);
    int (*hessian_single)(const struct model *, const struct entries *, int, float *);
    int (*product)(const struct model *, const double *, const double *, const double *, double *);
    int (*product_single)(const struct model *, const float *, const float *, const float *, float *);
    void (*sparse)(const void *, size_t, size_t), (*sparse_single)(const void *, size_t, size_t);
    void (*columns)(const void *, size_t, size_t);
    long bits;
} kernels;

#define CHOOSE(BITS, SPARSE_BITS) \
    kernels.evaluate = evaluate_double_##BITS, kernels.hessian = hessian_double_##BITS, \
    kernels.hessian_single = hessian_float_##BITS, kernels.product = product_double_##BITS, \
    kernels.product_single = product_float_##BITS, kernels.sparse = part_double_##SPARSE_BITS, \
    kernels.sparse_single = part_float_##SPARSE_BITS, kernels.columns = columns_part_double_##BITS, kernels.bits = BITS

/* Take vectors of so many bits, if the processor has them. */
static void choose(long bits)
{
    if (bits == 128)
        CHOOSE(128, 128);
#ifdef __x86_64__
    const int fused = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (bits == 256 && fused)
        CHOOSE(256, 256);
    else if (bits == 512 && fused && __builtin_cpu_supports("avx512f"))
        CHOOSE(512, 256);
#endif
}

#define ANY SIZE_MAX

struct array {
    void *at;
    size_t count;
    char type;
};

/* Take an array of `count` elements of one of these types, '?' for None, or say what is wrong and return 0. */
static int take(PyObject *from, const char *name, const char *types, size_t count, struct array *array)
{
    *array = (struct array){0};
    if (from == Py_None && strchr(types, '?'))
        return 1;
    if (!PyTuple_Check(from) || PyTuple_Size(from) != 3)
        return PyErr_Format(PyExc_TypeError, "'%s' must be (address, number of elements, type)", name), 0;
    array->at = PyLong_AsVoidPtr(PyTuple_GetItem(from, 0));
    array->count = PyLong_AsSize_t(PyTuple_GetItem(from, 1));
    array->type = PyErr_Occurred() ? 0 : (char)PyUnicode_ReadChar(PyTuple_GetItem(from, 2), 0);
    if (PyErr_Occurred())
        return 0;
    if (!strchr("dfqi", array->type) || !strchr(types, array->type) || (!array->at && array->count))
        PyErr_Format(PyExc_ValueError, "'%s' has elements of type '%c', not of '%s'", name, array->type, types);
    else if (count != ANY && array->count != count)
        PyErr_Format(PyExc_ValueError, "'%s' has %zu elements, not %zu", name, array->count, count);
    return !PyErr_Occurred();
}

/* A number of elements; where it is too large, one that no array has. */
static size_t times(size_t a, size_t b)
{
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? ANY - 1 : product;
}

static int agree(int holds, const char *message)
{
    return holds ? 1 : (PyErr_SetString(PyExc_ValueError, message), 0);
}

static int counted(Py_ssize_t count, Py_ssize_t wanted)
{
    if (count != wanted)
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, count);
    return count == wanted;
}

static int take_parts(PyObject *from, size_t *parts)
{
    *parts = PyLong_AsSize_t(from);
    return !PyErr_Occurred() && agree(*parts >= 1 && *parts <= 1024, "the number of threads must be from 1 to 1024");
}

/* Every function of a linear model takes it first, as (x, n, width, stride, center, factor, intercept, weights,
   penalty_outputs, penalty_columns, c, scale, exponential, in_place), then the number of threads. */
static int take_model(PyObject *const *args, struct model *s)
{
    PyObject *of[14];
    struct array x, center, factor, weights, outputs, columns;
    if (!PyTuple_Check(args[0]) || PyTuple_Size(args[0]) != 14)
        return PyErr_Format(PyExc_TypeError, "a model must be a tuple of 14"), 0;
    for (int i = 0; i < 14; i++)
        of[i] = PyTuple_GetItem(args[0], i);
    const size_t n = PyLong_AsSize_t(of[1]), width = PyLong_AsSize_t(of[2]), stride = PyLong_AsSize_t(of[3]);
    const size_t c = PyLong_AsSize_t(of[10]);
    const double scale = PyFloat_AsDouble(of[11]);
    const int by_rows = of[5] != Py_None, intercept = by_rows && PyObject_IsTrue(of[6]), exponential = PyObject_IsTrue(of[12]);
    const int in_place = by_rows && PyObject_IsTrue(of[13]);
    size_t parts, d = width + intercept, rows = by_rows ? n : width, length = by_rows ? width : n;
    if (PyErr_Occurred() || !take_parts(args[1], &parts) || !take(of[0], "x", "d", ANY, &x) ||
        !take(of[4], "center", by_rows ? "d" : "?", width, &center) || !take(of[5], "factor", "d?", width, &factor) ||
        !take(of[7], "weights", "d?", n, &weights) || !take(of[8], "penalty_outputs", "d?", times(c, c), &outputs) ||
        !take(of[9], "penalty_columns", "d?", d, &columns))
        return 0;
    const size_t before = rows ? times(rows - 1, stride) : 0; /* the last row */
    *s = (struct model){.n = n, .d = d, .c = c, .stride = stride, .parts = parts, .by_rows = by_rows,
                        .in_place = in_place, .intercept = intercept, .exponential = exponential, .x = x.at, .center = center.at,
                        .factor = factor.at, .weights = weights.at, .penalty_outputs = outputs.at,
                        .penalty_columns = columns.at, .scale = scale};
    return agree(!rows || (before <= x.count && length <= x.count - before), "'x' has fewer elements than its rows need");
}

static int penalized(const struct model *s)
{
    return agree((s->penalty_outputs && s->penalty_columns) || !times(s->c, s->d), "the penalty is missing");
}

/* Compute without Python's lock; returns what Python gets. */
#define RUN(call, result) \
    int failed; \
    Py_BEGIN_ALLOW_THREADS \
    failed = call; \
    Py_END_ALLOW_THREADS \
    return failed ? PyErr_NoMemory() : result

static PyObject *evaluate(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    struct model s;
    struct array coef, linear, units, gradient, p;
    if (!counted(count, 8) || !take_model(args, &s) || !penalized(&s))
        return NULL;
    const size_t size = times(s.c, s.d), reference = PyObject_IsTrue(args[4]);
    if (!take(args[2], "coef", "d", size, &coef) || !take(args[3], "linear", "d", size, &linear) ||
        !take(args[5], "units", "d", times(3, s.d), &units) || !take(args[6], "gradient", "d", size, &gradient) ||
        !take(args[7], "p", "df?", times(s.c + reference, s.n), &p) ||
        !agree(s.exponential ? s.c == 1 && !reference : s.c + reference > 0, "wrong number of outputs"))
        return NULL;
    double value, norm = 0;
    const struct point at = {coef.at, linear.at, units.at, &norm, p.type == 'd' ? p.at : NULL,
                             p.type == 'f' ? p.at : NULL, (int)reference};
    RUN(kernels.evaluate(&s, &at, NULL, &value, gradient.at), Py_BuildValue("(dd)", value, norm));
}

static PyObject *hessian(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    struct model s;
    struct array p, k, l, out;
    if (!counted(count, 7) || !take_model(args, &s) || !take(args[2], "p", "d", ANY, &p) ||
        !take(args[3], "k", "q", ANY, &k) || !take(args[4], "l", "q", k.count, &l))
        return NULL;
    const int blocks = PyObject_IsTrue(args[5]), places = !blocks || s.penalty_columns;
    const size_t size = times(s.c, s.d), rows = s.n ? p.count / s.n : k.count, of_output = places && s.c < rows ? s.c : rows;
    const struct entries of = {p.at, k.at, l.at, k.count};
    int holds = times(rows, s.n) == p.count && !s.penalty_columns == !s.penalty_outputs && (!s.exponential || of.q <= rows);
    for (size_t e = 0; e < of.q; e++) /* a negative one is a large one */
        holds = holds && (uint64_t)of.k[e] < of_output && (uint64_t)of.l[e] < of_output;
    if (!agree(holds, "'k', 'l' and 'p' do not fit together") ||
        !take(args[6], "out", "df", blocks ? times(of.q, times(s.d, s.d)) : times(size, size), &out))
        return NULL;
    RUN(out.type == 'f' ? kernels.hessian_single(&s, &of, blocks, out.at) : kernels.hessian(&s, &of, blocks, out.at),
        Py_NewRef(Py_None));
}

static PyObject *product(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    struct model s;
    struct array x, p, v, out;
    if (!counted(count, 6) || !take_model(args, &s) || !penalized(&s) || !take(args[4], "v", "df", times(s.c, s.d), &v))
        return NULL;
    const int single = v.type == 'f';
    if (!take(args[2], "x", single ? "f?" : "d?", times(s.d, s.n), &x) ||
        !take(args[3], "p", single ? "f" : "d", ANY, &p) || !take(args[5], "out", single ? "f" : "d", v.count, &out) ||
        !agree(p.count >= times(s.c, s.n), "'p' has too few elements"))
        return NULL;
    RUN(single ? kernels.product_single(&s, x.at, p.at, v.at, out.at) : kernels.product(&s, x.at, p.at, v.at, out.at),
        Py_NewRef(Py_None));
}

static PyObject *adjoint(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    struct model s;
    struct array t, out;
    if (!counted(count, 4) || !take_model(args, &s) || !take(args[2], "t", "d", times(s.c, s.n), &t) ||
        !take(args[3], "out", "d", times(s.c, s.d), &out))
        return NULL;
    double none;
    RUN(kernels.evaluate(&s, NULL, t.at, &none, out.at), Py_NewRef(Py_None));
}

/* x, n, d, stride, codes or None, sums, squares, threads: see struct columns */
static PyObject *column_sums(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    struct array x, codes, sums, squares;
    size_t size[3], parts;
    if (!counted(count, 8))
        return NULL;
    for (int i = 0; i < 3; i++)
        size[i] = PyLong_AsSize_t(args[1 + i]);
    const size_t n = size[0], d = size[1], before = n ? times(n - 1, size[2]) : 0; /* the last row */
    if (PyErr_Occurred() || !take_parts(args[7], &parts) || !take(args[0], "x", "d", ANY, &x) ||
        !take(args[4], "codes", "q?", n, &codes) || !take(args[5], "sums", "d", ANY, &sums) ||
        !take(args[6], "squares", "d", d, &squares) ||
        !agree(!n || (before <= x.count && d <= x.count - before), "'x' has fewer elements than its rows need"))
        return NULL;
    const uint64_t classes = d ? sums.count / d : 0, *of = codes.at;
    int holds = times(classes, d) == sums.count && (classes || !n);
    for (size_t i = 0; of && i < n; i++) /* a negative one is a large one */
        holds &= of[i] < classes;
    if (!agree(holds, "'codes' and 'sums' do not fit together"))
        return NULL;
    const struct columns s = {n, d, size[2], x.at, codes.at, sums.at, squares.at};
    Py_BEGIN_ALLOW_THREADS
    run_team(kernels.columns, &s, parts);
    Py_END_ALLOW_THREADS
    return Py_NewRef(Py_None);
}

/* starts, columns, values, dense, width, out, threads: see struct sparse */
static PyObject *sparse(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    struct array starts, columns, values, dense, out;
    size_t parts, width;
    int wrong = 0;
    if (!counted(count, 7) || !take(args[0], "starts", "q", ANY, &starts) || !take(args[1], "columns", "i", ANY, &columns) ||
        !take(args[2], "values", "df", columns.count, &values) || !take_parts(args[6], &parts))
        return NULL;
    const char *type = values.type == 'f' ? "f" : "d";
    width = PyLong_AsSize_t(args[4]);
    if (PyErr_Occurred() || !agree(starts.count && width && width % UNIT == 0, "no starts, or no whole vectors in a row") ||
        !take(args[3], "dense", type, ANY, &dense) || !take(args[5], "out", type, times(starts.count - 1, width), &out))
        return NULL;
    const struct sparse s = {starts.at, columns.at, values.at, starts.count - 1, width, dense.count / width,
                             dense.at, out.at, &wrong};
    int holds = s.starts[0] >= 0 && (uint64_t)s.starts[s.rows] <= columns.count;
    for (size_t i = 0; i < s.rows; i++)
        holds &= s.starts[i] <= s.starts[i + 1];
    if (!agree(holds, "the starts of the rows must ascend from 0 to the number of values"))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    run_team(values.type == 'f' ? kernels.sparse_single : kernels.sparse, &s, parts);
    Py_END_ALLOW_THREADS
    return agree(!wrong, "a column of the sparse matrix is not a row of the dense one") ? Py_NewRef(Py_None) : NULL;
}

/* Use vectors of so many bits, for tests; returns how many bits are used now. */
static PyObject *use_vectors(PyObject *Py_UNUSED(module), PyObject *bits)
{
    choose(PyLong_AsLong(bits));
    return PyErr_Occurred() ? NULL : PyLong_FromLong(kernels.bits);
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {METHOD(evaluate), METHOD(hessian), METHOD(product), METHOD(adjoint), METHOD(sparse),
                                METHOD(column_sums),
                                {"use_vectors", use_vectors, METH_O, NULL}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "_kernels", .m_size = -1,
                                        .m_methods = methods};

PyMODINIT_FUNC PyInit__kernels(void)
{
    for (long bits = 128; bits <= 512; bits *= 2)
        choose(bits);
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddStringConstant(module, "openmp", find_threads()))
        Py_CLEAR(module);
    return module;
}
