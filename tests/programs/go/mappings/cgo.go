//go:build cgo

package main

/*
#include <stdlib.h>

static void *in_c(size_t size) { return malloc(size); }
*/
import "C"

// Links the runtime with libc, through which it maps its memory then.
var fromC = C.in_c(1000)
