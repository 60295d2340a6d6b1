/* An allocator of our own, driven by lines on stdin: what each call does is known exactly.
 * Built with frame pointers, so that one hand-made unwind row explains its text. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROBED __attribute__((noinline, noclone, visibility("default")))

static int fail, jump, map_inside, dead;
static jmp_buf out;

PROBED void *my_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
    return mmap(at, n, prot, flags, fd, offset);
}
PROBED int my_munmap(void *at, size_t n) { return munmap(at, n); }
PROBED void *my_mremap(void *at, size_t n, size_t m, int flags) { return mremap(at, n, m, flags); }

PROBED void my_free(void *p) { free(p); }

PROBED void *my_malloc(size_t n) {
    if (jump) { jump = 0; longjmp(out, 1); }
    if (map_inside) {
        map_inside = 0;
        my_mmap(0, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    return fail ? NULL : malloc(n);
}
PROBED void *my_calloc(size_t n, size_t m) {
    size_t all;
    if (__builtin_mul_overflow(n, m, &all)) return NULL;
    void *p = my_malloc(all);
    if (p) memset(p, 0, all);
    return p;
}
PROBED void *my_realloc(void *p, size_t n) {
    if (n == 0 && p) { my_free(p); return NULL; }
    if (fail) return NULL;
    void *q = my_malloc(n);
    if (q && p) my_free(p);
    return q;
}
PROBED void *my_reallocarray(void *p, size_t n, size_t m) {
    size_t all;
    if (__builtin_mul_overflow(n, m, &all)) return NULL;
    return my_realloc(p, all);
}
PROBED int my_posix_memalign(void **at, size_t alignment, size_t n) {
    if (fail) return ENOMEM;
    return posix_memalign(at, alignment, n);
}
PROBED void *my_aligned_alloc(size_t alignment, size_t n) {
    return fail ? NULL : aligned_alloc(alignment, n);
}
/* operator new as it often is: nothing but a jump. */
PROBED __attribute__((naked)) void *my_new(size_t n) { __asm__("jmp my_malloc"); }

static void *kept[64];

static void *thread_dies(void *unused) {
    (void)unused;
    my_malloc(31);
    return NULL;
}
static void *thread_frees(void *p) {
    my_free(p);
    return NULL;
}
struct load { long calls; long size; };
static void *thread_churns(void *arg) {
    struct load *load = arg;
    for (long i = 0; i < load->calls; i++) {
        void *p = my_malloc(load->size);
        if (i % 2) my_free(p);
    }
    return NULL;
}
/* Noise deeper in the stack than the call that jumped out. */
static __attribute__((noinline)) void *deeper(int depth, size_t n) {
    volatile char pad[64];
    pad[0] = 1;
    void *p = depth ? deeper(depth - 1, n) : my_malloc(n);
    pad[1] = pad[0];
    return p;
}
static volatile int turned;
/* As deep in the stack as its argument says: each depth is another stack. */
static __attribute__((noinline)) void *at_depth(long depth, size_t n) {
    void *p = depth ? at_depth(depth - 1, n) : my_malloc(n);
    turned++;
    return p;
}

int main(int argc, char **argv) {
    char line[256], name[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("ready %d\n", argc);
    while (fgets(line, sizeof line, stdin)) {
        long a = 0, b = 0, c = 0;
        sscanf(line, "%63s %ld %ld %ld", name, &a, &b, &c);
        void *result = NULL;
        if (!strcmp(name, "malloc")) result = kept[a] = my_malloc(b);
        else if (!strcmp(name, "calloc")) result = kept[a] = my_calloc(b, c);
        else if (!strcmp(name, "realloc")) {
            result = my_realloc(kept[a], b);
            if (result || b == 0) kept[a] = result;
        } else if (!strcmp(name, "reallocarray")) {
            result = my_reallocarray(kept[a], b, c);
            if (result) kept[a] = result;
        } else if (!strcmp(name, "posix_memalign")) {
            result = (void *)(intptr_t)my_posix_memalign(&kept[a], b, c);
        } else if (!strcmp(name, "aligned_alloc")) result = kept[a] = my_aligned_alloc(b, c);
        else if (!strcmp(name, "new")) result = kept[a] = my_new(b);
        else if (!strcmp(name, "free")) { my_free(kept[a]); kept[a] = NULL; }
        else if (!strcmp(name, "free_stranger")) { my_free(malloc(99)); }
        else if (!strcmp(name, "fail")) fail = a;
        else if (!strcmp(name, "map_inside")) map_inside = a;
        else if (!strcmp(name, "jump")) {
            jump = 1;
            if (!setjmp(out)) deeper(a, 77);
        } else if (!strcmp(name, "jump_realloc")) {
            jump = 1;
            if (!setjmp(out)) my_realloc(kept[a], 78);
        } else if (!strcmp(name, "deeper")) result = kept[a] = deeper(b, c);
        else if (!strcmp(name, "depths")) {
            for (long i = 0; i < a; i++) at_depth(i, b);
        } else if (!strcmp(name, "depth")) result = at_depth(a, b);
        else if (!strcmp(name, "mmap"))
            result = kept[a] = my_mmap((void *)c, b, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | (c ? MAP_FIXED : 0), -1, 0);
        else if (!strcmp(name, "munmap")) result = (void *)(intptr_t)my_munmap((char *)kept[a] + c, b);
        else if (!strcmp(name, "mremap")) result = kept[a] = my_mremap(kept[a], b, c, MREMAP_MAYMOVE);
        else if (!strcmp(name, "thread_dies")) {
            pthread_t t;
            pthread_create(&t, NULL, thread_dies, NULL);
            pthread_join(t, NULL);
        } else if (!strcmp(name, "thread_frees")) {
            pthread_t t;
            pthread_create(&t, NULL, thread_frees, kept[a]);
            pthread_join(t, NULL);
            kept[a] = NULL;
        } else if (!strcmp(name, "churn")) {
            pthread_t t[64];
            struct load load = {b, c};
            for (long i = 0; i < a; i++) pthread_create(&t[i], NULL, thread_churns, &load);
            for (long i = 0; i < a; i++) pthread_join(t[i], NULL);
        } else if (!strcmp(name, "blocks")) {
            for (long i = 0; i < a; i++) my_malloc(b);
        } else if (!strcmp(name, "fork")) {
            pid_t child = fork();
            if (child == 0) {
                my_malloc(1000);
                my_free(kept[a]);
                _exit(0);
            }
            waitpid(child, NULL, 0);
        } else if (!strcmp(name, "exec")) {
            execl(argv[0], argv[0], "again", NULL);
        } else if (!strcmp(name, "exit")) {
            return 0;
        }
        printf("done %p\n", result);
    }
    return dead;
}
