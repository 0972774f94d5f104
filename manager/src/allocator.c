/* How glibc's allocator is set for the hub, before its first thread: Rust that forbids unsafe code cannot call it. What the
 * environment says (MALLOC_ARENA_MAX, MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_: mallopt(3)) counts more. Other C
 * libraries are left as they are.
 *
 * One arena for each processor, two at least. glibc would make eight for each, and every one of them keeps what its threads
 * needed at their worst moment: an hour of comings, goings and downloads left half as much again as was used. A single one
 * for two processors saves five megabytes more, and costs ingest a third of its peak and a fifth more CPU a sample.
 *
 * Buffers of 128 KiB and more are mapped one by one, and given back whole. glibc would raise that limit, to 32 MiB, with
 * each that is freed, and from then on they would leave holes between what lives longer.
 *
 * Once a minute pages that hold nothing any more are given back, wherever they are: glibc does so at the end of an arena
 * alone, and never with what a burst left in its middle. Others wait for an arena meanwhile: less than a millisecond for a
 * hundred megabytes, and a thousandth of the time at most, for it is done more rarely where it takes longer. A program that is
 * over sooner never does it. */
#define _GNU_SOURCE
#include <stdlib.h>

#if defined(__GLIBC__)
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define LARGE (128 * 1024)
#define PAUSE_S 60

static void set(const char *name, int option, int value)
{
	if (getenv(name) == NULL)
		mallopt(option, value);
}

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

static void *give_back(void *nothing)
{
	double took = 0;

	for (;;) {
		double begun;

		sleep(PAUSE_S + took * 1000);
		begun = now();
		malloc_trim(0);
		took = now() - begun;
	}
	return nothing;
}

/* Without the thread, for want of one, everything works as well; signals are for the others. */
static void start_giving_back(void)
{
	pthread_t thread;
	pthread_attr_t small;
	sigset_t all, before;

	if (pthread_attr_init(&small) != 0)
		return;
	pthread_attr_setstacksize(&small, PTHREAD_STACK_MIN < 65536 ? 65536 : PTHREAD_STACK_MIN);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, &small, give_back, NULL) == 0)
		pthread_setname_np(thread, "give-back");
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&small);
}

__attribute__((constructor)) static void set_allocator(void)
{
	cpu_set_t allowed;
	int processors = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 2;

	set("MALLOC_ARENA_MAX", M_ARENA_MAX, processors < 2 ? 2 : processors);
	set("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD, LARGE);
	set("MALLOC_TRIM_THRESHOLD_", M_TRIM_THRESHOLD, LARGE);
	start_giving_back();
}
#endif
