/* A signal that arrives inside of an allocator call, and whose handler never comes back. */
#define _GNU_SOURCE
#include "truth.h"
#include <setjmp.h>
#include <signal.h>

enum { JUMPS = 61 };
static char arena[1 << 20] __attribute__((aligned(64)));
static size_t used;
static sigjmp_buf out;
static volatile int interrupt;

__attribute__((noinline)) void *malloc(size_t size) {
    if (interrupt) {
        interrupt = 0;
        raise(SIGUSR1);
    }
    char *block = arena + used;
    used += (size + 63) & ~(size_t)63;
    return used <= sizeof arena ? block : NULL;
}

__attribute__((noinline)) void free(void *block) { KEEP(block); }

static SITE void allocate_in_handler(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    free(block);
}

static void handler(int number) {
    (void)number;
    allocate_in_handler(41);
    siglongjmp(out, 1);
}

static SITE void leak_whole(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

static SITE void never_returns(size_t size) {
    if (sigsetjmp(out, 1))
        return;
    interrupt = 1;
    void *block = malloc(size);
    KEEP(block);
    truth_fail("malloc returned");
}

int main(void) {
    signal(SIGUSR1, handler);
    truth_ready();
    for (size_t i = 0; i < JUMPS; i++) {
        never_returns(3571);
        leak_whole(977 + i);
    }
    truth_site("never_returns", 0, 0);
    truth_loss("stale_call_dropped", JUMPS);
    truth_end();
}
