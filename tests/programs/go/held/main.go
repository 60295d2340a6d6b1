// Holds a known amount of Go heap and of goroutine stacks, serves its profile, and says as JSON what
// the runtime itself counts.
package main

import (
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"runtime"
	"time"
)

const (
	blocks     = 512
	blockBytes = 64 << 10
	goroutines = 200
)

var held [][]byte

func deep(n int, done chan struct{}) int {
	var frame [1024]byte
	frame[n%1024] = byte(n)
	if n == 0 {
		done <- struct{}{}
		select {}
	}
	return deep(n-1, done) + int(frame[(n+1)%1024])
}

func init() {
	// At the usual 512 KiB the profile of 32 MiB rests on 64 samples, and is 25 % off one time in 20.
	runtime.MemProfileRate = 16 << 10
}

func main() {
	for i := 0; i < blocks; i++ {
		block := make([]byte, blockBytes)
		for i := 0; i < len(block); i += 512 {
			block[i] = 1
		}
		held = append(held, block)
	}
	done := make(chan struct{})
	for i := 0; i < goroutines; i++ {
		go deep(12, done)
	}
	for i := 0; i < goroutines; i++ {
		<-done
	}
	runtime.GC()
	runtime.GC()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	fmt.Printf("{\"held\":%d,\"stack_inuse\":%d,\"heap_inuse\":%d,\"sys\":%d}\n",
		blocks*blockBytes, stats.StackInuse, stats.HeapInuse, stats.Sys)
	go http.Serve(listener, nil)
	time.Sleep(time.Hour)
	runtime.KeepAlive(held)
}
