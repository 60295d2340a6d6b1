// Go calls C calls Go calls C: the allocation at the end has all of them above it, over goroutines
// whose stacks grow and move meanwhile.
package main

/*
#include <stdlib.h>

extern void goCallback(int);

__attribute__((noinline)) static void call_back(int number) {
	goCallback(number);
	__asm__ volatile("" ::: "memory");
}

static void *volatile kept;

__attribute__((noinline)) static void leak_at_the_end(size_t size) {
	kept = malloc(size);
}
*/
import "C"

import (
	"sync"

	"memtrace.test/programs/truth"
)

var (
	lock sync.Mutex
	end  = &truth.Site{
		Function: "leak_at_the_end",
		Through:  []string{"main.goCallback", "call_back", "main.outer"},
	}
)

//export goCallback
func goCallback(number C.int) {
	size := 977 + int(number)
	C.leak_at_the_end(C.size_t(size))
	lock.Lock()
	end.Hold(size)
	lock.Unlock()
}

//go:noinline
func outer(number int) {
	C.call_back(C.int(number))
}

// Grows the stack before the call, so that it has moved.
//
//go:noinline
func deep(number, depth int) int {
	var room [512]byte
	room[number%512] = byte(depth)
	if depth == 0 {
		outer(number)
		return int(room[number%512])
	}
	return deep(number, depth-1) + int(room[0])
}

func main() {
	truth.Ready()
	var all sync.WaitGroup
	for routine := 0; routine < 8; routine++ {
		all.Add(1)
		go func(routine int) {
			defer all.Done()
			for i := 0; i < 250; i++ {
				deep(routine*250+i, i%40)
			}
		}(routine)
	}
	all.Wait()
	truth.End(end)
}
