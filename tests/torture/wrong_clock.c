/* A clock that is wrong by as much as `wrong_clock_set` has said: the time of day, and not the time that only ever grows.
 *
 * It is compiled into the library of `faulty_disk.c`.
 */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long wrong_by;

void wrong_clock_set(int seconds) { wrong_by = seconds; }

int clock_gettime(clockid_t clock, struct timespec *into) {
    int result = syscall(SYS_clock_gettime, clock, into);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) into->tv_sec += wrong_by;
    return result;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *into, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    into->tv_sec = now.tv_sec;
    into->tv_usec = now.tv_nsec / 1000;
    return 0;
}
