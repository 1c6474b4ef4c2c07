/* Products of a sparse matrix by rows (CSR) with a dense one. A row of the result is a sum of rows of the dense matrix, which
   stays in registers; the rows that come next are fetched ahead, because they lie anywhere in memory. */

#define AHEAD 12 /* nonzeros */
#define VECTORS 4 /* of a row of the dense matrix, that are summed in one go through a sparse row */
#define UNIT 8 /* rows of the dense matrices are a multiple of this many numbers, whole vectors of up to 256 bits */

struct sparse {
    const int64_t *starts;  /* (rows + 1,) */
    const int32_t *columns; /* each checked, by the part that it is in, to be one of `height` */
    const void *values;
    size_t rows, width, height; /* `width` numbers in a row of both dense matrices; `height` rows of the one that is read */
    const void *dense;
    void *out;
    int *wrong; /* becomes 1 where a column is not */
};

/* Where a part of the rows begins: each part has about as many nonzeros. */
static size_t first_row(const struct sparse *s, size_t part, size_t parts)
{
    const int64_t nonzeros = s->starts[s->rows] - s->starts[0];
    const int64_t wanted = s->starts[0] + (int64_t)((double)nonzeros * (double)part / (double)parts);
    size_t low = part == parts ? s->rows : 0, high = s->rows;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (s->starts[middle] < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

#define TEMPLATE "sparse_rows.h"
#define WITHOUT_512
#include "instructions.h"
