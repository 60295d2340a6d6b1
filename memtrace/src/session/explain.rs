//! `memtrace explain`: who is meant, read it once, account, tell. No probes; nobody is stopped
//! unless `--freeze` asks for it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::exit::SessionError;
use super::outputs::{Sink, is_coloured, terminal_width};
use super::process_books::{MOST_OTHER_GO, read_go, read_heap, take_arenas, take_books};
use crate::account::Ledger;
use crate::cli::{ExplainArgs, ExplainTarget};
use crate::doctor::gather_plain_host;
use crate::go::GoProfileSource;
use crate::report::ledger::{LedgerOptions, render_json, render_text};
use crate::snapshot::facts::{FACTS_SCHEMA, Facts, ProcessFacts, Subject};
use crate::snapshot::{GoBooks, HostSummary, Known};
use crate::tracee::cgroup::freeze::freeze;
use crate::tracee::cgroup::{
    LocateError, Place, Wanted, gather, place_at, place_of_path, place_of_process,
};
use crate::tracee::container::pod::{find_container_in, find_pod};
use crate::tracee::container::{container_of, find_container};
use crate::tracee::process::{Process, ProcessError};

/// Saved facts are smaller: 131,060 mappings of 32 processes are 1.3 GB at worst.
const FACTS_BYTES: u64 = 2 << 30;

