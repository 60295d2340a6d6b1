/* Code without a file, as a JIT compiler makes it: mapped before the start of the trace, and while
 * it runs. It keeps frame pointers. */
#include "truth.h"

#include <sys/mman.h>

typedef void generated(size_t size, void (*leak)(size_t));

static SITE void leak(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    truth_site("leak", (int64_t)size, 1);
}

static generated *generate(void) {
    static const unsigned char code[] = {
        0x55,                   /* push %rbp */
        0x48, 0x89, 0xe5,       /* mov %rsp, %rbp */
        0x48, 0x83, 0xec, 0x20, /* sub $32, %rsp */
        0xff, 0xd6,             /* call *%rsi */
        0xc9,                   /* leave */
        0xc3,                   /* ret */
    };
    unsigned char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        truth_fail("mmap failed");
    memcpy(page + 256, code, sizeof code);
    if (mprotect(page, 8192, PROT_READ | PROT_EXEC))
        truth_fail("mprotect failed");
    return (generated *)(page + 256);
}

static SITE void calls_generated(generated *code, size_t size) {
    code(size, leak);
    KEEP(code);
}

int main(void) {
    generated *before = generate();
    truth_ready();
    calls_generated(before, 1111);
    generated *after = generate();
    /* The first call tells memtrace of the new code. */
    calls_generated(after, 2221);
    usleep(1000000);
    calls_generated(after, 2223);
    truth_end();
}
