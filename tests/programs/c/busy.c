/* Allocates and frees without end in as many threads as the argument says: the tracee that must
 * come through unharmed. Each line of input is answered by how many rounds were done so far. With
 * a second argument it says so by itself, every so many milliseconds, and reads nothing. */
#include "truth.h"
#include <pthread.h>

static uint64_t rounds;

static SITE void churn(size_t size) {
    char *block = malloc(size);
    KEEP(block);
    block[0] = (char)size;
    block = realloc(block, size * 2);
    KEEP(block);
    if (block[0] != (char)size)
        truth_fail("a block lost its content");
    free(block);
}

static void *work(void *unused) {
    for (size_t i = 1;; i++) {
        churn(1 + i % 2003);
        __atomic_add_fetch(&rounds, 1, __ATOMIC_RELAXED);
    }
    return unused;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, NULL);
    }
    useconds_t interval = argc > 2 ? (useconds_t)atoi(argv[2]) * 1000 : 0;
    write(1, "ready\n", 6);
    while (interval ? !usleep(interval) : truth_line()) {
        truth_length = 0;
        truth_put("rounds ");
        truth_number(__atomic_load_n(&rounds, __ATOMIC_RELAXED));
        truth_put("\n");
        write(1, truth_text, truth_length);
    }
    _exit(0);
}
