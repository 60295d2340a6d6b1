// Fills its heap in a known way, tells what glibc itself says of it, and stands still.
//
//   heap SCENARIO [NUMBER]
//
// Prints malloc_info's XML, one line of JSON (mallinfo2 and what was planted), and `ready`. Then it
// obeys lines: `trim` (malloc_trim), `tell` (tell again); its end of input ends it. Telling
// allocates nothing, so that what is told stays true. Runs with glibc 2.17 and later.

#define _GNU_SOURCE
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

struct info {
    size_t arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost;
};
struct old_info {
    int arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost;
};
// mallinfo2 is there since 2.33; before, its figures are ints.
extern struct info wide_mallinfo(void) __asm__("mallinfo2") __attribute__((weak));
extern struct old_info old_mallinfo(void) __asm__("mallinfo");

static void *volatile sink;
static char out_buffer[1 << 20];
static size_t planted_blocks, planted_bytes;
static pthread_barrier_t done;
static long number;

static void *block(size_t size) {
    char *memory = malloc(size);
    if (!memory) abort();
    memset(memory, 0x5a, size);
    sink = memory;
    return memory;
}

__attribute__((noreturn)) static void rest(void) {
    for (;;) pause();
}

static size_t chunk_of(void *memory) { return malloc_usable_size(memory) + 8; }

static void plant(void *memory) {
    __atomic_fetch_add(&planted_blocks, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&planted_bytes, chunk_of(memory), __ATOMIC_RELAXED);
}

static long resident_kib(void) {
    char text[4096];
    // By hand: stdio would allocate.
    int fd = open("/proc/self/smaps_rollup", O_RDONLY);
    if (fd < 0) return -1;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0) return -1;
    text[length] = 0;
    char *at = strstr(text, "\nAnonymous:");
    return at ? strtol(at + 11, NULL, 10) : -1;
}

static void tell(void) {
    struct info i;
    if (wide_mallinfo) {
        i = wide_mallinfo();
    } else {
        struct old_info old = old_mallinfo();
        for (int field = 0; field < 10; field++)
            ((size_t *)&i)[field] = ((unsigned *)&old)[field];
    }
    malloc_info(0, stdout);
    printf("\n{\"arena\":%zu,\"ordblks\":%zu,\"smblks\":%zu,\"hblks\":%zu,\"hblkhd\":%zu,"
           "\"fsmblks\":%zu,\"uordblks\":%zu,\"fordblks\":%zu,\"keepcost\":%zu,"
           "\"planted_blocks\":%zu,\"planted_bytes\":%zu,\"anonymous_kib\":%ld}\nready\n",
           i.arena, i.ordblks, i.smblks, i.hblks, i.hblkhd, i.fsmblks, i.uordblks, i.fordblks,
           i.keepcost, planted_blocks, planted_bytes, resident_kib());
    fflush(stdout);
}

static unsigned long next_random(unsigned long *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// Odd sizes, some freed again: small, large, and of fast-bin size.
static void assorted(unsigned long seed, int count) {
    void **kept = block(count * sizeof *kept);
    for (int at = 0; at < count; at++) kept[at] = block(1 + next_random(&seed) % 9000);
    for (int at = 0; at < count; at++)
        if (next_random(&seed) % 3 == 0) free(kept[at]);
    for (int at = 0; at < count; at++) kept[at] = block(1 + next_random(&seed) % 100);
    for (int at = 0; at < count; at++)
        if (next_random(&seed) % 2 == 0) free(kept[at]);
    sink = kept;
}

// Twenty MiB in an arena of its own, of which one block in a hundred stays.
static void *retaining(void *argument) {
    enum { COUNT = 20 << 10 };
    static __thread void *blocks[COUNT];
    for (int at = 0; at < COUNT; at++) blocks[at] = block(1000 + (long)argument);
    for (int at = 0; at < COUNT; at++) {
        if (at % 100 == 0) plant(blocks[at]);
        else free(blocks[at]);
    }
    pthread_barrier_wait(&done);
    rest();
}

static void *several_heaps(void *argument) {
    (void)argument;
    static __thread void *blocks[2000];
    for (int at = 0; at < 2000; at++) blocks[at] = block(100001);
    for (int at = 0; at < 2000; at++) {
        if (at % 3 == 0) free(blocks[at]);
        else plant(blocks[at]);
    }
    pthread_barrier_wait(&done);
    rest();
}

static void *a_little(void *argument) {
    assorted(77 + (long)argument, 50);
    pthread_barrier_wait(&done);
    rest();
}

// `number` blocks of 600 bytes kept in this thread's cache.
static void *caching(void *argument) {
    void *blocks[7];
    (void)argument;
    for (int at = 0; at < 7; at++) blocks[at] = block(600);
    for (int at = 0; at < number; at++) {
        plant(blocks[at]);
        free(blocks[at]);
    }
    pthread_barrier_wait(&done);
    rest();
}

enum { CHURNERS = 4, SLOTS = 2000 };
static volatile int stop;
static size_t live[CHURNERS], live_least, live_most;

static void *churning(void *argument) {
    size_t *mine = &live[(long)argument];
    static __thread void *slots[SLOTS];
    unsigned long seed = 99 + (long)argument;
    for (int at = 0; at < SLOTS; at++) {
        slots[at] = block(16 + next_random(&seed) % 4000);
        *mine += chunk_of(slots[at]);
    }
    pthread_barrier_wait(&done);
    for (unsigned long turn = 0; !stop; turn++) {
        int at = next_random(&seed) % SLOTS;
        size_t change = chunk_of(slots[at]);
        free(slots[at]);
        slots[at] = block(16 + next_random(&seed) % 4000);
        *mine += chunk_of(slots[at]) - change;
        // Otherwise this is a test of a saturated machine.
        if (number && turn % number == 0) usleep(200);
    }
    pthread_barrier_wait(&done);
    rest();
}

static void *watching(void *argument) {
    (void)argument;
    while (!stop) {
        size_t sum = 0;
        for (int at = 0; at < CHURNERS; at++) sum += live[at];
        if (sum < live_least) live_least = sum;
        if (sum > live_most) live_most = sum;
        usleep(50);
    }
    return NULL;
}

static void start(void *(*body)(void *), long threads) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    pthread_barrier_init(&done, NULL, threads + 1);
    for (long at = 0; at < threads; at++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, body, (void *)at)) abort();
    }
    pthread_barrier_wait(&done);
}

