//! The processes of the target while they are traced: who came, who runs another program, whose
//! libraries changed, who has ended.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Session;
use crate::cli::RecordArgs;
use crate::kernel::{ImageNumber, Kernel, Notice, monotonic_ns};
use crate::plan::host::HostFacts;
use crate::report::visible;
use crate::session::family::Ready;
use crate::session::image::TracedImage;
use crate::session::probes::{Mmaps, Probes, plan_for};
use crate::session::range_events::range_event;
use crate::session::recorder::{Recorder, as_ns};
use crate::session::say::{say, warn};
use crate::session::space::Tables;
use crate::session::target::find_group;
use crate::snapshot::{Came, Ended, StackDef};
use crate::tracee::process::Process;

/// After they were read, notices wait for so many times the CPU time that it took: a program that maps
/// and unmaps code all the time must not keep memtrace busy.
const RESCAN_PAUSES: u32 = 3;
/// The same of a look for the target that restarts: container runtimes may answer late, or never.
const LOOK_PAUSES: u32 = 3;
/// Links of processes that have ended are kept up to this many: detaching holds up attaching.
const MOST_DEAD_LINKS: usize = 1024;

impl Session {
    /// Applies what the ring holds, and notices who has ended.
    pub(super) fn drain(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        let drained = match self.closed {
            true => self.kernel.drain_ring_fully(),
            false => self.kernel.drain_ring(),
        };
        for seen in &drained.ranges {
            if let Some(event) = range_event(seen)
                && let Some(image) = self.images.iter_mut().find(|it| it.number == seen.image)
            {
                image.ranges.apply(&event);
            }
        }
        let mut changed = Vec::new();
        for notice in drained.notices {
            match notice {
                Notice::Exec { tgid, time_ns } => self.executed(tgid, time_ns),
                Notice::Fork { tgid, parent, time_ns } => {
                    let parent = self.running(parent).map_or(0, |image| image.number);
                    // The kernel side made it a member.
                    self.family.add(tgid, Came::Forked { parent }, Some(time_ns));
                }
                Notice::UnknownMapping { tgid, .. } | Notice::MappingsChanged { tgid } => {
                    changed.push(tgid);
                }
                // Of those that are traced the pidfd tells when all threads are gone.
                Notice::Exit { tgid } if self.running(tgid).is_none() => {
                    self.family.ended(tgid);
                }
                Notice::Exit { .. } => {}
            }
        }
        if !changed.is_empty() {
            match Instant::now() < self.rescan_after {
                true => self.rescan_due = Some(self.rescan_after),
                false => self.rescan(|image| changed.contains(&image.pid())),
            }
        }
        let elapsed_ns = as_ns(self.armed_at.elapsed());
        for image in self.images.iter_mut().filter(|image| image.ended.is_none()) {
            if image.process.has_exited() {
                image.ended = Some((Ended::Exited, elapsed_ns));
                self.family.ended(image.pid());
                self.kernel.remove_member(image.pid());
                // Its row would be in the way of nobody but a process that gets its pid.
                let _ = self.kernel.remove_process(image.pid());
            }
        }
    }

    fn running(&self, pid: u32) -> Option<&TracedImage> {
        self.images.iter().find(|image| image.pid() == pid && image.ended.is_none())
    }

    /// The process runs another program since then: the books of the old one stand as they are.
    fn executed(&mut self, pid: u32, time_ns: u64) {
        let of_old = |image: &&mut TracedImage| image.pid() == pid && image.ended.is_none();
        match self.images.iter_mut().find(of_old) {
            // What is traced there is the new program already.
            Some(image) if image.opened_ns > time_ns => return,
            Some(image) => {
                image.ended = Some((Ended::Replaced, time_ns.saturating_sub(self.armed_ns)));
                let _ = self.kernel.remove_process(pid);
                self.kernel.detach_loader(pid);
            }
            None => {}
        }
        self.family.executed(pid, time_ns);
    }

    /// One more process of the target.
    pub(super) fn meet(&mut self, pid: u32, came: Came, since_ns: Option<u64>) {
        if pid == std::process::id() {
            // Its own allocations would be part of what it does about them.
            return;
        }
        if self.family.add(pid, came, since_ns)
            && let Err(error) = self.kernel.add_member(pid, true)
        {
            warn(format_args!("{error:#}"));
        }
    }

