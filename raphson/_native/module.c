/* The compiled module: what Python hands over is checked here, whoever calls, before anything is read or written. An array
   comes as (address, number of elements, type), its elements one after another; the type is a letter of Python's `struct`. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "threads.h"

#include "kernels.h"

static const struct kernels *in_double, *in_single;
static long vector_bits;

#define CHOOSE(bits) in_double = &kernels_double_##bits, in_single = &kernels_float_##bits, vector_bits = bits

/* Take vectors of so many bits, if the processor has them. */
static void choose(long bits)
{
    if (bits == 128)
        CHOOSE(128);
#ifdef __x86_64__
    const int fused = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (bits == 256 && fused)
        CHOOSE(256);
    else if (bits == 512 && fused && __builtin_cpu_supports("avx512f"))
        CHOOSE(512);
#endif
}

/* A tuple of so many arguments, taken one after another. The first that is wrong becomes Python's exception; what is taken
   then is nothing, so that one look at the end is enough, before anything that the arguments lead to is read. */
struct arguments {
    PyObject *tuple;
    Py_ssize_t count, taken;
};

static PyObject *take(struct arguments *from)
{
    if (PyErr_Occurred())
        return NULL;
    if (!from->taken && (!PyTuple_Check(from->tuple) || PyTuple_Size(from->tuple) != from->count))
        return PyErr_Format(PyExc_TypeError, "expected a tuple of %zd arguments", from->count);
    return PyTuple_GetItem(from->tuple, from->taken++);
}

static int agree(int holds, const char *message)
{
    if (!holds && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, message);
    return holds;
}

static size_t take_size(struct arguments *from)
{
    PyObject *size = take(from);
    return size ? PyLong_AsSize_t(size) : 0;
}

static size_t take_threads(struct arguments *from)
{
    const size_t threads = take_size(from);
    return agree(threads >= 1 && threads <= 1024, "the number of threads must be from 1 to 1024") ? threads : 1;
}

#define ANY SIZE_MAX
#define SHORTEST 32 /* columns from which any vectors read rows in place */
#define NOT_SPARSE "a sparse matrix has rows that do not ascend among its values, or columns that are not there"

/* A number of elements; where it is too large, one that no array has. */
static size_t times(size_t a, size_t b)
{
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? ANY - 1 : product;
}

struct array {
    void *at;
    size_t count;
    char type;
};

/* Take an array of `count` elements of one of these types, '?' for None. */
static struct array take_array(struct arguments *from, const char *name, const char *types, size_t count)
{
    struct arguments parts = {take(from), 3, 0};
    struct array array = {0};
    if (!parts.tuple || (parts.tuple == Py_None && strchr(types, '?')))
        return array;
    array.at = (void *)(uintptr_t)take_size(&parts);
    array.count = take_size(&parts);
    PyObject *type = take(&parts);
    array.type = type ? (char)PyUnicode_ReadChar(type, 0) : 0;
    if (PyErr_Occurred())
        return (struct array){0};
    if (!strchr("dfqi", array.type) || !strchr(types, array.type) || (!array.at && array.count))
        PyErr_Format(PyExc_ValueError, "'%s' has elements of type '%c', not of '%s'", name, array.type, types);
    else if (count != ANY && array.count != count)
        PyErr_Format(PyExc_ValueError, "'%s' has %zu elements, not %zu", name, array.count, count);
    return PyErr_Occurred() ? (struct array){0} : array;
}

/* Take starts, columns and values of a sparse matrix of any number of rows; without starts, values of a dense one. */
static struct array take_matrix(struct arguments *from, const char *types, struct sparse *s)
{
    const struct array starts = take_array(from, "starts", "q?", ANY);
    const struct array columns = take_array(from, "columns", starts.at ? "i" : "?", ANY);
    const struct array values = take_array(from, "values", types, starts.at ? columns.count : ANY);
    s->starts = starts.at, s->rows = starts.count ? starts.count - 1 : 0;
    s->columns = columns.at, s->values = values.at, s->count = values.count;
    return values;
}