int main(int count, char **arguments) {
    const char *scenario = count > 1 ? arguments[1] : "";
    number = count > 2 ? atol(arguments[2]) : 0;
    setvbuf(stdout, out_buffer, _IOFBF, sizeof out_buffer);
    int churn = 0;
    if (!strcmp(scenario, "single")) {
        assorted(5, 3000);
    } else if (!strcmp(scenario, "held")) {
        for (long at = 0; at < number; at++) plant(block(5000));
    } else if (!strcmp(scenario, "retained")) {
        start(retaining, 8);
    } else if (!strcmp(scenario, "heaps")) {
        start(several_heaps, 2);
    } else if (!strcmp(scenario, "arenas")) {
        mallopt(M_ARENA_MAX, number);
        start(a_little, number - 1);
    } else if (!strcmp(scenario, "fragmented")) {
        void **blocks = block(number * sizeof *blocks);
        for (long at = 0; at < number; at++) blocks[at] = block(3000);
        for (long at = 0; at < number; at += 2) free(blocks[at]);
        // Gaps of several pages too.
        for (long at = number / 2 | 1; at < number / 2 + 64; at += 2) free(blocks[at]);
    } else if (!strcmp(scenario, "gaps")) {
        // Blocks of six pages, every second one freed.
        mallopt(M_MMAP_THRESHOLD, 1 << 30);
        void **blocks = block(number * sizeof *blocks);
        for (long at = 0; at < number; at++) blocks[at] = block(6 * 4096 + 40);
        for (long at = 0; at < number; at += 2) free(blocks[at]);
    } else if (!strcmp(scenario, "mapped")) {
        for (long at = 1; at <= number; at++) plant(block(at << 20));
    } else if (!strcmp(scenario, "caches")) {
        start(caching, 4);
    } else if (!strcmp(scenario, "foreign")) {
        // Someone else moves the break: the main arena is no longer in one piece.
        assorted(5, 300);
        if (sbrk(20000) == (void *)-1) abort();
        assorted(6, 300);
    } else if (!strcmp(scenario, "churn")) {
        live_least = SIZE_MAX;
        start(churning, CHURNERS);
        pthread_t watcher;
        if (pthread_create(&watcher, NULL, watching, NULL)) abort();
        churn = 1;
        usleep(100000);
    } else {
        return 2;
    }
    if (churn) {
        printf("churning\n");
        fflush(stdout);
    } else {
        tell();
    }
    char line[64];
    ssize_t length;
    while ((length = read(0, line, sizeof line - 1)) > 0) {
        line[length] = 0;
        if (!strncmp(line, "trim", 4)) malloc_trim(0);
        if (!strncmp(line, "stop", 4)) {
            stop = 1;
            pthread_barrier_wait(&done);
            size_t sum = 0;
            for (int at = 0; at < CHURNERS; at++) sum += live[at];
            printf("{\"live\":%zu,\"least\":%zu,\"most\":%zu}\n", sum, live_least, live_most);
        }
        tell();
    }
    return 0;
}
