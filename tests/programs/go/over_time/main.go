// One behaviour over time of a Go program with C in it, for so many seconds; then one line of JSON
// with what it did, and it stays until its input ends.
//
//	over_time SCENARIO SECONDS SEED
package main

/*
#include <stdlib.h>
#include <string.h>

// Forgotten by who asked for it.
__attribute__((noinline)) void *copy_of(size_t size) {
	void *block = malloc(size);
	if (block)
		memset(block, 7, size);
	__asm__ volatile("" : : "r"(block) : "memory");
	return block;
}

__attribute__((noinline)) void release(void *block) { free(block); }
*/
import "C"

import (
	"bufio"
	"fmt"
	"math/rand"
	"os"
	"strconv"
	"time"
)

var (
	leakedBytes, leakedBlocks [2]uint64
	kept                      [][]byte
	never                     = make(chan struct{})
)

//go:noinline
func importFeed(size int) {
	C.copy_of(C.size_t(size))
	leakedBytes[0] += uint64(size)
	leakedBlocks[0]++
}

//go:noinline
func importImage(size int) {
	C.copy_of(C.size_t(size))
	leakedBytes[1] += uint64(size)
	leakedBlocks[1]++
}

//go:noinline
func healthy(size int) {
	C.release(C.copy_of(C.size_t(size)))
}

//go:noinline
func keep(size int) {
	block := make([]byte, size)
	for i := 0; i < len(block); i += 512 {
		block[i] = 1
	}
	kept = append(kept, block)
}

//go:noinline
func wait(depth int) int {
	var frame [256]byte
	frame[depth%256] = byte(depth)
	if depth == 0 {
		<-never
	} else {
		depth = wait(depth - 1)
	}
	return depth + int(frame[(depth+1)%256])
}

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "over_time SCENARIO SECONDS SEED")
		os.Exit(2)
	}
	scenario := os.Args[1]
	seconds, err := strconv.ParseFloat(os.Args[2], 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	seed, err := strconv.ParseInt(os.Args[3], 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	chance := rand.New(rand.NewSource(seed))
	input := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	if _, err := input.ReadString('\n'); err != nil {
		return
	}
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	for tick := 1; time.Now().Before(end); tick++ {
		for i := 0; i < 4; i++ {
			healthy(100 + chance.Intn(2000))
		}
		switch scenario {
		case "two-callers":
			if tick%5 == 0 {
				importFeed(1500 + chance.Intn(1000))
			}
			if tick%10 == 0 {
				importImage(3500 + chance.Intn(1000))
			}
		case "go-heap":
			if tick%10 == 0 {
				keep(48<<10 + chance.Intn(32<<10))
			}
		case "goroutines":
			if tick%5 == 0 {
				go wait(20)
			}
		default:
			fmt.Fprintln(os.Stderr, "no scenario", scenario)
			os.Exit(2)
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Printf("{\"leaked_bytes\": %d, \"leaked_blocks\": %d, \"feed_bytes\": %d, \"image_bytes\": %d}\n",
		leakedBytes[0]+leakedBytes[1], leakedBlocks[0]+leakedBlocks[1], leakedBytes[0], leakedBytes[1])
	for {
		if _, err := input.ReadString('\n'); err != nil {
			return
		}
	}
}
