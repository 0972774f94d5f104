/* How glibc's allocator is set for the hub, before its first thread: Rust that forbids unsafe code cannot call it. What the
 * environment says (MALLOC_ARENA_MAX, MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_: mallopt(3)) counts more. Other C
 * libraries are left as they are.
 *
 * One arena for each processor, two at least. glibc would make eight for each, and every one of them keeps what its threads
 * needed at their worst moment: an hour of comings, goings and downloads left half as much again as was used.
 *
 * Buffers of 128 KiB and more are mapped one by one, and given back whole. glibc would raise that limit, to 32 MiB, with
 * each that is freed, and from then on they would leave holes between what lives longer. */
#define _GNU_SOURCE
#include <stdlib.h>

#if defined(__GLIBC__)
#include <malloc.h>
#include <sched.h>

#define LARGE (128 * 1024)

static void set(const char *name, int option, int value)
{
	if (getenv(name) == NULL)
		mallopt(option, value);
}

__attribute__((constructor)) static void set_allocator(void)
{
	cpu_set_t allowed;
	int processors = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 2;

	set("MALLOC_ARENA_MAX", M_ARENA_MAX, processors < 2 ? 2 : processors);
	set("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD, LARGE);
	set("MALLOC_TRIM_THRESHOLD_", M_TRIM_THRESHOLD, LARGE);
}
#endif
