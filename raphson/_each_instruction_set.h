/* Includes the code in the file TEMPLATE, relative to this folder, for both element types and each instruction set. It sees
   NAME(x), a suffix; REAL, the element type; INTEGER, one as wide; and LANES, the number of them in a vector, of which it
   takes back NAME and LANES. */

#define REAL float
#define INTEGER int32_t
#define NAME(x) x##_float_128
#define LANES 4
#include TEMPLATE
#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(x) x##_float_256
#define LANES 8
#include TEMPLATE
#pragma GCC target("avx512f")
#define NAME(x) x##_float_512
#define LANES 16
#include TEMPLATE
#pragma GCC pop_options
#endif
#undef REAL
#undef INTEGER
#define REAL double
#define INTEGER int64_t
#define NAME(x) x##_double_128
#define LANES 4 /* two registers each */
#include TEMPLATE
#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(x) x##_double_256
#define LANES 4
#include TEMPLATE
#pragma GCC target("avx512f")
#define NAME(x) x##_double_512
#define LANES 8
#include TEMPLATE
#pragma GCC pop_options
#endif
#undef REAL
#undef INTEGER
#undef TEMPLATE
