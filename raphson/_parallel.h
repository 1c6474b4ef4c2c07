/* PyTorch's own threads, by the interface that GCC compiles OpenMP to: a second pool would fight with them for the cores,
   because both spin while they wait. Where the process has no such library, parts run one after another. */

#ifndef RAPHSON_PARALLEL_H
#define RAPHSON_PARALLEL_H

#include <stddef.h>
#ifdef __linux__
#include <dlfcn.h>
#endif

static void (*openmp_parallel)(void (*)(void *), void *, unsigned, unsigned);

/* To be called once, before anything runs in parts; the includer defines _GNU_SOURCE. */
static void find_threads(void)
{
#ifdef __linux__
    *(void **)&openmp_parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
#endif
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

/* Run the parts, each taken by one of so many threads as soon as it is free. */
static void run_team(void (*body)(const void *, size_t, size_t), const void *job, size_t parts, size_t threads)
{
    struct team team = {body, job, parts, 0};
    if (threads > parts)
        threads = parts;
    if (threads > 1 && openmp_parallel)
        openmp_parallel(work, &team, (unsigned)threads, 0);
    else
        work(&team);
}

#endif
