/* The protocol of every program here: `ready`, wait for a line, work, the truth, wait for the end.
 *
 * Nothing in this file allocates: what it said of itself would otherwise be wrong. Sizes in the
 * programs are odd numbers that no noise imitates. */
#ifndef TRUTH_H
#define TRUTH_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The compiler may neither drop the allocation nor turn the call before it into a tail call. */
#define KEEP(pointer) __asm__ volatile("" : : "r"(pointer) : "memory")
/* A function of its own: neither inlined nor one with another of the same code. */
#define SITE __attribute__((noinline, noclone, no_icf))

struct truth_entry {
    const char *name;
    uint64_t bytes, blocks;
};

enum { TRUTH_ENTRIES = 32 };
static struct truth_entry truth_sites[TRUTH_ENTRIES], truth_losses[TRUTH_ENTRIES],
    truth_tallies[TRUTH_ENTRIES];
static const char *truth_uncounted_functions[TRUTH_ENTRIES];
static int64_t truth_ranges_bytes = -1;
static int truth_lock;

__attribute__((unused)) static void truth_fail(const char *why) {
    write(2, why, strlen(why));
    write(2, "\n", 1);
    _exit(3);
}

static inline struct truth_entry *truth_find(struct truth_entry *table, const char *name) {
    for (int i = 0; i < TRUTH_ENTRIES; i++) {
        if (!table[i].name)
            table[i].name = name;
        if (!strcmp(table[i].name, name))
            return &table[i];
    }
    truth_fail("too many entries for truth.h");
    return NULL;
}

static inline void truth_change(struct truth_entry *table, const char *name, int64_t bytes,
                                int64_t blocks) {
    while (__atomic_exchange_n(&truth_lock, 1, __ATOMIC_ACQUIRE)) {
    }
    struct truth_entry *entry = truth_find(table, name);
    entry->bytes += (uint64_t)bytes;
    entry->blocks += (uint64_t)blocks;
    __atomic_store_n(&truth_lock, 0, __ATOMIC_RELEASE);
}

/* The function `name` has come to hold this much more (or less). */
static inline void truth_site(const char *name, int64_t bytes, int64_t blocks) {
    truth_change(truth_sites, name, bytes, blocks);
}

/* One block of `bytes` allocated by the calling function. */
#define HELD(bytes) truth_site(__func__, (int64_t)(bytes), 1)

static inline void truth_loss(const char *label, int64_t count) {
    truth_change(truth_losses, label, count, 0);
}

static inline void truth_tally(const char *label, int64_t count) {
    truth_change(truth_tallies, label, count, 0);
}

static inline void truth_uncounted(const char *function) {
    for (int i = 0; i < TRUTH_ENTRIES; i++) {
        if (!truth_uncounted_functions[i]) {
            truth_uncounted_functions[i] = function;
            return;
        }
    }
}

static inline void truth_ranges(int64_t bytes) {
    truth_ranges_bytes = (truth_ranges_bytes < 0 ? 0 : truth_ranges_bytes) + bytes;
}

/* Reads until a newline; 0 at the end of the input. */
static inline int truth_line(void) {
    char byte;
    while (read(0, &byte, 1) == 1)
        if (byte == '\n')
            return 1;
    return 0;
}

static inline void truth_ready(void) {
    write(1, "ready\n", 6);
    if (!truth_line())
        _exit(0);
}

static char truth_text[16384];
static size_t truth_length;

static inline void truth_put(const char *text) {
    size_t length = strlen(text);
    if (truth_length + length > sizeof truth_text)
        truth_fail("the truth is too long");
    memcpy(truth_text + truth_length, text, length);
    truth_length += length;
}

static inline void truth_number(uint64_t number) {
    char digits[21] = {0};
    int at = 20;
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    truth_put(digits + at);
}

static inline void truth_table(const char *key, const struct truth_entry *table) {
    truth_put(",\"");
    truth_put(key);
    truth_put("\":{");
    for (int i = 0; i < TRUTH_ENTRIES && table[i].name; i++) {
        truth_put(i ? ",\"" : "\"");
        truth_put(table[i].name);
        truth_put("\":");
        truth_number(table[i].bytes);
    }
    truth_put("}");
}

/* Prints the truth. */
static inline void truth_tell(void) {
    truth_length = 0;
    truth_put("{\"sites\":[");
    for (int i = 0; i < TRUTH_ENTRIES && truth_sites[i].name; i++) {
        truth_put(i ? ",{\"function\":\"" : "{\"function\":\"");
        truth_put(truth_sites[i].name);
        truth_put("\",\"bytes\":");
        truth_number(truth_sites[i].bytes);
        truth_put(",\"blocks\":");
        truth_number(truth_sites[i].blocks);
        truth_put("}");
    }
    truth_put("],\"uncounted\":[");
    for (int i = 0; i < TRUTH_ENTRIES && truth_uncounted_functions[i]; i++) {
        truth_put(i ? ",\"" : "\"");
        truth_put(truth_uncounted_functions[i]);
        truth_put("\"");
    }
    truth_put("]");
    truth_table("losses", truth_losses);
    truth_table("tallies", truth_tallies);
    if (truth_ranges_bytes >= 0) {
        truth_put(",\"ranges_bytes\":");
        truth_number((uint64_t)truth_ranges_bytes);
    }
    truth_put("}\n");
    write(1, truth_text, truth_length);
}

/* Prints the truth and stays until the input ends. */
static inline void truth_end(void) {
    truth_tell();
    while (truth_line()) {
    }
    _exit(0);
}

#endif
