// A C program that runs the Go library of its first argument, beside that of BOOKS_SECOND, where
// there is one: two Go runtimes in one process.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
  const char *second = getenv("BOOKS_SECOND");
  // Its runtime starts by itself, in a thread of its own.
  if (second && !dlopen(second, RTLD_NOW)) {
    fprintf(stderr, "host: %s\n", dlerror());
    return 1;
  }
  if (second)
    sleep(1);
  void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
  void (*books)(void) = library ? (void (*)(void))dlsym(library, "Books") : NULL;
  if (!books) {
    fprintf(stderr, "host: %s\n", dlerror());
    return 1;
  }
  books();
  return 0;
}
