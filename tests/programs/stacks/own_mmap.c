/* An mmap of the program's own that allocates: the walk at its malloc meets the frame whose return
 * address the kernel has replaced, because that call's return is probed. */
#define _GNU_SOURCE
#include "truth.h"

#include <sys/mman.h>
#include <sys/syscall.h>

static SITE void leak_inside(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    truth_site("leak_inside", (int64_t)size, 1);
}

SITE void *mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset) {
    leak_inside(1111);
    void *range = (void *)syscall(SYS_mmap, address, length, prot, flags, fd, offset);
    KEEP(range);
    return range;
}

static SITE void maps(void) {
    void *range = mmap(NULL, 3 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KEEP(range);
    truth_ranges(3 << 20);
}

int main(void) {
    truth_ready();
    maps();
    truth_end();
}
