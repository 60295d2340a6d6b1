// Holds known amounts on both sides of cgo: some of it from before `go` is said, some from after, and
// some that was freed and that malloc keeps. Says how much of each as JSON.
package main

/*
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	BEFORE = 6000, BEFORE_BYTES = 1000,
	AFTER = 4000, AFTER_BYTES = 1500,
	FREED = 3000, FREED_BYTES = 2000,
	MAPPED = 9 << 20,
	STACKS = 4, STACK_TOUCHED = 256 << 10,
};

// Not static: the compiler must keep them.
void *before_blocks[BEFORE], *after_blocks[AFTER], *freed_blocks[FREED], *top_block, *mapped;

static void *touched(void *memory, size_t bytes) {
	return memset(memory, 1, bytes);
}

__attribute__((noinline)) void plant_before(void) {
	// What is freed stays with malloc, and blocks stay in the heap.
	mallopt(M_TRIM_THRESHOLD, 1 << 30);
	mallopt(M_MMAP_THRESHOLD, 1 << 20);
	for (int i = 0; i < BEFORE; i++)
		before_blocks[i] = touched(malloc(BEFORE_BYTES), BEFORE_BYTES);
}

__attribute__((noinline)) void plant_after(void) {
	for (int i = 0; i < AFTER; i++)
		after_blocks[i] = touched(malloc(AFTER_BYTES), AFTER_BYTES);
}

__attribute__((noinline)) void plant_freed(void) {
	for (int i = 0; i < FREED; i++)
		freed_blocks[i] = touched(malloc(FREED_BYTES), FREED_BYTES);
	// Above them, so that they are no part of the top.
	top_block = touched(malloc(100000), 100000);
	for (int i = 0; i < FREED; i++)
		free(freed_blocks[i]);
}

static void *stack(void *settled) {
	volatile char here[STACK_TOUCHED];
	for (int i = 0; i < STACK_TOUCHED; i += 512)
		here[i] = 1;
	pthread_barrier_wait(settled);
	for (;;)
		pause();
	return NULL;
}

static int plant_mapped(void) {
	// A page without access on either side keeps the kernel from merging it with a neighbour.
	mapped = mmap(NULL, MAPPED + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mapped == MAP_FAILED || mprotect((char *)mapped + 4096, MAPPED, PROT_READ | PROT_WRITE))
		return 1;
	touched((char *)mapped + 4096, MAPPED);
	static pthread_barrier_t settled;
	pthread_barrier_init(&settled, NULL, STACKS + 1);
	for (int i = 0; i < STACKS; i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, stack, &settled))
			return 1;
	}
	pthread_barrier_wait(&settled);
	return 0;
}
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
)

const (
	blocks     = 384
	blockBytes = 64 << 10
)

var held [][]byte

func init() {
	runtime.MemProfileRate = 16 << 10
	// C of this goroutine is the main thread's, whose arena is the main one.
	runtime.LockOSThread()
}

func main() {
	for i := 0; i < blocks; i++ {
		block := make([]byte, blockBytes)
		for i := 0; i < len(block); i += 512 {
			block[i] = 1
		}
		held = append(held, block)
	}
	C.plant_before()
	if C.plant_mapped() != 0 {
		fmt.Fprintln(os.Stderr, "mmap or pthread_create failed")
		os.Exit(3)
	}
	input := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	if _, err := input.ReadString('\n'); err != nil {
		os.Exit(3)
	}
	C.plant_after()
	C.plant_freed()
	runtime.GC()
	runtime.GC()
	fmt.Printf("{\"go\":%d,\"before\":%d,\"after\":%d,\"after_blocks\":%d,\"top\":%d,\"freed\":%d,"+
		"\"mapped\":%d,\"stacks\":%d,\"stack_bytes\":%d}\n",
		blocks*blockBytes, C.BEFORE*C.BEFORE_BYTES, C.AFTER*C.AFTER_BYTES, C.AFTER, 100000,
		C.FREED*C.FREED_BYTES, C.MAPPED, C.STACKS, C.STACK_TOUCHED)
	input.ReadString('\n')
	runtime.KeepAlive(held)
}
