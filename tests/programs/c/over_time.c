/* One behaviour over time, for so many seconds, at random sizes that the seed decides; then one line
 * of JSON with what it did, and it stays until its input ends.
 *
 *   over_time SCENARIO SECONDS SEED [DIRECTORY]
 *
 * Beside each behaviour the same healthy work goes on. DIRECTORY takes the files. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SITE __attribute__((noinline, noclone))
#define KEEP(pointer) __asm__ volatile("" : : "r"(pointer) : "memory")

enum { TICK_US = 1000, RING = 4000, CACHE = 1500, THREADS = 16, BURST = 2500 };

static uint64_t state, leaked_bytes, leaked_blocks;
static const char *directory = "/tmp";

static void fail(const char *why) {
    perror(why);
    exit(3);
}

static uint64_t chance(uint64_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void touch(void *memory, size_t bytes) {
    volatile char *at = memory;
    if (!at)
        fail("allocate");
    for (size_t i = 0; i < bytes; i += 1024)
        at[i] = 1;
}

/* Healthy: whatever was in the place is freed for the new. */
SITE void *serve(size_t size) {
    void *block = malloc(size);
    touch(block, size);
    return block;
}

static void *ring[RING];

SITE void churn(void) {
    for (int i = 0; i < 12; i++) {
        size_t at = chance(RING);
        free(ring[at]);
        ring[at] = serve(64 + chance(3000));
    }
}

SITE void leak_slowly(void) {
    size_t size = 700 + chance(600);
    void *block = malloc(size);
    touch(block, size);
    KEEP(block);
    leaked_bytes += size;
    leaked_blocks++;
}

static void *cache[CACHE];
static size_t cached;

/* The oldest entry goes when the cache is full. */
SITE void remember(void) {
    size_t size = 2000 + chance(4000);
    size_t at = cached++ % CACHE;
    free(cache[at]);
    cache[at] = malloc(size);
    touch(cache[at], size);
}

/* Fills an arena of its own and frees all but the last block, so that the arena cannot shrink. */
SITE void burst(void) {
    void *blocks[BURST];
    for (int i = 0; i < BURST; i++) {
        blocks[i] = malloc(2900);
        touch(blocks[i], 2900);
        if (i % 10 == 0)
            usleep(TICK_US);
    }
    for (int i = 0; i < BURST - 1; i++)
        free(blocks[i]);
}

static pthread_barrier_t begin;

static void *burst_thread(void *unused) {
    pthread_barrier_wait(&begin);
    usleep(300000);
    burst();
    pause();
    return unused;
}

static void *idle_thread(void *unused) {
    pause();
    return unused;
}

static void start(void *(*work)(void *)) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, NULL))
        fail("create a thread");
}

static char page[1 << 16];

static int file_in(const char *where) {
    char path[4096];
    snprintf(path, sizeof path, "%s/over_time.%d", where, getpid());
    int file = open(path, O_CREAT | O_RDWR | O_EXCL, 0600);
    if (file < 0)
        fail(path);
    /* It lives on as long as it is open. */
    unlink(path);
    return file;
}

static uint64_t grown;

static void grow(int file, size_t bytes) {
    for (size_t left = bytes; left > 0; left -= sizeof page > left ? left : sizeof page)
        if (write(file, page, sizeof page > left ? left : sizeof page) < 0)
            fail("write");
    grown += bytes;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "over_time SCENARIO SECONDS SEED [DIRECTORY]\n");
        return 2;
    }
    const char *scenario = argv[1];
    double seconds = atof(argv[2]);
    state = strtoull(argv[3], NULL, 10) * 0x9e3779b97f4a7c15u | 1;
    if (argc > 4)
        directory = argv[4];
    memset(page, 7, sizeof page);
    setvbuf(stdout, NULL, _IONBF, 0);
    if (write(1, "ready\n", 6) != 6)
        fail("say ready");
    char line[64];
    if (read(0, line, sizeof line) <= 0)
        return 0;

#define IS(name) (!strcmp(scenario, name))
    int leak = IS("slow-leak"), is_cache = IS("cache"), threads = IS("threads");
    int file = IS("page-cache") ? file_in(directory) : IS("tmpfs") ? file_in("/dev/shm") : -1;
    if (!leak && !is_cache && !threads && file < 0 && !IS("burst") && !IS("healthy")) {
        fprintf(stderr, "no scenario `%s`\n", scenario);
        return 2;
    }
    if (IS("burst")) {
        pthread_barrier_init(&begin, NULL, THREADS + 1);
        for (int i = 0; i < THREADS; i++)
            start(burst_thread);
    }
    double began = now();
    for (uint64_t tick = 1; now() < began + seconds; tick++) {
        churn();
        if (leak && tick % 20 == 0)
            leak_slowly();
        if (is_cache)
            remember();
        if (threads && tick % 100 == 0)
            start(idle_thread);
        if (file >= 0 && tick % 20 == 0)
            grow(file, 160 << 10);
        if (IS("burst") && tick == 1500)
            pthread_barrier_wait(&begin);
        usleep(TICK_US);
    }
    printf("{\"leaked_bytes\": %llu, \"leaked_blocks\": %llu, \"grown_bytes\": %llu}\n",
           (unsigned long long)leaked_bytes, (unsigned long long)leaked_blocks,
           (unsigned long long)grown);
    while (read(0, line, sizeof line) > 0) {
    }
    return 0;
}
