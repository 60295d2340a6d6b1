/* Allocator calls that never return: longjmp leaves them. What they had begun is dropped, what
 * comes after is exact. The allocator is the program's own, so that nothing breaks by it. */
#include "truth.h"
#include <setjmp.h>

enum { JUMPS = 57 };
static char arena[1 << 20] __attribute__((aligned(64)));
static size_t used;
static jmp_buf out;
static volatile int jump;

__attribute__((noinline)) void *malloc(size_t size) {
    if (jump) {
        jump = 0;
        longjmp(out, 1);
    }
    char *block = arena + used;
    used += (size + 63) & ~(size_t)63;
    return used <= sizeof arena ? block : NULL;
}

__attribute__((noinline)) void free(void *block) { KEEP(block); }

static SITE void leak_whole(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

static SITE void never_returns(size_t size) {
    if (setjmp(out))
        return;
    jump = 1;
    void *block = malloc(size);
    KEEP(block);
    truth_fail("malloc returned");
}

int main(void) {
    truth_ready();
    for (size_t i = 0; i < JUMPS; i++) {
        never_returns(3571);
        leak_whole(977 + i);
    }
    truth_site("never_returns", 0, 0);
    truth_loss("stale_call_dropped", JUMPS);
    truth_end();
}