    /// Attaches to who is ready.
    pub(super) fn start_ready(&mut self) {
        for ready in self.family.ready() {
            if let Err((comm, reason)) = self.start(ready) {
                if self.verbose {
                    let (comm, reason) = (visible(&comm), visible(&reason));
                    say(format_args!("not traced (yet): {} ({comm}): {reason}", ready.pid));
                }
                self.family.refuse(ready.pid, comm, reason);
            }
        }
    }

    /// The books of one more image. `Err`: the process's name, and why not (yet).
    fn start(&mut self, ready: Ready) -> Result<(), (String, String)> {
        let Ready { pid, came, since_ns } = ready;
        let opened_ns = monotonic_ns();
        let process = Process::open(pid).map_err(|error| (String::new(), error.to_string()))?;
        let comm = process.comm.clone();
        let refuse = |reason: String| (comm.clone(), reason);
        let running = self.images.iter().filter(|image| image.is_running()).count();
        if running >= self.most_processes {
            let most = self.most_processes;
            return Err(refuse(format!("{most} processes are traced already (--max-processes)")));
        }
        let parent = match came {
            Came::Forked { parent } => parent,
            _ => 0,
        };
        let number = ImageNumber { number: self.next_image, parent };
        let mut image =
            TracedImage::of(process, number, opened_ns, came, &self.host, &mut self.tables)
                .map_err(|error| refuse(format!("{error:#}")))?;
        let mut planned = plan_for(&image.process, &image.space.mappings.files, &self.host);
        self.mmaps.keep(&mut planned);
        let by_kernel = self.mmaps.are_in_kernel();
        if !planned.has_allocator() && !by_kernel {
            return Err(refuse("no allocator function of it can be probed".to_owned()));
        }
        self.next_image += 1;
        image.go_version = planned.go_version();
        // Its calls count from the moment at which every probe stands: an entry whose return is not
        // probed yet would be a call that never returns.
        match image.space.watch_loader(&mut self.kernel, pid) {
            Ok(blind) => self.probes.not_probed(blind),
            Err(error) => return Err(refuse(format!("{error:#}"))),
        }
        let begun = self.probes.attach(&mut self.kernel, pid, &planned).and_then(|standing| {
            if standing > 0 || by_kernel {
                image.space.publish(&mut self.kernel, pid, &mut self.tables)?;
            }
            Ok(standing)
        });
        match begun {
            Ok(standing) if standing > 0 || by_kernel => {}
            begun => {
                let _ = self.kernel.remove_process(pid);
                let reason = match begun {
                    Ok(_) => "not one probe could be attached".to_owned(),
                    Err(error) => format!("{error:#}"),
                };
                return Err(refuse(reason));
            }
        }
        self.probes.not_probed(image.space.mappings.unreadable.iter().cloned());
        if came != Came::AtStart {
            let armed_ns = monotonic_ns();
            image.armed_elapsed_ns = armed_ns.saturating_sub(self.armed_ns);
            let since_ns = since_ns.unwrap_or_else(|| image.process.started_ns());
            image.unseen_ns = Some(armed_ns.saturating_sub(since_ns));
        }
        self.family.traced(pid, image.number);
        self.images.push(image);
        Ok(())
    }

