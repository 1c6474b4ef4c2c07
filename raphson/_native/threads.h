/* PyTorch's own threads, by the interface that GCC compiles OpenMP to: a second pool would fight with them for the cores,
   because both spin while they wait. The function is looked up while the program runs, so it does not matter which compiler
   made this module: PyTorch's Linux packages bring GCC's library, and LLVM's has the same function. Where the process has none,
   parts run one after another. */

#ifdef __linux__
#include <dlfcn.h>
#endif

static void (*openmp_parallel)(void (*)(void *), void *, unsigned, unsigned);

/* To be called once, after PyTorch was loaded; the includer defines _GNU_SOURCE. Returns the library's file, or nothing. */
static const char *find_threads(void)
{
#ifdef __linux__
    Dl_info info;
    *(void **)&openmp_parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (openmp_parallel && dladdr(*(void **)&openmp_parallel, &info))
        return info.dli_fname;
#endif
    return "";
}

struct team {
    void (*body)(const void *, size_t, size_t);
    const void *job;
    size_t parts, next;
};

static void work(void *data)
{
    struct team *team = data;
    size_t part;
    while ((part = __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED)) < team->parts)
        team->body(team->job, part, team->parts);
}

/* Run the parts, each taken by one of the threads as soon as it is free, so that more parts than threads even out what takes
   longer. Python's lock is free meanwhile. */
static void run_team(void (*body)(const void *, size_t, size_t), const void *job, size_t parts, size_t threads)
{
    struct team team = {body, job, parts, 0};
    Py_BEGIN_ALLOW_THREADS
    if (threads > 1 && openmp_parallel)
        openmp_parallel(work, &team, (unsigned)threads, 0);
    else
        work(&team);
    Py_END_ALLOW_THREADS
}