/* Every function of a linear model takes it first, as LinearModel.arguments has it, then the number of threads. */
static struct model take_model(struct arguments *args)
{
    struct arguments from = {take(args), 16, 0};
    struct model s = {0};
    if (!from.tuple)
        return s;
    const size_t width = (s.n = take_size(&from), take_size(&from));
    s.stride = take_size(&from);
    s.factor = take_array(&from, "factor", "d?", width).at;
    s.center = take_array(&from, "center", s.factor ? "d" : "?", width).at;
    const struct array x = take_matrix(&from, "df", &s.table); /* `stride` apart, in memory of any size that holds its rows */
    const size_t rows = s.factor ? s.n : width, columns = s.factor ? width : s.n;
    const size_t before = rows ? times(rows - 1, s.stride) : 0; /* the last row */
    const int dense = !rows || (before <= x.count && columns <= x.count - before);
    agree(s.table.starts ? s.n && s.factor && s.table.rows == s.n : dense, "a table has fewer elements than its rows need");
    s.x = x.at, s.table.width = width;
    s.intercept = take_size(&from) && s.factor;
    s.in_place = take_size(&from) && s.factor;
    s.single = x.type == 'f';
    agree(!s.single || (s.in_place && !s.table.starts && width >= SHORTEST), "no table that is read in single precision");
    s.d = width + s.intercept;
    s.weights = take_array(&from, "weights", "d?", s.n).at;
    s.c = take_size(&from);
    s.penalty_outputs = take_array(&from, "penalty_outputs", "d?", 2).at;
    s.penalty_columns = take_array(&from, "penalty_columns", "d?", s.d).at;
    s.exponential = take_size(&from);
    PyObject *scale = take(&from);
    s.scale = scale ? PyFloat_AsDouble(scale) : 0;
    agree(!s.penalty_outputs == !s.penalty_columns || !times(s.c, s.d), "the penalty is missing");
    s.parts = take_threads(args);
    return s;
}

/* Take where the standardized rows of a table in double precision go that is read in place, or nothing. */
static float *take_copy(struct arguments *args, const struct model *s)
{
    const size_t width = s->d - s->intercept;
    const int can = s->in_place && !s->single && !s->table.starts && width >= SHORTEST;
    return take_array(args, "copy", can ? "f?" : "?", times(s->n, width)).at;
}

/* An evaluation, a product or sums of given numbers: see struct pass for what there is of each. */
static PyObject *sums(PyObject *Py_UNUSED(module), PyObject *tuple)
{
    struct arguments args = {tuple, 11, 0};
    struct model s = take_model(&args);
    const size_t size = times(s.c, s.d);
    int wrong = 0;
    s.table.wrong = &wrong;
    double value = 0, norm = 0;
    struct pass at = {.value = &value, .norm = &norm};
    const struct array out = take_array(&args, "out", "df", size);
    const int single = out.type == 'f';
    const char *type = single ? "f?" : "d?";
    at.out = out.at, at.coef = take_array(&args, "coef", type, size).at;
    const struct array p = take_array(&args, "p", type, ANY);
    at.p = p.at, at.columns = take_array(&args, "columns", type, times(s.d, s.n)).at;
    at.linear = take_array(&args, "linear", "d?", size).at;
    at.units = take_array(&args, "units", at.linear ? "d" : "?", times(3, s.d)).at;
    at.reference = take_size(&args) && at.linear;
    const size_t outputs = s.c + at.reference;
    const struct array kept = take_array(&args, "kept", at.linear ? "df?" : "?", times(outputs, s.n));
    at.kept = kept.type == 'd' ? kept.at : NULL, at.kept_single = kept.type == 'f' ? kept.at : NULL;
    at.copy = take_copy(&args, &s);
    agree(!at.linear || (s.exponential ? outputs == 1 : outputs > 0), "wrong number of outputs");
    agree(size && (!at.linear || (at.coef && !p.at && !at.columns)), "neither an evaluation nor a product nor sums");
    agree(!at.coef || s.penalty_outputs, "the penalty is missing");
    agree(!s.table.starts || (!at.columns && !single), "a sparse table is read in double precision");
    agree(s.single == (single && at.linear), "evaluations in single precision are of a table that is, and it is for these");
    agree(at.linear || p.count >= times(s.c, s.n), "'p' has too few elements");
    if (PyErr_Occurred())
        return NULL;
    if ((single ? in_single : in_double)->pass(&s, &at))
        return PyErr_NoMemory();
    return agree(!wrong, NOT_SPARSE) ? Py_BuildValue("(dd)", value, norm) : NULL;
}

