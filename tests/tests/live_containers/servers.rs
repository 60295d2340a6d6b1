//! Servers that people run, at work in containers while they are traced: they answer correctly, the
//! books balance without a loss, whoever lived for more than a moment is traced or named, and
//! nothing is left over.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memtrace_tests::docker::{Container, Image, docker};
use memtrace_tests::ledger::Explained;
use memtrace_tests::memtrace::Recording;
use memtrace_tests::recorded::Recorded;
use memtrace_tests::tracks::{BpfObjects, Text};
use memtrace_tests::{serial, wait};

use super::{ask, balanced, connect, free_port, traced};

/// After the last of many probes, each with its grace periods.
const PROBES_GO: Duration = Duration::from_secs(60);
/// Who is older than this is traced or named.
const OLD_SECONDS: u64 = 2;

/// A container that is traced, and its code as it was before.
struct Watched<'c> {
    container: &'c Container,
    untouched: BTreeMap<u32, Text>,
    held: BpfObjects,
    recording: Recording,
}

impl<'c> Watched<'c> {
    fn start(container: &'c Container) -> Result<Self> {
        let mut untouched = BTreeMap::new();
        for (pid, _) in processes(container)? {
            // One that ends meanwhile has no code to be compared.
            if let Ok(text) = Text::of(pid) {
                untouched.insert(pid, text);
            }
        }
        let recording = traced(container)?;
        let main = container.pid()?;
        let before = untouched.get(&main).context("the first process's code")?;
        ensure!(
            !Text::of(main)?.changes_since(before).is_empty(),
            "the server has no breakpoint while it is traced"
        );
        let held = BpfObjects::held_by(recording.pid())?;
        ensure!(!held.is_empty(), "memtrace holds nothing while it traces");
        Ok(Self { container, untouched, held, recording })
    }

    /// Ends the recording and checks all that holds for any server.
    fn finish(self) -> Result<Recorded> {
        let main = self.container.pid()?;
        let mut old: Vec<u32> = Vec::new();
        wait::until("the server to be some seconds old", Duration::from_secs(10), || {
            let listed = processes(self.container)?.into_iter();
            old = listed.filter(|(_, age)| *age > OLD_SECONDS).map(|(pid, _)| pid).collect();
            Ok(old.contains(&main))
        })?;
        let begun = Instant::now();
        let recorded = self.recording.interrupt()?.recorded()?;
        let took = begun.elapsed();
        balanced(&recorded)?;
        super::processes::add_up(&recorded)?;
        let last = recorded.last()?;
        for pid in &old {
            let traced = recorded.processes.iter().any(|process| process.pid == *pid);
            let named = last
                .untraced
                .some
                .iter()
                .any(|process| process.pid == *pid && !process.reason.is_empty());
            ensure!(traced || named, "{pid} is neither traced nor named: {:#?}", last.untraced);
        }
        let laws = last.memory["checks"].as_array().context("the ledger's laws")?;
        let broken: Vec<_> = laws.iter().filter(|law| law["holds"] == false).collect();
        ensure!(!laws.is_empty() && broken.is_empty(), "laws of the ledger: {broken:#?}");
        wait::until("the programs and maps to go", PROBES_GO, || {
            Ok(self.held.still_there()?.is_empty())
        })?;
        // Who was forked meanwhile has its code where the first one has it.
        let first = self.untouched.get(&main).context("the first process's code")?;
        for (pid, _) in processes(self.container)? {
            let before = self.untouched.get(&pid).unwrap_or(first);
            let Ok(now) = Text::of(pid) else { continue };
            let left = now.changes_since(before);
            ensure!(left.is_empty(), "breakpoints are left in {pid}: {left:#?}");
        }
        println!(
            "  {} processes, {} came and went, {} running untraced; {} B outstanding; ended in {took:?}",
            recorded.processes.len(),
            last.untraced.came_and_went,
            last.untraced.running,
            last.native.outstanding.bytes
        );
        Ok(recorded)
    }
}

/// Pids as the host sees them, and since how many seconds they are there.
fn processes(container: &Container) -> Result<Vec<(u32, u64)>> {
    let listed = docker(&["top", &container.name, "-o", "pid,etimes"])?;
    let process = |line: &str| -> Result<(u32, u64)> {
        let (pid, seconds) = line.trim().split_once(' ').context("two columns")?;
        Ok((pid.parse()?, seconds.trim().parse()?))
    };
    listed.lines().skip(1).map(process).collect()
}

