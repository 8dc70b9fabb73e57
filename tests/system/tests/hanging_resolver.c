/*
 * Preloaded into a server under test: looking up a name below .hang.test lasts until somebody opens the
 * FIFO named by HANG_FIFO for writing, and then finds 127.0.0.1. Everything else is the C library's.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
	static int (*real) (const char *, const char *, const struct addrinfo *, struct addrinfo **);
	const char *end = node ? strstr(node, ".hang.test") : NULL;

	if (real == NULL)
		real = dlsym(RTLD_NEXT, "getaddrinfo");
	if (end != NULL)
	{
		int			fifo = open(getenv("HANG_FIFO"), O_RDONLY | O_CLOEXEC);

		if (fifo >= 0)
			close(fifo);
		node = "127.0.0.1";
	}
	return real(node, service, hints, found);
}
