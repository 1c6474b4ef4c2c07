/* Sums of outer products for one instruction set and one element type. The includer sets NAME(x), a suffix; REAL, the
   element type; LANES, the number of them in a vector; NAME and LANES are taken back at the end. */

#define PANEL (3 * LANES)
#define PANELS (BLOCK / PANEL)
#define DEPTH (CACHE / (PANEL * sizeof(REAL)))

typedef REAL NAME(vec) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* One part of the rows, into panels (rows, PANEL) one after the other, zeros behind the last column. */
static void NAME(pack)(const void *data, size_t part, size_t parts)
{
    const struct outer *s = data;
    const size_t first = s->rows * part / parts, last = s->rows * (part + 1) / parts;
    for (size_t from = first; from < last;) {
        /* up to the end of the positions of one b: steps of the same length */
        const size_t row = s->from + from, b = row / s->length, l = row % s->length;
        const size_t count = least(least(s->length - l, last - from), DEPTH);
        const REAL *x = (const REAL *)s->x + (ptrdiff_t)b * s->of_b + (ptrdiff_t)l * s->of_length;
        for (size_t start = 0; start < s->d; start += PANEL) {
            const size_t width = least(PANEL, s->d - start);
            REAL *to = (REAL *)s->packed + start * s->rows + from * PANEL;
            const REAL *at = x + (ptrdiff_t)start * s->of_d;
            if (width < PANEL)
                memset(to, 0, count * PANEL * sizeof(REAL));
            if (s->of_d == 1 && width == PANEL)
                for (size_t k = 0; k < count; k++)
                    memcpy(to + k * PANEL, at + (ptrdiff_t)k * s->of_length, PANEL * sizeof(REAL));
            else if (s->of_d == 1)
                for (size_t k = 0; k < count; k++)
                    memcpy(to + k * PANEL, at + (ptrdiff_t)k * s->of_length, width * sizeof(REAL));
            else
                for (size_t j = 0; j < width; j++)
                    for (size_t k = 0; k < count; k++)
                        to[k * PANEL + j] = at[(ptrdiff_t)j * s->of_d + (ptrdiff_t)k * s->of_length];
        }
        from += count;
    }
}

/* Four by one panel of sums of products over n rows, which the registers of AVX2 hold. */
static void NAME(tile)(const REAL *a, const REAL *b, size_t n, REAL *sums, int add)
{
    NAME(vec) acc[4][3] = {{{0}}};
    for (size_t k = 0; k < n; k++) {
        NAME(vec) right[3];
#pragma GCC unroll 3
        for (int j = 0; j < 3; j++)
            right[j] = *(const NAME(vec) *)(b + k * PANEL + j * LANES);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const REAL left = a[k * PANEL + i];
#pragma GCC unroll 3
            for (int j = 0; j < 3; j++)
                acc[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 3; j++) {
            NAME(vec) *to = (NAME(vec) *)(sums + i * BLOCK + j * LANES);
            if (add)
                acc[i][j] += *to;
            *to = acc[i][j];
        }
}

/* One square of the sums, on or above the diagonal, and the one across it. */
static void NAME(square)(const void *data, size_t part, size_t Py_UNUSED(parts))
{
    const struct outer *s = data;
    const size_t panels = (s->d + PANEL - 1) / PANEL, squares = (s->d + BLOCK - 1) / BLOCK;
    size_t above = 0, left = part; /* row by row: one fewer in each */
    while (left >= squares - above)
        left -= squares - above++;
    left += above;
    REAL sums[BLOCK * BLOCK] __attribute__((aligned(64)));
    for (size_t from = 0; from < s->rows; from += DEPTH) {
        const size_t depth = least(s->rows - from, DEPTH);
        for (size_t j = left * PANELS; j < least((left + 1) * PANELS, panels); j++)
            for (size_t i = above * PANELS; i < least((above + 1) * PANELS, j + 1); i++) {
                const REAL *a = (REAL *)s->packed + (i * s->rows + from) * PANEL;
                const REAL *b = (REAL *)s->packed + (j * s->rows + from) * PANEL;
                REAL *to = sums + (i - above * PANELS) * PANEL * BLOCK + (j - left * PANELS) * PANEL;
                for (size_t r = 0; r < PANEL; r += 4)
                    NAME(tile)(a + r, b, depth, to + r * BLOCK, from > 0);
            }
    }
    const size_t rows = least(BLOCK, s->d - above * BLOCK), columns = least(BLOCK, s->d - left * BLOCK);
    REAL *upper = (REAL *)s->out + (ptrdiff_t)(above * BLOCK) * s->of_row + left * BLOCK;
    REAL *lower = (REAL *)s->out + (ptrdiff_t)(left * BLOCK) * s->of_row + above * BLOCK;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = left == above ? i : 0; j < columns; j++) {
            REAL *to = upper + (ptrdiff_t)i * s->of_row + j;
            *to = s->add ? *to + sums[i * BLOCK + j] : sums[i * BLOCK + j];
        }
    for (size_t j = 0; j < columns; j++)
        for (size_t i = 0; i < (left == above ? j : rows); i++) {
            REAL *to = lower + (ptrdiff_t)j * s->of_row + i;
            *to = s->add ? *to + sums[i * BLOCK + j] : sums[i * BLOCK + j];
        }
}

static int NAME(sum)(struct outer *s, size_t threads)
{
    const size_t n = s->b * s->length, panels = (s->d + PANEL - 1) / PANEL, squares = (s->d + BLOCK - 1) / BLOCK;
    const size_t most = least(n, PACKED / (panels * PANEL) + DEPTH), add = (size_t)s->add;
    void *block = malloc(most * panels * PANEL * sizeof(REAL) + 64);
    if (!block)
        return -1;
    s->packed = (void *)(((uintptr_t)block + 63) / 64 * 64);
    for (s->from = 0; s->from < n; s->from += s->rows) {
        s->rows = least(most, n - s->from);
        const size_t worth = 1 + s->rows * s->d * s->d / 2 / PART;
        run_team(NAME(pack), s, threads, least(threads, worth));
        run_team(NAME(square), s, squares * (squares + 1) / 2, least(threads, worth));
        s->add = 1;
    }
    s->add = (int)add;
    free(block);
    return 0;
}

#undef PANEL
#undef PANELS
#undef DEPTH
#undef NAME
#undef LANES
