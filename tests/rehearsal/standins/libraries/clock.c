/* A wall clock that is wrong, for a node that shares its clock with the machine around it.
 *
 * Stands in for a virtual machine's real-time clock that nobody has set. Preloaded into a node's
 * programs (/etc/ld.so.preload), it adds the seconds in /etc/lab/clock to what the wall clock says,
 * anew with every question; the clocks that count from the boot are left alone, as by a real jump.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t offset(void)
{
	char text[32];
	int file = syscall(SYS_openat, AT_FDCWD, "/etc/lab/clock", O_RDONLY | O_CLOEXEC);
	long length;

	if (file < 0)
		return 0;
	length = syscall(SYS_read, file, text, sizeof(text) - 1);
	syscall(SYS_close, file);
	if (length <= 0)
		return 0;
	text[length] = '\0';
	return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int failed = syscall(SYS_clock_gettime, clock, now);

	if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += offset();
	return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	int failed = syscall(SYS_gettimeofday, now, zone);

	if (!failed && now)
		now->tv_sec += offset();
	return failed;
}

time_t time(time_t *result)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (result)
		*result = now.tv_sec;
	return now.tv_sec;
}