static PyObject *hessian(PyObject *Py_UNUSED(module), PyObject *tuple)
{
    struct arguments args = {tuple, 5, 0};
    const struct model s = take_model(&args);
    const struct array p = take_array(&args, "p", "d", ANY);
    const size_t size = times(s.c, s.d), own = take_size(&args), rows = s.n ? p.count / s.n : s.c;
    const struct entries of = {p.at, !own ? times(s.c, s.c + 1) / 2 : s.exponential ? rows : s.c, own != 0};
    const struct array out = take_array(&args, "out", "df", own ? times(of.q, times(s.d, s.d)) : times(size, size));
    const int known = s.exponential ? of.q <= rows && (of.q <= s.c || (own && !s.penalty_outputs)) : s.c <= rows;
    agree(!s.table.starts && !s.single, "sparse tables and those in single precision have no dense Hessian");
    agree(known && times(rows, s.n) == p.count, "'p' has too few elements, or too many");
    if (PyErr_Occurred())
        return NULL;
    return (out.type == 'f' ? in_single : in_double)->hessian(&s, &of, out.at) ? PyErr_NoMemory() : Py_NewRef(Py_None);
}

/* starts, columns, values, width, dense, out, threads: see struct product */
static PyObject *sparse(PyObject *Py_UNUSED(module), PyObject *tuple)
{
    struct arguments args = {tuple, 7, 0};
    struct product of = {0};
    int wrong = 0;
    of.sparse.wrong = &wrong;
    const char type[] = {take_matrix(&args, "df", &of.sparse).type, 0};
    of.apart = take_size(&args);
    const struct array dense = take_array(&args, "dense", type, ANY);
    const struct array out = take_array(&args, "out", type, times(of.sparse.rows, of.apart));
    const size_t threads = take_threads(&args);
    agree(of.sparse.starts && of.apart && of.apart % UNIT == 0, "no starts, or no whole vectors in a row");
    if (PyErr_Occurred())
        return NULL;
    of.dense = dense.at, of.out = out.at, of.sparse.width = dense.count / of.apart;
    run_team((*type == 'f' ? in_single : in_double)->product, &of, threads > 1 ? 16 * threads : 1, threads);
    return agree(!wrong, NOT_SPARSE) ? Py_NewRef(Py_None) : NULL;
}

/* Take what stays from step to step, as Pairs.arguments has it; returns the type of its vectors. */
static char take_pairs(struct arguments *args, struct pairs *of)
{
    struct arguments from = {take(args), 6, 0};
    const size_t m = of->memory = from.tuple ? take_size(&from) : 0;
    of->parts = from.tuple ? take_threads(&from) : 1;
    of->scaled = take_size(&from) != 0;
    PyObject *curved = take(&from);
    of->curved = curved ? PyFloat_AsDouble(curved) : 0;
    double *at = take_array(&from, "numbers", "d", times(m, 2 * m + 6) + 2 + times(of->parts, 2 * m + 2)).at;
    const struct array rows = take_array(&from, "rows", "df", ANY);
    of->rows = rows.at, of->p = m ? rows.count / m / 2 : 0;
    if (!agree(m >= 1 && m <= 1024 && rows.count == 2 * m * of->p, "there are not two rows for every pair") || !at)
        return 0;
    of->seen = at, of->root = at += 2 * m, of->changes = at += m * m, of->own = at += m * m, of->scale = at += m;
    of->taken = at + 1, of->room = at + 2, of->sums = of->room + 3 * m;
    agree(*of->taken >= 0 && *of->taken < 0x1p52, "no number of pairs");
    return rows.type;
}

/* pairs, step, gradient, before, solved, solved_before, out: see struct pairs */
static PyObject *pairs(PyObject *Py_UNUSED(module), PyObject *tuple)
{
    struct arguments args = {tuple, 7, 0};
    struct pairs of = {0};
    const char type[] = {take_pairs(&args, &of), 0};
    of.step = take_array(&args, "step", type, of.p).at;
    of.gradient = take_array(&args, "gradient", type, of.p).at, of.before = take_array(&args, "before", type, of.p).at;
    of.solved = take_array(&args, "solved", type, of.p).at;
    of.solved_before = take_array(&args, "solved_before", type, of.p).at;
    of.out = take_array(&args, "out", type, of.p).at;
    if (PyErr_Occurred())
        return NULL;
    (*type == 'f' ? in_single : in_double)->pairs(&of);
    return Py_NewRef(Py_None);
}

/* model, threads, pairs, linear, units, reference, diagonal, means, room, theta, gradient, before, reached, reached_gradient, turns,
   copy, path, value, lowest, length, growth, tol, rounding: see struct descent; returns steps taken, trials and length of the last one */
