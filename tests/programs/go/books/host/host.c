// A C program that runs the Go library of its first argument.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
  void (*books)(void) = library ? (void (*)(void))dlsym(library, "Books") : NULL;
  if (!books) {
    fprintf(stderr, "host: %s\n", dlerror());
    return 1;
  }
  books();
  return 0;
}
