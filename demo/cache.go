package main

import "sync"

// cache makes thumbnails; with grow it keeps them all, on the Go heap, where pprof sees them.
type cache struct {
	grow bool
	lock sync.Mutex
	kept map[string][]byte
}

const thumbnailBytes = 48 << 10

func (c *cache) thumbnail(name string) []byte {
	picture := render(name)
	if c.grow {
		c.lock.Lock()
		defer c.lock.Unlock()
		if c.kept == nil {
			c.kept = map[string][]byte{}
		}
		c.kept[name] = picture
	}
	return picture
}

//go:noinline
func render(name string) []byte {
	picture := make([]byte, thumbnailBytes)
	for i := range picture {
		picture[i] = byte(i + len(name))
	}
	return picture
}

func (c *cache) bytes() int {
	c.lock.Lock()
	defer c.lock.Unlock()
	return len(c.kept) * thumbnailBytes
}
