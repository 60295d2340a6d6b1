//! `memtrace explain` on the servers that people run, at work in containers made of this machine's
//! packages: every law holds, the residual of the charge stays within the kernel's batches, and
//! no mapping is left over.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::docker::{Container, Image};
use memtrace_tests::ledger::Explained;
use memtrace_tests::wait::until;
use memtrace_tests::{compile, serial, target_dir, workspace};

const MIB: i64 = 1 << 20;
/// Explanations of each server while it works.
const TIMES: usize = 3;

/// One server, and what is to be seen in it.
struct Server {
    name: &'static str,
    executables: Vec<String>,
    directories: Vec<String>,
    /// `docker run` arguments before the image.
    run: Vec<String>,
    command: Vec<&'static str>,
    /// In the container, until it ends well: the server is up.
    up: Vec<&'static str>,
    /// In the container, meanwhile it is explained.
    load: Vec<&'static str>,
    /// Rows of all its processes' trees that together must hold at least so many bytes.
    rows: Vec<(&'static [&'static str], i64)>,
    processes: usize,
}

impl Server {
    fn explained(&self) -> Result<()> {
        let executables: Vec<&Path> = self.executables.iter().map(Path::new).collect();
        let directories: Vec<&str> = self.directories.iter().map(String::as_str).collect();
        let image = Image::of_packages(self.name, &executables, &directories)?;
        let mut arguments = vec!["--network", "none", "--memory", "512m"];
        arguments.extend(self.run.iter().map(String::as_str));
        arguments.push(&image.name);
        arguments.extend(&self.command);
        let container = Container::run(self.name, &arguments)?;
        until("the server", Duration::from_secs(60), || Ok(container.exec(&self.up).is_ok()))
            .with_context(|| container.logs().unwrap_or_default())?;
        let mut exec = Command::new("docker");
        exec.args(["exec", &container.name]).args(&self.load);
        let mut load = exec.stdout(std::process::Stdio::null()).spawn().context("run docker")?;
        for _ in 0..TIMES {
            std::thread::sleep(Duration::from_millis(500));
            holds(&container, &[])?;
        }
        let frozen = exact(&container)?;
        ensure!(load.wait()?.success(), "the load on {} ended badly", self.name);
        // After the load: what it holds for good.
        let last = holds(&container, &[])?;
        ensure!(frozen.0["freeze"]["too_long"] == false, "{:#}", frozen.0["freeze"]);
        let processes = last.0["processes"].as_array().context("processes")?.len();
        ensure!(processes >= self.processes, "{processes} processes");
        for (rows, least) in &self.rows {
            let held: i64 = rows.iter().map(|row| sum_of(&last, row)).sum::<Result<i64>>()?;
            println!("  {}: {rows:?} {:.1} MiB", self.name, held as f64 / MIB as f64);
            ensure!(held >= *least, "{}: {rows:?} hold {held} B", self.name);
        }
        Ok(())
    }
}

/// No law is broken, those that nothing at work can silence were checked, and the residual of the
/// charge is within the kernel's batches.
fn holds(container: &Container, more: &[&str]) -> Result<Explained> {
    let mut arguments = vec!["--container", &container.name];
    arguments.extend(more);
    let explained = Explained::of(&arguments)?;
    explained.laws_hold()?;
    for law in ["I1", "I2", "I3", "I5", "I6", "I12"] {
        ensure!(explained.has_law(law), "{law} was not checked");
    }
    let epsilon = &explained.0["epsilon"];
    let of = |key: &str| epsilon[key].as_i64().with_context(|| format!("{epsilon:#}"));
    let bytes = of("bytes")?;
    ensure!((of("lowest")?..=of("highest")?).contains(&bytes), "{epsilon:#}");
    println!("  ε {bytes} B of {} to {}", of("lowest")?, of("highest")?);
    Ok(explained)
}

/// Of a frozen container every process is told, and nothing of any is left over.
fn exact(container: &Container) -> Result<Explained> {
    let explained = holds(container, &["--freeze"])?;
    ensure!(explained.has_law("I4"), "I4 was not checked");
    ensure!(explained.0["unread"].as_array().is_some_and(Vec::is_empty), "unread processes");
    for process in explained.0["processes"].as_array().context("processes")? {
        let rest = memtrace_tests::ledger::find(&process["resident"], "rss_residual");
        let rest = rest.with_context(|| format!("{process:#}"))?;
        ensure!(rest["bytes"] == 0, "{} in {}", rest["bytes"], process["comm"]);
    }
    Ok(explained)
}

/// Of this row in the trees of all processes.
fn sum_of(explained: &Explained, key: &str) -> Result<i64> {
    let processes = explained.0["processes"].as_array().context("processes")?;
    let rows = processes
        .iter()
        .filter_map(|process| memtrace_tests::ledger::find(&process["resident"], key));
    Ok(rows.filter_map(|row| row["bytes"].as_i64()).sum())
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The directory with the largest number for a name.
fn newest_release(directory: &str) -> Result<u32> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("list `{directory}`"))?;
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.max().with_context(|| format!("nothing is installed in `{directory}`"))
}

