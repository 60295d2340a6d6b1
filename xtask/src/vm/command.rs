//! `cargo xtask vm --run -- COMMAND…`: any command in a guest, for whoever needs another kernel or
//! a cgroup of version 2. Its output comes out here, its exit code is ours.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::event::{Event, Stream, bytes};
use super::guest::{Ended, Guest};
use super::{Options, archive, build, directory, initramfs, kernels};
use crate::shell;

pub fn run(options: &Options) -> Result<ExitCode> {
    let series = match options.kernels.as_slice() {
        [] => "6.1",
        [series] => series,
        _ => bail!("--run takes one --kernel"),
    };
    let kernel = kernels::of_series(series);
    let images = archive::images(std::slice::from_ref(&kernel), options.refresh)?;
    let image = images.first().context("no image")?;
    build()?;
    let mebibytes = |count: u64| count.saturating_mul(1 << 20);
    let limit = options.memory_max.map(mebibytes);
    let task = json!({ "task": "run", "command": options.command, "memory_max_bytes": limit });
    let mut builder = initramfs(&task)?;
    for file in &options.files {
        let (here, there) = places(file)?;
        builder.any(Path::new(here), &there)?;
    }
    let initramfs = builder.finish()?;
    shell::step(&format!("{} in an emulated machine", image.package));
    let guest = Guest {
        vmlinuz: &image.vmlinuz,
        initramfs: initramfs.path(),
        disk: None,
        console: directory().join(format!("console-{}.log", std::process::id())),
        parameters: &options.parameters,
        limit: Duration::from_secs(options.limit),
    };
    end(&guest, guest.run(pass_on)?)
}

/// The command's exit code is ours.
pub(super) fn end(guest: &Guest<'_>, ended: Ended) -> Result<ExitCode> {
    // What was worth to tell of it is in `broken`.
    std::fs::remove_file(&guest.console)
        .with_context(|| format!("remove `{}`", guest.console.display()))?;
    if let Some(complaint) = ended.complaint {
        eprintln!("warning: {complaint}");
    }
    match (ended.broken, ended.told.exit_code) {
        (Some(broken), _) => bail!("{broken}"),
        (None, None) => bail!("the guest did not say how the command ended"),
        (None, Some(code)) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
    }
}

/// `HERE:THERE`, or the same absolute path on both sides.
fn places(file: &str) -> Result<(&str, String)> {
    if let Some((here, there)) = file.split_once(':') {
        return Ok((here, there.to_owned()));
    }
    let path = std::path::absolute(file).with_context(|| format!("complete `{file}`"))?;
    Ok((file, path.to_string_lossy().into_owned()))
}

/// What the command wrote, as it comes.
pub(super) fn pass_on(event: &Event) {
    let Event::Output { stream, bytes: latin1 } = event else { return };
    let bytes = bytes(latin1);
    // A reader that went away (`| head`) is no error of the guest.
    _ = match stream {
        Stream::Stdout => {
            let mut out = std::io::stdout().lock();
            out.write_all(&bytes).and_then(|()| out.flush())
        }
        Stream::Stderr => std::io::stderr().lock().write_all(&bytes),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_where_it_is_told_or_to_the_same_path() {
        assert_eq!(places("a/b:/c/d").unwrap(), ("a/b", "/c/d".to_owned()));
        assert_eq!(places("/etc/hosts").unwrap(), ("/etc/hosts", "/etc/hosts".to_owned()));
    }
}
