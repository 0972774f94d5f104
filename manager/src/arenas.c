/* How glibc's allocator is set for the hub, before its first thread: Rust that forbids unsafe code cannot call it.
 *
 * One arena for each processor, two at least. glibc would make eight for each, and every one of them keeps what its threads
 * needed at their worst moment: an hour of comings, goings and downloads left half as much again as was used. MALLOC_ARENA_MAX
 * in the environment says otherwise (mallopt(3)). Other C libraries are left as they are. */
#include <stdlib.h>

#if defined(__GLIBC__)
#include <malloc.h>
#include <unistd.h>

__attribute__((constructor)) static void bound_arenas(void)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);

	if (getenv("MALLOC_ARENA_MAX") == NULL)
		mallopt(M_ARENA_MAX, processors < 2 ? 2 : (int)processors);
}
#endif