pub async fn run(args: ExplainArgs) -> Result<ExitCode> {
    let (json, save) = open_sinks(&args)?;
    let facts = match &args.from {
        Some(path) => load(path)?,
        None => read(&args).await?,
    };
    let ledger = Ledger::of(&facts);
    if let Some(mut sink) = save {
        let bytes = serde_json::to_vec(&facts).context("failed to encode what was read")?;
        sink.deliver(&bytes)?;
    }
    let to_stdout = |path: &Option<std::path::PathBuf>| path.as_deref() == Some(Path::new("-"));
    let text_to_stdout = !to_stdout(&args.json) && !to_stdout(&args.save);
    if let Some(mut sink) = json {
        sink.deliver(&render_json(&facts, &ledger)?)?;
    }
    if text_to_stdout {
        let options = LedgerOptions {
            width: terminal_width(),
            colour: is_coloured(args.color),
            exact: args.bytes,
        };
        let text = render_text(&facts, &ledger, options);
        Sink::open(Path::new("-"))?.deliver(text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn open_sinks(args: &ExplainArgs) -> Result<(Option<Sink>, Option<Sink>)> {
    if args.json.is_some() && args.json == args.save {
        if args.json.as_deref() == Some(Path::new("-")) {
            return Err(SessionError::TwoOnStdout.into());
        }
        let name = args.json.as_ref().map_or(String::new(), |path| format!("`{}`", path.display()));
        return Err(SessionError::SameFileTwice { name }.into());
    }
    let json = args.json.as_deref().map(Sink::open).transpose()?;
    let save = args.save.as_deref().map(Sink::open).transpose()?;
    Ok((json, save))
}

/// What `--save` wrote.
fn load(path: &Path) -> Result<Facts> {
    use std::io::Read;
    let failed = || format!("failed to read what was saved in `{}`", path.display());
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FACTS_BYTES).read_to_end(&mut bytes))
        .with_context(failed)?;
    let facts: Facts = serde_json::from_slice(&bytes).with_context(failed)?;
    if facts.schema != FACTS_SCHEMA {
        anyhow::bail!(
            "`{}` was saved by memtrace {} in form {}: this memtrace reads form {FACTS_SCHEMA}",
            path.display(),
            crate::report::visible(&facts.memtrace),
            facts.schema
        );
    }
    Ok(facts)
}

async fn read(args: &ExplainArgs) -> Result<Facts> {
    let wanted = resolve(&args.target).await?;
    // A frozen process answers nobody: it is asked before. Its memory is read with the rest.
    let asks = !matches!(args.go_profile, GoProfileSource::Off | GoProfileSource::Memory);
    let asked = match wanted.subject.main_pid {
        Some(pid) if asks => Some((pid, read_go(pid, &args.go_profile).await)),
        _ => None,
    };
    let frozen = match (args.freeze, freezable(&wanted)) {
        (true, Some((pid, id))) => Some(freeze(pid, id.as_deref())?),
        (true, None) => anyhow::bail!("nothing to freeze: no process is known"),
        (false, _) => None,
    };
    let books = async |processes: &mut [ProcessFacts]| {
        read_books(processes, wanted.subject.main_pid, &args.go_profile, asked.as_ref()).await;
    };
    let mut facts = gather(&wanted, frozen, books).await;
    facts.host = host();
    Ok(facts)
}

/// The runtimes' own books. From their memory, which asks nobody, but for what was asked before.
async fn read_books(
    processes: &mut [ProcessFacts],
    main: Option<u32>,
    source: &GoProfileSource,
    asked: Option<&(u32, Known<GoBooks>)>,
) {
    for process in processes.iter_mut().filter(|it| it.mappings.value().is_some()) {
        process.heap = read_heap(process.id.pid);
    }
    let from_memory = matches!(source, GoProfileSource::Memory | GoProfileSource::Auto);
    let mut others = 0;
    for process in processes.iter_mut() {
        let pid = process.id.pid;
        if let Some((_, books)) = asked.filter(|(asked, _)| *asked == pid) {
            take_books(process, books);
        } else if Some(pid) == main && matches!(source, GoProfileSource::Memory) {
            take_books(process, &read_go(pid, &GoProfileSource::Memory).await);
        } else if from_memory
            && process.go_version.is_some()
            && process.mappings.value().is_some()
            && others < MOST_OTHER_GO
        {
            others += 1;
            take_books(process, &read_go(pid, &GoProfileSource::Memory).await);
        }
    }
    // Go 1.26 and later put the heap at a random address: only the runtime can tell where it is.
    let unplaced = processes.iter_mut().filter(|it| it.mappings.value().is_some());
    let unplaced = unplaced.filter(|it| it.go_version.is_some() && it.go_ranges.value().is_none());
    for process in unplaced.take(1 + MOST_OTHER_GO) {
        let books = read_go(process.id.pid, &GoProfileSource::Memory).await;
        take_arenas(process, &books);
    }
}

fn freezable(wanted: &Wanted) -> Option<(u32, Option<String>)> {
    let pid = wanted.subject.main_pid.or_else(|| wanted.pids.first().copied())?;
    Some((pid, wanted.subject.container.as_ref().map(|container| container.id.clone())))
}

async fn resolve(target: &ExplainTarget) -> Result<Wanted> {
    if let Some(pid) = target.pid {
        return of_pid(pid).await;
    }
    if let Some(name) = &target.container {
        let found = match &target.pod {
            Some(pod) => find_container_in(pod, name).await?,
            None => find_container(name).await?,
        };
        let id = found.container.id.clone();
        let place = place(place_of_process(Path::new("/proc"), found.first_pid, Some(&id)));
        let subject = Subject {
            asked: name.clone(),
            container: Some(found.container),
            pod_uid: None,
            main_pid: Some(found.first_pid),
        };
        return Ok(Wanted::new(subject, place, found.all_pids));
    }
    if let Some(asked) = &target.pod {
        let pod = find_pod(asked).await?;
        let place = place(place_of_path(Path::new("/proc"), &pod.cgroup_path));
        let subject = Subject {
            asked: pod.name.unwrap_or_else(|| pod.uid.clone()),
            container: None,
            pod_uid: Some(pod.uid),
            main_pid: pod.pids.first().copied(),
        };
        return Ok(Wanted::new(subject, place, pod.pids));
    }
    let asked = target.cgroup.clone().unwrap_or_default();
    let found = place_at(Path::new("/proc"), &asked)?;
    let first = crate::tracee::cgroup::first_process_in(&found);
    let subject = Subject {
        asked: format!("cgroup {}", found.path),
        container: None,
        pod_uid: None,
        main_pid: first,
    };
    Ok(Wanted::new(subject, Known::Value(found), Vec::new()))
}

async fn of_pid(pid: u32) -> Result<Wanted> {
    match Process::open(pid) {
        // Memory of a 32-bit program is told as well.
        Ok(_) | Err(ProcessError::NotX86_64 { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let container = container_of(pid).await;
    let id = container.as_ref().map(|container| container.id.as_str());
    let place = place(place_of_process(Path::new("/proc"), pid, id));
    let subject =
        Subject { asked: format!("process {pid}"), container, pod_uid: None, main_pid: Some(pid) };
    Ok(Wanted::new(subject, place, vec![pid]))
}

/// A container whose cgroup cannot be seen still has processes.
pub(super) fn place(found: Result<Place, LocateError>) -> Known<Place> {
    match found {
        Ok(place) => Known::Value(place),
        Err(error) => {
            let mut reason = error.to_string();
            if let Some(cause) = std::error::Error::source(&error) {
                reason.push_str(&format!(": {cause}"));
            }
            Known::unknown(reason)
        }
    }
}

pub(super) fn host() -> HostSummary {
    let host = gather_plain_host();
    HostSummary {
        kernel_release: host.kernel_release,
        architecture: host.architecture,
        cpus: host.cpus,
        page_size_bytes: host.page_size_bytes,
    }
}
