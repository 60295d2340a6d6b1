// Goroutines that cross between Go and C without end, over stacks that grow and move: Go to C by
// several ways and depths, and C back to Go and to C again. Says `ready`, and ends with its input.
package main

/*
#include <stdlib.h>
#include <string.h>

extern int goCallback(int, int);

#define KEEP(pointer) __asm__ volatile("" : "+r"(pointer) : : "memory")

__attribute__((noinline)) static void allocate(int size) {
	char *block = malloc(size);
	KEEP(block);
	block = realloc(block, size * 2);
	KEEP(block);
	free(block);
}

__attribute__((noinline)) static int below(int depth, int size) {
	volatile char room[200];
	room[size % 200] = 1;
	if (depth == 0) {
		allocate(size);
		return 1;
	}
	return below(depth - 1, size) + room[size % 200];
}

__attribute__((noinline)) static int callBack(int depth, int size) {
	int result = goCallback(depth, size);
	KEEP(result);
	return result;
}
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"unsafe"
)

//export goCallback
func goCallback(depth, size C.int) C.int {
	if depth > 0 {
		return C.callBack(depth-1, size)
	}
	return C.below(size%6, size)
}

// Grows the stack before the call, so that it has moved.
//
//go:noinline
func deep(depth, size int) int {
	var room [256]byte
	room[size%256] = byte(depth)
	if depth == 0 {
		switch size % 4 {
		case 0:
			C.below(C.int(size%20), C.int(size))
		case 1:
			C.callBack(C.int(size%3), C.int(size))
		case 2:
			C.free(C.malloc(C.size_t(size)))
		default:
			text := C.CString("a string of Go's")
			C.free(unsafe.Pointer(text))
		}
		return int(room[size%256])
	}
	return deep(depth-1, size) + int(room[size%256])
}

func work(number int) {
	for size := 1; ; size = size%1000 + 1 {
		// A new goroutine starts with a small stack.
		done := make(chan int)
		go func() { done <- deep((number+size)%30, size) }()
		<-done
		func() {
			defer func() { deep(size%10, size) }()
			deep(size%3, size)
		}()
	}
}

func main() {
	for number := 0; number < 4; number++ {
		go work(number)
	}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString(0)
}
