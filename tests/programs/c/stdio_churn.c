/* fopen and opendir, always closed: much happens inside libc, nothing stays. */
#define _GNU_SOURCE
#include "truth.h"
#include <dirent.h>
#include <stdio.h>

static SITE void open_and_close(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    while (fgets(line, sizeof line, file)) {
    }
    fclose(file);
}

static SITE void list(void) {
    DIR *directory = opendir("/proc/self");
    while (readdir(directory)) {
    }
    closedir(directory);
}

static SITE void leak_buffer(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

int main(void) {
    truth_ready();
    for (int i = 0; i < 500; i++) {
        open_and_close();
        list();
    }
    leak_buffer(977);
    truth_site("open_and_close", 0, 0);
    truth_site("list", 0, 0);
    truth_end();
}
