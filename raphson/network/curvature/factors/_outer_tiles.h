/* Sums of outer products for one instruction set and one element type, as _each_instruction_set.h includes it. */

/* A tile has four columns by three vectors, or six by two where vectors are so long that three would pad too much */
#define VECTORS (LANES == 4 ? 3 : 2)
#define PANEL (VECTORS * LANES)
#define BLOCK ((VECTORS == 3 ? 4 : 3) * PANEL) /* columns: sums are made in squares of that many, each by one thread */
#define PANELS (BLOCK / PANEL)
#define DEPTH (CACHE / (PANEL * sizeof(REAL)))

typedef REAL NAME(vec) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

typedef INTEGER NAME(mask) __attribute__((vector_size(LANES * sizeof(REAL))));

/* n rows, of_row apart, into a panel of which they fill `width`; nothing is read behind the last one. */
static void NAME(pack_rows)(const REAL *x, size_t n, ptrdiff_t of_row, size_t width, REAL *to)
{
    NAME(mask) keep[VECTORS] = {{0}};
    for (int v = 0; v < VECTORS; v++)
        for (int lane = 0; lane < LANES; lane++)
            keep[v][lane] = (size_t)(v * LANES + lane) < width ? -1 : 0;
    /* behind the last number of a row come the rows that follow */
    const size_t over = PANEL - width, last = over == 0 ? 0 : of_row <= 0 ? n : least(n, (over + of_row - 1) / of_row);
    size_t k = 0;
    for (; k < n - last; k++)
        for (int v = 0; v < VECTORS; v++) {
            const NAME(vec) all = *(const NAME(vec) *)(x + (ptrdiff_t)k * of_row + v * LANES);
            *(NAME(vec) *)(to + k * PANEL + v * LANES) = (NAME(vec))((NAME(mask))all & keep[v]);
        }
    for (; k < n; k++)
        for (size_t j = 0; j < PANEL; j++)
            to[k * PANEL + j] = j < width ? x[(ptrdiff_t)k * of_row + (ptrdiff_t)j] : 0;
}

/* Some rows, into panels (count, PANEL) that are `apart` numbers apart, zeros behind the last column. */
static void NAME(pack)(const struct outer *s, size_t first, size_t count, REAL *packed, size_t apart)
{
    for (size_t from = 0; from < count;) {
        /* up to the end of the positions of one b: steps of the same length */
        const size_t b = (first + from) / s->length, l = (first + from) % s->length;
        const size_t here = least(least(s->length - l, count - from), DEPTH);
        const REAL *x = (const REAL *)s->x + (ptrdiff_t)b * s->of_b + (ptrdiff_t)l * s->of_length;
        for (size_t start = 0; start < s->d; start += PANEL) {
            const size_t width = least(PANEL, s->d - start);
            REAL *to = packed + start / PANEL * apart + from * PANEL;
            const REAL *at = x + (ptrdiff_t)start * s->of_d;
            if (s->of_d == 1)
                NAME(pack_rows)(at, here, s->of_length, width, to);
            else {
                if (width < PANEL)
                    memset(to, 0, here * PANEL * sizeof(REAL));
                for (size_t j = 0; j < width; j++)
                    for (size_t k = 0; k < here; k++)
                        to[k * PANEL + j] = at[(ptrdiff_t)j * s->of_d + (ptrdiff_t)k * s->of_length];
            }
        }
        from += here;
    }
}

/* A part of the rows into the panels of all. */
static void NAME(pack_part)(const void *data, size_t part, size_t parts)
{
    const struct outer *s = data;
    const size_t first = s->rows * part / parts, last = s->rows * (part + 1) / parts;
    NAME(pack)(s, s->from + first, last - first, (REAL *)s->packed + first * PANEL, s->rows * PANEL);
}

