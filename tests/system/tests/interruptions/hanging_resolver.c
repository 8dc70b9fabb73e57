/*
 * Preloaded into a server: looking up a name that ends in .hang.test takes for as long as a file "hold" is in
 * the folder HANG_FOLDER, then gives 127.0.0.1. A file "in.<thread>" is there while the look-up lasts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef int (*lookup) (const char *, const char *, const struct addrinfo *, struct addrinfo **);

int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
	lookup		real = (lookup) dlsym(RTLD_NEXT, "getaddrinfo");
	const char *folder = getenv("HANG_FOLDER");
	const char *suffix = ".hang.test";
	size_t		length = node ? strlen(node) : 0;
	char		hold[256];
	char		in[256];

	if (!folder || length < strlen(suffix) || strcmp(node + length - strlen(suffix), suffix) != 0)
		return real(node, service, hints, found);
	snprintf(hold, sizeof(hold), "%s/hold", folder);
	snprintf(in, sizeof(in), "%s/in.%ld", folder, (long) syscall(SYS_gettid));
	close(open(in, O_CREAT | O_WRONLY, 0666));
	while (access(hold, F_OK) == 0)
		poll(NULL, 0, 5);
	unlink(in);
	return real("127.0.0.1", service, hints, found);
}
