//! The TCP ports on which one process listens, in its own network namespace.
//!
//! A row of `/proc/PID/net/tcp{,6}` tells address, state and socket inode; a link in
//! `/proc/PID/fd` tells that the process holds that socket. Limits: threads that moved to another
//! network namespace, unix sockets and sockets behind TLS proxies are not seen.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Most bytes read of one socket table (150 bytes a row: over 400,000 sockets).
const TABLE_BYTES: u64 = 64 << 20;
/// Most file descriptors looked at.
const DESCRIPTORS: usize = 1 << 20;
/// `TCP_LISTEN` in `include/net/tcp_states.h`.
const LISTEN: &str = "0A";

#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    #[error("failed to list the descriptors of process {pid} in `{}`", path.display())]
    Descriptors {
        pid: u32,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to read the sockets of process {pid} from `{}`", path.display())]
    Table {
        pid: u32,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The addresses on which `pid` accepts TCP connections, sorted, each once.
///
/// v4-mapped addresses come as IPv4. Wildcards stay wildcards: see [`connectable`]. Needs
/// `CAP_SYS_PTRACE` over the process, for its descriptors.
pub fn listening_ports(pid: u32) -> Result<Vec<SocketAddr>, PortsError> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let path = process.join("fd");
    let held = socket_inodes(&path).map_err(|source| PortsError::Descriptors {
        pid,
        path: path.clone(),
        source,
    })?;
    let mut found = Vec::new();
    if held.is_empty() {
        return Ok(found);
    }
    for table in ["net/tcp", "net/tcp6"] {
        let path = process.join(table);
        match File::open(&path) {
            Ok(file) => listeners_in(file.take(TABLE_BYTES), &held, &mut found)
                .map_err(|source| PortsError::Table { pid, path, source })?,
            // A kernel without IPv6 has no tcp6.
            Err(error) if error.kind() == ErrorKind::NotFound && table == "net/tcp6" => {}
            Err(source) => return Err(PortsError::Table { pid, path, source }),
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Where to connect, inside the namespace, to reach a listener: to be tried in this order.
///
/// `0.0.0.0` is reached by `127.0.0.1`. `[::]` is reached by `[::1]`, but also by `127.0.0.1`
/// when it is dual-stack: that is the only way in containers whose IPv6 is switched off, where a
/// Go program still listens on `[::]`.
pub fn connectable(listening: SocketAddr) -> Vec<SocketAddr> {
    let port = listening.port();
    match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![(Ipv4Addr::LOCALHOST, port).into()],
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![(Ipv6Addr::LOCALHOST, port).into(), (Ipv4Addr::LOCALHOST, port).into()]
        }
        _ => vec![listening],
    }
}

fn socket_inodes(fd_directory: &Path) -> std::io::Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    for entry in std::fs::read_dir(fd_directory)?.take(DESCRIPTORS) {
        // A descriptor may be closed while it is looked at.
        let Ok(target) = entry.and_then(|entry| std::fs::read_link(entry.path())) else { continue };
        inodes.extend(target.to_str().and_then(parse_socket_link));
    }
    Ok(inodes)
}

/// `socket:[123]` → 123
fn parse_socket_link(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn listeners_in(
    table: impl Read,
    held: &HashSet<u64>,
    found: &mut Vec<SocketAddr>,
) -> std::io::Result<()> {
    for line in BufReader::new(table).lines() {
        let line = line?;
        if let Some((address, inode)) = parse_listener(&line)
            && held.contains(&inode)
        {
            found.push(address);
        }
    }
    Ok(())
}

/// One row of `/proc/net/tcp` or `tcp6`; `None` for the heading and for all but listeners.
fn parse_listener(row: &str) -> Option<(SocketAddr, u64)> {
    let mut columns = row.split_ascii_whitespace();
    let address = columns.nth(1)?;
    // remote, then state; then queues, timer, retransmits, uid, timeout, inode.
    let state = columns.nth(1)?;
    let inode = columns.nth(5)?;
    (state == LISTEN).then_some(())?;
    Some((parse_address(address)?, inode.parse().ok()?))
}

/// `0100007F:1F90`: words of 32 bits in the machine's own byte order, port in hexadecimal.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = words.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match words.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            Ipv6Addr::from(octets).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 51234 1 ffff88800f0a0000 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 51235 1 ffff88800f0a0940 100 0 0 10 0
   2: 0200000A:0050 0300000A:D3A2 01 00000000:00000000 02:000AFC80 00000000   101        0 51236 2 ffff88800f0a1280 20 4 30 10 -1
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:17AC 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 61000 1 ffff888010a3b600 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:2383 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 61001 1 ffff888010a3b600 100 0 0 10 0
   2: 000080FE00000000FF005450B6AD1DFE:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 61002 1 ffff888010a3b600 100 0 0 10 0
";

    fn listeners(table: &str, held: &[u64]) -> Vec<String> {
        let mut found = Vec::new();
        listeners_in(table.as_bytes(), &held.iter().copied().collect(), &mut found).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_of_this_process_are_read_in_both_families() {
        assert_eq!(
            listeners(TCP, &[51234, 51235, 51236]),
            ["127.0.0.1:8080", "0.0.0.0:80"],
            "a connection is no listener"
        );
        assert_eq!(
            listeners(TCP6, &[61000, 61001, 61002]),
            ["[::]:6060", "127.0.0.1:9091", "[fe80::5054:ff:fe1d:adb6]:22"],
            "a v4-mapped address is IPv4"
        );
    }

    #[test]
    fn sockets_of_other_processes_are_not_ours() {
        assert_eq!(listeners(TCP, &[51236, 7]), Vec::<String>::new());
    }

    #[test]
    fn broken_rows_are_passed_over() {
        for row in [
            "",
            "0:",
            "0: 0100007F 0:0 0A a b c d e 1",
            "0: 0100007F:1F90 0:0 0A a b c d e x",
            "0: 0100007F:1F90 0:0 0A a b c d",
            "0: 010000é:1F90 0:0 0A a b c d e 1",
            "0: 0100007F00:1F90 0:0 0A a b c d e 1",
            "0: 0100007F:1F901 0:0 0A a b c d e 1",
        ] {
            assert_eq!(parse_listener(row), None, "{row}");
        }
        assert_eq!(parse_socket_link("socket:[12]"), Some(12));
        for link in ["socket:[]", "socket:[-1]", "socket:12", "pipe:[12]", "/socket:[12]"] {
            assert_eq!(parse_socket_link(link), None, "{link}");
        }
    }

    #[test]
    fn wildcards_are_reached_by_loopback() {
        let reach = |text: &str| -> Vec<String> {
            connectable(text.parse().unwrap()).iter().map(ToString::to_string).collect()
        };
        assert_eq!(reach("0.0.0.0:80"), ["127.0.0.1:80"]);
        assert_eq!(reach("[::]:80"), ["[::1]:80", "127.0.0.1:80"]);
        assert_eq!(reach("10.0.0.2:80"), ["10.0.0.2:80"]);
        assert_eq!(reach("[fd00::2]:80"), ["[fd00::2]:80"]);
    }

    #[test]
    fn a_listener_of_this_process_is_found_and_reached_until_it_is_closed() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = listener.local_addr().unwrap();
        let found = listening_ports(std::process::id()).unwrap();
        assert!(found.contains(&address), "{found:?} lacks {address}");
        TcpStream::connect(connectable(address)[0]).unwrap();
        drop(listener);
        let found = listening_ports(std::process::id()).unwrap();
        assert!(!found.contains(&address), "{found:?} still has {address}");
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error_that_names_it() {
        let error = listening_ports(u32::MAX).unwrap_err();
        assert!(error.to_string().contains("process 4294967295"), "{error}");
    }
}