    /// Who joined the target without being forked by it, and who went unnoticed.
    pub(super) async fn look(&mut self, args: &RecordArgs) {
        let before = Instant::now();
        if args.follow
            && self.is_over()
            && let Ok(Some(group)) = find_group(&args.target).await
        {
            self.family.scope = group.scope;
            for pid in group.all {
                self.meet(pid, Came::Found, None);
            }
        }
        for pid in self.family.look() {
            self.meet(pid, Came::Found, None);
        }
        for pid in self.family.untraced_pids() {
            if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
                self.family.ended(pid);
                self.kernel.remove_member(pid);
            }
        }
        self.look_after = Instant::now() + before.elapsed() * LOOK_PAUSES;
    }

    /// Nothing of the target is traced or about to be.
    pub(super) fn is_over(&self) -> bool {
        !self.images.iter().any(TracedImage::is_running) && !self.family.has_waiting()
    }

    /// The reason to end, where there is one.
    pub(super) fn over(&self, args: &RecordArgs) -> Option<String> {
        if args.follow || !self.is_over() {
            return None;
        }
        let last = self.images.iter().max_by_key(|image| image.ended.map(|(_, at)| at));
        Some(match last.and_then(|image| image.ended) {
            Some((Ended::Replaced, _)) => {
                "the process replaced its program (exec) by one that cannot be traced".to_owned()
            }
            _ if self.next_image > 2 => "all traced processes exited".to_owned(),
            _ => "the process exited".to_owned(),
        })
    }

    /// Closes the books of what has ended while others go on: they are in the recording then, and
    /// their room in the kernel side is free.
    pub(super) fn close_ended(&mut self, recorder: &mut Recorder) -> Result<()> {
        if self.is_over() || self.images.iter().all(|image| image.ended.is_none()) {
            return Ok(());
        }
        let numbers: Vec<u32> =
            self.images.iter().filter(|it| it.ended.is_some()).map(|it| it.number).collect();
        let mut books = self.kernel.snapshot(Some(recorder.min_age_ns()))?;
        self.drain();
        self.learn(recorder)?;
        let (ended, open): (Vec<_>, Vec<_>) = std::mem::take(&mut self.images)
            .into_iter()
            .partition(|image| numbers.contains(&image.number));
        self.images = open;
        recorder.close(&mut books, ended);
        self.kernel.forget_images(&numbers)?;
        if self.kernel.links() > MOST_DEAD_LINKS {
            let images = &self.images;
            self.kernel.detach_ended(|pid| !images.iter().any(|image| image.pid() == pid));
        }
        Ok(())
    }

    /// Tells the recorder what came since the last time.
    pub(super) fn learn(&mut self, recorder: &mut Recorder) -> Result<()> {
        let stacks = self.kernel.new_stacks().context("failed to read the stacks")?;
        // Whose the code is that they met.
        self.rescan(|_| true);
        let images = &self.images;
        let stacks = stacks.into_iter().map(|mut stored| {
            if let Some(image) = images.iter().find(|image| image.number == stored.image) {
                image.space.symbolizer.own_unknown(&mut stored.stack.frames, stored.changes);
            }
            stored.stack
        });
        let stacks: Vec<StackDef> = stacks.collect();
        recorder.learn(&mut self.images, self.probes.take_new(), stacks);
        Ok(())
    }

    /// Libraries that arrived get their unwind tables and their probes. That a process is gone is
    /// no error here.
    pub(super) fn rescan(&mut self, which: impl Fn(&TracedImage) -> bool) {
        let before = thread_cpu_time();
        self.rescan_due = None;
        let Self { images, kernel, tables, probes, mmaps, host, .. } = self;
        for image in images.iter_mut().filter(|image| image.ended.is_none() && which(image)) {
            let followed = follow_mappings(image, kernel, tables, probes, mmaps, host);
            if let Err(error) = followed
                && !image.process.has_exited()
            {
                warn(format_args!("{error:#}"));
            }
        }
        let took = thread_cpu_time().saturating_sub(before);
        self.rescan_after = Instant::now() + took * RESCAN_PAUSES;
    }
}

/// Of the thread that asks; zero where the kernel does not tell.
fn thread_cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeVal;
    let of = |time: TimeVal| {
        let microseconds = time.tv_sec().saturating_mul(1_000_000).saturating_add(time.tv_usec());
        Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
    };
    getrusage(UsageWho::RUSAGE_THREAD)
        .map_or(Duration::ZERO, |usage| of(usage.user_time()) + of(usage.system_time()))
}

fn follow_mappings(
    image: &mut TracedImage,
    kernel: &mut Kernel,
    tables: &mut Tables,
    probes: &mut Probes,
    mmaps: &Mmaps,
    host: &HostFacts,
) -> Result<()> {
    let Some(files) = image.arrived(kernel, tables)? else { return Ok(()) };
    if files.is_empty() {
        return Ok(());
    }
    let mut planned = plan_for(&image.process, &files, host);
    mmaps.keep(&mut planned);
    probes.attach(kernel, image.pid(), &planned).map(drop)
}