static PyObject *descend(PyObject *Py_UNUSED(module), PyObject *tuple)
{
    struct arguments args = {tuple, 23, 0};
    struct descent of = {.model = take_model(&args)};
    struct model *s = &of.model;
    struct pairs *pairs = &of.pairs;
    const int type = take_pairs(&args, pairs);
    const size_t p = pairs->p;
    int wrong = 0;
    double value = 0, norm = 0;
    s->table.wrong = &wrong;
    of.at.linear = take_array(&args, "linear", "d", p).at, of.at.units = take_array(&args, "units", "d", times(3, s->d)).at;
    of.at.reference = take_size(&args) != 0;
    of.diagonal = take_array(&args, "diagonal", "d", p).at, of.means = take_array(&args, "means", "d?", s->d).at;
    double *room = take_array(&args, "room", "d", times(5, p)).at;
    of.theta = take_array(&args, "theta", "d", p).at;
    pairs->gradient = take_array(&args, "gradient", "d", p).at, pairs->before = take_array(&args, "before", "d?", p).at;
    of.reached = take_array(&args, "reached", "d", p).at, of.at.out = take_array(&args, "reached_gradient", "d", p).at;
    of.turns = take_array(&args, "turns", "d?", times(6, padded(p, UNIT))).at;
    of.at.copy = take_copy(&args, s);
    const struct array path = take_array(&args, "path", "d", ANY);
    of.path = path.at, of.most = path.count / 3;
    PyObject *numbers[6];
    double given[6];
    for (int i = 0; i < 6; i++)
        numbers[i] = take(&args), given[i] = numbers[i] ? PyFloat_AsDouble(numbers[i]) : 0;
    agree(type == 'd' && p && times(s->c, s->d) == p, "the pairs are not those of the model's coefficients");
    agree(s->exponential ? s->c + of.at.reference == 1 : s->c + of.at.reference > 0, "wrong number of outputs");
    agree(s->penalty_outputs != NULL, "the penalty is missing");
    agree(of.most && path.count % 3 == 0, "the path has not three numbers for every step");
    agree(of.most == 1 || of.turns, "several steps need room for their turns");
    if (PyErr_Occurred())
        return NULL;
    of.at.value = &value, of.at.norm = &norm;
    of.step = room, of.solved = room + p, of.fresh = room + 2 * p;
    pairs->step = of.step, pairs->solved_before = of.solved, pairs->solved = of.fresh, pairs->out = room + 4 * p;
    value = given[0], of.lowest = given[1], of.length = given[2], of.growth = given[3], of.tol = given[4], of.rounding = given[5];
    if (in_double->descend(&of))
        return PyErr_NoMemory();
    return agree(!wrong, NOT_SPARSE) ? Py_BuildValue("(nid)", (Py_ssize_t)of.taken, of.trials, of.length) : NULL;
}

/* n, d, stride, x, codes, order, k, sums, squares, threads: see struct moments */
static PyObject *moments(PyObject *Py_UNUSED(module), PyObject *tuple)
{
    struct arguments args = {tuple, 10, 0};
    struct moments of = {0};
    of.n = take_size(&args), of.d = take_size(&args), of.stride = take_size(&args);
    const struct array x = take_array(&args, "x", "d", ANY);
    of.x = x.at, of.codes = take_array(&args, "codes", "q?", of.n).at, of.order = take_array(&args, "order", "q?", of.n).at;
    const size_t classes = take_size(&args);
    of.sums = take_array(&args, "sums", "d", times(classes, of.d)).at;
    of.squares = take_array(&args, "squares", "d", of.d).at;
    const size_t threads = take_threads(&args), before = of.n ? times(of.n - 1, of.stride) : 0; /* the last row */
    agree(classes && (!of.n || (before <= x.count && of.d <= x.count - before)), "a table has fewer elements than its rows need");
    if (PyErr_Occurred())
        return NULL;
    int wrong = 0;
    for (size_t t = 0; t < of.n; t++)
        wrong |= (of.codes && (uint64_t)of.codes[t] >= classes) || (of.order && (uint64_t)of.order[t] >= of.n);
    if (!agree(!wrong, "a row or its class is not there"))
        return NULL;
    run_team(in_double->moments, &of, threads, threads);
    return Py_NewRef(Py_None);
}

/* Use vectors of so many bits, for tests; returns how many bits are used now. */
static PyObject *use_vectors(PyObject *Py_UNUSED(module), PyObject *bits)
{
    choose(PyLong_AsLong(bits));
    return PyErr_Occurred() ? NULL : PyLong_FromLong(vector_bits);
}

#define METHOD(name, how) {#name, name, how, NULL}
static PyMethodDef methods[] = {METHOD(sums, METH_VARARGS), METHOD(hessian, METH_VARARGS), METHOD(sparse, METH_VARARGS),
                                METHOD(moments, METH_VARARGS), METHOD(pairs, METH_VARARGS), METHOD(descend, METH_VARARGS),
                                METHOD(use_vectors, METH_O), {NULL, NULL, 0, NULL}};

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
