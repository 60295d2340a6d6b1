// C memory that Go functions ask for: C.malloc, C.CString, C.CBytes, and a C function's own.
package main

/*
#include <stdlib.h>
#include <string.h>

static void *kept;

__attribute__((noinline)) static void *leak_in_c(size_t size) {
	kept = malloc(size);
	memset(kept, 1, size);
	return kept;
}
*/
import "C"

import (
	"strings"
	"unsafe"

	"memtrace.test/programs/truth"
)

var (
	malloced = &truth.Site{Function: "main.leakMalloc"}
	stringed = &truth.Site{Function: "main.leakCString"}
	bytesed  = &truth.Site{Function: "main.leakCBytes"}
	inC      = &truth.Site{Function: "leak_in_c", Through: []string{"main.leakThroughC", "main.work", "main.main"}}
	churned  = &truth.Site{Function: "main.stringAndFreed"}
)

//go:noinline
func leakMalloc(size int) {
	C.malloc(C.size_t(size))
	malloced.Hold(size)
}

//go:noinline
func leakCString(text string) {
	C.CString(text)
	stringed.Hold(len(text) + 1)
}

//go:noinline
func leakCBytes(bytes []byte) {
	C.CBytes(bytes)
	bytesed.Hold(len(bytes))
}

//go:noinline
func leakThroughC(size int) {
	C.leak_in_c(C.size_t(size))
	inC.Hold(size)
}

//go:noinline
func stringAndFreed(text string) {
	copied := C.CString(text)
	C.free(unsafe.Pointer(copied))
}

//go:noinline
func work() {
	for i := 0; i < 300; i++ {
		leakMalloc(977 + i)
		leakCString(strings.Repeat("x", 331+i))
		leakCBytes(make([]byte, 613+i))
		leakThroughC(1409 + i)
		stringAndFreed("never kept")
	}
}

func main() {
	truth.Ready()
	work()
	truth.End(malloced, stringed, bytesed, inC, churned)
}
