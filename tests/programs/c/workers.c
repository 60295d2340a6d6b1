/* A server that forks: each worker has books of its own, and frees some of what it inherited. The
 * truth is of all processes together. Lines: start the workers, let them work, end one of them. */
#include "truth.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { WORKERS = 4, BLOCKS = 41 };

static void *inherited[BLOCKS];

static SITE void *held_by_parent(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    return block;
}

/* Not the same code as the one above: the compiler would make one function of both. */
static SITE void *held_by_worker(size_t size) {
    char *block = malloc(size);
    KEEP(block);
    if (block)
        block[0] = 'w';
    return block;
}

static void work(int begin, int done, int which) {
    char byte;
    if (read(begin, &byte, 1) != 1)
        _exit(0);
    for (size_t i = 0; i < BLOCKS; i++)
        free(inherited[i]);
    void *blocks[BLOCKS];
    for (size_t i = 0; i < BLOCKS; i++)
        blocks[i] = held_by_worker(3571 + 100 * (size_t)which + i);
    for (size_t i = 0; i < 10; i++)
        free(blocks[i]);
    write(done, "x", 1);
    pause();
    _exit(0);
}

int main(void) {
    truth_ready();
    for (size_t i = 0; i < BLOCKS; i++) {
        inherited[i] = held_by_parent(977 + i);
        truth_site("held_by_parent", (int64_t)(977 + i), 1);
    }
    int begin[2], done[2];
    pid_t workers[WORKERS];
    if (pipe(begin) || pipe(done))
        truth_fail("no pipe");
    for (int i = 0; i < WORKERS; i++) {
        workers[i] = fork();
        if (workers[i] == 0)
            work(begin[0], done[1], i);
    }
    truth_ready();
    char byte;
    for (int i = 0; i < WORKERS; i++) {
        write(begin[1], "x", 1);
        if (read(done[0], &byte, 1) != 1)
            truth_fail("a worker is gone");
    }
    truth_ready();
    kill(workers[0], SIGKILL);
    waitpid(workers[0], NULL, 0);
    /* The first worker to come got the first byte: which one that was is not known, so all work the
     * same way but for sizes; what it held is told by its process. */
    for (int w = 1; w < WORKERS; w++)
        for (size_t i = 10; i < BLOCKS; i++)
            truth_site("held_by_worker", (int64_t)(3571 + 100 * (size_t)w + i), 1);
    truth_tally("free_inherited", WORKERS * BLOCKS);
    truth_tally("free_unknown", 0);
    truth_tally("forks", WORKERS);
    truth_tell();
    while (truth_line()) {
    }
    for (int w = 1; w < WORKERS; w++)
        kill(workers[w], SIGKILL);
    return 0;
}
