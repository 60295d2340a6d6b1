/* Eight threads that allocate without end, each below another kind of frames: plain ones of several
 * depths, frames of unknown size, realigned ones, callbacks of libc, libc's own allocations, and a
 * handler of signals that interrupt a computation anywhere, on an alternate stack. */
#define _GNU_SOURCE
#include "truth.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>

static volatile size_t sink;

static SITE void allocate(size_t size) {
    char *block = malloc(size % 1500 + 1);
    KEEP(block);
    block = realloc(block, size % 3000 + 1);
    KEEP(block);
    free(block);
    void *zeroed = calloc(3, size % 90 + 1);
    KEEP(zeroed);
    free(zeroed);
}

static SITE size_t plain(size_t depth, size_t size) {
    if (!depth) {
        allocate(size);
        return size;
    }
    size_t below = plain(depth - 1, size);
    KEEP(below);
    return below + 1;
}

static SITE size_t wide(size_t depth, size_t size) {
    volatile char room[600];
    room[size % sizeof room] = 1;
    if (!depth) {
        allocate(size);
        return size;
    }
    return wide(depth - 1, size) + room[size % sizeof room];
}

/* RSP is known through RBP alone. */
static SITE size_t unknown_size(size_t depth, size_t size) {
    volatile char *room = __builtin_alloca(size % 700 + 1);
    room[0] = 1;
    if (!depth) {
        allocate(size);
        return size;
    }
    return unknown_size(depth - 1, size) + room[0];
}

/* The CFA is known through a slot of the frame alone. */
static SITE size_t realigned(size_t depth, size_t size, int c, int d, int e, int f, int g) {
    __attribute__((aligned(64))) volatile char line[128];
    volatile char *room = __builtin_alloca(size % 300 + 1);
    room[0] = line[size % 128] = (char)(c + d + e + f + g);
    if (!depth) {
        allocate(size);
        return size;
    }
    return realigned(depth - 1, size, 1, 2, 3, 4, g + 1) + line[size % 128] + room[0];
}

static int compare(const void *a, const void *b) {
    allocate(*(const unsigned *)a);
    return *(const int *)a - *(const int *)b;
}

static SITE void sorted(size_t size) {
    int numbers[40];
    for (int i = 0; i < 40; i++)
        numbers[i] = (int)((size + 7 * i) % 100 + 1);
    qsort(numbers, 40, sizeof *numbers, compare);
    int *found = bsearch(&numbers[size % 40], numbers, 40, sizeof *numbers, compare);
    sink += found ? *found : 0;
}

static SITE void in_libc(size_t size) {
    char *line = NULL, *text = NULL;
    size_t length = 0;
    FILE *file = fopen("/proc/self/stat", "r");
    if (file) {
        sink += getline(&line, &length, file);
        fclose(file);
    }
    if (asprintf(&text, "%zu %f %s", size, size / 3.0, line ? line : "") > 0)
        sink += strlen(text);
    free(text);
    free(line);
    char *copy = strdup("a string");
    KEEP(copy);
    free(copy);
}

static __thread volatile sig_atomic_t computing;

static void handle(int number) {
    (void)number;
    /* The interrupted code is none of an allocator. */
    if (computing)
        plain(sink % 5, sink);
}

static SITE size_t compute(size_t depth, size_t value) {
    if (!depth)
        return value * 2654435761u >> 3;
    size_t left = compute(depth - 1, value ^ depth);
    KEEP(left);
    return left + compute(depth - 1, value + 1) / 3;
}

static void interrupted(void) {
    stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigaction(SIGUSR2, &action, NULL);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    timer_t timer;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer))
        truth_fail("timer_create fails");
    struct itimerspec every = {.it_interval = {0, 300000}, .it_value = {0, 300000}};
    timer_settime(timer, 0, &every, NULL);
    for (;;) {
        computing = 1;
        sink += compute(12, sink);
        computing = 0;
    }
}

static void *work(void *argument) {
    long number = (long)argument;
    if (number == 7)
        interrupted();
    for (size_t i = 1;; i++) {
        switch (number) {
        case 0: plain(3 + i % 3, i); break;
        case 1: plain(20 + i % 10, i); break;
        case 2: plain(70 + i % 30, i); break;
        case 3: wide(5 + i % 40, i); break;
        case 4: unknown_size(i % 30, i); break;
        case 5: realigned(i % 25, i, 1, 2, 3, 4, 5); break;
        default: sorted(i), in_libc(i); break;
        }
    }
    return NULL;
}

int main(void) {
    for (long i = 0; i < 8; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, (void *)i);
    }
    write(1, "ready\n", 6);
    while (truth_line()) {
    }
    _exit(0);
}
