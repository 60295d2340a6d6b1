/* Two libraries that take turns at one address: each is unloaded and the other one loaded at once,
 * and called as fast as possible. Blocks of the first are of 1001 bytes, of the other of 2003. */
#define _GNU_SOURCE
#include "truth.h"

#include <dlfcn.h>
#include <time.h>

enum { TURN_MS = 100 };

static SITE void call(void (*leak_a)(size_t), size_t size) {
    leak_a(size);
    KEEP(&size);
}

static int64_t now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

int main(int argc, char **argv) {
    if (argc < 4)
        truth_fail("swapped LIBRARY OTHER TURNS");
    truth_ready();
    const size_t sizes[2] = {1001, 2003};
    int64_t calls[2] = {0, 0};
    uintptr_t was = 0;
    for (int turn = 0; turn < atoi(argv[3]); turn++) {
        int which = turn % 2;
        void *library = dlopen(argv[1 + which], RTLD_NOW);
        if (!library)
            truth_fail(dlerror());
        void (*leak_a)(size_t) = (void (*)(size_t))dlsym(library, "leak_a");
        Dl_info info;
        if (!leak_a || !dladdr((void *)leak_a, &info))
            truth_fail("no leak_a in it");
        if (was && (uintptr_t)info.dli_fbase != was)
            truth_fail("the other library is not where the first one was");
        was = (uintptr_t)info.dli_fbase;
        for (int64_t end = now_ms() + TURN_MS; now_ms() < end;) {
            call(leak_a, sizes[which]);
            calls[which]++;
        }
        dlclose(library);
    }
    truth_site("liblevels", calls[0] * (int64_t)sizes[0], calls[0]);
    truth_site("libother", calls[1] * (int64_t)sizes[1], calls[1]);
    truth_end();
}