/// Bytes that all processes asked for, those that ended included.
fn allocated(recorded: &Recorded) -> u64 {
    let totals = recorded.processes.iter().filter_map(|process| process.totals);
    totals.map(|totals| totals.allocated.bytes).sum()
}

/// Of this row in the processes' trees of a ledger.
fn resident(ledger: &serde_json::Value, key: &str) -> Result<i64> {
    let processes = ledger["processes"].as_array().context("processes")?;
    let rows = processes
        .iter()
        .filter_map(|process| memtrace_tests::ledger::find(&process["resident"], key));
    Ok(rows.filter_map(|row| row["bytes"].as_i64()).sum())
}

/// The release with the largest number in a directory.
fn newest(directory: &str, package: &str) -> Result<u32> {
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("is `{package}` installed?"))?;
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.max().with_context(|| format!("nothing is installed in `{directory}`"))
}

#[test]
fn postgres_under_pgbench_keeps_its_books_and_its_sums() -> Result<()> {
    let _turn = serial::turn()?;
    let release = newest("/usr/lib/postgresql", "postgresql-15")?;
    let programs = format!("/usr/lib/postgresql/{release}/bin");
    let executables: Vec<PathBuf> = ["initdb", "postgres", "pgbench", "psql"]
        .iter()
        .map(|program| Path::new(&programs).join(program))
        .chain([PathBuf::from("/bin/sh")])
        .collect();
    let executables: Vec<&Path> = executables.iter().map(PathBuf::as_path).collect();
    let directories =
        [format!("/usr/share/postgresql/{release}"), format!("/usr/lib/postgresql/{release}/lib")];
    let directories: Vec<&str> = directories.iter().map(String::as_str).collect();
    let image = Image::of_packages("pg", &executables, &directories)?;
    let path = format!("PATH={programs}:/bin");
    const START: &str = "initdb -D /tmp/data -N > /dev/null && exec postgres -D /tmp/data -k /tmp \
                         -c listen_addresses= -c shared_buffers=32MB -c jit=off -c fsync=off";
    let run = ["--network", "none", "--user", "1000:1000", "--env", &path, &image.name];
    let container = Container::run("pg", &[&run[..], &["/bin/sh", "-c", START]].concat())?;
    let sql = |question: &str| {
        container.exec(&["psql", "-h", "/tmp", "-A", "-t", "-c", question, "postgres"])
    };
    wait::until("postgres", Duration::from_secs(60), || Ok(sql("select 1").is_ok()))?;
    let fill = ["pgbench", "-q", "-h", "/tmp", "-i", "-s", "1", "postgres"];
    container.exec(&fill)?;
    let watched = Watched::start(&container)?;
    // On a slow machine, the server's own processes take their seconds to be attached to.
    let load = ["pgbench", "-h", "/tmp", "-c", "4", "-T", "20", "postgres"];
    let told = container.exec(&load)?;
    ensure!(told.contains("number of failed transactions: 0 "), "{told}");
    // Every transaction adds the same to an account, a branch and the history.
    let sums = sql("select (select count(*) from pgbench_accounts), \
                    (select sum(abalance) from pgbench_accounts) = \
                    (select sum(bbalance) from pgbench_branches), \
                    (select sum(bbalance) from pgbench_branches) = \
                    (select sum(delta) from pgbench_history)")?;
    ensure!(sums.trim() == "100000|t|t", "{sums}");
    let recorded = watched.finish()?;
    ensure!(allocated(&recorded) > 1 << 20, "the load was no load: {} B", allocated(&recorded));
    let backends = recorded.processes.iter().filter(|process| process.came == "forked").count();
    ensure!(backends >= 4, "the backends of pgbench are traced: {:#?}", recorded.processes);
    Ok(())
}