/* Some columns by one panel of sums of products over n rows, which the registers of AVX2 hold. */
static inline __attribute__((always_inline)) void NAME(tile)(const REAL *a, const REAL *b, size_t n, REAL *sums,
                                                             size_t stride, int add, int count)
{
    NAME(vec) acc[6][VECTORS] = {{{0}}};
    for (size_t k = 0; k < n; k++) {
        NAME(vec) right[VECTORS];
#pragma GCC unroll 3
        for (int j = 0; j < VECTORS; j++)
            right[j] = *(const NAME(vec) *)(b + k * PANEL + j * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < count; i++) {
            const REAL left = a[k * PANEL + i];
#pragma GCC unroll 3
            for (int j = 0; j < VECTORS; j++)
                acc[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < count; i++)
#pragma GCC unroll 3
        for (int j = 0; j < VECTORS; j++) {
            NAME(vec) *to = (NAME(vec) *)(sums + i * stride + j * LANES);
            if (add)
                acc[i][j] += *to;
            *to = acc[i][j];
        }
}

/* The columns of one panel, up to `columns` of them, by another panel. */
static void NAME(panels)(const REAL *a, const REAL *b, size_t n, REAL *sums, size_t stride, int add, size_t columns)
{
    for (size_t i = 0; i < columns;) {
        const size_t left = PANEL - i; /* what sixes and fours add up to */
        if (VECTORS == 2 && (left == 6 || left > 9)) {
            NAME(tile)(a + i, b, n, sums + i * stride, stride, add, 6);
            i += 6;
        } else {
            NAME(tile)(a + i, b, n, sums + i * stride, stride, add, 4);
            i += 4;
        }
    }
}

/* A square of the sums and the one across it, added up from `shares` of them; sums begins with the square's. */
static void NAME(write)(const struct outer *s, size_t above, size_t left, REAL *sums, size_t stride, size_t shares,
                        size_t apart)
{
    const size_t rows = least(BLOCK, s->d - above * BLOCK), columns = least(BLOCK, s->d - left * BLOCK);
    REAL *upper = (REAL *)s->out + (ptrdiff_t)(above * BLOCK) * s->of_row + left * BLOCK;
    REAL *lower = (REAL *)s->out + (ptrdiff_t)(left * BLOCK) * s->of_row + above * BLOCK;
    for (size_t i = 0; i < rows; i++) {
        REAL *sum = sums + i * stride, *to = upper + (ptrdiff_t)i * s->of_row;
        const size_t first = left == above ? i : 0;
        for (size_t share = 1; share < shares; share++)
            for (size_t j = first; j < columns; j++)
                sum[j] += sum[share * apart + j];
        for (size_t j = first; j < columns; j++)
            sum[j] = to[j] = s->add ? to[j] + sum[j] : sum[j];
    }
    for (size_t j = 0; j < columns; j++)
        for (size_t i = 0; i < (left == above ? j : rows); i++)
            lower[(ptrdiff_t)j * s->of_row + (ptrdiff_t)i] = sums[i * stride + j];
}

/* Which square a part is: row by row, one fewer in each. */
static inline size_t NAME(left_of)(const struct outer *s, size_t part, size_t *above)
{
    const size_t squares = (s->d + BLOCK - 1) / BLOCK;
    for (*above = 0; part >= squares - *above; ++*above)
        part -= squares - *above;
    return part + *above;
}

/* One square of the sums on or above the diagonal. */
static void NAME(square)(const void *data, size_t part, size_t Py_UNUSED(parts))
{
    const struct outer *s = data;
    const size_t panels = (s->d + PANEL - 1) / PANEL;
    size_t above;
    const size_t left = NAME(left_of)(s, part, &above);
    REAL sums[BLOCK * BLOCK] __attribute__((aligned(64)));
    for (size_t from = 0; from < s->rows; from += DEPTH) {
        const size_t depth = least(s->rows - from, DEPTH);
        for (size_t j = left * PANELS; j < least((left + 1) * PANELS, panels); j++)
            for (size_t i = above * PANELS; i < least((above + 1) * PANELS, j + 1); i++) {
                const REAL *a = (REAL *)s->packed + (i * s->rows + from) * PANEL;
                const REAL *b = (REAL *)s->packed + (j * s->rows + from) * PANEL;
                REAL *to = sums + (i - above * PANELS) * PANEL * BLOCK + (j - left * PANELS) * PANEL;
                NAME(panels)(a, b, depth, to, BLOCK, from > 0, least(PANEL, s->d - i * PANEL));
            }
    }
    NAME(write)(s, above, left, sums, BLOCK, 1, 0);
}

/* Many columns: all rows are packed, then the squares are shared out. */
static int NAME(sum_squares)(struct outer *s, size_t threads)
{
    const size_t n = s->b * s->length, panels = (s->d + PANEL - 1) / PANEL, squares = (s->d + BLOCK - 1) / BLOCK;
    const size_t most = least(n, PACKED / (panels * PANEL) + DEPTH);
    void *block = malloc(most * panels * PANEL * sizeof(REAL) + 64);
    if (!block)
        return -1;
    s->packed = aligned(block);
    for (s->from = 0; s->from < n; s->from += s->rows) {
        s->rows = least(most, n - s->from);
        run_team(NAME(pack_part), s, threads, threads);
        run_team(NAME(square), s, squares * (squares + 1) / 2, threads);
        s->add = 1;
    }
    free(block);
    return 0;
}

/* A part of the rows, a few at a time into sums of its own, which come after them in memory. */
static void NAME(strip)(const void *data, size_t part, size_t parts)
{
    const struct outer *s = data;
    const size_t n = s->b * s->length, last = n * (part + 1) / parts, panels = (s->d + PANEL - 1) / PANEL;
    const size_t width = panels * PANEL, share = (DEPTH + width) * width;
    REAL *packed = (REAL *)s->packed + part * share, *sums = packed + DEPTH * width;
    for (size_t from = n * part / parts; from < last; from += DEPTH) {
        const size_t count = least(DEPTH, last - from);
        NAME(pack)(s, from, count, packed, DEPTH * PANEL);
        for (size_t j = 0; j < panels; j++)
            for (size_t i = 0; i <= j; i++)
                NAME(panels)(packed + i * DEPTH * PANEL, packed + j * DEPTH * PANEL, count,
                             sums + i * PANEL * width + j * PANEL, width, 1, least(PANEL, s->d - i * PANEL));
    }
}

/* One square of the sums of all strips. */
static void NAME(strip_square)(const void *data, size_t part, size_t Py_UNUSED(parts))
{
    const struct outer *s = data;
    const size_t panels = (s->d + PANEL - 1) / PANEL, width = panels * PANEL, share = (DEPTH + width) * width;
    size_t above;
    const size_t left = NAME(left_of)(s, part, &above);
    REAL *sums = (REAL *)s->packed + DEPTH * width + above * BLOCK * width + left * BLOCK;
    NAME(write)(s, above, left, sums, width, s->rows, share);
}

/* Few columns: the rows are shared out. */
static int NAME(sum_strips)(struct outer *s, size_t threads)
{
    const size_t panels = (s->d + PANEL - 1) / PANEL, width = panels * PANEL, share = (DEPTH + width) * width;
    const size_t squares = (s->d + BLOCK - 1) / BLOCK;
    void *block = calloc(threads * share + 64, sizeof(REAL));
    if (!block)
        return -1;
    s->packed = aligned(block);
    s->rows = threads; /* the strips */
    run_team(NAME(strip), s, threads, threads);
    run_team(NAME(strip_square), s, squares * (squares + 1) / 2, s->d <= BLOCK ? 1 : threads);
    free(block);
    return 0;
}

static int NAME(sum)(const struct outer *given, size_t threads)
{
    struct outer s = *given;
    threads = least(threads, 1 + s.b * s.length * s.d * s.d / 2 / PART);
    return s.d <= FEW ? NAME(sum_strips)(&s, threads) : NAME(sum_squares)(&s, threads);
}

#undef VECTORS
#undef BLOCK
#undef PANEL
#undef PANELS
#undef DEPTH
