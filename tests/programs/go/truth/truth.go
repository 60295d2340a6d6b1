// Package truth is the protocol of the programs: ready, go, the truth, the end.
package truth

/*
#include <unistd.h>

// Keeps a thread busy in C, so that the next one needs a thread of its own.
static void in_c(void) { usleep(50000); }
*/
import "C"

import (
	"bufio"
	"encoding/json"
	"os"
	"sync"
)

// Site is a function and what it holds. Through names the callers that must stand above it, from
// the inside out.
type Site struct {
	Function string   `json:"function"`
	Bytes    uint64   `json:"bytes"`
	Blocks   uint64   `json:"blocks"`
	Through  []string `json:"through,omitempty"`
}

// Hold adds one block.
func (site *Site) Hold(bytes int) {
	site.Bytes += uint64(bytes)
	site.Blocks++
}

var input = bufio.NewReader(os.Stdin)

// Ready makes the runtime start its threads (each allocates in C), says ready, and waits for go.
func Ready() {
	var threads sync.WaitGroup
	for i := 0; i < 24; i++ {
		threads.Add(1)
		go func() {
			C.in_c()
			threads.Done()
		}()
	}
	threads.Wait()
	os.Stdout.WriteString("ready\n")
	if _, err := input.ReadString('\n'); err != nil {
		os.Exit(0)
	}
}

// End tells the truth and stays until the input ends.
func End(sites ...*Site) {
	line, err := json.Marshal(map[string]any{"sites": sites})
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
	for {
		if _, err := input.ReadString('\n'); err != nil {
			os.Exit(0)
		}
	}
}