#[test]
fn mariadb_keeps_its_books_and_its_rows() -> Result<()> {
    let _turn = serial::turn()?;
    const SERVER: &str = "/usr/sbin/mariadbd";
    const CLIENT: &str = "/usr/bin/mariadb";
    let executables = [SERVER, CLIENT, "/bin/sh", "/bin/mkdir"].map(Path::new);
    let image = Image::of_packages("mariadb", &executables, &["/usr/share/mysql"])?;
    const START: &str = "mkdir -p /tmp/data/mysql && /usr/sbin/mariadbd --no-defaults --bootstrap \
                         --datadir=/tmp/data < /dev/null && exec /usr/sbin/mariadbd --no-defaults \
                         --datadir=/tmp/data --skip-grant-tables --skip-networking \
                         --socket=/tmp/mariadb --innodb-buffer-pool-size=32M";
    let run = ["--network", "none", "--user", "1000:1000", &image.name, "/bin/sh", "-c", START];
    let container = Container::run("mariadb", &run)?;
    let sql = |question: &str| {
        container.exec(&[CLIENT, "--no-defaults", "-S", "/tmp/mariadb", "-N", "-B", "-e", question])
    };
    wait::until("mariadb", Duration::from_secs(60), || Ok(sql("select 1").is_ok()))?;
    let watched = Watched::start(&container)?;
    for _ in 0..4 {
        let told = sql("set max_recursive_iterations = 100000; \
                        create database if not exists d; create or replace table d.t \
                        (id int auto_increment primary key, body varchar(500)) engine=innodb; \
                        insert into d.t (body) with recursive s as (select 1 n union all select \
                        n + 1 from s where n < 4000) select repeat('x', 400) from s; \
                        select count(distinct body, id), sum(length(body)) from d.t")?;
        ensure!(told.split_whitespace().eq(["4000", "1600000"]), "{told}");
    }
    std::thread::sleep(Duration::from_secs(1));
    let recorded = watched.finish()?;
    ensure!(allocated(&recorded) > 1 << 20, "the load was no load: {} B", allocated(&recorded));
    Ok(())
}

/// One FastCGI request; what the script printed. <https://fastcgi-archives.github.io/>
fn fastcgi(port: u16, script: &str, query: &str) -> Result<String> {
    const BEGIN: u8 = 1;
    const END: u8 = 3;
    const PARAMETERS: u8 = 4;
    const INPUT: u8 = 5;
    const OUTPUT: u8 = 6;
    let record = |kind: u8, content: &[u8]| -> Result<Vec<u8>> {
        let [high, low] = u16::try_from(content.len())?.to_be_bytes();
        Ok([&[1, kind, 0, 1, high, low, 0, 0], content].concat())
    };
    let mut parameters = Vec::new();
    for (name, value) in
        [("SCRIPT_FILENAME", script), ("REQUEST_METHOD", "GET"), ("QUERY_STRING", query)]
    {
        parameters.extend([u8::try_from(name.len())?, u8::try_from(value.len())?]);
        parameters.extend(name.bytes().chain(value.bytes()));
    }
    let request = [
        // As a responder, and close the connection then.
        record(BEGIN, &[0, 1, 0, 0, 0, 0, 0, 0])?,
        record(PARAMETERS, &parameters)?,
        record(PARAMETERS, &[])?,
        record(INPUT, &[])?,
    ];
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect to php-fpm")?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(&request.concat())?;
    let mut output = Vec::new();
    loop {
        let mut header = [0; 8];
        stream.read_exact(&mut header).context("read php-fpm's answer")?;
        let [_, kind, _, _, high, low, padding, _] = header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let mut content = vec![0; length + usize::from(padding)];
        stream.read_exact(&mut content)?;
        match kind {
            OUTPUT => output.extend_from_slice(&content[..length]),
            END => break,
            _ => {}
        }
    }
    let output = String::from_utf8(output)?;
    let (_, body) = output.split_once("\r\n\r\n").with_context(|| output.clone())?;
    Ok(body.to_owned())
}

