// Every way over the boundary between Go and C, once each, told apart by the size of the block that
// it leaks. Built as an executable and as a library that a C program loads.
package main

/*
#cgo LDFLAGS: -llevels -lmake
#include <stdlib.h>
#include "inside.h"

static void call_go_back(size_t size) {
	call_back((void (*)(size_t))callback_address(), size);
	__asm__ volatile("" : : : "memory");
}
*/
import "C"

import (
	"bufio"
	"os"
)

//go:noinline
func intoLibrary(size C.size_t) { C.leak_a(size) }

//go:noinline
func intoThread(size C.size_t) { C.leak_in_thread(size) }

//go:noinline
func intoNew(size C.size_t) { C.leak_by_new(size) }

//go:noinline
func intoString(size C.size_t) { C.leak_by_string(size) }

//go:noinline
func byCMalloc(size C.size_t) { C.malloc(size) }

//go:noinline
func intoInside(size C.size_t) { C.inside_a(size) }

//go:noinline
func andBack(size C.size_t) { C.call_go_back(size) }

//export goCallback
func goCallback(size C.size_t) { inCallback(size) }

//go:noinline
func inCallback(size C.size_t) { C.after_callback(size) }

func innermost(size C.size_t) { C.leak_inlined(size) }

func between(size C.size_t) { innermost(size) }

//go:noinline
func ofInlined(size C.size_t) { between(size) }

// Grows the goroutine's stack, so that it has moved.
//
//go:noinline
func deep(depth int, size C.size_t) int {
	var room [700]byte
	room[depth*3] = 1
	if depth == 0 {
		C.leak_a(size)
		return int(room[1])
	}
	return deep(depth-1, size) + int(room[depth])
}

//export RunCases
func RunCases() {
	intoLibrary(1111)
	intoThread(2221)
	intoNew(3331)
	intoString(3341)
	byCMalloc(4441)
	intoInside(5551)
	andBack(6661)
	ofInlined(7771)
	done := make(chan bool)
	go func() {
		deep(12, 8881)
		done <- true
	}()
	<-done
}

func main() {
	input := bufio.NewReader(os.Stdin)
	os.Stdout.WriteString("ready\n")
	if _, err := input.ReadString('\n'); err != nil {
		return
	}
	RunCases()
	os.Stdout.WriteString("{\"sites\":[]}\n")
	for {
		if _, err := input.ReadString('\n'); err != nil {
			return
		}
	}
}
