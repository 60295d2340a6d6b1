module memtrace.test/programs

go 1.21
