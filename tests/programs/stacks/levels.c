/* A C library as distributions build them: -O2, no frame pointers. level_c goes further and holds
 * plain data in RBP over its call, so that only a table leads through it. */
#include "levels.h"

#include <pthread.h>
#include <stdlib.h>

#define FRAME __attribute__((noinline, noclone))
/* No tail call before it. */
#define AFTER(value) __asm__ volatile("" : : "r"(value) : "memory")

void level_c(size_t size);

__attribute__((visibility("hidden"))) FRAME void level_d(size_t size) {
    volatile char room[72];
    room[size % sizeof room] = 1;
    void *block = malloc(size);
    AFTER(block);
    AFTER(room);
}

#ifdef WITHOUT_CFI
#define CFI(directive)
#else
#define CFI(directive) "  .cfi_" directive "\n"
#endif

__asm__(".text\n"
        ".type level_c, @function\n"
        "level_c:\n"
        CFI("startproc")
        "  push %rbp\n"
        CFI("def_cfa_offset 16")
        CFI("offset %rbp, -16")
        "  mov $0x15b3, %ebp\n"
        "  call level_d\n"
        "  pop %rbp\n"
        CFI("def_cfa_offset 8")
        CFI("restore %rbp")
        "  ret\n"
        CFI("endproc")
        ".size level_c, . - level_c\n");

static FRAME void level_b(size_t size) {
    volatile size_t kept[5] = {size, 1, 2, 3, 4};
    level_c(size);
    AFTER(kept);
}

FRAME void leak_a(size_t size) {
    level_b(size);
    AFTER(size);
}

static FRAME void *thread_body(void *size) {
    leak_a((size_t)size);
    AFTER(size);
    return NULL;
}

FRAME void leak_in_thread(size_t size) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, thread_body, (void *)size) == 0)
        pthread_join(thread, NULL);
}

static FRAME void call_back_below(void (*callback)(size_t), size_t size) {
    volatile size_t kept[9] = {size};
    callback(size);
    AFTER(kept);
}

FRAME void call_back(void (*callback)(size_t), size_t size) {
    call_back_below(callback, size);
    AFTER(size);
}