fn redis() -> Server {
    Server {
        name: "redis",
        executables: strings(&[
            "/usr/bin/redis-server",
            "/usr/bin/redis-benchmark",
            "/usr/bin/redis-cli",
        ]),
        directories: strings(&[]),
        run: strings(&[]),
        command: vec![
            "/usr/bin/redis-server",
            "--save",
            "",
            "--port",
            "0",
            "--unixsocket",
            "/tmp/redis",
        ],
        up: vec!["/usr/bin/redis-cli", "-s", "/tmp/redis", "ping"],
        load: vec![
            "/usr/bin/redis-benchmark",
            "-s",
            "/tmp/redis",
            "-n",
            "60000",
            "-r",
            "40000",
            "-d",
            "300",
            "-t",
            "set,get",
            "-q",
        ],
        // Debian's redis has jemalloc.
        rows: vec![(&["allocator_regions"], 4 * MIB), (&["elf_text"], MIB / 2)],
        processes: 1,
    }
}

fn python() -> Result<Server> {
    // `python3` is a link to the release.
    let link = std::fs::read_link("/usr/bin/python3").context("Debian's python3")?;
    let version = link.to_string_lossy().into_owned();
    const WORK: &str = "import time\nkept = [bytes(200) for _ in range(60000)]\n\
                        big = [bytearray(b'x') * (1 << 20) for _ in range(8)]\nopen('/tmp/up', 'w')\n\
                        while True:\n  for i in range(0, 60000, 7): kept[i] = bytes(200 + i % 50)\n  \
                        time.sleep(0.01)";
    Ok(Server {
        name: "python",
        executables: strings(&["/usr/bin/python3", "/bin/busybox"]),
        directories: vec![format!("/usr/lib/{version}")],
        run: strings(&[]),
        command: vec!["/usr/bin/python3", "-c", WORK],
        up: vec!["/bin/busybox", "test", "-e", "/tmp/up"],
        load: vec!["/bin/busybox", "sleep", "2"],
        // pymalloc maps its arenas itself, beside which malloc maps blocks of 1 MiB: the kernel merges
        // both; the pools' headers tell of the former, and malloc's count of the latter.
        rows: vec![
            (&["runtime_heap"], 12 * MIB),
            (&["c_mapped_chunks", "c_merged_chunks"], 8 * MIB),
        ],
        processes: 1,
    })
}

fn node() -> Server {
    const WORK: &str = "const kept = [];\nfor (let i = 0; i < 16; i++) \
                        kept.push(Buffer.alloc(1 << 20, 1));\nlet objects = [];\n\
                        require('fs').writeFileSync('/tmp/up', '');\n\
                        setInterval(() => { objects = []; for (let i = 0; i < 20000; i++) \
                        objects.push({ i, s: 'x' + i }); }, 50);";
    Server {
        name: "node",
        executables: strings(&["/usr/bin/node", "/bin/busybox"]),
        directories: strings(&[]),
        run: strings(&[]),
        command: vec!["/usr/bin/node", "-e", WORK],
        up: vec!["/bin/busybox", "test", "-e", "/tmp/up"],
        load: vec!["/bin/busybox", "sleep", "2"],
        // The buffers are malloc's, the objects V8's.
        rows: vec![(&["runtime_heap"], 4 * MIB), (&["elf_text"], 8 * MIB)],
        processes: 1,
    }
}

fn postgres() -> Result<Server> {
    let release = newest_release("/usr/lib/postgresql")?;
    let programs = format!("/usr/lib/postgresql/{release}/bin");
    const START: &str = "initdb -D /tmp/data -N > /dev/null && \
                         exec postgres -D /tmp/data -k /tmp \
                         -c listen_addresses= -c shared_buffers=64MB -c jit=off";
    const LOAD: &str = "pgbench -q -h /tmp -i -s 4 postgres 2>/dev/null && \
                        pgbench -h /tmp -c 4 -T 2 postgres";
    Ok(Server {
        name: "postgres",
        executables: ["initdb", "postgres", "pgbench", "psql"]
            .iter()
            .map(|program| format!("{programs}/{program}"))
            .chain(["/bin/sh".to_owned()])
            .collect(),
        directories: vec![
            format!("/usr/share/postgresql/{release}"),
            format!("/usr/lib/postgresql/{release}/lib"),
        ],
        run: strings(&["--user", "1000:1000", "--env", &format!("PATH={programs}:/bin")]),
        command: vec!["/bin/sh", "-c", START],
        up: vec!["psql", "-h", "/tmp", "-c", "select 1", "postgres"],
        load: vec!["/bin/sh", "-c", LOAD],
        rows: vec![(&["shared_memory"], 8 * MIB), (&["c_main_heap"], MIB)],
        processes: 6,
    })
}

