/* Code without a file, as a JIT compiler makes it: mapped before the start of the trace, and while
 * it runs. It keeps frame pointers, or has other values in RBP. */
#include "truth.h"

#include <sys/mman.h>

typedef void generated(size_t size, void (*leak)(size_t));

static SITE void leak(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    truth_site("leak", (int64_t)size, 1);
}

static const unsigned char frame_pointer[] = {
    0x55,                   /* push %rbp */
    0x48, 0x89, 0xe5,       /* mov %rsp, %rbp */
    0x48, 0x83, 0xec, 0x20, /* sub $32, %rsp */
    0xff, 0xd6,             /* call *%rsi */
    0xc9,                   /* leave */
    0xc3,                   /* ret */
};
static const unsigned char zero[] = {
    0x55,       /* push %rbp */
    0x31, 0xed, /* xor %ebp, %ebp */
    0xff, 0xd6, /* call *%rsi */
    0x5d,       /* pop %rbp */
    0xc3,       /* ret */
};
static const unsigned char data[] = {
    0x55,             /* push %rbp */
    0xbd, 0xb3, 0x15, 0, 0, /* mov $0x15b3, %ebp */
    0xff, 0xd6,       /* call *%rsi */
    0x5d,             /* pop %rbp */
    0xc3,             /* ret */
};

static generated *generate(const unsigned char *code, size_t size) {
    unsigned char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        truth_fail("mmap failed");
    memcpy(page + 256, code, size);
    if (mprotect(page, 8192, PROT_READ | PROT_EXEC))
        truth_fail("mprotect failed");
    return (generated *)(page + 256);
}

static SITE void calls_generated(generated *code, size_t size) {
    code(size, leak);
    KEEP(code);
}

int main(void) {
    generated *before = generate(frame_pointer, sizeof frame_pointer);
    generated *with_zero = generate(zero, sizeof zero);
    generated *with_data = generate(data, sizeof data);
    truth_ready();
    calls_generated(before, 1111);
    calls_generated(with_zero, 3331);
    calls_generated(with_data, 4441);
    generated *after = generate(frame_pointer, sizeof frame_pointer);
    /* The first call tells memtrace of the new code. */
    calls_generated(after, 2221);
    usleep(1000000);
    calls_generated(after, 2223);
    truth_end();
}
