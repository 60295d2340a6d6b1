/* Holds known amounts of every kind of memory that a container is charged for, says how much of
 * each as one line of JSON, and waits for the end of its input.
 *
 *   ledger DIRECTORY [MAPPINGS]
 *
 * DIRECTORY takes a file of page cache; MAPPINGS mappings that do not merge are made besides. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    ARENAS = 8,
    MAIN_BLOCKS = 6000, MAIN_BLOCK = 1000,
    CHUNKS = 3, CHUNK = (5 << 20) + 12345,
    ARENA_BLOCKS = 40, ARENA_BLOCK = 100000,
    STACK_TOUCHED = 300 << 10,
    ANONYMOUS = 3 << 20,
    SHARED = 2 << 20,
    TMPFS = 4 << 20,
    DIRTY = 7 << 20,
    MAPPED = 5 << 20,
    SOCKETS = 16, SOCKET_BYTES = 64 << 10,
    TCP = 16, TCP_BYTES = 64 << 10,
    FILES = 4000,
};

static void fail(const char *why) {
    perror(why);
    exit(3);
}

static void *touched(void *memory, size_t bytes) {
    volatile char *at = memory;
    for (size_t i = 0; i < bytes; i += 512)
        at[i] = 1;
    at[bytes - 1] = 1;
    return memory;
}

/* Not static: the compiler must keep them. */
char *main_blocks[MAIN_BLOCKS], *chunks[CHUNKS];

static pthread_barrier_t settled;

/* Fills an arena of its own, frees all but what keeps it from being trimmed, and stays. */
static void *in_its_own_arena(void *nothing) {
    char *blocks[ARENA_BLOCKS];
    for (int i = 0; i < ARENA_BLOCKS; i++)
        blocks[i] = touched(malloc(ARENA_BLOCK), ARENA_BLOCK);
    for (int i = 0; i < ARENA_BLOCKS - 1; i++)
        free(blocks[i]);
    char stack[STACK_TOUCHED];
    touched(stack, sizeof stack);
    pthread_barrier_wait(&settled);
    for (;;)
        pause();
    return blocks[ARENA_BLOCKS - 1] + stack[1] + (uintptr_t)nothing;
}

static int file_of(const char *path, size_t bytes) {
    int file = open(path, O_CREAT | O_RDWR | O_TRUNC, 0600);
    if (file < 0)
        fail(path);
    char *buffer = calloc(1, 1 << 16);
    for (size_t written = 0; written < bytes; written += 1 << 16)
        if (write(file, buffer, 1 << 16) != 1 << 16)
            fail("write");
    free(buffer);
    return file;
}

/* Bytes that were sent over the loopback and are never received. */
static size_t in_tcp(void) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0), size = 4 * TCP_BYTES;
    /* The window of a listener is that of what it accepts. */
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, TCP) ||
        getsockname(listener, (struct sockaddr *)&at, &length))
        fail("listen");
    size_t sent = 0;
    for (int i = 0; i < TCP; i++) {
        int client = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(client, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        if (connect(client, (struct sockaddr *)&at, sizeof at) || accept(listener, NULL, NULL) < 0)
            fail("connect");
        static char buffer[TCP_BYTES];
        ssize_t bytes = send(client, buffer, sizeof buffer, MSG_DONTWAIT);
        sent += bytes > 0 ? (size_t)bytes : 0;
    }
    return sent;
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    int mappings = argc > 2 ? atoi(argv[2]) : 0;
    /* Blocks of an arena stay in it, and what is free stays with malloc. */
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_ARENA_MAX, 64);

    for (int i = 0; i < MAIN_BLOCKS; i++)
        main_blocks[i] = touched(malloc(MAIN_BLOCK), MAIN_BLOCK);
    for (int i = 0; i < CHUNKS; i++)
        chunks[i] = touched(malloc(CHUNK), CHUNK);
    int all = MAP_ANONYMOUS, flags = PROT_READ | PROT_WRITE;
    /* A page without access on either side keeps the kernel from merging it with a neighbour. */
    char *anonymous = mmap(NULL, ANONYMOUS + 8192, PROT_NONE, MAP_PRIVATE | all, -1, 0);
    if (anonymous == MAP_FAILED || mprotect(anonymous + 4096, ANONYMOUS, flags))
        fail("mmap");
    touched(anonymous + 4096, ANONYMOUS);
    void *shared = mmap(NULL, SHARED, flags, MAP_SHARED | all, -1, 0);
    if (shared == MAP_FAILED)
        fail("mmap");
    touched(shared, SHARED);

    char path[4096];
    snprintf(path, sizeof path, "/dev/shm/memtrace-ledger-%d", getpid());
    int in_tmpfs = file_of(path, TMPFS);
    unlink(path);
    snprintf(path, sizeof path, "%s/memtrace-ledger-%d", argv[1], getpid());
    int cached = file_of(path, DIRTY);
    unlink(path);
    volatile char *mapped = mmap(NULL, MAPPED, PROT_READ, MAP_PRIVATE, cached, 0);
    if (mapped == MAP_FAILED)
        fail("mmap a file");
    char sink = 0;
    for (size_t i = 0; i < MAPPED; i += 4096)
        sink += mapped[i];

    size_t in_sockets = 0;
    for (int i = 0; i < SOCKETS; i++) {
        int pair[2], size = 4 * SOCKET_BYTES;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair))
            fail("socketpair");
        setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        static char buffer[SOCKET_BYTES];
        ssize_t sent = send(pair[0], buffer, sizeof buffer, MSG_DONTWAIT);
        in_sockets += sent > 0 ? (size_t)sent : 0;
    }
    size_t tcp = in_tcp();
    struct rlimit limit;
    if (!getrlimit(RLIMIT_NOFILE, &limit)) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    int files = 0;
    while (files < FILES && eventfd(0, 0) >= 0)
        files++;

    pthread_barrier_init(&settled, NULL, ARENAS + 1);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    for (int i = 0; i < ARENAS; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, in_its_own_arena, NULL))
            fail("pthread_create");
    }
    pthread_barrier_wait(&settled);

    /* One page readable, one not: neighbours that differ. */
    if (mappings > 0) {
        char *area = mmap(NULL, (size_t)mappings * 4096, flags, MAP_PRIVATE | all, -1, 0);
        if (area == MAP_FAILED)
            fail("mmap");
        for (int i = 0; i < mappings; i += 2) {
            touched(area + (size_t)i * 4096, 4096);
            mprotect(area + (size_t)i * 4096, 4096, PROT_READ);
        }
    }

    printf("{\"main_heap\":%d,\"chunks\":%d,\"chunk_bytes\":%d,\"arenas\":%d,\"arena_bytes\":%d,"
           "\"arena_in_use\":%d,\"stacks\":%d,\"stack_bytes\":%d,\"anonymous\":%d,\"shared\":%d,"
           "\"tmpfs\":%d,\"dirty\":%d,\"mapped\":%d,\"sockets\":%zu,\"files\":%d,\"tcp\":%zu,"
           "\"sink\":%d}\n",
           MAIN_BLOCKS * MAIN_BLOCK, CHUNKS, CHUNK, ARENAS, ARENA_BLOCKS * ARENA_BLOCK,
           ARENA_BLOCK, ARENAS, STACK_TOUCHED, ANONYMOUS, SHARED, TMPFS, DIRTY, MAPPED, in_sockets,
           files, tcp, sink);
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0) {
    }
    /* A container without input stays, too. */
    if (getenv("STAY"))
        pause();
    return in_tmpfs < 0;
}