fn mariadb() -> Server {
    const START: &str = "mkdir -p /tmp/data/mysql && /usr/sbin/mariadbd --no-defaults --bootstrap \
                         --datadir=/tmp/data < /dev/null && exec /usr/sbin/mariadbd --no-defaults \
                         --datadir=/tmp/data --skip-grant-tables --skip-networking \
                         --socket=/tmp/mariadb --innodb-buffer-pool-size=64M";
    const LOAD: &str = "/usr/bin/mariadb --no-defaults -S /tmp/mariadb -e \
                        'set max_recursive_iterations = 100000; \
                        create database if not exists d; create table if not exists d.t \
                        (id int auto_increment primary key, body varchar(500)) engine=innodb; \
                        insert into d.t (body) with recursive s as (select 1 n union all select \
                        n + 1 from s where n < 30000) select repeat(\"x\", 400) from s; \
                        select count(distinct body, id) from d.t'";
    Server {
        name: "mariadb",
        executables: strings(&["/usr/sbin/mariadbd", "/usr/bin/mariadb", "/bin/sh", "/bin/mkdir"]),
        directories: strings(&["/usr/share/mysql"]),
        run: strings(&["--user", "1000:1000"]),
        command: vec!["/bin/sh", "-c", START],
        up: vec!["/usr/bin/mariadb", "--no-defaults", "-S", "/tmp/mariadb", "-e", "select 1"],
        load: vec!["/bin/sh", "-c", LOAD],
        rows: vec![(&["native_anonymous"], 8 * MIB), (&["elf_text"], 4 * MIB)],
        processes: 1,
    }
}

#[test]
fn redis_and_python_are_explained_at_work() -> Result<()> {
    let _turn = serial::turn()?;
    for server in [redis(), python()?] {
        server.explained().with_context(|| server.name)?;
    }
    Ok(())
}

#[test]
#[ignore = "long: larger images; live_containers has these servers, too"]
fn postgres_mariadb_and_node_are_explained_at_work() -> Result<()> {
    let _turn = serial::turn()?;
    for server in [postgres()?, mariadb(), node()] {
        server.explained().with_context(|| server.name)?;
    }
    Ok(())
}

/// The demo's service: Go over SQLite and libxml2, with its books read from memory.
#[test]
fn the_demo_s_service_is_explained_with_go_s_books() -> Result<()> {
    let _turn = serial::turn()?;
    let service = target_dir().join("programs/notes");
    let compiler = target_dir().join("tools/bin/go");
    let mut go = Command::new(compiler);
    go.current_dir(workspace().join("demo"))
        .args(["build", "-trimpath", "-buildvcs=false", "-tags", "libsqlite3", "-o"])
        .arg(&service)
        .arg(".")
        .envs([("GOTOOLCHAIN", "local"), ("GOPROXY", "off"), ("CGO_ENABLED", "1")])
        .env("GOCACHE", target_dir().join("go-cache"));
    compile::run(&mut go)?;
    let image = Image::of("notes", &[&service], &[])?;
    let arguments = ["--network", "none", "--memory", "256m", &image.name, "/notes"];
    let container = Container::run("notes", &arguments)?;
    let listening = format!("/proc/{}/net/tcp", container.pid()?);
    until("the service", Duration::from_secs(30), || {
        // Port 8080, listening.
        Ok(std::fs::read_to_string(&listening)?.contains(":1F90 00000000:0000 0A"))
    })?;
    // At work, from its own network: what it keeps on both sides of cgo grows.
    let client = Image::of("client", &[Path::new("/bin/busybox")], &[])?;
    let beside = format!("container:{}", container.name);
    let script = "i=0; while [ $i -lt 400 ]; do i=$((i + 1)); for path in note?text=word$i \
                  label?text=label$i thumbnail?name=picture$i search?word=word$i; do \
                  /busybox wget -q -O /dev/null http://127.0.0.1:8080/$path || exit 1; done; done; \
                  echo answered; sleep 600";
    let load = ["--network", &beside, &client.name, "/busybox", "sh", "-c", script];
    let load = Container::run("load", &load)?;
    for _ in 0..TIMES {
        holds(&container, &[])?;
        std::thread::sleep(Duration::from_millis(500));
    }
    until("the load", Duration::from_secs(60), || Ok(load.logs()?.contains("answered")))?;
    let explained = exact(&container)?;
    for law in ["I7", "I8", "I10"] {
        ensure!(explained.has_law(law), "{law} was not checked: {:#}", explained.0["checks"]);
    }
    ensure!(explained.tool("go_retained")? > MIB);
    for (row, least) in [("go_heap", MIB / 2), ("c_main_heap", 32 << 10), ("elf_text", MIB)] {
        let held = sum_of(&explained, row)?;
        println!("  notes: {row} {:.1} MiB", held as f64 / MIB as f64);
        ensure!(held >= least, "`{row}` holds {held} B");
    }
    Ok(())
}