#[test]
fn php_fpm_keeps_its_books_and_its_heap_has_a_name() -> Result<()> {
    let _turn = serial::turn()?;
    let server = std::fs::read_dir("/usr/sbin")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains("php-fpm"))
        .max()
        .context("is php-fpm installed?")?;
    let port = free_port()?;
    let directory = tempfile::tempdir()?;
    let configuration = directory.path().join("fpm.conf");
    let pool = format!(
        "[global]\nerror_log = /tmp/fpm.log\ndaemonize = no\n[www]\nlisten = 127.0.0.1:{port}\n\
         pm = static\npm.max_children = 3\npm.max_requests = 400\n"
    );
    std::fs::write(&configuration, pool)?;
    let script = directory.path().join("work.php");
    // Small and large blocks, and what several chunks of 2 MiB are needed for.
    let text = "<?php\n$n = (int)$_GET['n'];\n$kept = [];\n\
                for ($i = 0; $i < 20000; $i++) $kept[] = str_repeat(chr(97 + $i % 26), 100 + $n % 50);\n\
                $big = str_repeat('y', 3000000);\n\
                echo count($kept) + strlen($big) + $n;\n";
    std::fs::write(&script, text)?;
    let image = Image::of("php", &[&server, &configuration, &script], &[])?;
    let name = format!("/{}", server.file_name().context("a name")?.to_string_lossy());
    let directory_of_logs = tempfile::tempdir()?;
    let scratch = directory_of_logs.path().join("scratch");
    std::fs::create_dir(&scratch)?;
    std::fs::set_permissions(&scratch, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let volume = format!("{}:/tmp", scratch.display());
    let run = ["--network", "host", "--user", "1000:1000", "--volume", &volume, &image.name];
    let command = [&name, "-n", "-F", "-y", "/fpm.conf"];
    let container = Container::run("php", &[&run[..], &command[..]].concat())?;
    drop(connect(port)?);
    let watched = Watched::start(&container)?;
    // More than the workers may answer: others take their place meanwhile.
    let begun = Instant::now();
    for n in 0..1400 {
        let told = fastcgi(port, "/work.php", &format!("n={n}"))?;
        ensure!(told == (3_020_000 + n).to_string(), "n={n}: {told}");
        ensure!(begun.elapsed() < wait::patience(Duration::from_secs(60)), "{n} requests only");
    }
    std::thread::sleep(Duration::from_secs(3));
    let told = fastcgi(port, "/work.php", "n=7")?;
    ensure!(told == "3020007", "{told}");
    let recorded = watched.finish()?;
    let came = recorded.processes.iter().filter(|process| process.came == "forked").count();
    // On a loaded machine some of them are still named as not traced yet.
    ensure!(came >= 1, "the new workers are traced: {:#?}", recorded.processes);
    // A recording reads the mappings of the first process only, which serves nobody.
    let explained = Explained::of(&["--container", &container.name])?;
    explained.laws_hold()?;
    let heap = resident(&explained.0, "runtime_heap")?;
    println!("  php: heap {heap} B");
    ensure!(heap >= 1 << 20, "PHP's heap has {heap} B");
    Ok(())
}

/// memcached with another allocator in malloc's place.
fn memcached_on(name: &str, library: &[&str]) -> Result<()> {
    let _turn = serial::turn()?;
    let library = library.iter().map(Path::new).find(|path| path.exists());
    let library = library.with_context(|| format!("is {name} installed?"))?;
    let image = Image::of(name, &[Path::new("/usr/bin/memcached")], &[library])?;
    let port = free_port()?;
    let preload = format!("LD_PRELOAD={}", library.display());
    let port_text = port.to_string();
    let options = ["--network", "host", "--user", "1000:1000", "--env", &preload, &image.name];
    let command = ["/memcached", "-l", "127.0.0.1", "-p", &port_text, "-m", "256"];
    let container = Container::run(name, &[&options[..], &command[..]].concat())?;
    let client = connect(port)?;
    let malloced = || -> Result<u64> {
        let lines = ask(&client, "stats slabs\r\n", |line| line == "END")?;
        super::field(&lines, "STAT total_malloced")
    };
    let before = malloced()?;
    let watched = Watched::start(&container)?;
    let value = |key: u32| format!("{key:010}").repeat(977);
    for key in 0..4000 {
        let value = value(key);
        let told =
            ask(&client, &format!("set key{key} 0 0 {}\r\n{value}\r\n", value.len()), |_| true)?;
        ensure!(told == ["STORED"], "{told:?}");
    }
    for key in (0..4000).step_by(7) {
        let told = ask(&client, &format!("get key{key}\r\n"), |line| line == "END")?;
        ensure!(told.get(1) == Some(&value(key)), "key{key}: {:?}", told.first());
    }
    let grown = malloced()? - before;
    let recorded = watched.finish()?;
    ensure!(grown > 30 << 20, "the load was no load: {grown} bytes");
    let outstanding = recorded.last()?.native.outstanding.bytes;
    // Beside its slabs it has a hash table and buffers of connections.
    ensure!(
        outstanding >= grown && outstanding <= grown + (16 << 20),
        "memcached has grown by {grown} bytes, memtrace shows {outstanding}"
    );
    let probes = recorded.probes.to_string();
    ensure!(probes.contains(name), "{name} was not probed: {probes}");
    Ok(())
}

