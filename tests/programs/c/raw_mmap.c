/* The mmap family by system calls that libc's functions do not see: by syscall(2), by an inline
 * instruction, and in turn with libc's own, on the same ranges. */
#define _GNU_SOURCE
#include "truth.h"
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096 };

static long inline_call(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result = number;
    __asm__ volatile("syscall"
                     : "+a"(result)
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static SITE char *map_by_function(size_t pages) {
    char *range = (char *)syscall(SYS_mmap, 0L, pages * PAGE, (long)(PROT_READ | PROT_WRITE),
                                  (long)(MAP_PRIVATE | MAP_ANONYMOUS), -1L, 0L);
    KEEP(range);
    if (range == MAP_FAILED)
        truth_fail("mmap failed");
    truth_ranges((int64_t)(pages * PAGE));
    return range;
}

static SITE char *map_inline(size_t pages) {
    long range = inline_call(SYS_mmap, 0, (long)(pages * PAGE), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (range < 0 && range > -4096)
        truth_fail("mmap failed");
    truth_ranges((int64_t)(pages * PAGE));
    return (char *)range;
}

static SITE void unmap_inline(char *range, size_t pages) {
    if (inline_call(SYS_munmap, (long)range, (long)(pages * PAGE), 0, 0, 0, 0))
        truth_fail("munmap failed");
    truth_ranges(-(int64_t)(pages * PAGE));
}

int main(void) {
    truth_ready();
    char *one = map_by_function(101);
    char *two = map_inline(53);
    unmap_inline(one + 10 * PAGE, 7);
    if (munmap(two, 3 * PAGE))
        truth_fail("munmap failed");
    truth_ranges(-3 * PAGE);
    char *three = mmap(NULL, 29 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KEEP(three);
    truth_ranges(29 * PAGE);
    unmap_inline(three, 11);
    /* Grows, and moves where it must. */
    if (inline_call(SYS_mremap, (long)(two + 3 * PAGE), 50 * PAGE, 75 * PAGE, MREMAP_MAYMOVE, 0, 0) < 0)
        truth_fail("mremap failed");
    truth_ranges(25 * PAGE);
    /* Refused. */
    if (inline_call(SYS_munmap, (long)(one + 1), PAGE, 0, 0, 0, 0) == 0)
        truth_fail("munmap did not fail");
    if (inline_call(SYS_mmap, 0, -1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) >= 0)
        truth_fail("mmap did not fail");
    /* An allocator's own mapping inside of malloc stays the allocator's. */
    void *block = malloc(40 * 1000 * 1000 + 77);
    KEEP(block);
    if (!block)
        truth_fail("malloc failed");
    truth_site("main", 40 * 1000 * 1000 + 77, 1);
    truth_end();
}
