use std::fs;

use super::*;
use crate::snapshot::facts::CgroupVersion;

fn figures(file: &str, text: &str) -> BTreeMap<String, u64> {
    let mut figures = BTreeMap::new();
    parse(file, text, &mut figures);
    figures
}

#[test]
fn one_figure_is_named_by_its_file_and_others_by_file_and_key() {
    assert_eq!(figures("memory.current", "42\n"), BTreeMap::from([("memory.current".into(), 42)]));
    let stat = figures("memory.stat", "anon 1\nfile 2\n\nnonsense\nbad x\n");
    assert_eq!(
        stat,
        BTreeMap::from([("memory.stat anon".into(), 1), ("memory.stat file".into(), 2)])
    );
}

#[test]
fn no_limit_is_said_alike_by_both_versions() {
    for text in ["max\n", "9223372036854771712\n", "9223372036854710272\n"] {
        assert_eq!(figures("limit", text).get("limit"), Some(&NO_LIMIT), "{text}");
    }
    assert_eq!(figures("limit", "67108864\n").get("limit"), Some(&67_108_864));
}

fn write(directory: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(directory).unwrap();
    for (file, text) in files {
        fs::write(directory.join(file), text).unwrap();
    }
}

fn place(root: &Path) -> Place {
    Place {
        version: CgroupVersion::V2,
        path: "/a/b".to_owned(),
        directory: root.join("a/b"),
        mountpoint: root.to_owned(),
        ancestors_hidden: false,
    }
}

#[test]
fn a_cgroup_is_read_with_its_ancestors_and_what_is_below_it() {
    let root = tempfile::tempdir().unwrap();
    write(
        &root.path().join("a/b"),
        &[("memory.current", "1000"), ("memory.max", "4096"), ("memory.stat", "anon 7\nfile 8\n")],
    );
    write(&root.path().join("a"), &[("memory.max", "max"), ("memory.current", "2000")]);
    write(&root.path().join("a/b/c/d"), &[("memory.current", "10"), ("cgroup.procs", "1\n2\n")]);
    let place = place(root.path());
    let start = Instant::now();
    let facts = complete(&place, read(&place, start), start);
    let facts = facts.value().unwrap();
    assert_eq!(facts.after.figures.get("memory.stat anon"), Some(&7));
    assert_eq!(facts.after.usage_before, 1000);
    assert!(facts.after.absent.contains_key("memory.peak"), "{:?}", facts.after.absent);
    let paths: Vec<&str> = facts.limits.iter().map(|limit| limit.path.as_str()).collect();
    assert_eq!(paths, ["/a/b", "/a", "/"]);
    assert_eq!(facts.limits[1].figures.get("memory.max"), Some(&NO_LIMIT));
    let nested: Vec<(&str, u64, u32)> =
        facts.nested.iter().map(|it| (it.path.as_str(), it.usage, it.processes)).collect();
    assert_eq!(nested, [("c", 0, 0), ("c/d", 10, 2)]);
}

#[test]
fn a_cgroup_that_has_gone_is_unknown_with_its_reason() {
    let root = tempfile::tempdir().unwrap();
    let place = place(root.path());
    let start = Instant::now();
    let facts = complete(&place, read(&place, start), start);
    assert!(facts.reason().unwrap().contains("/a/b"), "{facts:?}");
}