#[test]
fn memcached_on_tcmalloc_agrees_with_its_own_statistics() -> Result<()> {
    memcached_on("libtcmalloc", &["/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"])
}

#[test]
fn memcached_on_mimalloc_agrees_with_its_own_statistics() -> Result<()> {
    const DIRECTORY: &str = "/usr/lib/x86_64-linux-gnu";
    let of = |release: u32| format!("{DIRECTORY}/libmimalloc.so.{release}");
    memcached_on("libmimalloc", &[&of(2), &of(3)])
}

/// Lines to a server that answers each with one.
fn converse(port: u16, times: u64, answer: impl Fn(u64) -> u64) -> Result<()> {
    let stream = connect(port)?;
    let mut lines = BufReader::new(&stream).lines();
    for number in 0..times {
        (&stream).write_all(format!("{number}\n").as_bytes())?;
        let line = lines.next().context("the server hung up")??;
        ensure!(line.parse() == Ok(answer(number)), "{number}: {line}");
    }
    Ok(())
}

#[test]
fn node_keeps_its_books_and_its_heap_has_a_name() -> Result<()> {
    let _turn = serial::turn()?;
    let port = free_port()?;
    let node = std::fs::canonicalize("/usr/bin/node").context("is nodejs installed?")?;
    let image = Image::of_packages("node", &[&node], &[])?;
    let work = format!(
        "const kept = []; require('net').createServer(s => {{ let rest = ''; s.on('data', d => {{ \
         const lines = (rest + d).split('\\n'); rest = lines.pop(); for (const l of lines) {{ \
         const n = Number(l); kept.push({{ n, text: 'x' + n, more: [n, n + 1] }}); \
         if (n % 50 === 0) kept.push(Buffer.alloc(20000, n)); \
         s.write((kept.length ? 3 * n + 1 : 0) + '\\n'); }} }}); }}).listen({port}, '127.0.0.1');"
    );
    let program = node.to_string_lossy().into_owned();
    let run = ["--network", "host", "--user", "1000:1000", &image.name, &program, "-e", &work];
    let container = Container::run("node", &run)?;
    drop(connect(port)?);
    let watched = Watched::start(&container)?;
    converse(port, 20_000, |number| 3 * number + 1)?;
    std::thread::sleep(Duration::from_secs(1));
    let recorded = watched.finish()?;
    ensure!(allocated(&recorded) > 1 << 20, "the load was no load: {} B", allocated(&recorded));
    let heap = resident(&recorded.last()?.memory, "runtime_heap")?;
    println!("  node: heap {heap} B");
    ensure!(heap >= 4 << 20, "V8's heap has {heap} B");
    Ok(())
}

#[test]
fn python_keeps_its_books_and_its_heap_has_a_name() -> Result<()> {
    let _turn = serial::turn()?;
    let port = free_port()?;
    let version = std::fs::read_link("/usr/bin/python3").context("Debian's python3")?;
    let library = format!("/usr/lib/{}", version.to_string_lossy());
    let image = Image::of_packages("python", &[Path::new("/usr/bin/python3")], &[&library])?;
    let work = format!(
        "import socketserver\nkept = []\nclass H(socketserver.StreamRequestHandler):\n  \
         def handle(self):\n    for line in self.rfile:\n      n = int(line)\n      \
         kept.append((n, 'x' * (50 + n % 300), {{'n': n}}))\n      \
         if n % 50 == 0: kept.append(bytearray(20000))\n      \
         self.wfile.write(b'%d\\n' % (3 * n + 1))\n\
         socketserver.TCPServer.allow_reuse_address = True\n\
         socketserver.ThreadingTCPServer(('127.0.0.1', {port}), H).serve_forever()"
    );
    let python = ["/usr/bin/python3", "-c", &work];
    let run = ["--network", "host", "--user", "1000:1000", &image.name];
    let container = Container::run("python", &[&run[..], &python[..]].concat())?;
    drop(connect(port)?);
    let watched = Watched::start(&container)?;
    converse(port, 20_000, |number| 3 * number + 1)?;
    let recorded = watched.finish()?;
    ensure!(allocated(&recorded) > 1 << 20, "the load was no load: {} B", allocated(&recorded));
    let heap = resident(&recorded.last()?.memory, "runtime_heap")?;
    println!("  python: heap {heap} B");
    ensure!(heap >= 4 << 20, "CPython's small objects have {heap} B");
    Ok(())
}
