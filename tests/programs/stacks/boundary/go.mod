module memtrace.test/boundary

go 1.21
